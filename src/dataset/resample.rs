//! Trilinear resizing, one axis after the other, and the extent that a new spacing asks for.
//!
//! Does not smooth before shrinking, as the interpolation of common deep-learning frameworks does not.

use rayon::prelude::*;

/// The extent at a new spacing: `round(old_mm / new_mm * extent)` with halves to even, at least 1.
///
/// All in axis order (z, y, x). Source: nnU-Net `compute_new_shape`.
pub fn resampled_extent(extent: [usize; 3], old_mm: [f64; 3], new_mm: [f64; 3]) -> [usize; 3] {
    [0, 1, 2].map(|a| {
        let exact = old_mm[a] / new_mm[a] * extent[a] as f64;
        (exact.round_ties_even() as usize).max(1)
    })
}

/// Resizes a volume so that its outer faces stay in place.
///
/// `src`: `from` (z, y, x) voxels, x fastest; returns `to` voxels. Sample `i` of an axis is taken at
/// `max(0, (i + 0.5) * from / to - 0.5)` between its two neighbours, the upper one clamped to the last.
/// Panics if `src` is not as long as `from` says, or an extent is 0.
///
/// Source: PyTorch `interpolate(mode="trilinear", align_corners=False)`.
pub fn resize(src: &[f32], from: [usize; 3], to: [usize; 3]) -> Vec<f32> {
    assert_eq!(
        src.len(),
        from.iter().product::<usize>(),
        "resize takes as many voxels as it is told"
    );
    assert!(from.iter().chain(&to).all(|&n| n > 0), "resize takes extents of at least 1");
    let mut shape = from;
    let mut voxels: Option<Vec<f32>> = None;
    for axis in 0..3 {
        if from[axis] != to[axis] {
            let resized = resize_axis(voxels.as_deref().unwrap_or(src), shape, axis, to[axis]);
            shape[axis] = to[axis];
            voxels = Some(resized);
        }
    }
    voxels.unwrap_or_else(|| src.to_vec())
}

/// A sample between two voxels of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tap {
    /// Lower neighbour.
    pub(crate) low: usize,
    /// Upper neighbour.
    pub(crate) high: usize,
    /// Weight of the upper one, 0 to 1.
    pub(crate) weight: f32,
}

impl Tap {
    /// Both neighbours with their weights.
    pub(crate) fn ends(self) -> [(usize, f32); 2] {
        [(self.low, 1.0 - self.weight), (self.high, self.weight)]
    }
}

/// The `to` samples of a line of `from` voxels.
pub(crate) fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|i| {
            let at = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
            let low = (at as usize).min(from - 1);
            Tap { low, high: (low + 1).min(from - 1), weight: (at - low as f64) as f32 }
        })
        .collect()
}

fn resize_axis(src: &[f32], shape: [usize; 3], axis: usize, to: usize) -> Vec<f32> {
    let from = shape[axis];
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let taps = taps(from, to);
    let mut out = vec![0.0; outer * to * inner];
    let mix = |a: f32, b: f32, w: f32| a * (1.0 - w) + b * w;
    if inner == 1 {
        out.par_chunks_mut(to).zip(src.par_chunks(from)).for_each(|(line, src)| {
            for (value, tap) in line.iter_mut().zip(&taps) {
                *value = mix(src[tap.low], src[tap.high], tap.weight);
            }
        });
        return out;
    }
    out.par_chunks_mut(inner).enumerate().for_each(|(row, line)| {
        let (block, Tap { low, high, weight }) = (row / to * from, taps[row % to]);
        let a = &src[(block + low) * inner..][..inner];
        let b = &src[(block + high) * inner..][..inner];
        for ((value, &a), &b) in line.iter_mut().zip(a).zip(b) {
            *value = mix(a, b, weight);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_resized_by_the_half_voxel_rule() {
        // 4 -> 2 samples at 0.5 and 2.5; 2 -> 4 at 0, 0.25, 0.75, 1.25 (clamped to the last voxel).
        assert_eq!(resize(&[0.0, 1.0, 5.0, 9.0], [1, 1, 4], [1, 1, 2]), [0.5, 7.0]);
        assert_eq!(resize(&[0.0, 8.0], [1, 1, 2], [1, 1, 4]), [0.0, 2.0, 6.0, 8.0]);
    }

    #[test]
    fn each_axis_is_resized_on_its_own() {
        // A linear function stays linear away from the faces: sample i sits at (i + 0.5) * from/to - 0.5.
        let (from, to) = ([6, 5, 4], [9, 3, 8]);
        let mut src = Vec::new();
        for z in 0..from[0] {
            for y in 0..from[1] {
                for x in 0..from[2] {
                    src.push((100 * z + 10 * y + x) as f32);
                }
            }
        }
        let out = resize(&src, from, to);
        let at = |i: usize, a: usize| {
            let p = (i as f64 + 0.5) * from[a] as f64 / to[a] as f64 - 0.5;
            p.clamp(0.0, from[a] as f64 - 1.0)
        };
        for (i, &value) in out.iter().enumerate() {
            let (z, y, x) = (i / (to[1] * to[2]), i / to[2] % to[1], i % to[2]);
            let exact = 100.0 * at(z, 0) + 10.0 * at(y, 1) + at(x, 2);
            // Three float32 blends of numbers up to 600: 3 * 2^-24 * 2 * 600.
            assert!((f64::from(value) - exact).abs() < 2.2e-4, "{z} {y} {x}: {value} {exact}");
        }
    }

    #[test]
    fn the_extent_follows_the_spacing() {
        let extent = resampled_extent([26, 320, 1], [5.5, 0.75, 1.0], [1.0, 1.0, 9.0]);
        assert_eq!(extent, [143, 240, 1]);
    }
}
