//! wgrad: the gradient of the filter, a sum over voxels of products of `dy` and `x`.
//!
//! Three ways. Few voxels under a large filter: tasks are runs of output channels and each sums all
//! voxels. Otherwise tasks are a fixed number of runs of voxels, each with its own partial gradient, and
//! the partial gradients are added in order. With few input channels a vector holds output channels
//! instead of input channels, and the partial gradients are transposed when added.

use super::conv::ConvGeometry;
use super::conv_plan::{Axis, Dense, Grid, Region, even};
use super::conv_slab::{ALIGN_SLACK, Image, Scratch, aligned, fill, fill_all, with_scratch};
use super::tile::{COLS, Init, Isa, ROWS, Rows, Tile};
use crate::scalar::Scalar;
use rayon::prelude::*;

/// Output voxels summed per visit of a tile.

/// Most input elements that a task holds at a time.

/// Most elements of all partial gradients together, unless one alone is larger.
const PARTIAL: usize = 2 * 1024 * 1024;

/// Elements of workspace.
pub(super) fn workspace_len(g: &ConvGeometry) -> usize {
    let p = Dense::fprop(g);
    let len = match way(g, &p) {
        Way::ByChannels => p.batch * p.region(&p.everything()).voxels() * p.depth,
        Way::ByVoxels | Way::Narrow => tasks(g, &p) * g.filter_len(),
    };
    len + ALIGN_SLACK
}

/// How the work is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ByChannels,
    ByVoxels,
    Narrow,
}

fn way(g: &ConvGeometry, p: &Dense) -> Way {
    if p.depth < 16 && p.width > p.depth {
        Way::Narrow
    } else if g.filter_len() * 4 >= g.input_len() {
        Way::ByChannels
    } else {
        Way::ByVoxels
    }
}

/// Number of runs of voxels, from the geometry alone.
fn tasks(g: &ConvGeometry, p: &Dense) -> usize {
    let planes = p.batch * p.output[0];
    planes.div_ceil(4).clamp(1, 16).min((PARTIAL / g.filter_len()).max(1))
}

/// Computes all of `dw` from `[x, dy]`.
pub(super) fn run<T: Scalar>(
    g: &ConvGeometry,
    isa: Isa,
    [x, dy]: [&[T]; 2],
    dw: &mut [T],
    add: bool,
    workspace: &mut [T],
) {
    assert!(workspace.len() >= workspace_len(g), "workspace of a convolution");
    let p = Dense::fprop(g);
    let axes = p.class(0, &p.everything());
    let Some(axes) = axes.filter(|axes| p.batch > 0 && axes.iter().all(|a| a.taps > 0)) else {
        if !add {
            dw.fill(T::ZERO);
        }
        return;
    };
    let job = Job { p: &p, isa, x, dy, axes: &axes };
    let workspace = aligned(workspace);
    let way = way(g, &p);
    if way == Way::ByChannels {
        return job.by_channels(dw, add, workspace);
    }
    let (tasks, filter_len) = (tasks(g, &p), dw.len());
    let partial = &mut workspace[..tasks * filter_len];
    partial.par_chunks_mut(filter_len).enumerate().for_each(|(index, out)| {
        let planes = even(p.batch * p.output[0], tasks, index);
        with_scratch(|scratch| job.planes(way, planes, out, scratch));
    });
    let partial = &*partial;
    if way == Way::ByVoxels {
        sum_partials(partial, dw, add);
    } else {
        sum_transposed(partial, dw, p.width, add);
    }
}

/// `dw = [dw +] sum of the partial gradients`.
fn sum_partials<T: Scalar>(partial: &[T], dw: &mut [T], add: bool) {
    const RUN: usize = 2048;
    let filter_len = dw.len();
    dw.par_chunks_mut(RUN).enumerate().for_each(|(index, out)| {
        if !add {
            out.fill(T::ZERO);
        }
        for one in partial.chunks_exact(filter_len) {
            let from = &one[index * RUN..][..out.len()];
            out.iter_mut().zip(from).for_each(|(value, &v)| *value += v);
        }
    });
}

