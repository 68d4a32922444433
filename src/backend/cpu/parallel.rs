//! Fixed partitions of work over threads: the parts, hence the bits, do not depend on how many threads there are.

use rayon::prelude::*;

/// Elements a task works on; below this a loop runs in the calling thread.
pub const GRAIN: usize = 32 * 1024;

/// Number of parts a reduction over `len` elements is split into: enough for many cores, fixed by `len` alone.
pub fn parts(len: usize) -> usize {
    (len / GRAIN).clamp(1, 64)
}

/// The range of items part `index` of `count` covers; parts differ in length by at most one.
pub fn part(items: usize, count: usize, index: usize) -> std::ops::Range<usize> {
    let at = |i: usize| items / count * i + (items % count).min(i);
    at(index)..at(index + 1)
}

/// Calls `f(first_element, chunk)` on consecutive chunks of `out`, each a multiple of `unit` elements.
pub fn chunks<T: Send>(out: &mut [T], unit: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if out.len() <= GRAIN {
        f(0, out);
        return;
    }
    let chunk = GRAIN.div_ceil(unit.max(1)) * unit.max(1);
    out.par_chunks_mut(chunk).enumerate().for_each(|(i, part)| f(i * chunk, part));
}

/// Like [`chunks`] over two outputs of equal length.
pub fn chunks2<T: Send>(
    a: &mut [T],
    b: &mut [T],
    unit: usize,
    f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    assert_eq!(a.len(), b.len(), "two outputs of one loop have equal length");
    if a.len() <= GRAIN {
        f(0, a, b);
        return;
    }
    let chunk = GRAIN.div_ceil(unit.max(1)) * unit.max(1);
    a.par_chunks_mut(chunk)
        .zip(b.par_chunks_mut(chunk))
        .enumerate()
        .for_each(|(i, (a, b))| f(i * chunk, a, b));
}

/// Sum over `0..len` of `f(range)` by fixed parts added in order, in f64.
pub fn sum(len: usize, f: impl Fn(std::ops::Range<usize>) -> f64 + Sync) -> f64 {
    let count = parts(len);
    if count == 1 {
        return f(0..len);
    }
    let mut partial = [0.0; 64];
    partial[..count].par_iter_mut().enumerate().for_each(|(i, p)| *p = f(part(len, count, i)));
    partial[..count].iter().sum()
}
