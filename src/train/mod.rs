//! The training loop and what it writes.

mod program;

pub use program::{GradientViews, Program, ProgramOptions, TERMS};
