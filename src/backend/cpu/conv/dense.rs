//! fprop and dgrad: which tiles are computed by whom, in which order.
//!
//! Two ways to cut the work. Large images are cut into planes; all panels of the filter, packed once
//! beforehand, run over each. Where the filter outweighs the images, it is cut by output channels
//! instead, so that every filter element is read once; each task packs its panels as it goes.
//!
//! Outputs near the border meet only some of the taps. They are cut into pieces with equal taps, so
//! neither padding nor products with it exist, and tiles read the input where it lies.

use crate::backend::cpu::conv::pack::{chunk_depth, nr, pack, panels};
use crate::backend::cpu::conv::plan::{Axis, Dense, Grid, even};
use crate::backend::cpu::conv::slab::{
    ALIGN_SLACK, Ahead, Image, Scratch, aligned, fill, with_scratch,
};
use crate::backend::cpu::conv::tile::{Init, ROWS, Rows, Tile, prefetch_output};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::segments::Segments;
use crate::scalar::Scalar;
use rayon::prelude::*;

/// Operands of one call.
#[derive(Clone, Copy)]
pub(super) struct Run<'a, T> {
    pub(super) isa: Isa,
    pub(super) x: &'a [T],
    pub(super) w: &'a [T],
    pub(super) bias: Option<&'a [T]>,
    pub(super) add: bool,
}

/// Most input elements per block of outputs: half a second-level cache of f32.
const SLAB: usize = 128 * 1024;

/// Elements of workspace of a problem.
pub(super) fn workspace_len(p: &Dense) -> usize {
    let panels_len = panels(p) * nr(p);
    let len = if by_channels(p) {
        p.batch * p.out_voxels() * panels_len
    } else {
        panels_len * p.taps() * p.depth
    };
    len + ALIGN_SLACK
}

/// Whether the work is cut by output channels.
fn by_channels(p: &Dense) -> bool {
    p.taps() * p.width > p.batch * p.input.iter().product::<usize>()
}

/// Computes all of `y`.
pub(super) fn run<T: Scalar>(p: &Dense, run: &Run<'_, T>, y: &mut [T], workspace: &mut [T]) {
    assert!(workspace.len() >= workspace_len(p), "workspace of a convolution");
    assert!(run.bias.is_none_or(|b| b.len() == p.width), "one bias per channel");
    if y.is_empty() {
        return;
    }
    if let (true, Some(bias)) = (run.add, run.bias) {
        y.par_chunks_mut(p.width).with_min_len(4096).for_each(|voxel| {
            voxel.iter_mut().zip(bias).for_each(|(value, &b)| *value += b);
        });
    }
    if by_channels(p) {
        cut_by_channels(p, run, y, aligned(workspace));
    } else {
        cut_by_planes(p, run, y, aligned(workspace));
    }
}

impl<'a, T: Scalar> Run<'a, T> {
    /// What the sums of the chunk from channel `start` on begin with, for output channels from `col` on.
    fn init(&self, start: usize, col: usize) -> Init<'a, T> {
        match self.bias {
            _ if start > 0 || self.add => Init::Load,
            Some(bias) => Init::Bias(&bias[col..]),
            None => Init::Zero,
        }
    }
}

