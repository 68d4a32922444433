//! The one inner kernel of the convolutions: a small tile of sums of products, held in registers.
//!
//! ```text
//! c[c_rows[i] + j] = init + sum_s sum_p a[rows[i] + a_s + p * a_step] * b[b_s + p * b_step + j]
//! ```
//!
//! Every element is a sum of chains of at most [`CHAIN`] fused multiply-adds, each from zero, added up in
//! the order written, whatever the instruction set: AVX-512, AVX2 and portable code give the same bits.
//! One chain over all products would be a little faster and its rounding error two to three times as
//! large. It does not choose tiles, pack or run threads.
//!
//! The only file of the crate with `unsafe`: ranges are asserted once per tile, then raw pointers run.
#![allow(unsafe_code)]

use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::segments::Segments;
use crate::scalar::Scalar;
use std::any::TypeId;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Most rows of a tile.
pub(super) const ROWS: usize = 12;
/// Most columns of a tile.
pub(super) const COLS: usize = 32;
/// Most products summed before the sum is added to what `c` holds.
const CHAIN: usize = 48;

/// Where the rows of `a` start.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// At these offsets.
    At(&'a [usize]),
    /// At `0, 1, .., n - 1`.
    Adjacent(usize),
}

/// What a sum is added to.
#[derive(Clone, Copy)]
pub(super) enum Init<'a, T> {
    /// Zero.
    Zero,
    /// The value in `c`.
    Load,
    /// One value per column.
    Bias(&'a [T]),
}

/// One tile: at most [`ROWS`] by [`COLS`]; fields as in the equation of the module.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, T> {
    pub(super) a: &'a [T],
    pub(super) rows: Rows<'a>,
    pub(super) a_step: usize,
    pub(super) b: &'a [T],
    pub(super) b_step: usize,
    pub(super) cols: usize,
    pub(super) segments: &'a Segments,
    pub(super) init: Init<'a, T>,
}

/// A tile with its ranges checked, as the kernels take it.
#[derive(Clone, Copy)]
struct Raw<'a, T> {
    a: *const T,
    /// Empty: adjacent rows.
    rows: &'a [usize],
    a_step: usize,
    b: *const T,
    b_step: usize,
    cols: usize,
    starts: &'a [(usize, usize)],
    len: usize,
    init: Init<'a, T>,
    c: *mut T,
    c_rows: &'a [usize],
}

impl<T: Scalar> Tile<'_, T> {
    /// Computes the tile into `c`, rows starting at `c_rows`.
    pub(super) fn run(&self, isa: Isa, c: &mut [T], c_rows: &[usize]) {
        let (count, rows, row_max) = match self.rows {
            Rows::At(rows) => (rows.len(), rows, rows.iter().fold(0, |m, &r| m.max(r))),
            Rows::Adjacent(n) => (n, &[][..], n.max(1) - 1),
        };
        assert!(count > 0 && count <= ROWS && count == c_rows.len(), "tile rows");
        assert!(self.cols > 0 && self.cols <= COLS, "tile columns");
        if let Init::Bias(bias) = self.init {
            assert!(bias.len() >= self.cols, "one bias per column");
        }
        let len = self.segments.len;
        if len > 0 && !self.segments.starts.is_empty() {
            let max = self.segments.max;
            let a_run = (len - 1).saturating_mul(self.a_step);
            let a_last = row_max.saturating_add(max.0).saturating_add(a_run);
            assert!(a_last < self.a.len(), "tile reads beyond a");
            let b_run = (len - 1).saturating_mul(self.b_step);
            let b_end = max.1.saturating_add(b_run).saturating_add(self.cols);
            assert!(b_end <= self.b.len(), "tile reads beyond b");
        }
        let c_end = c_rows.iter().fold(0, |m, &r| m.max(r)).saturating_add(self.cols);
        assert!(c_end <= c.len(), "tile writes beyond c");
        assert!(isa == Isa::Portable || isa.supported(), "instruction set of this processor");
        let raw = Raw {
            a: self.a.as_ptr(),
            rows,
            a_step: self.a_step,
            b: self.b.as_ptr(),
            b_step: self.b_step,
            cols: self.cols,
            starts: &self.segments.starts,
            len,
            init: self.init,
            c: c.as_mut_ptr(),
            c_rows,
        };
        let mut init = raw.init;
        for (starts, [from, to]) in chains(&raw) {
            let a = raw.a.wrapping_add(from * raw.a_step);
            let b = raw.b.wrapping_add(from * raw.b_step);
            let chain = Raw { a, b, starts, len: to - from, init, ..raw };
            // SAFETY: the assertions above bound every offset the kernels form, and the instruction set is
            // supported.
            unsafe { dispatch(isa, &chain) };
            init = Init::Load;
        }
    }
}

