//! wgrad for few input channels: tile rows are pairs of tap and input channel, vectors are output
//! channels, and the sum runs along rows of `dy` as they lie in memory.

use crate::backend::cpu::conv::job::Job;
use crate::backend::cpu::conv::plan::{Axis, Dense, Grid, even};
use crate::backend::cpu::conv::slab::{Ahead, Image, Scratch, fill};
use crate::backend::cpu::conv::tile::{COLS, Init, ROWS, Rows, Tile};
use crate::scalar::Scalar;

/// Output voxels summed per visit of a tile.
const VISIT: usize = 512;

/// Sums over output planes `planes`, counted through all images, to `out`: `[taps, channels][width]`.
pub(super) fn sum<T: Scalar>(
    job: &Job<'_, T>,
    planes: [usize; 2],
    out: &mut [T],
    scratch: &mut Scratch,
) {
    let [depth, height, width] = job.p.output;
    let blocks = height.div_ceil((VISIT / width).max(1));
    for plane in planes[0]..planes[1] {
        let (n, z) = (plane / depth, plane % depth);
        for index in 0..blocks {
            let ranges = [[z, z + 1], even(height, blocks, index), [0, width]];
            let first = plane == planes[0] && index == 0;
            block(job, n, &ranges, if first { Init::Zero } else { Init::Load }, out, scratch);
        }
    }
}

/// Sums over the box `ranges` of outputs of image `n`.
fn block<T: Scalar>(
    job: &Job<'_, T>,
    n: usize,
    ranges: &[[usize; 2]; 3],
    init: Init<'_, T>,
    out: &mut [T],
    scratch: &mut Scratch,
) {
    let (p, [az, ay, ax]) = (job.p, job.axes);
    let region = Dense::region_of(job.axes, ranges);
    let slab = scratch.slab.get::<T>(region.voxels() * p.depth);
    let data = &job.x[n * p.image_len()..][..p.image_len()];
    let image = Image { data, dims: p.input, channels: p.depth };
    fill(&image, &region, [0, p.depth], slab);
    let grid = Grid::packed(region.low, region.dims, p.depth);
    let [z, rows, _] = ranges;
    let row_len = p.output[2] * p.width;
    let first = (n * p.output[0] + z[0]) * p.output[1] * row_len;
    scratch.segments.clear();
    scratch.segments.len = p.output[2];
    for y in rows[0]..rows[1] {
        let input = grid.along(az, 0, z[0]) + grid.along(ay, 1, y) + grid.along(ax, 2, 0);
        scratch.segments.push(input, first + y * row_len);
    }
    list_taps(p, job.axes, &grid, [&mut scratch.rows, &mut scratch.c_rows]);
    let tiles = scratch.rows.len().div_ceil(ROWS);
    let steps = tiles * p.width.div_ceil(COLS);
    let next = [1, (rows[1] - rows[0]) * row_len, 0];
    let mut ahead = Ahead::new(job.dy, first + rows[1] * row_len, next, steps);
    for col in (0..p.width).step_by(COLS) {
        for index in 0..tiles {
            let [from, to] = even(scratch.rows.len(), tiles, index);
            let tile = Tile {
                a: slab,
                rows: Rows::At(&scratch.rows[from..to]),
                a_step: ax.in_step * p.depth,
                b: &job.dy[col..],
                b_step: p.width,
                cols: COLS.min(p.width - col),
                segments: &scratch.segments,
                init,
            };
            ahead.step();
            tile.run(job.isa, &mut out[col..], &scratch.c_rows[from..to]);
        }
    }
}

/// Lists the pairs of tap and input channel: offset of the input, and of the result.
fn list_taps(p: &Dense, [az, ay, ax]: &[Axis; 3], grid: &Grid, lists: [&mut Vec<usize>; 2]) {
    let ([rows, c_rows], [z, y, x]) = (lists, grid.strides);
    rows.clear();
    c_rows.clear();
    c_rows.extend((0..p.taps() * p.depth).map(|row| row * p.width));
    for t in 0..az.taps {
        for r in 0..ay.taps {
            for s in 0..ax.taps {
                let offset = t * z + r * y + s * x;
                rows.extend((0..p.depth).map(|c| offset + c));
            }
        }
    }
}
