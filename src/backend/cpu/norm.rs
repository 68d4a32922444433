//! Instance norm of one sample, `[voxels, C]`, split over voxels in fixed parts.
//!
//! Every loop runs over a *row*: as many voxels as make about `BLOCK` elements, or one voxel if that has more, in
//! pieces of `BLOCK`. So loops are long for any number of channels, and per-channel values lie at hand, repeated.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::backend::Write;
use crate::backend::cpu::parallel;
use crate::scalar::Scalar;

/// Nothing is divided by a smaller variance than this.
const EPS: f64 = 1e-5;
/// Elements of a row treated together; their sums and coefficients stay in the nearest cache.
const BLOCK: usize = 64;
/// Rows summed in the working precision before the sum moves to f64.
const RUN: usize = 32;

/// Two sums for each element of a block.
type Sums<T> = [[T; BLOCK]; 2];

/// Length of a row.
fn row_len(channels: usize) -> usize {
    channels * (BLOCK / channels).max(1)
}

/// The piece of a row that starts at `first`; the last row may be too short to have one.
#[inline(always)]
fn piece<T>(row: &[T], first: usize) -> &[T] {
    let rest = row.get(first..).unwrap_or_default();
    &rest[..rest.len().min(BLOCK)]
}

/// `N` values of the channel of each element of the piece that starts at `first`.
#[inline(always)]
fn spread<T: Scalar, const N: usize>(
    first: usize,
    channels: usize,
    of: impl Fn(usize) -> [T; N],
) -> [[T; BLOCK]; N] {
    let mut all = [[T::ZERO; BLOCK]; N];
    let mut c = first % channels;
    for i in 0..BLOCK {
        for (all, value) in all.iter_mut().zip(of(c)) {
            all[i] = value;
        }
        c = if c + 1 == channels { 0 } else { c + 1 };
    }
    all
}

/// Moves the sums of a run to f64.
#[inline(always)]
fn move_sums<T: Scalar>(run: &Sums<T>, sums: &mut Sums<f64>) {
    for (run, sums) in run.iter().zip(sums) {
        for (sum, value) in sums.iter_mut().zip(run) {
            *sum += value.to_f64();
        }
    }
}

/// Scratch elements for a sample of `len` elements: four per part and channel, and two per channel for the result.
pub fn workspace(len: usize, channels: usize) -> usize {
    (4 * parallel::parts(len) + 2) * channels
}

