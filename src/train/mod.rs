//! The training loop and what it writes.

pub mod atomic;
pub mod checkpoint;
pub mod events;
pub mod lock;
pub mod metrics;
mod program;
pub mod retention;
pub mod signal;

pub use program::{GradientViews, Program, ProgramOptions, TERMS};
