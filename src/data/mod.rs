//! Volumes, preparation, views, augmentation.

mod cache;
mod dataset;
mod doctor;
mod nifti_affine;
mod nifti_header;
mod nifti_read;
mod nifti_source;
mod normalize;
mod orient;
mod prepare;
mod resample;
mod scan;
mod sniff;
mod volume;

pub use dataset::{Case, DataSet, OnBadFile};
pub use doctor::{DoctorSummary, FileReport, FileStatus, check_files};
pub use nifti_read::{Geometry, Image, read_geometry, read_nifti};
pub use normalize::Normalize;
pub use orient::Orientation;
pub use prepare::{PrepareOptions, Spacing, prepare};
pub use resample::{resampled_extent, resize};
pub use scan::{Scan, scan};
pub use volume::Volume;
