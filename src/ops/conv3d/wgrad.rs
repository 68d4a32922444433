//! Launches of the kernels of filter and bias gradients. Sums are split over blocks by size, into scratch, and added in
//! order.

use crate::backend::cuda::{Queue, blocks};
use crate::backend::{ConvGeometry, Write};
use crate::driver::DevPtr;
use crate::error::Result;
use crate::ops::conv3d::kernels::{BIAS_BWD, DIRECT_WGRAD, IGEMM_WGRAD, SUM_SPLITS, ZSTREAM_WGRAD};
use crate::ops::conv3d::params::{
    BiasGradParams, DirectWgradParams, IgemmWgradParams, SumSplitsParams, ZStreamWgradParams, int,
    ints,
};
use crate::ops::conv3d::select::{
    TARGET_BLOCKS, is_same_k3, padding_at_most_doubles, tiles, voxels,
};

/// Where the operands of a filter gradient lie.
#[derive(Clone, Copy)]
pub(in crate::ops) struct FilterOperands {
    /// Input of the convolution.
    pub(in crate::ops) x: DevPtr,
    /// Channels from one voxel of the input to the next, of which the first are read; only the implicit-GEMM kernel
    /// reads fewer than all.
    pub(in crate::ops) x_stride: usize,
    /// Gradient of its output.
    pub(in crate::ops) dy: DevPtr,
    /// Gradient of the filter, f32.
    pub(in crate::ops) dw: DevPtr,
    /// Add to it.
    pub(in crate::ops) add: bool,
    /// [`wgrad_workspace`] bytes.
    pub(in crate::ops) work: DevPtr,
}

/// Which kernel computes a filter gradient, and how its voxels are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FilterChoice {
    /// Boxes of all blocks, boxes of a block.
    Direct(usize, usize),
    ZStream(Columns),
    /// Kernel, steps of 32 voxels of a block, blocks that share the voxels.
    Igemm(usize, usize, usize),
}

/// How a filter gradient is cut whose blocks stream along z over columns of voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Columns {
    /// 16 or 32 output, 16 or 32 input channels of a block.
    kind: [usize; 2],
    /// Voxels of a column along y.
    rows: usize,
    /// Planes of all columns, planes of a block.
    planes: usize,
    steps: usize,
}

impl Columns {
    fn new(g: &ConvGeometry, kind: [usize; 2]) -> Columns {
        let [depth, height, _] = g.input;
        let rows = height.div_ceil(height.div_ceil(16));
        let mut cut = Columns { kind, rows, planes: 0, steps: 0 };
        let bands = (4 >> (kind[0] + kind[1])) / (cut.width() / 8);
        cut.rows = rows.next_multiple_of(2 * bands);
        let [along_y, along_x] = cut.across(g);
        cut.planes = g.batch * along_y * along_x * depth;
        cut.steps = cut.planes.div_ceil((TARGET_BLOCKS / cut.tiles(g)).clamp(1, cut.planes));
        cut
    }

    /// Voxels of a column along x.
    fn width(&self) -> usize {
        if self.kind == [1, 1] { 8 } else { 16 }
    }

    /// Columns along y and x.
    fn across(&self, g: &ConvGeometry) -> [usize; 2] {
        [g.input[1].div_ceil(self.rows), g.input[2].div_ceil(self.width())]
    }

    /// Tiles of output and of input channels.
    fn channel_tiles(&self, g: &ConvGeometry) -> [usize; 2] {
        [g.out_channels.div_ceil(16 << self.kind[0]), g.in_channels.div_ceil(16 << self.kind[1])]
    }

    fn tiles(&self, g: &ConvGeometry) -> usize {
        self.channel_tiles(g).iter().product()
    }

    /// Parts of the sum over voxels.
    fn runs(&self) -> usize {
        self.planes.div_ceil(self.steps)
    }

    /// What it costs, in about a tenth of the time of a byte at a terabyte a second: bytes of device memory if the
    /// cache keeps what several blocks read (3.3 TB/s), bytes the blocks ask the cache for (5 TB/s), products (500
    /// TFLOP/s).
    fn cost(&self, g: &ConvGeometry) -> usize {
        let ([_, height, width], [along_y, along_x]) = (g.input, self.across(g));
        let [k_tiles, c_tiles] = self.channel_tiles(g);
        let voxels = g.batch * voxels(g.input);
        let (x, dy) = (2 * voxels * g.in_channels, 2 * voxels * g.out_channels);
        let sums = 2 * 4 * self.runs() * filter_len(g);
        let halo = (height + 2 * (along_y - 1)) * (width + 2 * (along_x - 1));
        let x_asked = k_tiles * x / (height * width) * halo;
        let dy_asked = c_tiles * dy / self.planes * (self.planes + 2 * self.runs());
        let products = self.planes * self.rows * self.width() * 27 * self.tiles(g);
        let per_product = (16 << self.kind[0]) * (16 << self.kind[1]);
        3 * (x + dy + sums) + 2 * (x_asked + dy_asked + sums) + products / 25 * per_product
    }

