//! Volumes, preparation, views, augmentation.

mod elementary;
pub mod philox;
mod volume;

pub use volume::Volume;
