//! Launches of the convolution kernels: forward and input gradient here, the gradients of filter and bias in
//! `wgrad.rs`.

use crate::backend::ConvGeometry;
use crate::backend::cuda::{Queue, blocks};
use crate::driver::DevPtr;
use crate::error::Result;
use crate::ops::conv3d::kernels::{DIRECT, IGEMM, SPATIAL, SUM_ROWS, ZSTREAM};
use crate::ops::conv3d::params::{
    DirectParams, IgemmParams, SpatialParams, SumRowsParams, ZStreamParams, int, ints,
};
use crate::ops::conv3d::select::{
    Choice, DIRECT_BOX, Product, Roles, choose, is_implicit_gemm, item_tiles, rows, tiles, voxels,
};
use crate::ops::fusion::norm_part::NormPart;

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
    /// [`super::select::product_workspace`] bytes.
    pub(in crate::ops) work: DevPtr,
}

/// What a product may do besides; strides and a GELU by the implicit-GEMM kernels only.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Extras {
    /// Channels from one voxel of the input to the next, of which the first are read; none: those.
    pub(in crate::ops) input_stride: Option<usize>,
    /// Channels from one voxel of the output to the next, of which the first are written; none: those.
    pub(in crate::ops) output_stride: Option<usize>,
    /// Where the GELU of the output goes, too, or none; for the forward pass.
    pub(in crate::ops) gelu: DevPtr,
    /// Part of the work of a norm.
    pub(in crate::ops) norm: NormPart,
}

impl Default for Extras {
    fn default() -> Extras {
        Extras { input_stride: None, output_stride: None, gelu: DevPtr::NULL, norm: NormPart::NONE }
    }
}

impl Extras {
    /// Whether every kernel can do it.
    fn is_plain(&self) -> bool {
        self.input_stride.is_none() && self.output_stride.is_none() && self.gelu.is_null()
    }
}

/// Queues the forward pass or the input gradient, and what `extras` says.
///
/// # Panics
/// If that is a stride or a GELU, but no implicit-GEMM kernel computes the product; or a norm, and the kernel has no
/// [`super::select::parts`].
pub(in crate::ops) fn run(
    queue: &Queue,
    g: &ConvGeometry,
    product: Product,
    o: &Operands,
    extras: &Extras,
) -> Result<()> {
    let possible = extras.is_plain() || is_implicit_gemm(g, product);
    assert!(possible, "only implicit GEMM does more than its product and a norm's part");
    let launch = Launch { queue, g, product, o, extras };
    match choose(g, product) {
        Choice::Direct => launch.direct(),
        Choice::ZStream(kind, planes) => launch.zstream(kind, planes),
        Choice::Spatial(kind) => launch.spatial(kind),
        Choice::Igemm(kind, splits) => launch.igemm(kind, splits),
    }
}

/// A product that is about to be queued.
struct Launch<'a> {
    queue: &'a Queue,
    g: &'a ConvGeometry,
    product: Product,
    o: &'a Operands,
    extras: &'a Extras,
}

impl Launch<'_> {
    /// By a kernel that streams through planes; each block `planes` of them.
    fn zstream(&self, kind: [usize; 2], planes: usize) -> Result<()> {
        let Launch { queue, g, product, o, extras } = *self;
        let tile = &ZSTREAM[product as usize][kind[0]][kind[1]];
        let Roles { output, extent: out, .. } = Roles::of(g, product);
        let (segments, columns) = (out[0].div_ceil(planes), output.div_ceil(tile.channels));
        let params = ZStreamParams {
            x: o.input,
            w: o.filter,
            bias: o.bias,
            y: o.output,
            extent: ints(out),
            out_channels: int(output),
            planes: int(planes),
            segments: int(segments),
            column_tiles: int(columns),
            add: o.add.into(),
            norm: extras.norm,
        };
        let grid = [
            blocks(out[2], tile.voxels[2]),
            blocks(out[1], tile.voxels[1]),
            blocks(g.batch * segments * columns, 1),
        ];
        queue.launch(&tile.kernel, grid, &params)
    }

    fn spatial(&self, kind: usize) -> Result<()> {
        let Launch { queue, g, product, o, extras } = *self;
        let tile = &SPATIAL[product as usize][kind];
        let Roles { reduction, output, extent: out, .. } = Roles::of(g, product);
        let params = SpatialParams {
            x: o.input,
            w: o.filter,
            bias: o.bias,
            y: o.output,
            extent: ints(out),
            in_channels: int(reduction),
            out_channels: int(output),
            tiles_y: int(out[1].div_ceil(tile.voxels[1])),
            tiles_x: int(out[2].div_ceil(tile.voxels[2])),
            add: o.add.into(),
            norm: extras.norm,
        };
        let grid =
            [blocks(tiles(out, tile.voxels), 1), blocks(output, tile.channels), blocks(g.batch, 1)];
        queue.launch(&tile.kernel, grid, &params)
    }

    /// By a kernel of implicit GEMM, the reduction cut into `splits`.
    fn igemm(&self, kind: usize, splits: usize) -> Result<()> {
        let Launch { queue, g, product, o, extras } = *self;
        let tile = &IGEMM[product as usize][kind];
        let Roles { reduction, output, extent: out, classes } = Roles::of(g, product);
        let split = splits > 1;
        let y_stride = int(extras.output_stride.unwrap_or(output));
        let params = IgemmParams {
            x: o.input,
            w: o.filter,
            bias: if split { DevPtr::NULL } else { o.bias },
            y: o.output,
            part: o.work,
            gelu: if split { DevPtr::NULL } else { extras.gelu },
            batch: int(g.batch),
            source: ints(if product == Product::Fprop { g.input } else { g.output() }),
            out: ints(out),
            filter: ints(g.filter),
            stride: ints(g.stride),
            padding: ints(g.padding),
            in_channels: int(reduction),
            out_channels: int(output),
            x_stride: int(extras.input_stride.unwrap_or(reduction)),
            y_stride,
            y_offset: 0,
            splits: int(splits),
            add: o.add.into(),
            unused: 0,
            norm: extras.norm,
        };
        let has_norm = extras.norm.is_some();
        assert!(!(split && has_norm), "only whole sums have moments");
        let row_tiles = if has_norm {
            g.batch * item_tiles(g, product, tile)
        } else {
            rows(g, product).div_ceil(tile.voxels[2])
        };
        let grid =
            [blocks(row_tiles, 1), blocks(output, tile.channels), blocks(classes * splits, 1)];
        queue.launch(&tile.kernel, grid, &params)?;
        if !split {
            return Ok(());
        }
        let len = g.batch * voxels(out) * output;
        let params = SumRowsParams {
            part: o.work,
            bias: o.bias,
            y: o.output,
            gelu: extras.gelu,
            len: len as i64,
            channels: int(output),
            y_stride,
            y_offset: 0,
            splits: int(splits),
            add: o.add.into(),
            unused: 0,
        };
        queue.launch(&SUM_ROWS, [blocks(len, 256), 1, 1], &params)
    }

    fn direct(&self) -> Result<()> {
        let Launch { queue, g, o, extras, .. } = *self;
        assert!(!o.add, "an output has one writer");
        let params = DirectParams {
            x: o.input,
            w: o.filter,
            bias: o.bias,
            y: o.output,
            batch: int(g.batch),
            extent: ints(g.input),
            out_channels: int(g.out_channels),
            unused: 0,
            norm: extras.norm,
        };
        let boxes = g.batch * tiles(g.input, DIRECT_BOX);
        queue.launch(&DIRECT, [blocks(boxes, 1), blocks(g.out_channels, 32), 1], &params)
    }
}