/// The chains of a tile, one after the other: their runs, and the part of each run that they sum.
#[inline(always)]
fn chains<'a, T>(raw: &Raw<'a, T>) -> impl Iterator<Item = (&'a [(usize, usize)], [usize; 2])> {
    let (starts, len) = (raw.starts, raw.len);
    // So many runs per chain, or so many chains per run.
    let (per_chain, pieces) = ((CHAIN / len.max(1)).max(1), len.div_ceil(CHAIN).max(1));
    (0..starts.len().div_ceil(per_chain).max(1) * pieces).map(move |chain| {
        let first = (chain / pieces * per_chain).min(starts.len());
        let piece = chain % pieces;
        let part = [len * piece / pieces, len * (piece + 1) / pieces];
        (&starts[first..(first + per_chain).min(starts.len())], part)
    })
}

/// Runs one chain of a checked tile.
///
/// # Safety
/// All offsets of `raw` are in bounds and `isa` is supported.
#[inline]
unsafe fn dispatch<T: Scalar>(isa: Isa, raw: &Raw<'_, T>) {
    #[cfg(target_arch = "x86_64")]
    if TypeId::of::<T>() == TypeId::of::<f32>() {
        // SAFETY: T is f32, so this is the same type.
        let raw = unsafe { &*std::ptr::from_ref(raw).cast::<Raw<'_, f32>>() };
        match isa {
            // SAFETY: as promised by the caller.
            Isa::Avx512 => return unsafe { avx512_tile(raw) },
            // SAFETY: as promised by the caller.
            Isa::Avx2 => return unsafe { avx2_tile(raw) },
            Isa::Portable => {}
        }
    }
    #[cfg(target_arch = "x86_64")]
    match isa {
        // SAFETY: as promised by the caller.
        Isa::Avx512 => return unsafe { plain_avx512(raw) },
        // SAFETY: as promised by the caller.
        Isa::Avx2 => return unsafe { plain_avx2(raw) },
        Isa::Portable => {}
    }
    // SAFETY: as promised by the caller.
    unsafe { plain(raw) }
}

/// Pointers to the `MR` rows of `a` from `first` on.
///
/// # Safety
/// Offsets are in bounds.
#[inline(always)]
unsafe fn row_pointers<T, const MR: usize, const ADJACENT: bool>(
    raw: &Raw<'_, T>,
    first: usize,
) -> [*const T; MR] {
    std::array::from_fn(|i| {
        // SAFETY: bounded by `Tile::run`.
        unsafe {
            if ADJACENT {
                raw.a.add(first + i)
            } else {
                raw.a.add(*raw.rows.get_unchecked(first + i))
            }
        }
    })
}

#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($count:expr, $call:ident, $raw:expr, [$($n:literal)*]) => {
        match $count { $($n => $call!($n, $raw),)* _ => unreachable!("tile rows") }
    };
}

/// # Safety
/// As [`dispatch`], with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_tile(raw: &Raw<'_, f32>) {
    macro_rules! call {
        ($n:literal, $raw:expr) => {
            // SAFETY: as promised by the caller.
            unsafe {
                match ($raw.cols > 16, $raw.rows.is_empty()) {
                    (false, false) => avx512_kernel::<$n, 1, false>($raw),
                    (false, true) => avx512_kernel::<$n, 1, true>($raw),
                    (true, false) => avx512_kernel::<$n, 2, false>($raw),
                    (true, true) => avx512_kernel::<$n, 2, true>($raw),
                }
            }
        };
    }
    by_rows!(raw.c_rows.len(), call, raw, [1 2 3 4 5 6 7 8 9 10 11 12]);
}

