//! Launches of the convolution kernels: which kernel a pass of a convolution runs, how its work is cut, and its scratch.
//!
//! All choices depend on sizes only, never on the device, so results do not either. docs/kernels/conv3d.md has the table.

use super::params::{
    BiasGradParams, GatherParams, GatherWgradParams, HaloParams, HaloWgradParams, StemParams,
    StemWgradParams, SumRowsParams, SumSplitsParams, int, ints,
};
use crate::backend::cpu::conv::ConvGeometry;
use crate::backend::cuda::{Queue, blocks};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;

/// A kernel and what a block of it makes.
struct Tile {
    kernel: Kernel,
    /// Output voxels: a box of the halo kernels, rows of the others.
    voxels: [usize; 3],
    /// Output channels.
    channels: usize,
}

const fn halo(name: &'static str, z: usize, channels: usize, shared: u32) -> Tile {
    let kernel = Kernel::new::<HaloParams>(name, 256).with_shared(shared);
    Tile { kernel, voxels: [z, 8, 8], channels }
}

const fn gather(name: &'static str, rows: usize, channels: usize) -> Tile {
    let shared = 3 * 64 * (rows + channels) + 20 * rows + 108;
    let kernel = Kernel::new::<GatherParams>(name, 128).with_shared(shared as u32);
    Tile { kernel, voxels: [1, 1, rows], channels }
}

const fn halo_wgrad(name: &'static str, shared: u32) -> Kernel {
    Kernel::new::<HaloWgradParams>(name, 384).with_shared(shared)
}

const fn gather_wgrad(name: &'static str) -> Kernel {
    Kernel::new::<GatherWgradParams>(name, 128).with_shared(24_576)
}

/// Forward, input gradient; 16, 32, 64 output channels a block.
static HALO: [[Tile; 3]; 2] = [
    [
        halo("conv3d_halo_fwd_n16", 8, 16, 68_608),
        halo("conv3d_halo_fwd_n32", 8, 32, 73_216),
        halo("conv3d_halo_fwd_n64", 4, 64, 56_832),
    ],
    [
        halo("conv3d_halo_dgrad_n16", 8, 16, 68_608),
        halo("conv3d_halo_dgrad_n32", 8, 32, 73_216),
        halo("conv3d_halo_dgrad_n64", 4, 64, 56_832),
    ],
];
/// Forward, input gradient; 32, 64 output channels a block, any number of channels.
static GATHER: [[Tile; 3]; 2] = [
    [
        gather("conv3d_gather_fwd_n32", 256, 32),
        gather("conv3d_gather_fwd_n64", 128, 64),
        gather("conv3d_gather_fwd_any", 128, 64),
    ],
    [
        gather("conv3d_gather_dgrad_n32", 256, 32),
        gather("conv3d_gather_dgrad_n64", 128, 64),
        gather("conv3d_gather_dgrad_any", 128, 64),
    ],
];
/// By 16 or 32 output channels, then 16 or 32 input channels.
static HALO_WGRAD: [[Kernel; 2]; 2] = [
    [halo_wgrad("conv3d_halo_wgrad_16x16", 50_176), halo_wgrad("conv3d_halo_wgrad_16x32", 75_776)],
    [halo_wgrad("conv3d_halo_wgrad_32x16", 74_752), halo_wgrad("conv3d_halo_wgrad_32x32", 100_352)],
];
/// Channels multiples of 8, any number of channels.
static GATHER_WGRAD: [Kernel; 2] =
    [gather_wgrad("conv3d_gather_wgrad"), gather_wgrad("conv3d_gather_wgrad_any")];
static STEM: Kernel = Kernel::new::<StemParams>("conv3d_stem_fwd", 256).with_shared(19_984);
static STEM_WGRAD: Kernel =
    Kernel::new::<StemWgradParams>("conv3d_stem_wgrad", 256).with_shared(69_536);
static SUM_SPLITS: Kernel = Kernel::new::<SumSplitsParams>("conv3d_sum_splits", 256);
static SUM_ROWS: Kernel = Kernel::new::<SumRowsParams>("conv3d_sum_rows", 256);
static BIAS_GRAD: Kernel = Kernel::new::<BiasGradParams>("conv3d_bias_grad", 256);

