//! Per-thread memory of the convolutions, copies of input boxes with their zero padding, prefetching.

use crate::backend::cpu::conv::plan::Region;
use crate::backend::cpu::conv::tile::{Buffer, prefetch};
use crate::backend::cpu::segments::Segments;
use crate::scalar::Scalar;
use rayon::prelude::*;
use std::cell::Cell;

/// What one thread reuses from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) slab: Buffer,
    pub(super) panel: Buffer,
    pub(super) rows: Vec<usize>,
    pub(super) c_rows: Vec<usize>,
    pub(super) lines: Vec<Line>,
    pub(super) segments: Segments,
    /// One per tap.
    pub(super) runs: Vec<Segments>,
}

/// A row of outputs.
pub(super) struct Line {
    /// Its plane within the image.
    pub(super) z: usize,
    /// Its place within the plane.
    pub(super) y: usize,
    /// Its place among the rows at hand.
    pub(super) row: usize,
    /// Input voxel that its first output meets with the first tap, counted through all images; there
    /// need not be one, and then the number means nothing by itself.
    pub(super) input: isize,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Runs `f` with this thread's scratch memory.
///
/// The memory is taken out meanwhile: were `f` to wait for other tasks and steal one that wants it too,
/// that one would get fresh memory, never the same.
pub(super) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = SCRATCH.take();
    let result = f(&mut scratch);
    SCRATCH.set(scratch);
    result
}

/// Values that will be needed soon, fetched little by little while others are worked on: tiles read a
/// new row of inputs in steps too long for the processor to foresee.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a, T> {
    data: &'a [T],
    start: usize,
    /// Cache lines of one run of values, and elements from one run to the next.
    lines: usize,
    pitch: usize,
    next: usize,
    end: usize,
    step: usize,
}

impl<'a, T> Ahead<'a, T> {
    /// Values per cache line.
    const LINE: usize = 64 / size_of::<T>();

    /// `runs` runs of `len` values, `pitch` apart, from `start` on, in `steps` steps.
    pub(super) fn new(
        data: &'a [T],
        start: usize,
        [runs, len, pitch]: [usize; 3],
        steps: usize,
    ) -> Self {
        let lines = len.div_ceil(Self::LINE);
        let step = (runs * lines).div_ceil(steps.max(1));
        Ahead { data, start, lines, pitch, next: 0, end: runs * lines, step }
    }

    /// Rows of the part of `region` that is inside the image.
    pub(super) fn region(image: &Image<'a, T>, region: &Region, steps: usize) -> Self {
        let inside = |d: usize| {
            let clamp = |v: isize| v.clamp(0, image.dims[d] as isize) as usize;
            [clamp(region.low[d]), clamp(region.low[d] + region.dims[d] as isize)]
        };
        let ([z, y], row) = ([inside(0), inside(1)], image.dims[2] * image.channels);
        let plane = image.dims[1] * row;
        let runs = [z[1] - z[0], (y[1] - y[0]) * row, plane];
        Ahead::new(image.data, z[0] * plane + y[0] * row, runs, steps)
    }

    /// One step.
    pub(super) fn step(&mut self) {
        let to = self.end.min(self.next + self.step);
        for line in self.next..to {
            let (run, line) = (line / self.lines, line % self.lines);
            prefetch(self.data, self.start + run * self.pitch + line * Self::LINE);
        }
        self.next = to;
    }
}

/// One image of an input: `[D, H, W, channels]`.
#[derive(Clone, Copy)]
pub(super) struct Image<'a, T> {
    pub(super) data: &'a [T],
    pub(super) dims: [usize; 3],
    pub(super) channels: usize,
}

/// Copies channels `part` of `region` of the image to `out`, `[z, y, x, part]`, zeros outside the image.
pub(super) fn fill<T: Scalar>(
    image: &Image<'_, T>,
    region: &Region,
    part: [usize; 2],
    out: &mut [T],
) {
    let [_, rows, len] = region.dims;
    let pitch = part[1] - part[0];
    if rows * len == 0 {
        return;
    }
    let width = image.dims[2] as isize;
    let clamp = |x: isize| x.clamp(0, width);
    let (from, to) = (clamp(region.low[2]), clamp(region.low[2] + len as isize));
    let (left, count) = ((from - region.low[2]) as usize, (to - from) as usize);
    for (i, row) in out.chunks_exact_mut(len * pitch).enumerate() {
        let z = region.low[0] + (i / rows) as isize;
        let y = region.low[1] + (i % rows) as isize;
        let inside = |v: isize, d: usize| v >= 0 && v < image.dims[d] as isize;
        if !inside(z, 0) || !inside(y, 1) || count == 0 {
            row.fill(T::ZERO);
            continue;
        }
        let line = (z as usize * image.dims[1] + y as usize) * image.dims[2] + from as usize;
        let source = &image.data[line * image.channels..][..count * image.channels];
        let (head, rest) = row.split_at_mut(left * pitch);
        let (body, tail) = rest.split_at_mut(count * pitch);
        head.fill(T::ZERO);
        tail.fill(T::ZERO);
        copy_channels(source, image.channels, part, body);
    }
}

/// Copies channels `part` of each voxel.
fn copy_channels<T: Scalar>(source: &[T], channels: usize, part: [usize; 2], out: &mut [T]) {
    let pitch = part[1] - part[0];
    if pitch == channels {
        out.copy_from_slice(source);
        return;
    }
    for (to, from) in out.chunks_exact_mut(pitch).zip(source.chunks_exact(channels)) {
        to.copy_from_slice(&from[part[0]..part[1]]);
    }
}

/// Copies `region` of every image of `x` to `out`, `[chunk][image][z, y, x, channels of the chunk]`.
///
/// `image` gives extents and channels of one image; `chunk` channels go into each chunk but the last.
pub(super) fn fill_all<T: Scalar>(
    x: &[T],
    image: &Image<'_, T>,
    region: &Region,
    chunk: usize,
    out: &mut [T],
) {
    let image_len = image.dims.iter().product::<usize>() * image.channels;
    let plane = region.dims[1] * region.dims[2];
    if plane * region.dims[0] * image_len == 0 {
        return;
    }
    let voxels = x.len() / image_len * region.voxels();
    for (index, block) in out.chunks_mut(voxels * chunk).enumerate() {
        let part = [index * chunk, (index * chunk + chunk).min(image.channels)];
        block.par_chunks_mut(plane * (part[1] - part[0])).enumerate().for_each(|(i, out)| {
            let (n, z) = (i / region.dims[0], i % region.dims[0]);
            let low = [region.low[0] + z as isize, region.low[1], region.low[2]];
            let one = Region { low, dims: [1, region.dims[1], region.dims[2]] };
            let data = &x[n * image_len..][..image_len];
            fill(&Image { data, ..*image }, &one, part, out);
        });
    }
}

/// The part of `workspace` that starts at a 64-byte boundary; up to [`ALIGN_SLACK`] elements are lost.
pub(super) fn aligned<T>(workspace: &mut [T]) -> &mut [T] {
    let skip = workspace.as_ptr().align_offset(64).min(ALIGN_SLACK).min(workspace.len());
    &mut workspace[skip..]
}

/// Elements to add to a workspace for its alignment.
pub(super) const ALIGN_SLACK: usize = 16;
