//! Networks as functions that record onto a tape.

mod encoder;
mod init;
mod weights;

pub use encoder::{ResEncUNet, Stage};
pub use init::{initialise, start, starts};
pub use weights::Weights;
