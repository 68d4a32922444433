//! CPU kernels on channels-last slices: all cores, results independent of the number of threads.

pub mod conv;
mod conv_dense;
mod conv_narrow;
mod conv_pack;
mod conv_plan;
mod conv_slab;
#[cfg(test)]
mod conv_tests;
mod conv_wgrad;
mod isa;
pub mod norm;
pub mod parallel;

mod segments;
mod tile;
