//! Training views cut on a CUDA device, from volumes that lie in its memory. Not here: the kernels, which are in
//! `kernels/view.cu`.

mod pipeline;
mod pool;
mod sampler;

pub use pipeline::ViewMaker;
pub use pool::PoolOptions;
pub use sampler::{DeviceViews, DeviceVolume};
