//! Views of a volume: where they lie, what augmentation does to them, and batches of them, cut on the CPU or on a CUDA
//! device. Not here:
//! what is asked about them.

mod augment;
mod batch;
mod cuda;
pub mod geometry;
mod hiding;
mod intensity;
mod plan;
mod pose;
mod prefetch;

pub use augment::{AugmentOptions, Axis, Intensity};
pub use batch::{Batch, BatchScratch};
pub use cuda::{DeviceViews, DeviceVolume, PoolOptions, ViewMaker};
pub use hiding::Hiding;
pub use plan::{SamplePlan, ViewOptions};
pub use pose::{AffineMap, Geometry, Places, Pose, Sampling, affine_sample, sample_view};
pub use prefetch::{Prefetch, PrefetchOptions, Upcoming, VolumeSource};
