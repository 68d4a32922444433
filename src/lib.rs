//! Label-free pretraining of 3D medical-image encoders with observable spatial tasks.
//!
//! Reading order: [`train`] (the loop everything hangs from), [`ops`] with one small op such as
//! `ops/gelu.rs`, [`tape`] (recording, backward, memory plan), [`pretext`] (the method's three tasks),
//! [`views`] (cutting and augmenting them). `ARCHITECTURE.md` has the map, the layers and the invariants.

pub mod backend;
pub mod cli;
pub mod config;
pub mod dataset;
pub mod driver;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod image;
pub mod model;
pub mod ops;
pub mod optim;
pub mod pretext;
pub mod probe;
pub mod profile;
pub mod random;
pub mod report;
pub mod run;
pub mod scalar;
pub mod session;
pub mod shape;
pub mod tape;
pub mod train;
pub mod views;
pub mod weights;

pub use error::{Error, Result};