/// All of them.
pub(in crate::ops) static KERNELS: [Kernel; 23] = [
    HALO[0][0].kernel,
    HALO[0][1].kernel,
    HALO[0][2].kernel,
    HALO[1][0].kernel,
    HALO[1][1].kernel,
    HALO[1][2].kernel,
    GATHER[0][0].kernel,
    GATHER[0][1].kernel,
    GATHER[0][2].kernel,
    GATHER[1][0].kernel,
    GATHER[1][1].kernel,
    GATHER[1][2].kernel,
    HALO_WGRAD[0][0],
    HALO_WGRAD[0][1],
    HALO_WGRAD[1][0],
    HALO_WGRAD[1][1],
    GATHER_WGRAD[0],
    GATHER_WGRAD[1],
    STEM,
    STEM_WGRAD,
    SUM_SPLITS,
    SUM_ROWS,
    BIAS_GRAD,
];

/// Blocks a launch should have where its work can be cut at will: about the multiprocessors of a large card. A constant,
/// because results must not depend on the card.
const TARGET_BLOCKS: usize = 128;

/// Forward or input gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Product {
    Fprop,
    Dgrad,
}

/// Where the operands of a product lie.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Operands {
    /// The input, or the gradient of the output.
    pub(in crate::ops) input: DevPtr,
    /// bf16 copy of the filter.
    pub(in crate::ops) filter: DevPtr,
    /// f32, one for each channel of `output`, or none.
    pub(in crate::ops) bias: DevPtr,
    /// What is written.
    pub(in crate::ops) output: DevPtr,
    /// Add to the output.
    pub(in crate::ops) add: bool,
    /// [`product_workspace`] bytes.
    pub(in crate::ops) work: DevPtr,
}

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

/// Which kernel, by its place in the tables above; parts the summed index is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Stem,
    Halo(usize),
    Gather(usize, usize),
}

fn voxels(extents: [usize; 3]) -> usize {
    extents.iter().product()
}

/// Tiles that cover `extents`.
fn tiles(extents: [usize; 3], tile: [usize; 3]) -> usize {
    (0..3).map(|a| extents[a].div_ceil(tile[a])).product()
}

fn is_same_k3(g: &ConvGeometry) -> bool {
    (g.filter, g.stride, g.padding) == ([3; 3], [1; 3], [1; 3])
}

/// Whether boxes of `tile` voxels cover the volume without wasting more than half of the work.
fn boxes_pay(extents: [usize; 3], tile: [usize; 3]) -> bool {
    tiles(extents, tile) * voxels(tile) <= 2 * voxels(extents)
}

/// Channels summed over and channels made, output extents, classes of output voxels.
fn roles(g: &ConvGeometry, product: Product) -> (usize, usize, [usize; 3], usize) {
    match product {
        Product::Fprop => (g.in_channels, g.out_channels, g.output(), 1),
        Product::Dgrad => (g.out_channels, g.in_channels, g.input, voxels(g.stride)),
    }
}

/// Rows of a class, at most.
fn rows(g: &ConvGeometry, product: Product) -> usize {
    let (_, _, out, _) = roles(g, product);
    let stride = if product == Product::Dgrad { g.stride } else { [1; 3] };
    g.batch * tiles(out, stride)
}

fn choose(g: &ConvGeometry, product: Product) -> Choice {
    let (sum, made, out, classes) = roles(g, product);
    if is_same_k3(g) && g.in_channels == 1 && made.is_multiple_of(8) && product == Product::Fprop {
        return Choice::Stem;
    }
    let channels = if made > 32 { 2 } else { usize::from(made > 16) };
    if is_same_k3(g) && sum.is_multiple_of(16) && made.is_multiple_of(16) {
        let tile = &HALO[product as usize][channels];
        let blocks = g.batch * tiles(out, tile.voxels) * made.div_ceil(tile.channels);
        // A block is one long sum: few blocks pay only where it is short.
        if boxes_pay(out, tile.voxels) && (blocks >= 64 || sum <= 32) {
            return Choice::Halo(channels);
        }
    }
    let kind = match (sum % 8, made % 8) {
        (0, 0) if made <= 32 => 0,
        (0, 0) => 1,
        _ => 2,
    };
    let tile = &GATHER[product as usize][kind];
    let blocks = rows(g, product).div_ceil(tile.voxels[2]) * made.div_ceil(tile.channels) * classes;
    let taps: usize = match product {
        Product::Fprop => voxels(g.filter),
        Product::Dgrad => (0..3).map(|a| g.filter[a].div_ceil(g.stride[a])).product(),
    };
    let steps = taps * sum.div_ceil(32);
    Choice::Gather(kind, (TARGET_BLOCKS / blocks).clamp(1, (steps / 8).max(1)))
}