/// Tasks are runs of whole output planes of one image.
fn cut_by_planes<T: Scalar>(p: &Dense, run: &Run<'_, T>, y: &mut [T], workspace: &mut [T]) {
    let (nr, taps) = (nr(p), p.taps());
    let packed = &mut workspace[..panels(p) * nr * taps * p.depth];
    let parts = chunks(p);
    packed.par_chunks_mut(nr * taps * p.depth).enumerate().for_each(|(index, panel)| {
        for part in parts.clone() {
            let out = &mut panel[taps * part[0] * nr..taps * part[1] * nr];
            pack(p, run.w, index, part, out);
        }
    });
    let packed = &*packed;
    let plane = p.output[1] * p.output[2] * p.width;
    let planes = (p.batch * p.output[0] / 8).clamp(1, 4).min(p.output[0]);
    let image_len = p.image_len();
    let tasks = y.par_chunks_mut(plane * p.output[0]).enumerate().flat_map(|(n, image)| {
        image.par_chunks_mut(plane * planes).enumerate().map(move |(i, out)| (n, i * planes, out))
    });
    tasks.for_each(|(n, z, out)| {
        let x = &run.x[n * image_len..][..image_len];
        let z_range = [z, z + out.len() / plane];
        if !p.pads_inputs() {
            with_scratch(|scratch| planes_task(p, run, x, packed, z_range, out, scratch));
            return;
        }
        with_scratch(|scratch| padded_task(p, run, x, packed, z_range, out, scratch));
    });
}

/// The chunks of reduction channels.
fn chunks(p: &Dense) -> impl Iterator<Item = [usize; 2]> + Clone + use<> {
    let (depth, step) = (p.depth, chunk_depth(p));
    (0..depth).step_by(step).map(move |c| [c, (c + step).min(depth)])
}

/// [`planes_task`] on a padded copy of the inputs.
fn padded_task<T: Scalar>(
    p: &Dense,
    run: &Run<'_, T>,
    x: &[T],
    packed: &[T],
    z: [usize; 2],
    out: &mut [T],
    scratch: &mut Scratch,
) {
    let region = p.region(&[z, [0, p.output[1]], [0, p.output[2]]]);
    let mut slab = std::mem::take(&mut scratch.slab);
    let padded = slab.get::<T>(region.voxels() * p.depth);
    let image = Image { data: x, dims: p.input, channels: p.depth };
    fill(&image, &region, [0, p.depth], padded);
    let planes = z[1] - z[0];
    let output = [planes, p.output[1], p.output[2]];
    let inner = Dense { input: region.dims, output, padding: [0; 3], ..*p };
    planes_task(&inner, run, padded, packed, [0, planes], out, scratch);
    scratch.slab = slab;
}

/// Output planes `z` of one image.
fn planes_task<T: Scalar>(
    p: &Dense,
    run: &Run<'_, T>,
    x: &[T],
    packed: &[T],
    z: [usize; 2],
    out: &mut [T],
    scratch: &mut Scratch,
) {
    let (nr, taps) = (nr(p), p.taps());
    let step = block_rows(p, z);
    let blocks = p.output[1].div_ceil(step);
    for block in 0..blocks {
        let ranges = [z, even(p.output[1], blocks, block), [0, p.output[2]]];
        let next = (block + 1 < blocks).then(|| even(p.output[1], blocks, block + 1));
        let mut ahead = ahead(p, x, &ranges, next);
        for part in chunks(p) {
            let origin = [0, z[0]];
            for axes in pieces(p, &ranges) {
                scratch.rows.clear();
                scratch.c_rows.clear();
                list_voxels(p, &axes, origin, &mut scratch.rows, &mut scratch.c_rows);
                let pitch = part[1] - part[0];
                list_taps(p, &axes, pitch, &mut scratch.segments);
                for index in 0..panels(p) {
                    let panel = &packed[index * nr * taps * p.depth..][taps * part[0] * nr..];
                    let col = index * nr;
                    let tile = Tile {
                        a: x.get(part[0]..).unwrap_or(&[]),
                        rows: Rows::Adjacent(0),
                        a_step: 1,
                        b: &panel[..taps * pitch * nr],
                        b_step: nr,
                        cols: nr.min(p.width - col),
                        segments: &scratch.segments,
                        init: run.init(part[0], col),
                    };
                    sweep(
                        run.isa,
                        tile,
                        [&scratch.rows, &scratch.c_rows],
                        &mut ahead,
                        &mut out[col..],
                    );
                }
            }
        }
    }
}

