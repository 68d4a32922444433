//! Instance norm of one sample, `[voxels, C]`, split over voxels in fixed parts.

use multiversion::multiversion;
use rayon::prelude::*;

use super::parallel;
use crate::scalar::Scalar;

/// Nothing is divided by a smaller variance than this.
const EPS: f64 = 1e-5;
/// Channels summed at once: their sums stay in registers.
const LANES: usize = 16;
/// Voxels summed in the working precision before the sum moves to f64.
const RUN: usize = 32;

/// Scratch elements for a sample of `len` elements: four per part and channel, and two per channel for the result.
pub fn workspace(len: usize, channels: usize) -> usize {
    (4 * parallel::parts(len) + 2) * channels
}

/// Sums of two quantities per channel over all voxels, in f64, by fixed parts: `f(voxels, first_channel, sums)` adds the
/// sums of channels `first_channel..` of a range of voxels. A sum is kept as two numbers of the working precision, so
/// no bit that f64 holds and that matters is lost on the way.
fn channel_sums<T: Scalar>(
    len: usize,
    channels: usize,
    work: &mut [T],
    f: impl Fn(std::ops::Range<usize>, usize, &mut [[f64; LANES]; 2]) + Sync,
    mut result: impl FnMut(usize, f64, f64),
) {
    let voxels = len / channels;
    let count = parallel::parts(len);
    let partial = &mut work[..4 * count * channels];
    let body = |(i, out): (usize, &mut [T])| {
        let range = parallel::part(voxels, count, i);
        for first in (0..channels).step_by(LANES) {
            let mut sums = [[0.0; LANES]; 2];
            f(range.clone(), first, &mut sums);
            for lane in 0..LANES.min(channels - first) {
                for (which, sum) in sums.iter().enumerate() {
                    let high = T::from_f64(sum[lane]);
                    let at = 4 * (first + lane) + 2 * which;
                    out[at] = high;
                    out[at + 1] = T::from_f64(sum[lane] - high.to_f64());
                }
            }
        }
    };
    if count == 1 {
        body((0, &mut *partial));
    } else {
        partial.par_chunks_mut(4 * channels).enumerate().for_each(body);
    }
    for c in 0..channels {
        let total = |which: usize| -> f64 {
            (0..count)
                .map(|i| {
                    let at = 4 * (i * channels + c) + 2 * which;
                    partial[at].to_f64() + partial[at + 1].to_f64()
                })
                .sum()
        };
        result(c, total(0), total(1));
    }
}

/// Mean and `1 / sqrt(var + eps)` of each channel into `stats [C, 2]`. Sums are taken relative to the first voxel, so
/// a large common offset costs no precision.
pub fn statistics<T: Scalar>(x: &[T], stats: &mut [T], work: &mut [T]) {
    let channels = stats.len() / 2;
    let voxels = (x.len() / channels) as f64;
    let sums = |range: std::ops::Range<usize>, first: usize, sums: &mut [[f64; LANES]; 2]| {
        shifted_sums(x, channels, range, first, sums);
    };
    channel_sums(x.len(), channels, work, sums, |c, sum, square| {
        let mean = sum / voxels;
        let variance = (square / voxels - mean * mean).max(0.0);
        stats[2 * c] = T::from_f64(x[c].to_f64() + mean);
        stats[2 * c + 1] = T::from_f64(1.0 / (variance + EPS).sqrt());
    });
}

#[multiversion(targets = "simd")]
fn shifted_sums<T: Scalar>(
    x: &[T],
    channels: usize,
    range: std::ops::Range<usize>,
    first: usize,
    sums: &mut [[f64; LANES]; 2],
) {
    let lanes = LANES.min(channels - first);
    let mut shift = [T::ZERO; LANES];
    shift[..lanes].copy_from_slice(&x[first..first + lanes]);
    let rows = &x[range.start * channels..range.end * channels];
    for run in rows.chunks(RUN * channels) {
        let (mut s, mut q) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        for row in run.chunks_exact(channels) {
            if let Some(row) = row[first..].first_chunk::<LANES>() {
                for l in 0..LANES {
                    let d = row[l] - shift[l];
                    s[l] += d;
                    q[l] = d.mul_add(d, q[l]);
                }
            } else {
                for l in 0..lanes {
                    let d = row[first + l] - shift[l];
                    s[l] += d;
                    q[l] = d.mul_add(d, q[l]);
                }
            }
        }
        for l in 0..LANES {
            sums[0][l] += s[l].to_f64();
            sums[1][l] += q[l].to_f64();
        }
    }
}

