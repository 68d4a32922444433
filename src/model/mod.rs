//! Networks as functions that record onto a tape.

mod encoder;
mod init;
mod weights;

pub use encoder::{ResEncUNet, Stage};
pub use init::{initial_value, initial_values, initialise};
pub use weights::Weights;
