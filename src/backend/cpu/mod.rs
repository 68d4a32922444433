//! CPU kernels on channels-last slices: all cores, results independent of the number of threads.

pub mod conv;
pub mod norm;
pub mod parallel;