/// The forward map of one sample.
pub struct Apply<'a, T> {
    /// Mean and rstd, `[C, 2]`.
    pub stats: &'a [T],
    /// Scale, `[C]`.
    pub gamma: &'a [T],
    /// Shift, `[C]`.
    pub beta: &'a [T],
    /// Slope of the leaky ReLU, if one follows.
    pub slope: Option<f64>,
}

impl<T: Scalar> Apply<'_, T> {
    /// Writes `y` from `x` and the residual.
    pub fn run(&self, x: &[T], residual: Option<&[T]>, y: &mut [T]) {
        let slope = T::from_f64(self.slope.unwrap_or(1.0));
        parallel::chunks(y, self.gamma.len(), |at, y| {
            let range = at..at + y.len();
            apply(self, slope, &x[range.clone()], residual.map(|r| &r[range]), y);
        });
    }
}

#[multiversion(targets = "simd")]
fn apply<T: Scalar>(a: &Apply<'_, T>, slope: T, x: &[T], residual: Option<&[T]>, y: &mut [T]) {
    let channels = a.gamma.len();
    let mut coefficients = [[T::ZERO; LANES]; 3];
    for first in (0..channels).step_by(LANES) {
        let lanes = LANES.min(channels - first);
        for l in 0..lanes {
            let c = first + l;
            coefficients[0][l] = a.stats[2 * c];
            coefficients[1][l] = a.stats[2 * c + 1] * a.gamma[c];
            coefficients[2][l] = a.beta[c];
        }
        let [mean, scale, shift] = &coefficients;
        for (v, row) in y.chunks_exact_mut(channels).enumerate() {
            let at = v * channels + first;
            let value = |l: usize, r: T| {
                let value = (x[at + l] - mean[l]).mul_add(scale[l], shift[l]) + r;
                if value > T::ZERO { value } else { value * slope }
            };
            let row = &mut row[first..first + lanes];
            match (residual, row.first_chunk_mut::<LANES>()) {
                (None, Some(row)) => {
                    let x = &x[at..at + LANES];
                    for l in 0..LANES {
                        let value = (x[l] - mean[l]).mul_add(scale[l], shift[l]);
                        row[l] = if value > T::ZERO { value } else { value * slope };
                    }
                }
                (Some(r), Some(row)) => {
                    let (x, r) = (&x[at..at + LANES], &r[at..at + LANES]);
                    for l in 0..LANES {
                        let value = (x[l] - mean[l]).mul_add(scale[l], shift[l]) + r[l];
                        row[l] = if value > T::ZERO { value } else { value * slope };
                    }
                }
                (r, None) => {
                    for (l, y) in row.iter_mut().enumerate() {
                        *y = value(l, r.map_or(T::ZERO, |r| r[at + l]));
                    }
                }
            }
        }
    }
}

/// One sample of the backward pass.
pub struct Slice<'a, T> {
    /// The normalised input.
    pub x: &'a [T],
    /// The output, whose sign is that of the activation's input; none without activation.
    pub y: Option<&'a [T]>,
    /// Gradient of the output.
    pub dy: &'a [T],
    /// Mean and rstd, `[C, 2]`.
    pub stats: &'a [T],
    /// Scale, `[C]`.
    pub gamma: &'a [T],
    /// Slope of the leaky ReLU, if one follows.
    pub slope: Option<f64>,
}

impl<T: Scalar> Slice<'_, T> {
    /// Gradient before the activation, at element `i`.
    #[inline(always)]
    fn before(&self, slope: T, i: usize) -> T {
        match self.y {
            Some(y) if y[i] <= T::ZERO => self.dy[i] * slope,
            _ => self.dy[i],
        }
    }

    fn slope(&self) -> T {
        T::from_f64(self.slope.unwrap_or(1.0))
    }

    /// `sum g` and `sum g xhat` per channel, `[C, 2]`, with `g` the gradient before the activation: the gradients of
    /// beta and gamma.
    pub fn sums<'w>(&self, work: &'w mut [T]) -> &'w [T] {
        let channels = self.gamma.len();
        let (work, result) = work.split_at_mut(work.len() - 2 * channels);
        let sums = |range: std::ops::Range<usize>, first: usize, sums: &mut [[f64; LANES]; 2]| {
            gradient_sums(self, range, first, sums);
        };
        channel_sums(self.x.len(), channels, work, sums, |c, g, gx| {
            result[2 * c] = T::from_f64(g);
            result[2 * c + 1] = T::from_f64(gx);
        });
        result
    }

    /// `dx = gamma rstd (g - mean g - xhat mean (g xhat))`, and the residual's gradient `g` if it is wanted.
    pub fn input_gradient(&self, sums: &[T], dx: (&mut [T], bool), dres: Option<(&mut [T], bool)>) {
        let channels = self.gamma.len();
        let (dx, add) = dx;
        let body = |at: usize, dx: &mut [T]| input_gradient(self, sums, at, dx, add);
        match dres {
            None => parallel::chunks(dx, channels, body),
            Some((dres, add_res)) => parallel::chunks2(dx, dres, channels, |at, dx, dres| {
                input_gradient(self, sums, at, dx, add);
                residual_gradient(self, at, dres, add_res);
            }),
        }
    }

    /// Only the residual's gradient.
    pub fn residual_gradient(&self, dres: &mut [T], add: bool) {
        parallel::chunks(dres, self.gamma.len(), |at, dres| residual_gradient(self, at, dres, add));
    }
}

