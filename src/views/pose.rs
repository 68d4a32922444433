//! The geometry of a sample: an affine map of the whole volume, and views sampled through it.
//!
//! Axis order is (z, y, x) everywhere but in [`AffineMap::from_theta`]. Sampling is trilinear in voxel space; a
//! neighbour outside the volume counts as the fill value. A map without rotation, scaling and mirroring copies
//! voxels unchanged.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::Serialize;

use crate::image::Volume;

/// Voxel indices of one grid as affine functions of those of another, computed in `f64`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AffineMap {
    /// Row `a`: index along axis `a` is `m[a][0] z + m[a][1] y + m[a][2] x + m[a][3]`.
    pub matrix: [[f64; 4]; 3],
}

impl AffineMap {
    /// The map of a grid of `out_extent` voxels to one of `extent` voxels that PyTorch's `affine_grid` and
    /// `grid_sample` (align_corners off) make of `theta`.
    ///
    /// `theta`: rows and columns in the order (x, y, z), x the last axis, the last column the translation. It maps
    /// normalised output places `(2 i + 1) / M - 1` to normalised source places `q`, of index `((q + 1) L - 1) / 2`,
    /// with `M` and `L` the sizes of the axis in the output and the source.
    pub fn from_theta(theta: [[f32; 4]; 3], extent: [usize; 3], out_extent: [usize; 3]) -> Self {
        let size = extent.map(|n| n as f64);
        let out = out_extent.map(|n| n as f64);
        let matrix = std::array::from_fn(|a| {
            let row = theta[2 - a].map(f64::from);
            let linear: [f64; 3] = std::array::from_fn(|b| row[2 - b] * size[a] / out[b]);
            let first: f64 =
                (0..3).map(|b| row[2 - b] * (1.0 / out[b] - 1.0)).sum::<f64>() + row[3];
            [linear[0], linear[1], linear[2], ((first + 1.0) * size[a] - 1.0) / 2.0]
        });
        AffineMap { matrix }
    }

    /// The index that `place` is mapped to.
    pub fn apply(&self, place: [f64; 3]) -> [f64; 3] {
        self.matrix.map(|m| m[0] * place[0] + m[1] * place[1] + m[2] * place[2] + m[3])
    }

    /// The whole number of voxels the map shifts by, if that is all it does.
    pub fn shift(&self) -> Option<[i64; 3]> {
        let m = &self.matrix;
        let only = (0..3).all(|a| {
            (0..3).all(|b| m[a][b] == f64::from(u8::from(a == b))) && m[a][3] == m[a][3].trunc()
        });
        only.then(|| std::array::from_fn(|a| m[a][3] as i64))
    }
}

/// How the volume is turned: what [`Geometry::new`] makes a map of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pose {
    /// Angles about the z, y and x axis in degrees, applied as `Rz Ry Rx` from augmented to source.
    pub rotation_deg: [f32; 3],
    /// Length in the source per length in the augmented frame: above 1 a view shows more, and things smaller.
    pub scaling: f32,
    /// Axes that are mirrored.
    pub mirror: [bool; 3],
}

impl Pose {
    /// The volume as it is.
    pub const IDENTITY: Pose = Pose { rotation_deg: [0.0; 3], scaling: 1.0, mirror: [false; 3] };
}

/// The frame that the views of one sample are cut from, and its map to the voxels of the volume.
///
/// The augmented frame has the extent of the volume, or of a view where the volume is smaller (half of the
/// difference, rounded down, is put in front). All views of a sample share it: a gap between two views is exact in
/// this frame, whatever the pose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Geometry {
    /// Extent of the augmented frame in voxels.
    pub frame: [usize; 3],
    /// Rotation, scaling and mirroring about the centre of the volume, in millimetres.
    pub pose: Pose,
    /// Place in the augmented frame to index in the volume, both in voxels.
    pub to_source: AffineMap,
}