    /// The cut that costs least, of those with the fewest tiles.
    fn best(g: &ConvGeometry) -> Columns {
        let wide = |channels: usize| usize::from(channels > 16);
        let kinds = [[1, 1], [1, 0], [0, 1], [0, 0]].into_iter();
        let fits = |[k, c]: &[usize; 2]| *k <= wide(g.out_channels) && *c <= wide(g.in_channels);
        let cuts = kinds.filter(fits).map(|kind| Columns::new(g, kind));
        let narrow = Columns::new(g, [0, 0]);
        cuts.min_by_key(|cut| cut.cost(g)).unwrap_or(narrow)
    }
}

/// Boxes of a block, if `tiles` blocks work on each box.
fn boxes_per_block(boxes: usize, tiles: usize) -> usize {
    boxes.div_ceil((TARGET_BLOCKS / tiles).clamp(1, boxes))
}

fn choose_filter(g: &ConvGeometry) -> FilterChoice {
    let (c, k) = (g.in_channels, g.out_channels);
    if is_same_k3(g) && c == 1 && k % 8 == 0 {
        let boxes = g.batch * tiles(g.input, [8; 3]);
        return FilterChoice::Direct(boxes, boxes_per_block(boxes, k.div_ceil(32)));
    }
    if is_same_k3(g) && c % 16 == 0 && k % 16 == 0 && padding_at_most_doubles(g.input, [4, 8, 8]) {
        return FilterChoice::ZStream(Columns::best(g));
    }
    let steps = (g.batch * voxels(g.output())).div_ceil(32);
    let tiles = k.div_ceil(64) * (voxels(g.filter) * c).div_ceil(64);
    let splits = (2 * TARGET_BLOCKS / tiles).clamp(1, steps.div_ceil(8));
    let each = steps.div_ceil(splits);
    FilterChoice::Igemm(usize::from(c % 8 != 0 || k % 8 != 0), each, steps.div_ceil(each))
}