/// `MR` rows by `NV` vectors of 16, the last one masked.
///
/// # Safety
/// As [`dispatch`], with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_kernel<const MR: usize, const NV: usize, const ADJACENT: bool>(
    raw: &Raw<'_, f32>,
) {
    let tail = raw.cols - 16 * (NV - 1);
    let last: __mmask16 = if tail >= 16 { 0xffff } else { (1 << tail) - 1 };
    let mask = |j: usize| if j + 1 == NV { last } else { 0xffff };
    // SAFETY: offsets were bounded by `Tile::run`; lanes beyond `cols` are masked.
    unsafe {
        let rows = row_pointers::<f32, MR, ADJACENT>(raw, 0);
        let mut acc = [[_mm512_setzero_ps(); NV]; MR];
        for &(a_start, b_start) in raw.starts {
            let mut at = a_start;
            let mut b = raw.b.add(b_start);
            for _ in 0..raw.len {
                let mut vector = [_mm512_setzero_ps(); NV];
                for (j, v) in vector.iter_mut().enumerate() {
                    *v = _mm512_maskz_loadu_ps(mask(j), b.add(16 * j));
                }
                for (row, start) in acc.iter_mut().zip(rows) {
                    let value = _mm512_set1_ps(*start.add(at));
                    for (sum, &v) in row.iter_mut().zip(&vector) {
                        *sum = _mm512_fmadd_ps(value, v, *sum);
                    }
                }
                at += raw.a_step;
                b = b.wrapping_add(raw.b_step);
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                let to = raw.c.add(*raw.c_rows.get_unchecked(i) + 16 * j);
                let sum = match raw.init {
                    Init::Zero => sum,
                    Init::Load => _mm512_add_ps(_mm512_maskz_loadu_ps(mask(j), to), sum),
                    Init::Bias(bias) => {
                        let bias = _mm512_maskz_loadu_ps(mask(j), bias.as_ptr().add(16 * j));
                        _mm512_add_ps(bias, sum)
                    }
                };
                _mm512_mask_storeu_ps(to, mask(j), sum);
            }
        }
    }
}

/// # Safety
/// As [`dispatch`], with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_tile(raw: &Raw<'_, f32>) {
    let mut first = 0;
    while first < raw.c_rows.len() {
        let count = (raw.c_rows.len() - first).min(6);
        for col in (0..raw.cols).step_by(16) {
            let at = (first, col);
            macro_rules! call {
                ($n:literal, $raw:expr) => {
                    // SAFETY: as promised by the caller.
                    unsafe {
                        match ($raw.cols - col > 8, $raw.rows.is_empty()) {
                            (false, false) => avx2_kernel::<$n, 1, false>($raw, at),
                            (false, true) => avx2_kernel::<$n, 1, true>($raw, at),
                            (true, false) => avx2_kernel::<$n, 2, false>($raw, at),
                            (true, true) => avx2_kernel::<$n, 2, true>($raw, at),
                        }
                    }
                };
            }
            by_rows!(count, call, raw, [1 2 3 4 5 6]);
        }
        first += count;
    }
}

/// `MR` rows by `NV` vectors of 8 from row and column `at`, the last vector masked.
///
/// # Safety
/// As [`dispatch`], with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_kernel<const MR: usize, const NV: usize, const ADJACENT: bool>(
    raw: &Raw<'_, f32>,
    at: (usize, usize),
) {
    let (first, col) = at;
    let tail = raw.cols - col - 8 * (NV - 1);
    let lanes: [i32; 8] = std::array::from_fn(|l| if l < tail { -1 } else { 0 });
    // SAFETY: offsets were bounded by `Tile::run`; lanes beyond `cols` are masked.
    unsafe {
        let full = _mm256_set1_epi32(-1);
        let last = _mm256_loadu_si256(lanes.as_ptr().cast());
        let mask = |j: usize| if j + 1 == NV { last } else { full };
        let rows = row_pointers::<f32, MR, ADJACENT>(raw, first);
        let mut acc = [[_mm256_setzero_ps(); NV]; MR];
        for &(a_start, b_start) in raw.starts {
            let mut at = a_start;
            let mut b = raw.b.add(b_start + col);
            for _ in 0..raw.len {
                let mut vector = [_mm256_setzero_ps(); NV];
                for (j, v) in vector.iter_mut().enumerate() {
                    *v = _mm256_maskload_ps(b.add(8 * j), mask(j));
                }
                for (row, start) in acc.iter_mut().zip(rows) {
                    let value = _mm256_set1_ps(*start.add(at));
                    for (sum, &v) in row.iter_mut().zip(&vector) {
                        *sum = _mm256_fmadd_ps(value, v, *sum);
                    }
                }
                at += raw.a_step;
                b = b.wrapping_add(raw.b_step);
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                let to = raw.c.add(*raw.c_rows.get_unchecked(first + i) + col + 8 * j);
                let sum = match raw.init {
                    Init::Zero => sum,
                    Init::Load => _mm256_add_ps(_mm256_maskload_ps(to, mask(j)), sum),
                    Init::Bias(bias) => {
                        let at = bias.as_ptr().add(col + 8 * j);
                        _mm256_add_ps(_mm256_maskload_ps(at, mask(j)), sum)
                    }
                };
                _mm256_maskstore_ps(to, mask(j), sum);
            }
        }
    }
}

