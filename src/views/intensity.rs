//! Applies drawn intensity changes to the voxels of one view.
//!
//! Every function here keeps finite values finite, constant views included. Sums run in `f64` in a fixed order;
//! what a kernel would compute per voxel runs in `f32`.

use crate::random::elementary::{exp, ln};
use crate::random::philox::Stream;
use crate::views::augment::Intensity;

/// Scratch memory of [`apply`], kept between calls.
#[derive(Debug, Default)]
pub(super) struct FilterScratch {
    filtered: Vec<f32>,
    taps: Taps,
}

/// Applies the changes to a view of `size` voxels, x fastest, in the order of the fields of [`Intensity`].
///
/// `noise`: the stream of the noise, whose normal number `i` belongs to voxel `i`.
pub(super) fn apply(
    changes: &Intensity,
    noise: &Stream,
    size: [usize; 3],
    view: &mut [f32],
    scratch: &mut FilterScratch,
) {
    if let Some(std) = changes.noise_std {
        add_noise(view, std, noise);
    }
    if let Some(sigma) = changes.blur_sigma {
        for axis in 0..3 {
            scratch.taps.set_gaussian(size[axis], sigma[axis]);
            filter(view, size, axis, scratch);
        }
    }
    if let Some(factor) = changes.brightness {
        view.iter_mut().for_each(|v| *v *= factor);
    }
    if let Some(factor) = changes.contrast {
        scale_contrast(view, factor);
    }
    if changes.low_resolution.is_some() {
        for axis in 0..3 {
            scratch.taps.set_low_resolution(size[axis], changes.low_extent(size[axis]));
            filter(view, size, axis, scratch);
        }
    }
    if let Some(exponent) = changes.gamma_inverted {
        view.iter_mut().for_each(|v| *v = -*v);
        change_gamma(view, exponent);
        view.iter_mut().for_each(|v| *v = -*v);
    }
    if let Some(exponent) = changes.gamma {
        change_gamma(view, exponent);
    }
}

/// Adds Gaussian noise of standard deviation `std`.
fn add_noise(view: &mut [f32], std: f32, noise: &Stream) {
    for (index, four) in view.chunks_mut(4).enumerate() {
        let normals = noise.normals(index as u32);
        four.iter_mut().zip(normals).for_each(|(v, n)| *v += std * n);
    }
}

/// Stretches values about their mean and clamps them to the range they had.
fn scale_contrast(view: &mut [f32], factor: f32) {
    let (low, high) = range(view);
    let mean = mean(view) as f32;
    view.iter_mut().for_each(|v| *v = ((*v - mean) * factor + mean).clamp(low, high));
}

/// Raises values, mapped to `[0, 1]`, to a power; restores range, then mean and standard deviation.
///
/// A view without contrast stays as it is.
fn change_gamma(view: &mut [f32], exponent: f32) {
    let (low, high) = range(view);
    let width = high - low;
    if width.is_nan() || width <= 1e-7 {
        return;
    }
    let before = moments(view);
    for v in view.iter_mut() {
        let unit = ((*v - low) / width).max(f32::MIN_POSITIVE);
        *v = exp(exponent * ln(unit)) * width + low;
    }
    let after = moments(view);
    let scale = (before.1 / after.1.max(1e-8)) as f32;
    let (mean_before, mean_after) = (before.0 as f32, after.0 as f32);
    view.iter_mut().for_each(|v| *v = (*v - mean_after) * scale + mean_before);
}

/// Smallest and largest value.
fn range(view: &[f32]) -> (f32, f32) {
    view.iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

/// Mean and population standard deviation.
fn moments(view: &[f32]) -> (f64, f64) {
    let mean = mean(view);
    let variance = sum(view, |v| (v - mean) * (v - mean)) / view.len() as f64;
    (mean, variance.sqrt())
}

fn mean(view: &[f32]) -> f64 {
    sum(view, |v| v) / view.len() as f64
}

/// Sum over the view in eight interleaved partial sums, so that it vectorises in a fixed order.
fn sum(view: &[f32], of: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = view.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&v| of(f64::from(v))).sum();
    for eight in chunks {
        lanes.iter_mut().zip(eight).for_each(|(lane, &v)| *lane += of(f64::from(v)));
    }
    lanes.iter().sum::<f64>() + rest
}

/// A linear operator along one axis: output `i` is the sum of `width` weighted inputs.
#[derive(Debug, Default)]
struct Taps {
    width: usize,
    /// `[n][width]`: input index and weight.
    taps: Vec<(usize, f32)>,
}

