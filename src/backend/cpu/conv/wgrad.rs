//! wgrad: the gradient of the filter, a sum over voxels of products of `dy` and `x`.
//!
//! Three ways. Few voxels under a large filter: tasks are runs of output channels and each sums all
//! voxels. Otherwise tasks are a fixed number of runs of voxels, each with its own partial gradient, and
//! the partial gradients are added in order. With few input channels a vector holds output channels
//! instead of input channels (`narrow.rs`), and the partial gradients are transposed when added.

use crate::backend::ConvGeometry;
use crate::backend::cpu::conv::job::Job;
use crate::backend::cpu::conv::narrow;
use crate::backend::cpu::conv::plan::{Axis, Dense, Region, even};
use crate::backend::cpu::conv::slab::{
    ALIGN_SLACK, Ahead, Image, Line, Scratch, aligned, fill_all, with_scratch,
};
use crate::backend::cpu::conv::tile::{COLS, Init, ROWS, Rows, Tile};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::segments::Segments;
use crate::scalar::Scalar;
use rayon::prelude::*;

/// Output voxels summed per visit of a tile: what of `x` and `dy` belongs to them stays in cache.
const VISIT: usize = 512;
/// Most elements of all partial gradients together, unless one alone is larger.
const PARTIAL: usize = 2 * 1024 * 1024;

/// Elements of workspace.
pub(super) fn workspace_len(g: &ConvGeometry) -> usize {
    let p = Dense::fprop(g);
    let partial = match way(g, &p) {
        Way::ByChannels => 0,
        Way::ByVoxels | Way::Narrow => tasks(g, &p) * g.filter_len(),
    };
    partial + blocked_len(g) + 2 * ALIGN_SLACK
}