/// Parts a filter gradient is summed in.
fn filter_splits(choice: FilterChoice) -> usize {
    match choice {
        FilterChoice::Direct(boxes, per) => boxes.div_ceil(per),
        FilterChoice::ZStream(cut) => cut.runs(),
        FilterChoice::Igemm(_, _, splits) => splits,
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
///
/// # Panics
/// If the input is a part of a wider one, and another kernel than the implicit-GEMM one computes this gradient.
pub(in crate::ops) fn wgrad(queue: &Queue, g: &ConvGeometry, o: &FilterOperands) -> Result<()> {
    let choice = choose_filter(g);
    let (c, k) = (g.in_channels, g.out_channels);
    let is_igemm = matches!(choice, FilterChoice::Igemm(..));
    assert!(is_igemm || o.x_stride == c, "only implicit GEMM reads a part of a wider input");
    match choice {
        FilterChoice::Direct(boxes, per) => {
            let params = DirectWgradParams {
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
            queue.launch(&DIRECT_WGRAD, [blocks(boxes, per), blocks(k, 32), 1], &params)?;
        }
        FilterChoice::ZStream(cut) => {
            let params = ZStreamWgradParams {
                x: o.x,
                dy: o.dy,
                part: o.work,
                extent: ints(g.input),
                in_channels: int(c),
                out_channels: int(k),
                rows: int(cut.rows),
                planes: int(cut.planes),
                steps: int(cut.steps),
            };
            let grid = [blocks(cut.runs() * cut.tiles(g), 1), 1, 1];
            queue.launch(&ZSTREAM_WGRAD[cut.kind[0]][cut.kind[1]], grid, &params)?;
        }
        FilterChoice::Igemm(kind, steps, splits) => {
            let params = IgemmWgradParams {
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
                x_stride: int(o.x_stride),
            };
            let columns = blocks(voxels(g.filter) * c, 64);
            queue.launch(
                &IGEMM_WGRAD[kind],
                [blocks(k, 64), columns, blocks(splits, 1)],
                &params,
            )?;
        }
    }
    let sum = Write { to: o.dw, add: o.add };
    sum_splits(queue, o.work, filter_splits(choice), filter_len(g), sum)
}

/// Adds `splits` parts of `len` elements each.
fn sum_splits(
    queue: &Queue,
    part: DevPtr,
    splits: usize,
    len: usize,
    sum: Write<DevPtr>,
) -> Result<()> {
    let params = SumSplitsParams {
        part,
        out: sum.to,
        len: len as i64,
        splits: int(splits),
        add: sum.add.into(),
    };
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

/// What a gradient of a bias is summed from.
#[derive(Clone, Copy)]
pub(in crate::ops) struct BiasOperands {
    /// Gradient of the output.
    pub(in crate::ops) dy: DevPtr,
    /// Channels from one of its voxels to the next, of which the first are read.
    pub(in crate::ops) dy_stride: usize,
    /// Voxels.
    pub(in crate::ops) rows: usize,
    /// Channels of the bias.
    pub(in crate::ops) channels: usize,
}

/// Queues the gradient of a bias.
pub(in crate::ops) fn bias_bwd(
    queue: &Queue,
    o: &BiasOperands,
    db: Write<DevPtr>,
    work: DevPtr,
) -> Result<()> {
    let BiasOperands { dy, dy_stride, rows, channels } = *o;
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
    queue.launch(&BIAS_BWD, [blocks(channels, 64), blocks(splits, 1), 1], &params)?;
    sum_splits(queue, work, splits, channels, db)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(batch: usize, input: [usize; 3], channels: [usize; 2]) -> Columns {
        let g = ConvGeometry {
            batch,
            input,
            in_channels: channels[0],
            out_channels: channels[1],
            filter: [3; 3],
            stride: [1; 3],
            padding: [1; 3],
        };
        let FilterChoice::ZStream(cut) = choose_filter(&g) else { panic!("{g:?}") };
        assert_eq!(wgrad_workspace(&g), 4 * cut.runs() * filter_len(&g));
        cut
    }

    /// Cut of a cube.
    fn cube(batch: usize, extent: usize, channels: usize) -> Columns {
        cut(batch, [extent; 3], [channels; 2])
    }

    #[test]
    fn columns_are_cut_by_size() {
        let columns = |kind, rows, planes, steps| Columns { kind, rows, planes, steps };
        // Sums of a block are as large as its tile: narrower where the volume is small beside them.
        assert_eq!(cube(2, 96, 32), columns([1, 1], 16, 13_824, 108));
        assert_eq!(cube(1, 128, 32), columns([1, 1], 16, 16_384, 128));
        assert_eq!(cube(1, 64, 32), columns([1, 0], 16, 1024, 16));
        assert_eq!(cube(1, 32, 32), columns([0, 0], 16, 128, 4));
        assert_eq!(cube(2, 48, 64), columns([1, 1], 16, 1728, 54));
        // No third of a column is padding, nor a quarter of the channels.
        assert_eq!(cube(2, 24, 128), columns([1, 1], 12, 288, 36));
        assert_eq!(cube(2, 40, 64), columns([1, 1], 14, 1200, 38));
        assert_eq!(cube(1, 48, 48), columns([0, 0], 16, 432, 31));
    }

    #[test]
    fn sizes_of_the_parity_test_reach_all_tiles() {
        let kind = |input, c, k| cut(1, input, [c, k]).kind;
        assert_eq!(kind([35, 17, 16], 32, 32), [0, 0]);
        assert_eq!(kind([3, 17, 8], 224, 320), [1, 1]);
        assert_eq!(kind([4, 8, 9], 224, 320), [1, 1]);
        assert_eq!(kind([3, 17, 16], 112, 336), [1, 0]);
        assert_eq!(kind([4, 8, 17], 336, 112), [0, 1]);
        // Runs of several planes, of which one crosses into the next column and the last is shorter.
        for (input, c, k, steps, last) in [
            ([7, 15, 17], 96, 64, 3, 2),
            ([35, 17, 16], 32, 32, 3, 1),
            ([33, 33, 17], 16, 16, 2, 2),
        ] {
            let cut = cut(1, input, [c, k]);
            assert_eq!((cut.steps, cut.planes - (cut.runs() - 1) * steps), (steps, last));
            assert_ne!(input[0] % steps, 0);
        }
    }
}
