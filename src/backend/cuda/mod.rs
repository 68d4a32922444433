//! The CUDA backend: how values are stored on the device, the queue calls launch into, and times of launches. Not here:
//! what is launched.

mod meter;
mod queue;
mod storage;

pub use meter::{Repeats, Time, Timed};
pub use queue::{Queue, blocks};
pub use storage::{DevSpan, Storage};