/// The inputs of the block after `ranges`: rows `rows`, or the first ones of the planes that follow.
fn ahead<'a, T>(
    p: &Dense,
    x: &'a [T],
    ranges: &[[usize; 2]; 3],
    rows: Option<[usize; 2]>,
) -> Ahead<'a, T> {
    let [z, y, all] = *ranges;
    let after = [z[1], (2 * z[1] - z[0]).min(p.output[0])];
    let next = if let Some(rows) = rows { [z, rows, all] } else { [after, [0, y[1] - y[0]], all] };
    let image = Image { data: x, dims: p.input, channels: p.depth };
    let voxels = (z[1] - z[0]) * (y[1] - y[0]) * p.output[2];
    let tiles = voxels.div_ceil(ROWS) * panels(p) * chunks(p).count();
    Ahead::region(&image, &p.region(&next), tiles)
}

/// The outputs in `ranges`, cut so that within a piece all taps meet data.
fn pieces(p: &Dense, ranges: &[[usize; 2]; 3]) -> impl Iterator<Item = [Axis; 3]> {
    let [d, h, w] = p.input;
    (0..p.classes()).filter_map(move |class| p.class(class, ranges)).flat_map(
        move |[az, ay, ax]| {
            az.bands(d).flat_map(move |az| {
                ay.bands(h).flat_map(move |ay| ax.bands(w).map(move |ax| [az, ay, ax]))
            })
        },
    )
}

/// Rows of a plane per block, so that the inputs of a block fit [`SLAB`].
fn block_rows(p: &Dense, z: [usize; 2]) -> usize {
    let size = |rows| p.region(&[z, [0, rows], [0, p.output[2]]]).voxels() * chunk_depth(p);
    let mut blocks = 1;
    while blocks < p.output[1] && size(p.output[1].div_ceil(blocks)) > SLAB {
        blocks += 1;
    }
    p.output[1].div_ceil(blocks)
}

/// Lists the voxels of a class: offset of the lowest input, and of the output.
///
/// `origin`: what is added to input offsets, and the first plane of the output.
fn list_voxels(
    p: &Dense,
    axes: &[Axis; 3],
    origin: [usize; 2],
    rows: &mut Vec<usize>,
    c_rows: &mut Vec<usize>,
) {
    let [az, ay, ax] = axes;
    let grid = Grid::packed([0; 3], p.input, p.depth);
    for j in 0..az.count {
        let z_in = origin[0] + grid.along(az, 0, j);
        let z_out = az.out_first + j * az.out_step - origin[1];
        for j in 0..ay.count {
            let y_in = z_in + grid.along(ay, 1, j);
            let y_out = z_out * p.output[1] + ay.out_first + j * ay.out_step;
            let first = (y_out * p.output[2] + ax.out_first) * p.width;
            let (step_in, step_out) = (ax.in_step * grid.strides[2], ax.out_step * p.width);
            let x_in = y_in + grid.along(ax, 2, 0);
            rows.extend((0..ax.count).map(|j| x_in + j * step_in));
            c_rows.extend((0..ax.count).map(|j| first + j * step_out));
        }
    }
}

/// Lists the taps of a class.
///
/// Taps along x are one run where inputs and panel are both contiguous over them.
fn list_taps(p: &Dense, axes: &[Axis; 3], pitch: usize, segments: &mut Segments) {
    let nr = nr(p);
    let [az, ay, ax] = axes;
    let grid = Grid::packed([0; 3], p.input, p.depth);
    let joined = grid.strides[2] == pitch;
    let first = if ax.shift > 0 { 0 } else { ax.taps.saturating_sub(1) };
    segments.clear();
    for mz in 0..az.taps {
        for my in 0..ay.taps {
            let a = az.tap_offset(mz) * grid.strides[0] + ay.tap_offset(my) * grid.strides[1];
            let tap = |mx| p.panel_tap([az.tap(mz), ay.tap(my), ax.tap(mx)]) * pitch * nr;
            if joined && ax.taps > 0 {
                segments.push(a, tap(first));
            } else {
                (0..ax.taps).for_each(|mx| {
                    segments.push(a + ax.tap_offset(mx) * grid.strides[2], tap(mx));
                });
            }
        }
    }
    segments.len = if joined { ax.taps * pitch } else { pitch };
}

