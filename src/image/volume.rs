//! A prepared volume: oriented to RAS, at the common spacing, normalised, in half precision.

use half::f16;

/// One scan as training sees it. Axis order is (z, y, x) = (superior, anterior, right): the index of an axis
/// grows towards that side of the body.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Extent in voxels, (z, y, x).
    pub extent: [usize; 3],
    /// Edge lengths of a voxel in millimetres, (z, y, x).
    pub spacing_mm: [f64; 3],
    /// The value that stands outside the volume (padding, rotation): its smallest voxel.
    pub fill: f32,
    /// Voxels, x fastest; `extent` product many.
    pub voxels: Vec<f16>,
}
