//! NIfTI files, whatever state they are in: header, voxels, place in space. Not here: other formats.

mod affine;
mod header;
mod read;
mod sniff;
mod source;

pub(crate) use affine::directions;
pub(crate) use read::files_of;
pub use read::{Geometry, Image, read_geometry, read_nifti};
pub(crate) use source::{Suffix, suffix};
