//! Launches of the kernels of filter and bias gradients. Sums are split over blocks by size, into scratch, and added in order.

use super::cuda::{TARGET_BLOCKS, boxes_pay, is_same_k3, tiles, voxels};
use super::params::{
    BiasGradParams, GatherWgradParams, HaloWgradParams, StemWgradParams, SumSplitsParams, int, ints,
};
use super::table::{BIAS_GRAD, GATHER_WGRAD, HALO_WGRAD, STEM_WGRAD, SUM_SPLITS};
use crate::backend::cpu::conv::ConvGeometry;
use crate::backend::cuda::{Queue, blocks};
use crate::driver::DevPtr;
use crate::error::Result;

/// Where the operands of a filter gradient lie.
#[derive(Clone, Copy)]
pub(in crate::ops) struct FilterOperands {
    /// Input of the convolution.
    pub(in crate::ops) x: DevPtr,
    /// Gradient of its output.
    pub(in crate::ops) dy: DevPtr,
    /// Gradient of the filter, f32.
    pub(in crate::ops) dw: DevPtr,
    /// Add to it.
    pub(in crate::ops) add: bool,
    /// [`wgrad_workspace`] bytes.
    pub(in crate::ops) work: DevPtr,
}

/// Which kernel makes a filter gradient, and how its voxels are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FilterChoice {
    /// Boxes of all blocks, boxes of a block.
    Stem(usize, usize),
    /// Kernel by channels, boxes of all blocks, boxes of a block.
    Halo([usize; 2], usize, usize),
    /// Kernel, steps of 32 voxels of a block, blocks that share the voxels.
    Gather(usize, usize, usize),
}

/// Boxes of a block, if `tiles` blocks work on each box.
fn boxes_per_block(boxes: usize, tiles: usize) -> usize {
    boxes.div_ceil((TARGET_BLOCKS / tiles).clamp(1, boxes))
}

fn choose_filter(g: &ConvGeometry) -> FilterChoice {
    let (c, k) = (g.in_channels, g.out_channels);
    if is_same_k3(g) && c == 1 && k % 8 == 0 {
        let boxes = g.batch * tiles(g.input, [8; 3]);
        return FilterChoice::Stem(boxes, boxes_per_block(boxes, k.div_ceil(32)));
    }
    if is_same_k3(g) && c % 16 == 0 && k % 16 == 0 && boxes_pay(g.input, [4, 8, 8]) {
        let boxes = g.batch * tiles(g.input, [4, 8, 8]);
        let per = boxes_per_block(boxes, k.div_ceil(32) * c.div_ceil(32));
        return FilterChoice::Halo([usize::from(k > 16), usize::from(c > 16)], boxes, per);
    }
    let steps = (g.batch * voxels(g.output())).div_ceil(32);
    let tiles = k.div_ceil(64) * (voxels(g.filter) * c).div_ceil(64);
    let splits = (2 * TARGET_BLOCKS / tiles).clamp(1, steps.div_ceil(8));
    let each = steps.div_ceil(splits);
    FilterChoice::Gather(usize::from(c % 8 != 0 || k % 8 != 0), each, steps.div_ceil(each))
}

/// Parts a filter gradient is summed in.
fn filter_splits(choice: FilterChoice) -> usize {
    match choice {
        FilterChoice::Stem(boxes, per) => boxes.div_ceil(per),
        FilterChoice::Halo([k, c], boxes, per) => boxes.div_ceil(per) * (4 >> (k + c)),
        FilterChoice::Gather(_, _, splits) => splits,
    }
}

fn filter_len(g: &ConvGeometry) -> usize {
    g.out_channels * voxels(g.filter) * g.in_channels
}

/// Bytes of scratch a filter gradient needs.
pub(in crate::ops) fn wgrad_workspace(g: &ConvGeometry) -> usize {
    4 * filter_splits(choose_filter(g)) * filter_len(g)
}

/// Queues the filter gradient.
pub(in crate::ops) fn wgrad(queue: &Queue, g: &ConvGeometry, o: &FilterOperands) -> Result<()> {
    wgrad_strided(queue, g, o, g.in_channels)
}