impl Taps {
    /// Gaussian of standard deviation `sigma` voxels, cut at 4 sigma and normalised; edge values continue outside.
    fn set_gaussian(&mut self, n: usize, sigma: f32) {
        let radius = (4.0 * sigma).ceil().min(n as f32) as usize;
        self.width = 2 * radius + 1;
        self.taps.clear();
        let weight = |k: usize| {
            let distance = k.abs_diff(radius) as f32 / sigma.max(1e-3);
            exp(-0.5 * distance * distance)
        };
        let total: f32 = (0..self.width).map(weight).sum();
        for i in 0..n {
            self.taps.extend((0..self.width).map(|k| {
                let at = (i + k).saturating_sub(radius).min(n - 1);
                (at, weight(k) / total)
            }));
        }
    }

    /// `m` voxels taken by nearest neighbour (index `floor((i + 1/2) n / m)`), then stretched back by
    /// linear interpolation between voxel centres, edge values continued. Along three axes the two steps are one
    /// operator per axis.
    fn set_low_resolution(&mut self, n: usize, m: usize) {
        self.width = 2;
        self.taps.clear();
        let nearest = |i: usize| (2 * i + 1) * n / (2 * m);
        for i in 0..n {
            let place = ((i as f32 + 0.5) * m as f32 / n as f32 - 0.5).clamp(0.0, (m - 1) as f32);
            let low = place as usize;
            let weight = place - low as f32;
            self.taps.push((nearest(low), 1.0 - weight));
            self.taps.push((nearest((low + 1).min(m - 1)), weight));
        }
    }
}