#[multiversion(targets = "simd")]
fn gradient_sums<T: Scalar>(
    s: &Slice<'_, T>,
    range: std::ops::Range<usize>,
    first: usize,
    sums: &mut [[f64; LANES]; 2],
) {
    let channels = s.gamma.len();
    let lanes = LANES.min(channels - first);
    let slope = s.slope();
    let (mut mean, mut rstd) = ([T::ZERO; LANES], [T::ZERO; LANES]);
    for l in 0..lanes {
        mean[l] = s.stats[2 * (first + l)];
        rstd[l] = s.stats[2 * (first + l) + 1];
    }
    let mut at = range.start;
    while at < range.end {
        let stop = (at + RUN).min(range.end);
        let (mut g, mut gx) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        for v in at..stop {
            let i = v * channels + first;
            if lanes == LANES {
                let (x, dy) = (&s.x[i..i + LANES], &s.dy[i..i + LANES]);
                let y = s.y.map(|y| &y[i..i + LANES]);
                for l in 0..LANES {
                    let before = match y {
                        Some(y) => dy[l] * if y[l] > T::ZERO { T::ONE } else { slope },
                        None => dy[l],
                    };
                    g[l] += before;
                    gx[l] = before.mul_add((x[l] - mean[l]) * rstd[l], gx[l]);
                }
            } else {
                for l in 0..lanes {
                    let before = s.before(slope, i + l);
                    g[l] += before;
                    gx[l] = before.mul_add((s.x[i + l] - mean[l]) * rstd[l], gx[l]);
                }
            }
        }
        for l in 0..LANES {
            sums[0][l] += g[l].to_f64();
            sums[1][l] += gx[l].to_f64();
        }
        at = stop;
    }
}

#[multiversion(targets = "simd")]
fn input_gradient<T: Scalar>(s: &Slice<'_, T>, sums: &[T], at: usize, dx: &mut [T], add: bool) {
    let channels = s.gamma.len();
    let share = T::from_f64(channels as f64 / s.x.len() as f64);
    let slope = s.slope();
    for first in (0..channels).step_by(LANES) {
        let lanes = LANES.min(channels - first);
        let mut k = [[T::ZERO; LANES]; 4];
        for l in 0..lanes {
            let c = first + l;
            let (mean, rstd) = (s.stats[2 * c], s.stats[2 * c + 1]);
            let scale = s.gamma[c] * rstd;
            // dx = scale g - offset - (x - mean) tilt
            k[0][l] = mean;
            k[1][l] = scale;
            k[2][l] = scale * sums[2 * c] * share;
            k[3][l] = scale * rstd * sums[2 * c + 1] * share;
        }
        let [mean, scale, offset, tilt] = &k;
        for (v, row) in dx.chunks_exact_mut(channels).enumerate() {
            let i = at + v * channels + first;
            let row = &mut row[first..first + lanes];
            if let Some(row) = row.first_chunk_mut::<LANES>() {
                let (x, dy) = (&s.x[i..i + LANES], &s.dy[i..i + LANES]);
                let y = s.y.map(|y| &y[i..i + LANES]);
                for l in 0..LANES {
                    let before = match y {
                        Some(y) => dy[l] * if y[l] > T::ZERO { T::ONE } else { slope },
                        None => dy[l],
                    };
                    let value = scale[l] * before - offset[l] - (x[l] - mean[l]) * tilt[l];
                    row[l] = if add { row[l] + value } else { value };
                }
            } else {
                for (l, dx) in row.iter_mut().enumerate() {
                    let value = scale[l] * s.before(slope, i + l)
                        - offset[l]
                        - (s.x[i + l] - mean[l]) * tilt[l];
                    *dx = if add { *dx + value } else { value };
                }
            }
        }
    }
}

#[multiversion(targets = "simd")]
fn residual_gradient<T: Scalar>(s: &Slice<'_, T>, at: usize, dres: &mut [T], add: bool) {
    let slope = s.slope();
    for (i, d) in dres.iter_mut().enumerate() {
        let value = s.before(slope, at + i);
        *d = if add { *d + value } else { value };
    }
}
