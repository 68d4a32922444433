//! Label-free pretraining of 3D medical-image encoders with observable spatial tasks.
//!
//! Reading order: [`train`] (the loop everything hangs from), [`ops`] with one small op such as
//! `ops/gelu.rs`, [`tape`] (recording, backward, memory plan), [`task`] (the method's three tasks),
//! [`data`] (volumes, views, augmentation). `ARCHITECTURE.md` has the map and the invariants.
//!
//! Layers import only downward: `driver < backend < ops < tape < {optim, model, task} < train < cli`,
//! with `data` and `report` beside them.

pub mod backend;
pub mod cli;
pub mod data;
pub mod driver;
pub mod error;
pub mod model;
pub mod ops;
pub mod optim;
pub mod report;
pub mod scalar;
pub mod shape;
pub mod tape;
pub mod task;
pub mod train;

pub use error::{Error, Result};
