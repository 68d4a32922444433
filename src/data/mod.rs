//! Volumes, preparation, views, augmentation.

mod volume;

pub use volume::Volume;
