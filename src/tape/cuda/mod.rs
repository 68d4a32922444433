//! A planned tape in the memory of a CUDA device: where values lie, which calls are fused, what runs. Not here: the
//! plan itself, which is the CPU's as well.

mod cost;
mod fusion;
mod layout;
mod places;
mod step;
mod storage;

pub use places::Arrangement;
pub use step::CudaStep;
