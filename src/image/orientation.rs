//! Turning a volume so that its axes point right, anterior and superior, by permutation and flips only.
//!
//! Pretraining targets are directions between boxes: a volume left as stored would teach one direction
//! for a scanner and its mirror image for another. No voxel is interpolated here.

use rayon::prelude::*;

use crate::image::directions;

/// Fewer voxels than this are not worth waking other threads for.
const SERIAL_MAX: usize = 1 << 16;

/// How the axes of a file lie in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orientation {
    /// The file axis (0 = x, fastest) nearest to each body axis, in the order right, anterior, superior.
    pub axis: [usize; 3],
    /// Whether that file axis runs the other way (left, posterior, inferior).
    pub flip: [bool; 3],
}

impl Orientation {
    /// The orientation of an affine: of the six ways to pair file axes with body axes, the one with the
    /// largest sum of cosines.
    ///
    /// `affine`: voxel index (x, y, z, 1) to mm (right, anterior, superior), not singular.
    pub fn of(affine: &[[f64; 4]; 3]) -> Orientation {
        const ORDERS: [[usize; 3]; 6] =
            [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let cosines = directions(affine);
        let score = |order: &[usize; 3]| (0..3).map(|r| cosines[r][order[r]].abs()).sum::<f64>();
        let mut axis = ORDERS[0];
        for order in ORDERS {
            if score(&order) > score(&axis) {
                axis = order;
            }
        }
        Orientation { axis, flip: [0, 1, 2].map(|r| cosines[r][axis[r]] < 0.0) }
    }

    /// Three letters: the side of the body towards which each file axis (x, y, z) grows, such as `PSR`.
    pub fn code(&self) -> String {
        let letters = [['R', 'L'], ['A', 'P'], ['S', 'I']];
        let mut code = ['?'; 3];
        for body in 0..3 {
            code[self.axis[body]] = letters[body][usize::from(self.flip[body])];
        }
        code.iter().collect()
    }

    /// Values along the file's axes (x, y, z), such as extents, in the order (superior, anterior, right).
    pub fn to_zyx<T: Copy>(&self, xyz: [T; 3]) -> [T; 3] {
        [xyz[self.axis[2]], xyz[self.axis[1]], xyz[self.axis[0]]]
    }

    /// Voxels in file order (x fastest, extents `dims` (x, y, z)) to (superior, anterior, right) order,
    /// right fastest.
    ///
    /// Panics if the number of voxels is not the product of `dims`.
    pub fn to_ras<T: Copy + Send + Sync>(&self, voxels: Vec<T>, dims: [usize; 3]) -> Vec<T> {
        let count = dims.iter().product::<usize>();
        assert_eq!(voxels.len(), count, "to_ras takes as many voxels as its extents say");
        if self.axis == [0, 1, 2] && self.flip == [false; 3] {
            return voxels;
        }
        let (origin, step, extent) = self.walk(dims);
        let mut out = voxels.clone();
        let fill = |(z, slab): (usize, &mut [T])| {
            for (i, value) in slab.iter_mut().enumerate() {
                let (y, x) = (i / extent[2], i % extent[2]);
                let at =
                    origin + z as isize * step[0] + y as isize * step[1] + x as isize * step[2];
                *value = voxels[at as usize];
            }
        };
        let slab = extent[1] * extent[2];
        if count < SERIAL_MAX {
            out.chunks_mut(slab).enumerate().for_each(fill);
        } else {
            out.par_chunks_mut(slab).enumerate().for_each(fill);
        }
        out
    }

    /// The reverse of [`Orientation::to_ras`]: from (superior, anterior, right) order back to the file's.
    ///
    /// `dims`: extents of the file (x, y, z). Panics if the number of voxels is not their product.
    pub fn from_ras<T: Copy>(&self, voxels: &[T], dims: [usize; 3]) -> Vec<T> {
        let count = dims.iter().product::<usize>();
        assert_eq!(voxels.len(), count, "from_ras takes as many voxels as its extents say");
        let (origin, step, extent) = self.walk(dims);
        let mut out = voxels.to_vec();
        for (i, &value) in voxels.iter().enumerate() {
            let (z, rest) = (i / (extent[1] * extent[2]), i % (extent[1] * extent[2]));
            let (y, x) = (rest / extent[2], rest % extent[2]);
            let at = origin + z as isize * step[0] + y as isize * step[1] + x as isize * step[2];
            out[at as usize] = value;
        }
        out
    }

    /// File index of the first voxel in RAS order, its change for a step along (z, y, x), the extent (z, y, x).
    fn walk(&self, dims: [usize; 3]) -> (isize, [isize; 3], [usize; 3]) {
        let stride = [1, dims[0] as isize, (dims[0] * dims[1]) as isize];
        let mut origin = 0;
        let mut step = [0; 3];
        for body in 0..3 {
            let axis = self.axis[body];
            step[2 - body] = stride[axis];
            if self.flip[body] {
                origin += stride[axis] * (dims[axis] as isize - 1);
                step[2 - body] = -stride[axis];
            }
        }
        (origin, step, self.to_zyx(dims))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// File axes that grow to posterior, superior, right: the IXI convention.
    const PSR: [[f64; 4]; 3] = [[0.0, 0.0, 2.0, 1.0], [-3.0, 0.0, 0.0, 2.0], [0.0, 4.0, 0.0, 3.0]];

    #[test]
    fn a_permuted_file_is_turned() {
        let orientation = Orientation::of(&PSR);
        assert_eq!(orientation.code(), "PSR");
        // File extents (x, y, z) = (P 2, S 3, R 2): the value is 100 p + 10 s + r.
        let mut voxels = Vec::new();
        for r in 0..2 {
            for s in 0..3 {
                for p in 0..2 {
                    voxels.push(100 * p + 10 * s + r);
                }
            }
        }
        let turned = orientation.to_ras(voxels.clone(), [2, 3, 2]);
        let mut expected = Vec::new();
        for s in 0..3 {
            for a in 0..2 {
                for r in 0..2 {
                    expected.push(100 * (1 - a) + 10 * s + r);
                }
            }
        }
        assert_eq!(turned, expected);
        assert_eq!(orientation.to_zyx([2, 3, 4]), [3, 2, 4]);
        assert_eq!(orientation.from_ras(&turned, [2, 3, 2]), voxels);
    }

    #[test]
    fn an_oblique_file_takes_the_nearest_axes() {
        let (s, c) = (0.5f64.sin(), 0.5f64.cos());
        let oblique = [[-c, s, 0.0, 0.0], [s, c, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]];
        assert_eq!(Orientation::of(&oblique).code(), "LAI");
    }
}