/// # Safety
/// As [`dispatch`], with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn plain_avx512<T: Scalar>(raw: &Raw<'_, T>) {
    // SAFETY: as promised by the caller.
    unsafe { plain(raw) }
}

/// # Safety
/// As [`dispatch`], with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn plain_avx2<T: Scalar>(raw: &Raw<'_, T>) {
    // SAFETY: as promised by the caller.
    unsafe { plain(raw) }
}

/// Any type, any processor.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
unsafe fn plain<T: Scalar>(raw: &Raw<'_, T>) {
    let (rows, mut col) = (raw.c_rows.len(), 0);
    while col < raw.cols {
        let wide = raw.cols - col >= 8;
        let mut first = 0;
        while first < rows {
            let tall = rows - first >= 4;
            // SAFETY: as promised by the caller.
            unsafe {
                match (tall, wide) {
                    (true, true) => plain_kernel::<T, 4, 8>(raw, first, col),
                    (true, false) => plain_kernel::<T, 4, 1>(raw, first, col),
                    (false, true) => plain_kernel::<T, 1, 8>(raw, first, col),
                    (false, false) => plain_kernel::<T, 1, 1>(raw, first, col),
                }
            }
            first += if tall { 4 } else { 1 };
        }
        col += if wide { 8 } else { 1 };
    }
}

/// `MR` rows by `NR` columns from row `first` and column `col`.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
unsafe fn plain_kernel<T: Scalar, const MR: usize, const NR: usize>(
    raw: &Raw<'_, T>,
    first: usize,
    col: usize,
) {
    // SAFETY: offsets were bounded by `Tile::run`.
    unsafe {
        let rows: [*const T; MR] = if raw.rows.is_empty() {
            row_pointers::<T, MR, true>(raw, first)
        } else {
            row_pointers::<T, MR, false>(raw, first)
        };
        let mut acc = [[T::ZERO; NR]; MR];
        for &(a_start, b_start) in raw.starts {
            for p in 0..raw.len {
                let b = raw.b.add(b_start + p * raw.b_step + col);
                let vector: [T; NR] = std::array::from_fn(|j| *b.add(j));
                for (row, start) in acc.iter_mut().zip(rows) {
                    let value = *start.add(a_start + p * raw.a_step);
                    for (sum, &v) in row.iter_mut().zip(&vector) {
                        *sum = value.mul_add(v, *sum);
                    }
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, &value) in row.iter().enumerate() {
                let to = raw.c.add(raw.c_rows[first + i] + col + j);
                *to = match raw.init {
                    Init::Zero => value,
                    Init::Load => *to + value,
                    Init::Bias(bias) => bias[col + j] + value,
                };
            }
        }
    }
}

/// Asks for the cache line of `data[index]`, if there is one, to be brought into second-level cache.
#[inline(always)]
pub(super) fn prefetch<T>(data: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(value) = data.get(index) {
        // SAFETY: a hint about an address in bounds; SSE is part of every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, index);
}

/// Asks for the cache lines of `len` values from `data[index]` on, as far as there are any, to be
/// brought into first-level cache for writing.
#[inline(always)]
pub(super) fn prefetch_output<T>(data: &[T], index: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for part in (index..index + len).step_by(64 / size_of::<T>()) {
        if let Some(value) = data.get(part) {
            // SAFETY: a hint about an address in bounds; SSE is part of every x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(std::ptr::from_ref(value).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, index, len);
}

/// Reusable memory for values of either scalar type, grown on demand and never zeroed again.
#[derive(Default)]
pub(super) struct Buffer(Vec<f64>);

impl Buffer {
    /// `len` values at a 64-byte boundary, left as the last user had them.
    pub(super) fn get<T: Scalar>(&mut self, len: usize) -> &mut [T] {
        let id = TypeId::of::<T>();
        assert!(id == TypeId::of::<f32>() || id == TypeId::of::<f64>(), "an unknown scalar type");
        let needed = (len * size_of::<T>()).div_ceil(size_of::<f64>()) + 8;
        if self.0.len() < needed {
            self.0.resize(needed, 0.0);
        }
        let skip = self.0.as_ptr().align_offset(64).min(7);
        let start = self.0[skip..].as_mut_ptr().cast::<T>();
        // SAFETY: the memory is initialised, aligned for f64 and hence for T, at least `len` values
        // long, borrowed mutably for as long as the result, and f32 and f64 have no invalid bits.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}
