//! Volumes, preparation, views, augmentation.

mod affine;
mod augment;
mod batch;
mod elementary;
mod intensity;
pub mod philox;
mod prefetch;
mod view;
mod volume;

pub use affine::{AffineMap, Geometry, Pose, affine_sample, sample_view};
pub use augment::{AugmentOptions, Axis, Intensity};
pub use batch::{Batch, BatchScratch};
pub use prefetch::{Prefetch, PrefetchOptions, VolumeSource};
pub use view::{SamplePlan, ViewOptions};
pub use volume::Volume;
