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

impl Volume {
    /// Values that are shown as black and as white: the 1st and the 99.5th percentile, of every 31st voxel, which is
    /// enough for both, and a step that divides no usual row.
    ///
    /// # Panics
    /// If there is no voxel.
    pub fn grey_window(&self) -> [f32; 2] {
        let mut some: Vec<f32> = self.voxels.iter().step_by(31).copied().map(f16::to_f32).collect();
        some.sort_unstable_by(f32::total_cmp);
        let at = |share: f64| some[((some.len() - 1) as f64 * share) as usize];
        [at(0.01), at(0.995)]
    }
}
