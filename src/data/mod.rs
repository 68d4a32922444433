//! Volumes, preparation, views, augmentation.

mod affine;
mod augment;
mod elementary;

mod intensity;
pub mod philox;
mod view;
mod volume;

pub use affine::{AffineMap, Geometry, Pose, affine_sample, sample_view};
pub use augment::{AugmentOptions, Axis, Intensity};
pub use view::{SamplePlan, ViewOptions};
pub use volume::Volume;