/// Bytes of scratch a product needs.
pub(in crate::ops) fn product_workspace(g: &ConvGeometry, product: Product) -> usize {
    let (_, made, out, _) = roles(g, product);
    match choose(g, product) {
        Choice::Gather(_, splits) if splits > 1 => 4 * splits * g.batch * voxels(out) * made,
        _ => 0,
    }
}

/// Queues the forward pass or the input gradient.
pub(in crate::ops) fn run(
    queue: &Queue,
    g: &ConvGeometry,
    product: Product,
    o: &Operands,
) -> Result<()> {
    let (sum, made, out, _) = roles(g, product);
    match choose(g, product) {
        Choice::Stem => stem(queue, g, o),
        Choice::Halo(kind) => {
            let tile = &HALO[product as usize][kind];
            let params = HaloParams {
                x: o.input,
                w: o.filter,
                bias: o.bias,
                y: o.output,
                extent: ints(out),
                in_channels: int(sum),
                out_channels: int(made),
                tiles_y: int(out[1].div_ceil(tile.voxels[1])),
                tiles_x: int(out[2].div_ceil(tile.voxels[2])),
                add: o.add.into(),
            };
            let grid = [
                blocks(tiles(out, tile.voxels), 1),
                blocks(made, tile.channels),
                blocks(g.batch, 1),
            ];
            queue.launch(&tile.kernel, grid, &params)
        }
        Choice::Gather(kind, splits) => gathered(queue, g, product, o, (kind, splits)),
    }
}

fn gathered(
    queue: &Queue,
    g: &ConvGeometry,
    product: Product,
    o: &Operands,
    (kind, splits): (usize, usize),
) -> Result<()> {
    let tile = &GATHER[product as usize][kind];
    let (sum, made, out, classes) = roles(g, product);
    let split = splits > 1;
    let params = GatherParams {
        x: o.input,
        w: o.filter,
        bias: if split { DevPtr::NULL } else { o.bias },
        y: o.output,
        part: o.work,
        batch: int(g.batch),
        source: ints(if product == Product::Fprop { g.input } else { g.output() }),
        out: ints(out),
        filter: ints(g.filter),
        stride: ints(g.stride),
        padding: ints(g.padding),
        in_channels: int(sum),
        out_channels: int(made),
        y_stride: int(made),
        y_offset: 0,
        splits: int(splits),
        add: o.add.into(),
    };
    let grid = [
        blocks(rows(g, product), tile.voxels[2]),
        blocks(made, tile.channels),
        blocks(classes * splits, 1),
    ];
    queue.launch(&tile.kernel, grid, &params)?;
    if !split {
        return Ok(());
    }
    let len = g.batch * voxels(out) * made;
    let params = SumRowsParams {
        part: o.work,
        bias: o.bias,
        y: o.output,
        len: len as i64,
        channels: int(made),
        y_stride: int(made),
        y_offset: 0,
        splits: int(splits),
        add: o.add.into(),
        unused: 0,
    };
    queue.launch(&SUM_ROWS, [blocks(len, 256), 1, 1], &params)
}

fn stem(queue: &Queue, g: &ConvGeometry, o: &Operands) -> Result<()> {
    assert!(!o.add, "an output has one writer");
    let params = StemParams {
        x: o.input,
        w: o.filter,
        bias: o.bias,
        y: o.output,
        batch: int(g.batch),
        extent: ints(g.input),
        out_channels: int(g.out_channels),
        unused: 0,
    };
    let boxes = g.batch * tiles(g.input, [16, 8, 8]);
    queue.launch(&STEM, [blocks(boxes, 1), blocks(g.out_channels, 32), 1], &params)
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
    let choice = choose_filter(g);
    let (c, k) = (g.in_channels, g.out_channels);
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
                unused: 0,
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
    };
    queue.launch(&BIAS_GRAD, [blocks(channels, 64), blocks(splits, 1), 1], &params)?;
    sum_splits(queue, work, db, channels, (splits, add))
}