impl Geometry {
    /// The geometry of a volume of this `extent` and spacing for views of size `view`.
    pub fn new(extent: [usize; 3], spacing_mm: [f64; 3], view: [usize; 3], pose: Pose) -> Self {
        let frame: [usize; 3] = std::array::from_fn(|a| extent[a].max(view[a]));
        let turn = rotation(pose.rotation_deg.map(f64::from));
        let matrix = std::array::from_fn(|a| {
            let sign = if pose.mirror[a] { -1.0 } else { 1.0 };
            let centre = |b: usize| (extent[b] as f64 - 1.0) / 2.0;
            let linear: [f64; 3] = std::array::from_fn(|b| {
                sign * f64::from(pose.scaling) * turn[a][b] * (spacing_mm[b] / spacing_mm[a])
            });
            let moved: f64 =
                (0..3).map(|b| linear[b] * (((frame[b] - extent[b]) / 2) as f64 + centre(b))).sum();
            [linear[0], linear[1], linear[2], centre(a) - moved]
        });
        Geometry { frame, pose, to_source: AffineMap { matrix } }
    }
}

/// `Rz Ry Rx` in (z, y, x) order; a positive angle about an axis turns the next axis of (x, y, z) to the one after.
fn rotation(angles_deg: [f64; 3]) -> [[f64; 3]; 3] {
    // The crate's sine, not the system's: the map must not differ between machines.
    let [(sz, cz), (sy, cy), (sx, cx)] = angles_deg.map(|deg| libm::sincos(deg.to_radians()));
    let z = [[1.0, 0.0, 0.0], [0.0, cz, sz], [0.0, -sz, cz]];
    let y = [[cy, 0.0, -sy], [0.0, 1.0, 0.0], [sy, 0.0, cy]];
    let x = [[cx, sx, 0.0], [-sx, cx, 0.0], [0.0, 0.0, 1.0]];
    product(&product(&z, &y), &x)
}

fn product(a: &[[f64; 3]; 3], b: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    std::array::from_fn(|i| std::array::from_fn(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
}

/// Voxel types that rows of a volume are read from.
trait Voxel: Copy {
    fn to_f32(row: &[Self], out: &mut [f32]);
}

impl Voxel for f16 {
    fn to_f32(row: &[f16], out: &mut [f32]) {
        row.convert_to_f32_slice(out);
    }
}

impl Voxel for f32 {
    fn to_f32(row: &[f32], out: &mut [f32]) {
        out.copy_from_slice(row);
    }
}

/// Trilinear samples of `src` on a grid of `out_extent` voxels, through a map of its indices to those of `src`.
///
/// `src`: `extent` product many voxels, x fastest. Neighbours outside count as `fill`. Places are computed in `f32`
/// from the fractional part of the first place, so that the error is below 1e-5 voxels for grids up to 256.
///
/// # Panics
/// If `src` does not have `extent` product many voxels.
pub fn affine_sample(
    src: &[f32],
    extent: [usize; 3],
    map: &AffineMap,
    out_extent: [usize; 3],
    fill: f32,
) -> Vec<f32> {
    let mut out = vec![0.0; out_extent.iter().product()];
    gather(
        Source { voxels: src, extent, fill },
        &Places::new(map, [0; 3], out_extent, extent),
        out_extent,
        (&mut out, &mut Vec::new()),
    );
    out
}

/// Writes the view of `size` voxels that starts at `start` of the augmented frame to `out`.
///
/// `block` is scratch memory, kept between calls.
///
/// # Panics
/// If `out` does not have `size` product many elements, or the volume not `extent` product many voxels.
pub fn sample_view(
    volume: &Volume,
    geometry: &Geometry,
    start: [usize; 3],
    size: [usize; 3],
    out: &mut [f32],
    block: &mut Vec<f32>,
) {
    let source = Source { voxels: &volume.voxels[..], extent: volume.extent, fill: volume.fill };
    match Sampling::of_view(&geometry.to_source, start, size, volume.extent) {
        Sampling::Copy { first } => source.copy_box(first, size, out),
        Sampling::Trilinear(places) => gather(source, &places, size, (out, block)),
    }
}

/// Where the voxels of a view come from, in the numbers that are computed with on any processor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// Whole voxels.
    Copy {
        /// Index in the volume of the view's first voxel; may lie outside.
        first: [i64; 3],
    },
    /// Between voxels.
    Trilinear(Places),
}

/// Places in a volume as affine functions of indices in a view.
///
/// The place of voxel (z, y, x) along axis `a` is `offset_a + ((fraction_a + m_az z) + m_ay y) + m_ax x` voxels into a
/// block of the volume that holds all neighbours, in `f32` and in this order. Places beyond the block take its edge,
/// which is fill there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Places {
    /// Index in the volume of the block's first voxel, at least -1.
    pub first: [i64; 3],
    /// Extent of the block.
    pub size: [usize; 3],
    /// Integer part of the first place within the block; far outside it saturates.
    pub offset: [i32; 3],
    /// Fractional part of the first place.
    pub fraction: [f32; 3],
    /// Row `a`: steps along axis `a` for a step along z, y, x of the view.
    pub matrix: [[f32; 3]; 3],
}