/// The same from partial gradients `[taps, channels][width]`.
fn sum_transposed<T: Scalar>(partial: &[T], dw: &mut [T], width: usize, add: bool) {
    let (filter_len, row_len) = (dw.len(), dw.len() / width);
    dw.par_chunks_mut(row_len).enumerate().for_each(|(k, out)| {
        if !add {
            out.fill(T::ZERO);
        }
        for one in partial.chunks_exact(filter_len) {
            let column = one[k..].iter().step_by(width);
            out.iter_mut().zip(column).for_each(|(value, &v)| *value += v);
        }
    });
}

/// Operands of one call.
#[derive(Clone, Copy)]
struct Job<'a, T> {
    p: &'a Dense,
    isa: Isa,
    x: &'a [T],
    dy: &'a [T],
    axes: &'a [Axis; 3],
}

/// A box of outputs of one image whose inputs are at hand.
struct Block<'a> {
    n: usize,
    ranges: [[usize; 2]; 3],
    axes: &'a [Axis; 3],
    grid: Grid,
    /// Whether these are the first voxels of the task.
    first: bool,
}

impl<T: Scalar> Job<'_, T> {
    /// Sums over output planes `planes`, counted through all images, to `out`.
    fn planes(&self, way: Way, planes: [usize; 2], out: &mut [T], scratch: &mut Scratch) {
        let p = self.p;
        self.clear_unused(way, out);
        let mut plane = planes[0];
        while plane < planes[1] {
            let (n, z) = (plane / p.output[0], plane % p.output[0]);
            let z_end = p.output[0].min(z + planes[1] - plane).min(z + 4);
            let rows = block_rows(p, [z, z_end]);
            let blocks = p.output[1].div_ceil(rows);
            for index in 0..blocks {
                let ranges = [[z, z_end], even(p.output[1], blocks, index), [0, p.output[2]]];
                let region = Dense::region_of(self.axes, &ranges);
                let grid = Grid { low: region.low, strides: [0; 3] };
                let first = plane == planes[0] && index == 0;
                let block = Block { n, ranges, axes: self.axes, grid, first };
                if way == Way::Narrow {
                    self.narrow_block(block, &region, out, scratch);
                } else {
                    self.block(block, &region, out, scratch);
                }
            }
            plane += z_end - z;
        }
    }

    /// Zeros where no tap meets data.
    fn clear_unused(&self, way: Way, out: &mut [T]) {
        let (p, [at, ar, as_]) = (self.p, self.axes);
        let used = |a: &Axis, m: usize| m >= a.tap_first && m < a.tap_first + a.taps;
        if self.axes.iter().zip(p.filter).all(|(a, k)| a.taps == k) {
            return;
        }
        let tap_len = if way == Way::Narrow { p.depth * p.width } else { p.depth };
        for (index, values) in out.chunks_exact_mut(tap_len).enumerate() {
            let tap = index % p.taps();
            let (t, r, s) = (
                tap / (p.filter[1] * p.filter[2]),
                tap / p.filter[2] % p.filter[1],
                tap % p.filter[2],
            );
            if !(used(at, t) && used(ar, r) && used(as_, s)) {
                values.fill(T::ZERO);
            }
        }
    }

    fn image(&self, n: usize) -> Image<'_, T> {
        let len = self.p.image_len();
        Image { data: &self.x[n * len..][..len], dims: self.p.input, channels: self.p.depth }
    }

    /// The taps in use, `(index in the filter, offset of the input)`.
    fn taps<'a>(&'a self, grid: &'a Grid) -> impl Iterator<Item = (usize, usize)> + 'a {
        let (p, [at, ar, as_]) = (self.p, self.axes);
        (0..at.taps).flat_map(move |t| {
            (0..ar.taps).flat_map(move |r| {
                (0..as_.taps).map(move |s| {
                    let line = at.tap(t) * p.filter[1] + ar.tap(r);
                    let [z, y, x] = grid.strides;
                    (line * p.filter[2] + as_.tap(s), t * z + r * y + s * x)
                })
            })
        })
    }

    /// Rows of outputs of the block: `(row of dy, offset of the input)`.
    fn rows(&self, block: &Block<'_>) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let (output, [z, y, _]) = (self.p.output, block.ranges);
        let ([az, ay, ax], grid, n) = (*block.axes, block.grid, block.n);
        let x = grid.along(&ax, 2, 0);
        (z[0]..z[1]).flat_map(move |z| {
            (y[0]..y[1]).map(move |y| {
                let row = (n * output[0] + z) * output[1] + y;
                (row, grid.along(&az, 0, z) + grid.along(&ay, 1, y) + x)
            })
        })
    }

    fn block(&self, mut block: Block<'_>, region: &Region, out: &mut [T], scratch: &mut Scratch) {
        let p = self.p;
        let [z, y, _] = block.ranges;
        let (rows, q) = ((z[1] - z[0]) * (y[1] - y[0]), p.output[2]);
        let k_tiles = p.width.div_ceil(ROWS);
        let packed = scratch.panel.get::<T>(k_tiles * rows * q * ROWS);
        for (tile, packed) in packed.chunks_exact_mut(rows * q * ROWS).enumerate() {
            for (packed, (row, _)) in packed.chunks_exact_mut(q * ROWS).zip(self.rows(&block)) {
                self.pack_row(row, even(p.width, k_tiles, tile), packed);
            }
        }
        for start in (0..p.depth).step_by(COLS) {
            let part = [start, (start + COLS).min(p.depth)];
            let pitch = part[1] - part[0];
            let slab = scratch.slab.get::<T>(region.voxels() * pitch);
            fill(&self.image(block.n), region, part, slab);
            block.grid = Grid::packed(region.low, region.dims, pitch);
            let visit = (super::conv_slab::knob(4, 512) / q).max(1);
            for from in (0..rows).step_by(visit) {
                let segments = &mut scratch.segments;
                segments.clear();
                for (i, (_, offset)) in self.rows(&block).enumerate().skip(from).take(visit) {
                    segments.push(i * q * ROWS, offset);
                }
                let load = !(block.first && from == 0);
                for (tap, offset) in self.taps(&block.grid) {
                    for (index, a) in packed.chunks_exact(rows * q * ROWS).enumerate() {
                        let tile = Tile {
                            a,
                            rows: Rows::Adjacent(0),
                            a_step: ROWS,
                            b: &slab[offset..],
                            b_step: block.axes[2].in_step * pitch,
                            cols: pitch,
                            segments,
                            len: q,
                            init: if load { Init::Load } else { Init::Zero },
                        };
                        let k = even(p.width, k_tiles, index);
                        self.filters(tile, k, &mut out[tap * p.depth + start..]);
                    }
                }
            }
        }
    }

    /// Copies channels `k` of row `row` of `dy` to `[voxel][ROWS]`.
    fn pack_row(&self, row: usize, k: [usize; 2], packed: &mut [T]) {
        let (width, q) = (self.p.width, self.p.output[2]);
        let source = self.dy[row * q * width..][..q * width].chunks_exact(width);
        for (to, from) in packed.chunks_exact_mut(ROWS).zip(source) {
            if k[1] - k[0] == ROWS {
                to.copy_from_slice(&from[k[0]..k[0] + ROWS]);
            } else {
                to.iter_mut().zip(&from[k[0]..k[1]]).for_each(|(to, &from)| *to = from);
            }
        }
    }

    /// Runs `tile` for output channels `k`, one row of the tile each; `out` starts at the column.
    fn filters(&self, tile: Tile<'_, T>, k: [usize; 2], out: &mut [T]) {
        let (count, pitch) = (k[1] - k[0], self.p.taps() * self.p.depth);
        let c_rows: [usize; ROWS] = std::array::from_fn(|i| (k[0] + i) * pitch);
        Tile { rows: Rows::Adjacent(count), ..tile }.run(self.isa, out, &c_rows[..count]);
    }

    fn narrow_block(
        &self,
        mut block: Block<'_>,
        region: &Region,
        out: &mut [T],
        scratch: &mut Scratch,
    ) {
        let p = self.p;
        let slab = scratch.slab.get::<T>(region.voxels() * p.depth);
        fill(&self.image(block.n), region, [0, p.depth], slab);
        block.grid = Grid::packed(region.low, region.dims, p.depth);
        scratch.segments.clear();
        for (row, offset) in self.rows(&block) {
            scratch.segments.push(offset, row * p.output[2] * p.width);
        }
        scratch.rows.clear();
        scratch.c_rows.clear();
        for (tap, offset) in self.taps(&block.grid) {
            scratch.rows.extend((0..p.depth).map(|c| offset + c));
            scratch.c_rows.extend((0..p.depth).map(|c| (tap * p.depth + c) * p.width));
        }
        let tiles = scratch.rows.len().div_ceil(ROWS);
        for col in (0..p.width).step_by(COLS) {
            for index in 0..tiles {
                let [from, to] = even(scratch.rows.len(), tiles, index);
                let tile = Tile {
                    a: slab,
                    rows: Rows::At(&scratch.rows[from..to]),
                    a_step: block.axes[2].in_step * p.depth,
                    b: &self.dy[col..],
                    b_step: p.width,
                    cols: COLS.min(p.width - col),
                    segments: &scratch.segments,
                    len: p.output[2],
                    init: if block.first { Init::Zero } else { Init::Load },
                };
                tile.run(self.isa, &mut out[col..], &scratch.c_rows[from..to]);
            }
        }
    }

    /// Tasks are runs of [`ROWS`] output channels.
    fn by_channels(&self, dw: &mut [T], add: bool, workspace: &mut [T]) {
        let p = self.p;
        let region = Dense::region_of(self.axes, &p.everything());
        let padded = &mut workspace[..p.batch * region.voxels() * p.depth];
        let image = Image { data: self.x, dims: p.input, channels: p.depth };
        fill_all(self.x, &image, &region, COLS, padded);
        let padded = &*padded;
        let filter = p.taps() * p.depth;
        dw.par_chunks_mut(ROWS * filter).enumerate().for_each(|(index, out)| {
            let k = [index * ROWS, index * ROWS + out.len() / filter];
            with_scratch(|scratch| self.channels_task((padded, &region), k, out, add, scratch));
        });
    }

    /// Output channels `k` from all voxels.
    fn channels_task(
        &self,
        (padded, region): (&[T], &Region),
        k: [usize; 2],
        out: &mut [T],
        add: bool,
        scratch: &mut Scratch,
    ) {
        let (p, q) = (self.p, self.p.output[2]);
        let rows = p.batch * p.output[0] * p.output[1];
        let packed = scratch.panel.get::<T>(rows * q * ROWS);
        for (row, packed) in packed.chunks_exact_mut(q * ROWS).enumerate() {
            self.pack_row(row, k, packed);
        }
        if !add {
            self.clear_unused(Way::ByChannels, out);
        }
        let visit = (super::conv_slab::knob(4, 512) / q).max(1);
        for from in (0..rows).step_by(visit) {
            for start in (0..p.depth).step_by(COLS) {
                let pitch = COLS.min(p.depth - start);
                let b = &padded[p.batch * region.voxels() * start..];
                let b = &b[..p.batch * region.voxels() * pitch];
                let grid = Grid::packed(region.low, region.dims, pitch);
                let [az, ay, ax] = self.axes;
                let segments = &mut scratch.segments;
                segments.clear();
                for row in from..rows.min(from + visit) {
                    let (n, z) =
                        (row / (p.output[0] * p.output[1]), row / p.output[1] % p.output[0]);
                    let offset = grid.along(az, 0, z)
                        + grid.along(ay, 1, row % p.output[1])
                        + grid.along(ax, 2, 0);
                    segments.push(row * q * ROWS, n * region.voxels() * pitch + offset);
                }
                for (tap, offset) in self.taps(&grid) {
                    let tile = Tile {
                        a: &*packed,
                        rows: Rows::Adjacent(0),
                        a_step: ROWS,
                        b: &b[offset..],
                        b_step: ax.in_step * pitch,
                        cols: pitch,
                        segments,
                        len: q,
                        init: if add || from > 0 { Init::Load } else { Init::Zero },
                    };
                    self.filters(tile, [0, k[1] - k[0]], &mut out[tap * p.depth + start..]);
                }
            }
        }
    }
}

/// Rows of a plane per block, so that the inputs of a block fit [`SLAB`].
fn block_rows(p: &Dense, z: [usize; 2]) -> usize {
    let pitch = p.depth.min(COLS);
    let size = |rows| p.region(&[z, [0, rows], [0, p.output[2]]]).voxels() * pitch;
    let mut blocks = 1;
    while blocks < p.output[1]
        && size(p.output[1].div_ceil(blocks)) > super::conv_slab::knob(3, 96) * 1024
    {
        blocks += 1;
    }
    p.output[1].div_ceil(blocks)
}