/// Elements of the copy of `x` in blocks of channels; one block needs none.
fn blocked_len(g: &ConvGeometry) -> usize {
    let by_channels = way(g, &Dense::fprop(g)) == Way::ByChannels;
    if g.in_channels > COLS && by_channels { g.input_len() } else { 0 }
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

/// Computes all of `dw` from `x` and `dy`.
pub(super) fn run<T: Scalar>(
    g: &ConvGeometry,
    isa: Isa,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
    add: bool,
    workspace: &mut [T],
) {
    assert!(workspace.len() >= workspace_len(g), "workspace of a convolution");
    let p = Dense::fprop(g);
    let axes = p.class(0, &p.everything()).filter(|_| !x.is_empty() && !dy.is_empty());
    let Some(axes) = axes else {
        if !add {
            dw.fill(T::ZERO);
        }
        return;
    };
    let (blocked, workspace) = aligned(workspace).split_at_mut(blocked_len(g));
    let is_blocked = !blocked.is_empty();
    if is_blocked {
        let image = Image { data: x, dims: p.input, channels: p.depth };
        let whole = Region { low: [0; 3], dims: p.input };
        fill_all(x, &image, &whole, COLS, blocked);
    }
    let x = if is_blocked { &*blocked } else { x };
    let job = Job { p: &p, isa, x, dy, axes: &axes, blocked: is_blocked };
    let rows = p.batch * p.output[0] * p.output[1];
    let way = way(g, &p);
    if way == Way::ByChannels {
        let filter = p.taps() * p.depth;
        // An even number of tasks, so that two threads have equal shares.
        let size = p.width.div_ceil(p.width.div_ceil(ROWS).next_multiple_of(2));
        dw.par_chunks_mut(size * filter).enumerate().for_each(|(index, out)| {
            let k = [index * size, index * size + out.len() / filter];
            with_scratch(|scratch| job.sum([0, rows], k, out, add, scratch));
        });
        return;
    }
    let (tasks, filter_len) = (tasks(g, &p), dw.len());
    let partial = &mut aligned(workspace)[..tasks * filter_len];
    partial.par_chunks_mut(filter_len).enumerate().for_each(|(index, out)| {
        let planes = even(p.batch * p.output[0], tasks, index);
        let rows = planes.map(|plane| plane * p.output[1]);
        with_scratch(|scratch| match way {
            Way::Narrow => narrow::sum(&job, planes, out, scratch),
            _ => job.sum(rows, [0, p.width], out, false, scratch),
        });
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

impl<T: Scalar> Job<'_, T> {
    /// Sums over rows `rows` of `dy`, counted through all images, for output channels `k`, to `out`.
    fn sum(
        &self,
        rows: [usize; 2],
        k: [usize; 2],
        out: &mut [T],
        add: bool,
        scratch: &mut Scratch,
    ) {
        let (p, q) = (self.p, self.p.output[2]);
        let k_tiles = (k[1] - k[0]).div_ceil(ROWS);
        let k_tile = |index| even(k[1] - k[0], k_tiles, index);
        let visit = (VISIT / q).max(1);
        let unused = |d: usize, m| {
            let [from, to] = self.axes[d].outputs(m, p.input[d]);
            from == to
        };
        let clear = !add && (0..3).any(|d| (0..p.filter[d]).any(|m| unused(d, m)));
        if clear {
            out.fill(T::ZERO);
        }
        let load = add || clear;
        for from in (rows[0]..rows[1]).step_by(visit) {
            let to = rows[1].min(from + visit);
            let packed_len = (to - from) * q * ROWS;
            let packed = scratch.panel.get::<T>(k_tiles * packed_len);
            for (index, packed) in packed.chunks_exact_mut(packed_len).enumerate() {
                let k = k_tile(index).map(|i| k[0] + i);
                for (row, packed) in (from..to).zip(packed.chunks_exact_mut(q * ROWS)) {
                    self.pack_row(row, k, packed);
                }
            }
            let load = load || from > rows[0];
            let mut ahead = self.ahead([to, rows[1].min(to + visit)]);
            self.list_lines([from, to], &mut scratch.lines);
            let mut listed = 0;
            for start in (0..p.depth).step_by(COLS) {
                let cols = COLS.min(p.depth - start);
                let (b, pitch) = self.block(start, cols);
                if pitch != listed {
                    self.list_runs(pitch, &scratch.lines, &mut scratch.runs);
                    listed = pitch;
                }
                for (tap, runs) in scratch.runs.iter().enumerate().take(p.taps()) {
                    ahead.iter_mut().for_each(Ahead::step);
                    if load && runs.is_empty() {
                        continue;
                    }
                    for (index, a) in packed.chunks_exact(packed_len).enumerate() {
                        let tile = Tile {
                            a,
                            rows: Rows::Adjacent(0),
                            a_step: ROWS,
                            b,
                            b_step: self.axes[2].in_step * pitch,
                            cols,
                            segments: runs,
                            init: if load { Init::Load } else { Init::Zero },
                        };
                        self.filters(tile, k_tile(index), &mut out[tap * p.depth + start..]);
                    }
                }
            }
        }
    }

    /// Input channels `start..start + cols`, and elements from voxel to voxel.
    fn block(&self, start: usize, cols: usize) -> (&[T], usize) {
        if self.blocked {
            let voxels = self.p.batch * self.p.input.iter().product::<usize>();
            (&self.x[voxels * start..][..voxels * cols], cols)
        } else {
            (&self.x[start..], self.p.depth)
        }
    }

    /// What rows `rows` of `dy` need, to be fetched tap by tap.
    fn ahead(&self, rows: [usize; 2]) -> [Ahead<'_, T>; 2] {
        let (p, q) = (self.p, self.p.output[2]);
        let steps = p.taps() * p.depth.div_ceil(COLS);
        let len = (rows[1] - rows[0]) * q * p.width;
        let dy = Ahead::new(self.dy, rows[0] * q * p.width, [1, len, 0], steps);
        let (first, last) = (rows[0] / p.output[1], (rows[1].max(1) - 1) / p.output[1]);
        let (n, z) = (first / p.output[0], first % p.output[0]);
        if self.blocked || rows[0] == rows[1] {
            return [dy, Ahead::new(&[], 0, [0; 3], 1)];
        }
        let y = rows[0] % p.output[1];
        let y = if first == last { [y, y + rows[1] - rows[0]] } else { [0, p.output[1]] };
        let z = [z, p.output[0].min(z + last - first + 1)];
        let region = Dense::region_of(self.axes, &[z, y, [0, p.output[2]]]);
        let data = &self.x[n * p.image_len()..][..p.image_len()];
        let image = Image { data, dims: p.input, channels: p.depth };
        [dy, Ahead::region(&image, &region, steps)]
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

    /// Lists rows `from..to` of `dy`.
    fn list_lines(&self, [from, to]: [usize; 2], lines: &mut Vec<Line>) {
        let (p, [az, ay, ax]) = (self.p, self.axes);
        let at = |axis: &Axis, j: usize| axis.in_first + (j * axis.in_step) as isize;
        let [d, h, w] = p.input.map(|extent| extent as isize);
        lines.clear();
        lines.extend((from..to).map(|row| {
            let (plane, y) = (row / p.output[1], row % p.output[1]);
            let (n, z) = (plane / p.output[0], plane % p.output[0]);
            let input = ((n as isize * d + at(az, z)) * h + at(ay, y)) * w + ax.in_first;
            Line { z, y, row: row - from, input }
        }));
    }

    /// Lists, for every tap, the parts of the rows at hand where it meets data.
    fn list_runs(&self, pitch: usize, lines: &[Line], all: &mut Vec<Segments>) {
        let p = self.p;
        let [_, h, w] = p.input;
        all.resize_with(p.taps().max(all.len()), Segments::default);
        for (tap, runs) in all.iter_mut().enumerate().take(p.taps()) {
            let (line, s) = (tap / p.filter[2], tap % p.filter[2]);
            let (t, r) = (line / p.filter[1], line % p.filter[1]);
            let [z, y, x] =
                [(0, t), (1, r), (2, s)].map(|(d, m)| self.axes[d].outputs(m, p.input[d]));
            let offset = ((t * h + r) * w + s + x[0] * self.axes[2].in_step) as isize;
            runs.clear();
            runs.len = x[1] - x[0];
            if runs.len == 0 {
                continue;
            }
            for line in lines {
                if line.z >= z[0] && line.z < z[1] && line.y >= y[0] && line.y < y[1] {
                    let a = (line.row * p.output[2] + x[0]) * ROWS;
                    runs.push(a, (line.input + offset) as usize * pitch);
                }
            }
        }
    }

    /// Runs `tile` for output channels `k`, one row of the tile each; `out` starts at the column.
    fn filters(&self, tile: Tile<'_, T>, k: [usize; 2], out: &mut [T]) {
        let (count, pitch) = (k[1] - k[0], self.p.taps() * self.p.depth);
        let c_rows: [usize; ROWS] = std::array::from_fn(|i| (k[0] + i) * pitch);
        Tile { rows: Rows::Adjacent(count), ..tile }.run(self.isa, out, &c_rows[..count]);
    }
}
