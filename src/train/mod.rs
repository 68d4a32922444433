//! The training loop, and what is done with a run later. Not here: what a step computes, and what is written.

mod files;
mod observe;
mod options;
mod probing;
mod run;
pub mod signals;
mod trainer;

pub use observe::{ObserveOptions, observe};
pub use options::RunOptions;
pub use run::run;