/// Applies the taps of the scratch along an axis of the view.
fn filter(view: &mut [f32], size: [usize; 3], axis: usize, scratch: &mut FilterScratch) {
    let FilterScratch { filtered, taps: Taps { width, taps } } = scratch;
    filtered.resize(view.len(), 0.0);
    let n = size[axis];
    let inner: usize = size[axis + 1..].iter().product();
    for (out, slab) in filtered.chunks_exact_mut(n * inner).zip(view.chunks_exact(n * inner)) {
        for (row, taps) in out.chunks_exact_mut(inner).zip(taps.chunks_exact(*width)) {
            if let [value] = row {
                *value = taps.iter().map(|&(at, weight)| slab[at] * weight).sum();
                continue;
            }
            row.fill(0.0);
            for &(at, weight) in taps {
                let source = &slab[at * inner..][..inner];
                row.iter_mut().zip(source).for_each(|(out, &v)| *out += v * weight);
            }
        }
    }
    view.copy_from_slice(filtered);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::philox::{Purpose, SampleKey};

    const SIZE: [usize; 3] = [6, 8, 10];

    fn noise() -> Stream {
        SampleKey { seed: 1, step: 2, sample: 3 }.view(0, Purpose::NoiseField)
    }

    /// A view with structure: values from -2 to 3.
    fn pattern() -> Vec<f32> {
        (0..480).map(|i| ((i * i * 31) % 501) as f32 / 100.0 - 2.0).collect()
    }

    fn run(changes: &Intensity, view: &[f32]) -> Vec<f32> {
        let mut out = view.to_vec();
        apply(changes, &noise(), SIZE, &mut out, &mut FilterScratch::default());
        out
    }

    fn each_change() -> Vec<(&'static str, Intensity)> {
        let none = Intensity::default();
        vec![
            ("noise", Intensity { noise_std: Some(0.1), ..none.clone() }),
            ("blur", Intensity { blur_sigma: Some([0.5, 0.8, 1.0]), ..none.clone() }),
            ("brightness", Intensity { brightness: Some(0.75), ..none.clone() }),
            ("contrast", Intensity { contrast: Some(1.25), ..none.clone() }),
            ("low resolution", Intensity { low_resolution: Some(0.5), ..none.clone() }),
            ("inverted gamma", Intensity { gamma_inverted: Some(1.5), ..none.clone() }),
            ("gamma", Intensity { gamma: Some(0.7), ..none }),
        ]
    }

    #[test]
    fn a_constant_view_stays_finite_and_nearly_constant() {
        for (name, changes) in each_change() {
            for constant in [0.0, 1.0, -3.5, 65504.0, 6e-8] {
                for value in run(&changes, &[constant; 480]) {
                    let factor = changes.brightness.unwrap_or(1.0);
                    let slack = changes.noise_std.map_or(0.0, |s| s * 6.0) + constant.abs() * 1e-6;
                    assert!(
                        (value - constant * factor).abs() <= slack,
                        "{name}: {constant} became {value}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_drawn_changes_nothing() {
        assert_eq!(run(&Intensity::default(), &pattern()), pattern());
        for (name, changes) in each_change() {
            assert_ne!(run(&changes, &pattern()), pattern(), "{name}");
        }
    }

    #[test]
    fn noise_is_addressed_by_voxel() {
        let found = run(&Intensity { noise_std: Some(0.25), ..Intensity::default() }, &[0.0; 480]);
        assert_eq!(found[13], 0.25 * noise().normal_at(13));
        assert_eq!(found[476], 0.25 * noise().normal_at(476));
    }

    #[test]
    fn blur_spreads_a_point_as_a_gaussian() {
        let mut point = vec![0.0; 480];
        point[(3 * 8 + 4) * 10 + 5] = 1.0;
        let found =
            run(&Intensity { blur_sigma: Some([0.5, 0.8, 1.0]), ..Intensity::default() }, &point);
        let weight = |d: f64, sigma: f64| {
            let r = (4.0 * sigma).ceil() as i32;
            let g = |d: f64| (-0.5 * (d / sigma).powi(2)).exp();
            g(d) / (-r..=r).map(|k| g(f64::from(k))).sum::<f64>()
        };
        for (i, &value) in found.iter().enumerate() {
            let (z, y, x) = (i / 80, i / 10 % 8, i % 10);
            // At the edges outside voxels repeat the edge's, which are 0 within reach of the point but for y and x.
            if y == 0 || y == 7 || x == 0 || x == 9 {
                continue;
            }
            let [dz, dy, dx] =
                [(z, 3), (y, 4), (x, 5)].map(|(a, b): (usize, usize)| a.abs_diff(b) as f64);
            let expected = weight(dz, 0.5) * weight(dy, 0.8) * weight(dx, 1.0);
            let expected = if dz > 2.0 { 0.0 } else { expected };
            assert!((f64::from(value) - expected).abs() < 1e-6, "{z} {y} {x}: {value} {expected}");
        }
        // A sigma of 0 leaves the point alone.
        assert_eq!(
            run(&Intensity { blur_sigma: Some([0.0; 3]), ..Intensity::default() }, &point),
            point
        );
    }

    #[test]
    fn contrast_keeps_mean_and_range() {
        let view = pattern();
        let half = run(&Intensity { contrast: Some(0.5), ..Intensity::default() }, &view);
        assert!((mean(&half) - mean(&view)).abs() < 1e-6);
        assert!((moments(&half).1 / moments(&view).1 - 0.5).abs() < 1e-6);
        let double = run(&Intensity { contrast: Some(2.0), ..Intensity::default() }, &view);
        assert_eq!(range(&double), range(&view));
    }

    #[test]
    fn low_resolution_takes_nearest_and_interpolates_back() {
        // Along x: 10 voxels to 5, those at 1, 3, 5, 7, 9; then places -1/4 (clamped), 1/4, 3/4, 5/4 ...
        let view: Vec<f32> = (0..480).map(|i| ((i % 10) * (i % 10)) as f32).collect();
        let found = run(&Intensity { low_resolution: Some(0.5), ..Intensity::default() }, &view);
        let expected = [1.0, 3.0, 7.0, 13.0, 21.0, 31.0, 43.0, 57.0, 73.0, 81.0];
        for row in found.chunks_exact(10) {
            assert_eq!(row, expected);
        }
        assert_eq!(
            run(&Intensity { low_resolution: Some(1.0), ..Intensity::default() }, &view),
            view
        );
    }

    #[test]
    fn gamma_keeps_order_mean_and_deviation() {
        let view = pattern();
        for changes in [
            Intensity { gamma: Some(1.5), ..Intensity::default() },
            Intensity { gamma_inverted: Some(0.7), ..Intensity::default() },
        ] {
            let found = run(&changes, &view);
            let (before, after) = (moments(&view), moments(&found));
            assert!((before.0 - after.0).abs() < 1e-6 && (before.1 - after.1).abs() < 1e-6);
            let mut order: Vec<usize> = (0..480).collect();
            order.sort_by(|&a, &b| view[a].total_cmp(&view[b]));
            assert!(order.windows(2).all(|w| found[w[0]] <= found[w[1]]));
        }
        // Before mean and deviation are restored, the middle of the range goes to (1/2)^gamma.
        let skew = |v: &[f32]| {
            let (mean, std) = moments(v);
            v.iter().map(|&x| ((f64::from(x) - mean) / std).powi(3)).sum::<f64>()
        };
        let steep = run(&Intensity { gamma: Some(1.5), ..Intensity::default() }, &view);
        let inverse = run(&Intensity { gamma_inverted: Some(1.5), ..Intensity::default() }, &view);
        assert!(skew(&steep) > skew(&view) && skew(&inverse) < skew(&view));
    }
}
