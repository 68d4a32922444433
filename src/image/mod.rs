//! One image: its file, its voxels, where they lie in space. Not here: several images, and what training makes of them.

mod nifti;
mod orientation;
mod spacing;
mod volume;

pub use nifti::{Geometry as ImageGeometry, Image, read_geometry, read_nifti};
pub(crate) use nifti::{Suffix, directions, files_of, suffix};
pub use orientation::Orientation;
pub use spacing::Spacing;
pub use volume::Volume;