/// The same from an input that is the first channels of `x_stride` ones, which the gather kernel can.
///
/// # Panics
/// If another kernel makes this gradient.
pub(in crate::ops) fn wgrad_strided(
    queue: &Queue,
    g: &ConvGeometry,
    o: &FilterOperands,
    x_stride: usize,
) -> Result<()> {
    let choice = choose_filter(g);
    let (c, k) = (g.in_channels, g.out_channels);
    let gathers = matches!(choice, FilterChoice::Gather(..));
    assert!(gathers || x_stride == c, "only the gather kernel reads a part of a wider input");
    match choice {
        FilterChoice::Stem(boxes, per) => {
            let params = StemWgradParams {
                x: o.x,
                dy: o.dy,
                part: o.work,
                batch: int(g.batch),
                extent: ints(g.input),
                out_channels: int(k),
                boxes: int(boxes),
                boxes_per_block: int(per),
                unused: 0,
            };
            queue.launch(&STEM_WGRAD, [blocks(boxes, per), blocks(k, 32), 1], &params)?;
        }
        FilterChoice::Halo([wide_k, wide_c], boxes, per) => {
            let params = HaloWgradParams {
                x: o.x,
                dy: o.dy,
                part: o.work,
                batch: int(g.batch),
                extent: ints(g.input),
                in_channels: int(c),
                out_channels: int(k),
                boxes: int(boxes),
                boxes_per_block: int(per),
            };
            let tiles = blocks(k, 16 << wide_k) * blocks(c, 16 << wide_c);
            queue.launch(&HALO_WGRAD[wide_k][wide_c], [blocks(boxes, per), tiles, 1], &params)?;
        }
        FilterChoice::Gather(kind, steps, splits) => {
            let params = GatherWgradParams {
                x: o.x,
                dy: o.dy,
                part: o.work,
                batch: int(g.batch),
                source: ints(g.input),
                out: ints(g.output()),
                filter: ints(g.filter),
                stride: ints(g.stride),
                padding: ints(g.padding),
                in_channels: int(c),
                out_channels: int(k),
                steps: int(steps),
                x_stride: int(x_stride),
            };
            let columns = blocks(voxels(g.filter) * c, 64);
            queue.launch(
                &GATHER_WGRAD[kind],
                [blocks(k, 64), columns, blocks(splits, 1)],
                &params,
            )?;
        }
    }
    sum_splits(queue, o.work, o.dw, filter_len(g), (filter_splits(choice), o.add))
}

fn sum_splits(
    queue: &Queue,
    part: DevPtr,
    out: DevPtr,
    len: usize,
    (splits, add): (usize, bool),
) -> Result<()> {
    let params =
        SumSplitsParams { part, out, len: len as i64, splits: int(splits), add: add.into() };
    queue.launch(&SUM_SPLITS, [blocks(len, 256), 1, 1], &params)
}

/// Rows of `dy` a block of the bias gradient adds.
fn bias_rows(rows: usize, channels: usize) -> usize {
    let most = (2 * TARGET_BLOCKS / channels.div_ceil(64)).max(1);
    rows.div_ceil(rows.div_ceil(512).clamp(1, most))
}

/// Bytes of scratch a bias gradient needs.
pub(in crate::ops) fn bias_workspace(rows: usize, channels: usize) -> usize {
    4 * rows.div_ceil(bias_rows(rows, channels)) * channels
}

/// Queues the gradient of the bias of `channels` channels, from `rows` voxels: `db` and whether to add to it.
pub(in crate::ops) fn bias_grad(
    queue: &Queue,
    dy: DevPtr,
    [rows, channels]: [usize; 2],
    db: (DevPtr, bool),
    work: DevPtr,
) -> Result<()> {
    bias_grad_strided(queue, (dy, channels), [rows, channels], db, work)
}

/// The same where `dy` is the first channels of `dy_stride` ones.
pub(in crate::ops) fn bias_grad_strided(
    queue: &Queue,
    (dy, dy_stride): (DevPtr, usize),
    [rows, channels]: [usize; 2],
    (db, add): (DevPtr, bool),
    work: DevPtr,
) -> Result<()> {
    let each = bias_rows(rows, channels);
    let splits = rows.div_ceil(each);
    let params = BiasGradParams {
        dy,
        part: work,
        rows: rows as i64,
        channels: int(channels),
        rows_per_block: int(each),
        dy_stride: int(dy_stride),
        unused: 0,
    };
    queue.launch(&BIAS_GRAD, [blocks(channels, 64), blocks(splits, 1), 1], &params)?;
    sum_splits(queue, work, db, channels, (splits, add))
}
