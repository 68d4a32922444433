//! Launches of the convolution kernels: which kernel a pass runs and how its work is cut. Forward and input gradient here, the
//! gradients of filter and bias in `filter.rs`.
//!
//! All choices depend on sizes only, never on the device, so results do not either. docs/kernels/conv3d.md has the table.

use crate::backend::ConvGeometry;
use crate::backend::cuda::{Queue, blocks};
use crate::driver::DevPtr;
use crate::error::Result;
use crate::ops::conv3d::params::{
    GatherParams, HaloParams, StemParams, SumRowsParams, WalkParams, int, ints,
};
use crate::ops::conv3d::table::{GATHER, HALO, STEM, SUM_ROWS, Tile, WALK};
use crate::ops::fusion::conv_norm::NormPart;

/// Blocks a launch should have where its work can be cut at will: about the multiprocessors of a large card. A constant,
/// because results must not depend on the card.
pub(super) const TARGET_BLOCKS: usize = 128;

/// Voxels of a block of the kernel for one input channel.
const STEM_BOX: [usize; 3] = [16, 8, 8];

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

/// What a product may have beyond its operands; strides and a GELU by the gather kernels only.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Beyond {
    /// Channels from one voxel of the input to the next, of which the first are read; none: those.
    pub(in crate::ops) input_stride: Option<usize>,
    /// Channels from one voxel of the output to the next, of which the first are written; none: those.
    pub(in crate::ops) output_stride: Option<usize>,
    /// Where the GELU of the output goes, too, or none; for the forward pass.
    pub(in crate::ops) gelu: DevPtr,
    /// Part of the work of a norm.
    pub(in crate::ops) norm: NormPart,
}

impl Default for Beyond {
    fn default() -> Beyond {
        Beyond { input_stride: None, output_stride: None, gelu: DevPtr::NULL, norm: NormPart::NONE }
    }
}

impl Beyond {
    /// Whether every kernel can do it.
    fn is_plain(&self) -> bool {
        self.input_stride.is_none() && self.output_stride.is_none() && self.gelu.is_null()
    }
}

/// Which kernel, by its place in the tables above, and how its work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Stem,
    /// Kernel by summed channels and by channels made; output planes of a block.
    Walk([usize; 2], usize),
    /// Kernel by channels and planes made.
    Halo(usize),
    /// Kernel; parts the summed index is cut into.
    Gather(usize, usize),
}

pub(super) fn voxels(extents: [usize; 3]) -> usize {
    extents.iter().product()
}

/// Tiles that cover `extents`.
pub(super) fn tiles(extents: [usize; 3], tile: [usize; 3]) -> usize {
    (0..3).map(|a| extents[a].div_ceil(tile[a])).product()
}

pub(super) fn is_same_k3(g: &ConvGeometry) -> bool {
    (g.filter, g.stride, g.padding) == ([3; 3], [1; 3], [1; 3])
}

