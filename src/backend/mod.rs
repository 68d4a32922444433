//! Where calls run: memory, operand binding, and the CPU kernels that are not tied to one operation. Not here: what an
//! operation is.

mod conv_problem;
pub mod cpu;
pub mod cuda;
mod memory;

pub use conv_problem::{ConvGeometry, ConvPass};
pub use memory::{Io, MAX_OPERANDS, Memory, Span, Write};
