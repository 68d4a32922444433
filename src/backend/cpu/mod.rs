//! CPU kernels on channels-last slices: all cores, results independent of the number of threads.

pub mod conv;
mod isa;
pub mod norm;
pub mod parallel;

mod segments;