/// Runs `tile` over all listed voxels, `[input offsets, output offsets]`.
fn sweep<T: Scalar>(
    isa: Isa,
    tile: Tile<'_, T>,
    lists: [&[usize]; 2],
    ahead: &mut Ahead<'_, T>,
    out: &mut [T],
) {
    let [rows, c_rows] = lists;
    let tiles = rows.len().div_ceil(ROWS);
    for index in 0..tiles {
        let [start, end] = even(rows.len(), tiles, index);
        let tile = Tile { rows: Rows::At(&rows[start..end]), ..tile };
        ahead.step();
        for &row in c_rows.iter().skip(end + ROWS).take(ROWS) {
            prefetch_output(out, row, tile.cols);
        }
        tile.run(isa, out, &c_rows[start..end]);
    }
}

/// Tasks are panels of output channels; they compute to the workspace, and are put together at the end.
fn cut_by_channels<T: Scalar>(p: &Dense, run: &Run<'_, T>, y: &mut [T], workspace: &mut [T]) {
    let (nr, voxels) = (nr(p), p.batch * p.out_voxels());
    let staged = &mut workspace[..panels(p) * nr * voxels];
    staged.par_chunks_mut(voxels * nr).enumerate().for_each(|(index, out)| {
        with_scratch(|scratch| channels_task(p, run, index, out, scratch));
    });
    let staged = &*staged;
    y.par_chunks_mut(p.width).with_min_len(16).enumerate().for_each(|(v, voxel)| {
        for (index, to) in voxel.chunks_mut(nr).enumerate() {
            let from = &staged[(index * voxels + v) * nr..][..to.len()];
            if run.add {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
            } else {
                to.copy_from_slice(from);
            }
        }
    });
}

/// Panel `index` of the output channels over all images, to `out`: `[voxel][nr]`.
fn channels_task<T: Scalar>(
    p: &Dense,
    run: &Run<'_, T>,
    index: usize,
    out: &mut [T],
    scratch: &mut Scratch,
) {
    let nr = nr(p);
    let col = index * nr;
    let staged = Dense { width: nr, ..*p };
    let mut ahead = Ahead::new(&[], 0, [0; 3], 1);
    let init = Run { add: false, bias: run.bias.filter(|_| !run.add), ..*run };
    for part in chunks(p) {
        let pitch = part[1] - part[0];
        let panel = scratch.panel.get::<T>(p.taps() * pitch * nr);
        pack(p, run.w, index, part, panel);
        for axes in pieces(p, &p.everything()) {
            scratch.rows.clear();
            scratch.c_rows.clear();
            for n in 0..p.batch {
                let start = scratch.c_rows.len();
                let origin = [n * p.image_len(), 0];
                let (rows, c_rows) = (&mut scratch.rows, &mut scratch.c_rows);
                list_voxels(&staged, &axes, origin, rows, c_rows);
                c_rows[start..].iter_mut().for_each(|c| *c += n * p.out_voxels() * nr);
            }
            list_taps(p, &axes, pitch, &mut scratch.segments);
            let tile = Tile {
                a: run.x.get(part[0]..).unwrap_or(&[]),
                rows: Rows::Adjacent(0),
                a_step: 1,
                b: &*panel,
                b_step: nr,
                cols: nr.min(p.width - col),
                segments: &scratch.segments,
                init: init.init(part[0], col),
            };
            sweep(run.isa, tile, [&scratch.rows, &scratch.c_rows], &mut ahead, out);
        }
    }
}
