//! Where calls run: memory, operand binding, and the CPU kernels that are not tied to one operation.

pub mod cpu;
pub mod cuda;
mod memory;
mod meter;

pub use memory::{Io, MAX_OPERANDS, Memory, Span};