/// Whether boxes of `tile` voxels cover the volume without wasting more than half of the work.
pub(super) fn boxes_pay(extents: [usize; 3], tile: [usize; 3]) -> bool {
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

/// Planes a block walks over: 16, so that reading the filter costs little, but fewer where that leaves few blocks.
fn walk_planes(g: &ConvGeometry, out: [usize; 3], tile: &Tile) -> usize {
    let columns = g.batch * tiles([1, out[1], out[2]], tile.voxels);
    let enough = |planes: usize| columns * out[0].div_ceil(planes) >= TARGET_BLOCKS;
    if enough(16) {
        16
    } else if enough(8) {
        8
    } else {
        4
    }
}

/// Which boxes with halo make `out` voxels of `made` channels. A block reads the whole filter, so boxes of twice the planes halve
/// what is asked for of it; where they are too few to fill a card, or hold more padding, the smaller ones are used.
fn halo_kind(g: &ConvGeometry, product: Product, out: [usize; 3], made: usize) -> usize {
    if made <= 32 {
        return usize::from(made > 16);
    }
    let [low, high] = [2, 3].map(|kind| &HALO[product as usize][kind]);
    let padded = |tile: &Tile| tiles(out, tile.voxels) * voxels(tile.voxels);
    let blocks = g.batch * tiles(out, high.voxels) * made.div_ceil(high.channels);
    let pays = blocks >= TARGET_BLOCKS * 3 / 4 && 8 * padded(high) <= 9 * padded(low);
    if pays { 3 } else { 2 }
}

fn choose(g: &ConvGeometry, product: Product) -> Choice {
    let (sum, made, out, classes) = roles(g, product);
    if is_same_k3(g) && g.in_channels == 1 && made.is_multiple_of(8) && product == Product::Fprop {
        return Choice::Stem;
    }
    if is_same_k3(g) && (sum == 16 || sum == 32) && made.is_multiple_of(16) {
        let kind = [usize::from(sum > 16), usize::from(made > 16)];
        let tile = &WALK[product as usize][kind[0]][kind[1]];
        if boxes_pay(out, tile.voxels) {
            return Choice::Walk(kind, walk_planes(g, out, tile));
        }
    }
    if is_same_k3(g) && sum.is_multiple_of(16) && made.is_multiple_of(16) {
        let kind = halo_kind(g, product, out, made);
        let tile = &HALO[product as usize][kind];
        let blocks = g.batch * tiles(out, tile.voxels) * made.div_ceil(tile.channels);
        // A block is one long sum: few blocks do not pay.
        if boxes_pay(out, tile.voxels) && blocks >= TARGET_BLOCKS / 2 {
            return Choice::Halo(kind);
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

/// Whether a gather kernel runs a product, so that [`Beyond`] is possible.
pub(in crate::ops) fn is_gathered(g: &ConvGeometry, product: Product) -> bool {
    matches!(choose(g, product), Choice::Gather(..))
}

/// Parts of a batch item of which the kernel can leave partial results for a norm, one for each of its blocks along the voxels;
/// none if it cannot.
pub(in crate::ops) fn parts(g: &ConvGeometry, product: Product) -> Option<usize> {
    let (_, _, out, classes) = roles(g, product);
    match choose(g, product) {
        Choice::Stem => Some(tiles(out, STEM_BOX)),
        Choice::Walk([wide_sum, wide_made], planes) => {
            let [_, y, x] = WALK[product as usize][wide_sum][wide_made].voxels;
            Some(tiles(out, [planes, y, x]))
        }
        Choice::Halo(kind) => Some(tiles(out, HALO[product as usize][kind].voxels)),
        Choice::Gather(kind, 1) if kind < 2 => {
            Some(classes * item_tiles(g, product, &GATHER[product as usize][kind]))
        }
        Choice::Gather(..) => None,
    }
}

/// Tiles of rows that cover a class of one batch item.
fn item_tiles(g: &ConvGeometry, product: Product, tile: &Tile) -> usize {
    (rows(g, product) / g.batch).div_ceil(tile.voxels[2])
}

/// Queues the forward pass or the input gradient, and what `beyond` says.
///
/// # Panics
/// If that is a stride or a GELU, but no gather kernel runs the product; or a norm, and the kernel has no [`parts`].
pub(in crate::ops) fn run(
    queue: &Queue,
    g: &ConvGeometry,
    product: Product,
    o: &Operands,
    beyond: &Beyond,
) -> Result<()> {
    let (sum, made, out, _) = roles(g, product);
    let possible = beyond.is_plain() || is_gathered(g, product);
    assert!(possible, "only the gather kernels do more than their product and a norm's part");
    let work = (o, beyond.norm);
    match choose(g, product) {
        Choice::Stem => stem(queue, g, work),
        Choice::Walk([wide_sum, wide_made], planes) => {
            walk(queue, g, &WALK[product as usize][wide_sum][wide_made], (out, made), planes, work)
        }
        Choice::Halo(kind) => halo(queue, g, &HALO[product as usize][kind], (out, sum, made), work),
        Choice::Gather(kind, splits) => gathered(queue, g, product, (o, beyond), (kind, splits)),
    }
}

fn walk(
    queue: &Queue,
    g: &ConvGeometry,
    tile: &'static Tile,
    (out, made): ([usize; 3], usize),
    planes: usize,
    (o, norm): (&Operands, NormPart),
) -> Result<()> {
    let (segments, columns) = (out[0].div_ceil(planes), made.div_ceil(tile.channels));
    let params = WalkParams {
        x: o.input,
        w: o.filter,
        bias: o.bias,
        y: o.output,
        extent: ints(out),
        out_channels: int(made),
        planes: int(planes),
        segments: int(segments),
        column_tiles: int(columns),
        add: o.add.into(),
        norm,
    };
    let grid = [
        blocks(out[2], tile.voxels[2]),
        blocks(out[1], tile.voxels[1]),
        blocks(g.batch * segments * columns, 1),
    ];
    queue.launch(&tile.kernel, grid, &params)
}

fn halo(
    queue: &Queue,
    g: &ConvGeometry,
    tile: &'static Tile,
    (out, sum, made): ([usize; 3], usize, usize),
    (o, norm): (&Operands, NormPart),
) -> Result<()> {
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
        norm,
    };
    let grid =
        [blocks(tiles(out, tile.voxels), 1), blocks(made, tile.channels), blocks(g.batch, 1)];
    queue.launch(&tile.kernel, grid, &params)
}

fn gathered(
    queue: &Queue,
    g: &ConvGeometry,
    product: Product,
    (o, beyond): (&Operands, &Beyond),
    (kind, splits): (usize, usize),
) -> Result<()> {
    let tile = &GATHER[product as usize][kind];
    let (sum, made, out, classes) = roles(g, product);
    let split = splits > 1;
    let y_stride = int(beyond.output_stride.unwrap_or(made));
    let params = GatherParams {
        x: o.input,
        w: o.filter,
        bias: if split { DevPtr::NULL } else { o.bias },
        y: o.output,
        part: o.work,
        gelu: if split { DevPtr::NULL } else { beyond.gelu },
        batch: int(g.batch),
        source: ints(if product == Product::Fprop { g.input } else { g.output() }),
        out: ints(out),
        filter: ints(g.filter),
        stride: ints(g.stride),
        padding: ints(g.padding),
        in_channels: int(sum),
        out_channels: int(made),
        x_stride: int(beyond.input_stride.unwrap_or(sum)),
        y_stride,
        y_offset: 0,
        splits: int(splits),
        add: o.add.into(),
        unused: 0,
        norm: beyond.norm,
    };
    let has_norm = beyond.norm.is_some();
    assert!(!(split && has_norm), "only whole sums have moments");
    let row_tiles = if has_norm {
        g.batch * item_tiles(g, product, tile)
    } else {
        rows(g, product).div_ceil(tile.voxels[2])
    };
    let grid = [blocks(row_tiles, 1), blocks(made, tile.channels), blocks(classes * splits, 1)];
    queue.launch(&tile.kernel, grid, &params)?;
    if !split {
        return Ok(());
    }
    let len = g.batch * voxels(out) * made;
    let params = SumRowsParams {
        part: o.work,
        bias: o.bias,
        y: o.output,
        gelu: beyond.gelu,
        len: len as i64,
        channels: int(made),
        y_stride,
        y_offset: 0,
        splits: int(splits),
        add: o.add.into(),
        unused: 0,
    };
    queue.launch(&SUM_ROWS, [blocks(len, 256), 1, 1], &params)
}

fn stem(queue: &Queue, g: &ConvGeometry, (o, norm): (&Operands, NormPart)) -> Result<()> {
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
        norm,
    };
    let boxes = g.batch * tiles(g.input, STEM_BOX);
    queue.launch(&STEM, [blocks(boxes, 1), blocks(g.out_channels, 32), 1], &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(batch: usize, extent: usize, channels: [usize; 2], product: Product) -> Choice {
        let g = ConvGeometry {
            batch,
            input: [extent; 3],
            in_channels: channels[0],
            out_channels: channels[1],
            filter: [3; 3],
            stride: [1; 3],
            padding: [1; 3],
        };
        choose(&g, product)
    }

    #[test]
    fn layers_run_the_kernels_written_for_them() {
        use Product::{Dgrad, Fprop};
        assert_eq!(choice(2, 96, [1, 32], Fprop), Choice::Stem);
        assert_eq!(choice(2, 96, [32, 32], Fprop), Choice::Walk([1, 1], 16));
        assert_eq!(choice(2, 32, [16, 16], Dgrad), Choice::Walk([0, 0], 4));
        assert_eq!(choice(1, 64, [64, 32], Fprop), Choice::Halo(1));
        assert_eq!(choice(1, 64, [64, 32], Dgrad), Choice::Walk([1, 1], 16));
        assert_eq!(choice(2, 48, [64, 64], Fprop), Choice::Halo(3));
        assert_eq!(choice(2, 24, [128, 128], Dgrad), Choice::Halo(3));
        // Too few boxes of eight planes, or too much padding in them.
        assert_eq!(choice(1, 24, [128, 128], Dgrad), Choice::Halo(2));
        assert_eq!(choice(2, 32, [64, 64], Fprop), Choice::Halo(3));
        assert_eq!(choice(1, 32, [64, 64], Fprop), Choice::Halo(2));
        assert_eq!(choice(4, 20, [128, 128], Fprop), Choice::Halo(2));
        // Small volumes: exact rows, and the sum cut so that enough blocks work.
        assert_eq!(choice(1, 8, [256, 256], Fprop), Choice::Gather(1, 8));
        assert_eq!(choice(2, 4, [128, 128], Fprop), Choice::Gather(1, 13));
        assert_eq!(choice(2, 5, [3, 5], Fprop), Choice::Gather(2, 3));
    }

    #[test]
    fn scratch_stays_small() {
        for (batch, extent, c) in [(2, 96, 32), (2, 12, 256), (2, 6, 320), (2, 3, 320)] {
            let g = ConvGeometry {
                batch,
                input: [extent; 3],
                in_channels: c,
                out_channels: c,
                filter: [3; 3],
                stride: [1; 3],
                padding: [1; 3],
            };
            for product in [Product::Fprop, Product::Dgrad] {
                assert!(product_workspace(&g, product) <= 32 << 20, "{g:?}");
            }
            assert!(super::super::filter::wgrad_workspace(&g) <= 64 << 20, "{g:?}");
        }
    }
}