impl Sampling {
    /// The view of `size` voxels at `start` of the frame that `map` takes to a volume of `extent` voxels.
    pub fn of_view(
        map: &AffineMap,
        start: [usize; 3],
        size: [usize; 3],
        extent: [usize; 3],
    ) -> Sampling {
        match map.shift() {
            Some(shift) => {
                Sampling::Copy { first: std::array::from_fn(|a| start[a] as i64 + shift[a]) }
            }
            None => Sampling::Trilinear(Places::new(map, start, size, extent)),
        }
    }
}

/// Voxels with a value outside.
struct Source<'a, T> {
    voxels: &'a [T],
    extent: [usize; 3],
    fill: f32,
}

impl<T: Voxel> Source<'_, T> {
    /// Copies the box of `size` voxels from `first`, which may lie outside in part or as a whole.
    fn copy_box(&self, first: [i64; 3], size: [usize; 3], out: &mut [f32]) {
        let [ez, ey, ex] = self.extent;
        assert_eq!(
            self.voxels.len(),
            ez * ey * ex,
            "a volume has one voxel per place of its extent"
        );
        assert_eq!(out.len(), size.iter().product::<usize>(), "a box has one value per voxel");
        let before = usize::try_from(-first[2]).unwrap_or(0).min(size[2]);
        let from = usize::try_from(first[2]).unwrap_or(0).min(ex);
        let count = (size[2] - before).min(ex - from);
        let inside = |place: i64, n: usize| usize::try_from(place).ok().filter(|&p| p < n);
        for (line, row) in out.chunks_exact_mut(size[2].max(1)).enumerate() {
            let z = inside(first[0] + (line / size[1]) as i64, ez);
            let y = inside(first[1] + (line % size[1]) as i64, ey);
            if let (Some(z), Some(y)) = (z, y) {
                let at = (z * ey + y) * ex + from;
                row[..before].fill(self.fill);
                T::to_f32(&self.voxels[at..at + count], &mut row[before..before + count]);
                row[before + count..].fill(self.fill);
            } else {
                row.fill(self.fill);
            }
        }
    }
}

impl Places {
    /// The block holds the neighbours of all places that `map` gives the box `start .. start + size`, without those
    /// that only lie further outside: from one voxel before the volume to two behind it, everything is fill already.
    fn new(map: &AffineMap, start: [usize; 3], size: [usize; 3], extent: [usize; 3]) -> Places {
        let mut block = [0; 3];
        let mut count = [0; 3];
        for a in 0..3 {
            let row = map.matrix[a];
            let (mut low, mut high) = (row[3], row[3]);
            for b in 0..3 {
                let ends =
                    [row[b] * start[b] as f64, row[b] * (start[b] + size[b].max(1) - 1) as f64];
                low += ends[0].min(ends[1]);
                high += ends[0].max(ends[1]);
            }
            // One voxel more on both sides for the rounding of the places.
            let end = extent[a] as i64;
            block[a] = (low.floor() as i64).saturating_sub(1).clamp(-1, end);
            let last = (high.floor() as i64).saturating_add(2).clamp(block[a] + 1, end + 1);
            count[a] = (last - block[a] + 1) as usize;
        }
        let first = map.apply(start.map(|s| s as f64));
        let base: [f64; 3] = first.map(f64::floor);
        Places {
            first: block,
            size: count,
            offset: std::array::from_fn(|a| (base[a] - block[a] as f64) as i32),
            fraction: std::array::from_fn(|a| (first[a] - base[a]) as f32),
            matrix: map.matrix.map(|row| [row[0] as f32, row[1] as f32, row[2] as f32]),
        }
    }
}