/// Sums of two quantities per channel over all voxels, in f64, by fixed parts: `f(elements, first, sums)` adds up the
/// pieces that start at `first` of all rows in a range of elements. A sum is kept as two numbers of the working
/// precision, so no bit that f64 holds and that matters is lost on the way.
fn channel_sums<T: Scalar>(
    len: usize,
    channels: usize,
    work: &mut [T],
    f: impl Fn(std::ops::Range<usize>, usize, &mut Sums<f64>) + Sync,
    mut result: impl FnMut(usize, f64, f64),
) {
    let voxels = len / channels;
    let count = parallel::parts(len);
    let partial = &mut work[..4 * count * channels];
    let body = |(i, out): (usize, &mut [T])| {
        let range = parallel::part(voxels, count, i);
        for first in (0..row_len(channels)).step_by(BLOCK) {
            let mut sums = [[0.0; BLOCK]; 2];
            f(range.start * channels..range.end * channels, first, &mut sums);
            for c in first..channels.min(first + BLOCK) {
                for (which, sums) in sums.iter().enumerate() {
                    let sum: f64 = sums[c - first..].iter().step_by(channels).sum();
                    let high = T::from_f64(sum);
                    let at = 4 * c + 2 * which;
                    out[at] = high;
                    out[at + 1] = T::from_f64(sum - high.to_f64());
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
    let sums = |range: std::ops::Range<usize>, first: usize, sums: &mut Sums<f64>| {
        shifted_sums(&x[range], &x[..channels], first, sums);
    };
    channel_sums(x.len(), channels, work, sums, |c, sum, square| {
        let mean = sum / voxels;
        let variance = (square / voxels - mean * mean).max(0.0);
        stats[2 * c] = T::from_f64(x[c].to_f64() + mean);
        stats[2 * c + 1] = T::from_f64(1.0 / (variance + EPS).sqrt());
    });
}

#[multiversion(targets = "simd")]
fn shifted_sums<T: Scalar>(x: &[T], shift: &[T], first: usize, sums: &mut Sums<f64>) {
    let row = row_len(shift.len());
    let [shift] = spread(first, shift.len(), |c| [shift[c]]);
    for run in x.chunks(RUN * row) {
        let [mut sum, mut square] = [[T::ZERO; BLOCK]; 2];
        for row in run.chunks(row) {
            let x = piece(row, first);
            let (sum, square, shift) =
                (&mut sum[..x.len()], &mut square[..x.len()], &shift[..x.len()]);
            for i in 0..x.len() {
                let d = x[i] - shift[i];
                sum[i] += d;
                square[i] = d.mul_add(d, square[i]);
            }
        }
        move_sums(&[sum, square], sums);
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
    match residual {
        Some(r) => apply_rows::<T, true>(a, slope, x, r, y),
        None => apply_rows::<T, false>(a, slope, x, x, y),
    }
}

/// Without `RESIDUAL` the second source plays no part.
#[inline(always)]
fn apply_rows<T: Scalar, const RESIDUAL: bool>(
    a: &Apply<'_, T>,
    slope: T,
    x: &[T],
    r: &[T],
    y: &mut [T],
) {
    let channels = a.gamma.len();
    let row = row_len(channels);
    for first in (0..row).step_by(BLOCK) {
        let of = |c: usize| [a.stats[2 * c], a.stats[2 * c + 1] * a.gamma[c], a.beta[c]];
        let k = spread(first, channels, of);
        for (y, (x, r)) in y.chunks_mut(row).zip(x.chunks(row).zip(r.chunks(row))) {
            let [x, r] = [x, r].map(|row| piece(row, first));
            let y = y.get_mut(first..first + x.len()).unwrap_or_default();
            let [x, r] = [&x[..y.len()], &r[..y.len()]];
            let [mean, scale, shift] = k.each_ref().map(|k| &k[..y.len()]);
            for i in 0..y.len() {
                let mut value = (x[i] - mean[i]).mul_add(scale[i], shift[i]);
                if RESIDUAL {
                    value += r[i];
                }
                y[i] = value * if value > T::ZERO { T::ONE } else { slope };
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
    fn slope(&self) -> T {
        T::from_f64(self.slope.unwrap_or(1.0))
    }

    /// `x`, what tells the side of the activation, and `dy`. Without activation the slope is 1 and any sign does, so
    /// that of `dy`, which is read anyway.
    fn sources(&self, range: std::ops::Range<usize>) -> [&[T]; 3] {
        [self.x, self.y.unwrap_or(self.dy), self.dy].map(|from| &from[range.clone()])
    }

    /// `sum g` and `sum g xhat` per channel, `[C, 2]`, with `g` the gradient before the activation: the gradients of
    /// beta and gamma.
    pub fn sums<'w>(&self, work: &'w mut [T]) -> &'w [T] {
        let channels = self.gamma.len();
        let (work, result) = work.split_at_mut(work.len() - 2 * channels);
        let sums = |range: std::ops::Range<usize>, first: usize, sums: &mut Sums<f64>| {
            gradient_sums(self, range, first, sums);
        };
        channel_sums(self.x.len(), channels, work, sums, |c, g, gx| {
            result[2 * c] = T::from_f64(g);
            result[2 * c + 1] = T::from_f64(gx);
        });
        result
    }

    /// `dx = gamma rstd (g - mean g - xhat mean (g xhat))`, and the residual's gradient `g` if it is wanted.
    pub fn input_gradient(&self, sums: &[T], dx: Write<&mut [T]>, dres: Option<Write<&mut [T]>>) {
        let channels = self.gamma.len();
        let Write { to: dx, add } = dx;
        let body = |at: usize, dx: &mut [T]| input_gradient(self, sums, at, dx, add);
        match dres {
            None => parallel::chunks(dx, channels, body),
            Some(Write { to: dres, add: add_res }) => {
                parallel::chunks2(dx, dres, channels, |at, dx, dres| {
                    input_gradient(self, sums, at, dx, add);
                    residual_gradient(self, at, dres, add_res);
                })
            }
        }
    }

    /// Only the residual's gradient.
    pub fn residual_gradient(&self, dres: &mut [T], add: bool) {
        parallel::chunks(dres, self.gamma.len(), |at, dres| residual_gradient(self, at, dres, add));
    }
}

/// Gradient before the activation.
#[inline(always)]
fn before<T: Scalar>(y: T, dy: T, slope: T) -> T {
    dy * if y > T::ZERO { T::ONE } else { slope }
}

#[multiversion(targets = "simd")]
fn gradient_sums<T: Scalar>(
    s: &Slice<'_, T>,
    range: std::ops::Range<usize>,
    first: usize,
    sums: &mut Sums<f64>,
) {
    let (channels, slope) = (s.gamma.len(), s.slope());
    let row = row_len(channels);
    let k = spread(first, channels, |c| [s.stats[2 * c], s.stats[2 * c + 1]]);
    for at in range.clone().step_by(RUN * row) {
        let [mut g, mut gx] = [[T::ZERO; BLOCK]; 2];
        let [x, y, dy] = s.sources(at..range.end.min(at + RUN * row));
        for ((x, y), dy) in x.chunks(row).zip(y.chunks(row)).zip(dy.chunks(row)) {
            let [x, y, dy] = [x, y, dy].map(|row| piece(row, first));
            let (n, [mean, rstd]) = (x.len(), k.each_ref().map(|k| &k[..x.len()]));
            let (y, dy, g, gx) = (&y[..n], &dy[..n], &mut g[..n], &mut gx[..n]);
            for i in 0..n {
                let before = before(y[i], dy[i], slope);
                g[i] += before;
                gx[i] = before.mul_add((x[i] - mean[i]) * rstd[i], gx[i]);
            }
        }
        move_sums(&[g, gx], sums);
    }
}

#[multiversion(targets = "simd")]
fn input_gradient<T: Scalar>(s: &Slice<'_, T>, sums: &[T], at: usize, dx: &mut [T], add: bool) {
    if add {
        input_rows::<T, true>(s, sums, at, dx);
    } else {
        input_rows::<T, false>(s, sums, at, dx);
    }
}

#[inline(always)]
fn input_rows<T: Scalar, const ADD: bool>(s: &Slice<'_, T>, sums: &[T], at: usize, dx: &mut [T]) {
    let (channels, slope) = (s.gamma.len(), s.slope());
    let row = row_len(channels);
    let share = T::from_f64(channels as f64 / s.x.len() as f64);
    // dx = scale g - offset - (x - mean) tilt
    let of = |c: usize| {
        let (mean, rstd) = (s.stats[2 * c], s.stats[2 * c + 1]);
        let scale = s.gamma[c] * rstd;
        [mean, scale, scale * sums[2 * c] * share, scale * rstd * sums[2 * c + 1] * share]
    };
    let [x, y, dy] = s.sources(at..at + dx.len());
    for first in (0..row).step_by(BLOCK) {
        let k = spread(first, channels, of);
        let sources = x.chunks(row).zip(y.chunks(row)).zip(dy.chunks(row));
        for (dx, ((x, y), dy)) in dx.chunks_mut(row).zip(sources) {
            let [x, y, dy] = [x, y, dy].map(|row| piece(row, first));
            let dx = dx.get_mut(first..first + x.len()).unwrap_or_default();
            let n = dx.len();
            let (x, y, dy) = (&x[..n], &y[..n], &dy[..n]);
            let [mean, scale, offset, tilt] = k.each_ref().map(|k| &k[..n]);
            for i in 0..n {
                let before = before(y[i], dy[i], slope);
                let value = scale[i] * before - offset[i] - (x[i] - mean[i]) * tilt[i];
                dx[i] = if ADD { dx[i] + value } else { value };
            }
        }
    }
}

#[multiversion(targets = "simd")]
fn residual_gradient<T: Scalar>(s: &Slice<'_, T>, at: usize, dres: &mut [T], add: bool) {
    let (slope, [_, y, dy]) = (s.slope(), s.sources(at..at + dres.len()));
    for ((d, &y), &dy) in dres.iter_mut().zip(y).zip(dy) {
        let value = before(y, dy, slope);
        *d = if add { *d + value } else { value };
    }
}
