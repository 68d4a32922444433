//! Volumes, preparation, views, augmentation.