/// Samples a view of `size` voxels at `places`; `memory` is the result and scratch.
fn gather<T: Voxel>(
    source: Source<'_, T>,
    places: &Places,
    size: [usize; 3],
    memory: (&mut [f32], &mut Vec<f32>),
) {
    let (out, scratch) = memory;
    assert_eq!(out.len(), size.iter().product::<usize>(), "a view has one value per voxel");
    if out.is_empty() {
        return;
    }
    scratch.resize(places.size.iter().product(), 0.0);
    source.copy_box(places.first, places.size, scratch);
    let Places { offset, fraction, matrix: m, .. } = *places;
    let last = places.size.map(|n| n as i32 - 2);
    for (line, row) in out.chunks_exact_mut(size[2]).enumerate() {
        let (z, y) = ((line / size[1]) as f32, (line % size[1]) as f32);
        let begin: [f32; 3] = std::array::from_fn(|a| (fraction[a] + m[a][0] * z) + m[a][1] * y);
        for (x, value) in row.iter_mut().enumerate() {
            let at = |a: usize| split(begin[a] + m[a][2] * x as f32, offset[a], last[a]);
            *value = trilinear(scratch, places.size, [at(0), at(1), at(2)]);
        }
    }
}

/// Lower neighbour and weight of the upper one; places beyond the block take its edge, which is fill there.
#[inline(always)]
fn split(place: f32, offset: i32, last: i32) -> (usize, f32) {
    let whole = place as i32;
    let floor = whole.saturating_sub(i32::from(place < whole as f32));
    let index = offset.saturating_add(floor);
    let weight = if index < 0 || index > last { 0.0 } else { place - floor as f32 };
    (index.clamp(0, last) as usize, weight)
}

/// Interpolates along x, then y, then z. Equal neighbours give exactly their value.
#[inline(always)]
fn trilinear(block: &[f32], size: [usize; 3], [z, y, x]: [(usize, f32); 3]) -> f32 {
    let lerp = |a: f32, b: f32, w: f32| a + (b - a) * w;
    let at = (z.0 * size[1] + y.0) * size[2] + x.0;
    let line = |at: usize| lerp(block[at], block[at + 1], x.1);
    let plane = |at: usize| lerp(line(at), line(at + size[2]), y.1);
    lerp(plane(at), plane(at + size[1] * size[2]), z.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half of the output voxels apart in x, shifted and reversed in z: worked by hand from PyTorch's definition.
    #[test]
    fn theta_is_pytorchs() {
        // x' = x / 2 + 1 / 4, y' = y, z' = -z in normalised places.
        let theta = [[0.5, 0.0, 0.0, 0.25], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]];
        let map = AffineMap::from_theta(theta, [2, 1, 4], [2, 1, 4]);
        // x = 0 is normalised -3/4, goes to -1/8, index ((7/8) 4 - 1) / 2 = 5/4; each step adds 1/2.
        assert_eq!(map.apply([0.0, 0.0, 0.0]), [1.0, 0.0, 1.25]);
        assert_eq!(map.apply([1.0, 0.0, 3.0]), [0.0, 0.0, 2.75]);
        let src = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        let found = affine_sample(&src, [2, 1, 4], &map, [2, 1, 4], 0.0);
        assert_eq!(found, [11.25, 11.75, 12.25, 12.75, 1.25, 1.75, 2.25, 2.75]);
    }

    #[test]
    fn neighbours_outside_count_as_fill() {
        let mut matrix = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.5]];
        let map = AffineMap { matrix };
        let found = affine_sample(&[2.0, 4.0], [1, 1, 2], &map, [1, 1, 5], -6.0);
        assert_eq!(found, [-6.0, -2.0, 3.0, -1.0, -6.0]);
        matrix[0][3] = 0.25;
        let found = affine_sample(&[2.0, 4.0], [1, 1, 2], &AffineMap { matrix }, [1, 1, 5], -6.0);
        assert_eq!(found, [-6.0, -3.0, 0.75, -2.25, -6.0]);
    }
}
