//! Which kernel computes the forward pass or the input gradient of a convolution, and how its work is cut.
//!
//! All choices depend on sizes only, never on the device, so results do not either. docs/kernels/conv3d.md has the
//! table.

use crate::backend::ConvGeometry;
use crate::ops::conv3d::kernels::{IGEMM, SPATIAL, Tile, ZSTREAM};

/// Blocks a launch should have where its work can be cut at will: about the multiprocessors of a large card. A
/// constant, because results must not depend on the card.
pub(super) const TARGET_BLOCKS: usize = 128;

/// Voxels of a block of the kernel for one input channel.
pub(super) const DIRECT_BOX: [usize; 3] = [16, 8, 8];

/// Forward or input gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Product {
    Fprop,
    Dgrad,
}

/// Which kernel, by its place in the tables of `kernels.rs`, and how its work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The one for a single input channel.
    Direct,
    /// Kernel by reduction and by output channels; output planes of a block.
    ZStream([usize; 2], usize),
    /// Kernel by output channels and planes of a block.
    Spatial(usize),
    /// Kernel; parts that the reduction is cut into.
    Igemm(usize, usize),
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

/// Whether tiles of `tile` voxels cover the volume with at most twice its voxels: padding at most doubles the work.
pub(super) fn padding_at_most_doubles(extents: [usize; 3], tile: [usize; 3]) -> bool {
    tiles(extents, tile) * voxels(tile) <= 2 * voxels(extents)
}

/// A convolution as the product that a kernel computes.
#[derive(Clone, Copy)]
pub(super) struct Roles {
    /// Channels that are summed over.
    pub(super) reduction: usize,
    /// Channels of what is written.
    pub(super) output: usize,
    /// Extents of what is written.
    pub(super) extent: [usize; 3],
    /// Classes of voxels that meet the same taps of the filter: the strides of an input gradient.
    pub(super) classes: usize,
}

impl Roles {
    pub(super) fn of(g: &ConvGeometry, product: Product) -> Roles {
        match product {
            Product::Fprop => Roles {
                reduction: g.in_channels,
                output: g.out_channels,
                extent: g.output(),
                classes: 1,
            },
            Product::Dgrad => Roles {
                reduction: g.out_channels,
                output: g.in_channels,
                extent: g.input,
                classes: voxels(g.stride),
            },
        }
    }
}

/// Rows of a class, at most.
pub(super) fn rows(g: &ConvGeometry, product: Product) -> usize {
    let stride = if product == Product::Dgrad { g.stride } else { [1; 3] };
    g.batch * tiles(Roles::of(g, product).extent, stride)
}

