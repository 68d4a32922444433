//! Volumes, preparation, views, augmentation.

mod affine;
mod augment;
mod batch;
mod cache;
mod dataset;
mod doctor;
mod elementary;
mod intensity;
mod nifti_affine;
mod nifti_header;
mod nifti_read;
mod nifti_source;
mod normalize;
mod orient;
pub mod philox;
mod prefetch;
mod prepare;
mod resample;
mod scan;
mod sniff;
mod view;
mod volume;

pub use affine::{AffineMap, Geometry, Pose, affine_sample, sample_view};
pub use augment::{AugmentOptions, Axis, Intensity};
pub use batch::{Batch, BatchScratch};
pub use dataset::{Case, DataSet, OnBadFile};
pub use doctor::{DoctorSummary, FileReport, FileStatus, check_files};
pub use nifti_read::{Geometry as ImageGeometry, Image, read_geometry, read_nifti};
pub use normalize::Normalize;
pub use orient::Orientation;
pub use prefetch::{Prefetch, PrefetchOptions, VolumeSource};
pub use prepare::{PrepareOptions, Spacing, prepare};
pub use resample::{resampled_extent, resize};
pub use scan::{Scan, scan};
pub use view::{SamplePlan, ViewOptions};
pub use volume::Volume;