/// Planes that a block streams: 16, so that reading the filter costs little, but fewer where that leaves few blocks.
fn zstream_planes(g: &ConvGeometry, out: [usize; 3], tile: &Tile) -> usize {
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

/// Which spatial tiles compute `roles`. A block reads the whole filter, so tiles of twice the planes halve what is
/// asked for of it; where they are too few to fill a card, or hold more padding, the smaller ones are used.
fn spatial_kind(g: &ConvGeometry, product: Product, roles: &Roles) -> usize {
    let (out, channels) = (roles.extent, roles.output);
    if channels <= 32 {
        return usize::from(channels > 16);
    }
    let [low, high] = [2, 3].map(|kind| &SPATIAL[product as usize][kind]);
    let padded = |tile: &Tile| tiles(out, tile.voxels) * voxels(tile.voxels);
    let blocks = g.batch * tiles(out, high.voxels) * channels.div_ceil(high.channels);
    // Ours, from the bytes of docs/kernels/conv3d.md, not from times: three quarters of the target is 96 blocks, enough
    // for one wave on most of a card; an eighth more padding costs less than the filter read twice as often.
    let pays = blocks >= TARGET_BLOCKS * 3 / 4 && 8 * padded(high) <= 9 * padded(low);
    if pays { 3 } else { 2 }
}

pub(super) fn choose(g: &ConvGeometry, product: Product) -> Choice {
    let roles = Roles::of(g, product);
    let Roles { reduction, output, extent, classes } = roles;
    if is_same_k3(g) && g.in_channels == 1 && output.is_multiple_of(8) && product == Product::Fprop
    {
        return Choice::Direct;
    }
    if is_same_k3(g) && (reduction == 16 || reduction == 32) && output.is_multiple_of(16) {
        let kind = [usize::from(reduction > 16), usize::from(output > 16)];
        let tile = &ZSTREAM[product as usize][kind[0]][kind[1]];
        if padding_at_most_doubles(extent, tile.voxels) {
            return Choice::ZStream(kind, zstream_planes(g, extent, tile));
        }
    }
    if is_same_k3(g) && reduction.is_multiple_of(16) && output.is_multiple_of(16) {
        let kind = spatial_kind(g, product, &roles);
        let tile = &SPATIAL[product as usize][kind];
        let blocks = g.batch * tiles(extent, tile.voxels) * output.div_ceil(tile.channels);
        // A block is one long sum: few blocks do not pay.
        if padding_at_most_doubles(extent, tile.voxels) && blocks >= TARGET_BLOCKS / 2 {
            return Choice::Spatial(kind);
        }
    }
    let kind = match (reduction % 8, output % 8) {
        (0, 0) if output <= 32 => 0,
        (0, 0) => 1,
        _ => 2,
    };
    let tile = &IGEMM[product as usize][kind];
    let blocks =
        rows(g, product).div_ceil(tile.voxels[2]) * output.div_ceil(tile.channels) * classes;
    let taps: usize = match product {
        Product::Fprop => voxels(g.filter),
        Product::Dgrad => (0..3).map(|a| g.filter[a].div_ceil(g.stride[a])).product(),
    };
    let steps = taps * reduction.div_ceil(32);
    Choice::Igemm(kind, (TARGET_BLOCKS / blocks).clamp(1, (steps / 8).max(1)))
}

/// Bytes of scratch a product needs.
pub(in crate::ops) fn product_workspace(g: &ConvGeometry, product: Product) -> usize {
    let Roles { output, extent, .. } = Roles::of(g, product);
    match choose(g, product) {
        Choice::Igemm(_, splits) if splits > 1 => 4 * splits * g.batch * voxels(extent) * output,
        _ => 0,
    }
}

/// Whether an implicit-GEMM kernel computes a product, so that all of [`super::launch::Extras`] is possible.
pub(in crate::ops) fn is_implicit_gemm(g: &ConvGeometry, product: Product) -> bool {
    matches!(choose(g, product), Choice::Igemm(..))
}

/// Parts of a batch item of which the kernel can leave partial results for a norm, one for each of its blocks along the
/// voxels; none if it cannot.
pub(in crate::ops) fn parts(g: &ConvGeometry, product: Product) -> Option<usize> {
    let Roles { extent: out, classes, .. } = Roles::of(g, product);
    match choose(g, product) {
        Choice::Direct => Some(tiles(out, DIRECT_BOX)),
        Choice::ZStream([reduction, output], planes) => {
            let [_, y, x] = ZSTREAM[product as usize][reduction][output].voxels;
            Some(tiles(out, [planes, y, x]))
        }
        Choice::Spatial(kind) => Some(tiles(out, SPATIAL[product as usize][kind].voxels)),
        Choice::Igemm(kind, 1) if kind < 2 => {
            Some(classes * item_tiles(g, product, &IGEMM[product as usize][kind]))
        }
        Choice::Igemm(..) => None,
    }
}

/// Tiles of rows that cover a class of one batch item.
pub(super) fn item_tiles(g: &ConvGeometry, product: Product, tile: &Tile) -> usize {
    (rows(g, product) / g.batch).div_ceil(tile.voxels[2])
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
        assert_eq!(choice(2, 96, [1, 32], Fprop), Choice::Direct);
        assert_eq!(choice(2, 96, [32, 32], Fprop), Choice::ZStream([1, 1], 16));
        assert_eq!(choice(2, 32, [16, 16], Dgrad), Choice::ZStream([0, 0], 4));
        assert_eq!(choice(1, 64, [64, 32], Fprop), Choice::Spatial(1));
        assert_eq!(choice(1, 64, [64, 32], Dgrad), Choice::ZStream([1, 1], 16));
        assert_eq!(choice(2, 48, [64, 64], Fprop), Choice::Spatial(3));
        assert_eq!(choice(2, 24, [128, 128], Dgrad), Choice::Spatial(3));
        // Too few boxes of eight planes, or too much padding in them.
        assert_eq!(choice(1, 24, [128, 128], Dgrad), Choice::Spatial(2));
        assert_eq!(choice(2, 32, [64, 64], Fprop), Choice::Spatial(3));
        assert_eq!(choice(1, 32, [64, 64], Fprop), Choice::Spatial(2));
        assert_eq!(choice(4, 20, [128, 128], Fprop), Choice::Spatial(2));
        // Small volumes: exact rows, and the sum cut so that enough blocks work.
        assert_eq!(choice(1, 8, [256, 256], Fprop), Choice::Igemm(1, 8));
        assert_eq!(choice(2, 4, [128, 128], Fprop), Choice::Igemm(1, 13));
        assert_eq!(choice(2, 5, [3, 5], Fprop), Choice::Igemm(2, 3));
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
            assert!(super::super::wgrad::wgrad_workspace(&g) <= 64 << 20, "{g:?}");
        }
    }
}
