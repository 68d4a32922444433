//! Arguments of the convolution kernels, as `kernels/conv3d*.cuh` declare them.

use bytemuck::NoUninit;

use crate::driver::DevPtr;
use crate::ops::fusion::norm_part::NormPart;

/// A size as the kernels take it.
///
/// # Panics
/// If it has more than 31 bits.
pub(in crate::ops) fn int(size: usize) -> i32 {
    let Ok(value) = i32::try_from(size) else {
        panic!("a size of {size} is more than a kernel takes")
    };
    value
}

/// Three of them.
pub(in crate::ops) fn ints(sizes: [usize; 3]) -> [i32; 3] {
    sizes.map(int)
}

/// `Conv3dSpatialParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct SpatialParams {
    pub(super) x: DevPtr,
    pub(super) w: DevPtr,
    pub(super) bias: DevPtr,
    pub(super) y: DevPtr,
    pub(super) extent: [i32; 3],
    pub(super) in_channels: i32,
    pub(super) out_channels: i32,
    pub(super) tiles_y: i32,
    pub(super) tiles_x: i32,
    pub(super) add: i32,
    pub(super) norm: NormPart,
}

/// `Conv3dZStreamParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct ZStreamParams {
    pub(super) x: DevPtr,
    pub(super) w: DevPtr,
    pub(super) bias: DevPtr,
    pub(super) y: DevPtr,
    pub(super) extent: [i32; 3],
    pub(super) out_channels: i32,
    pub(super) planes: i32,
    pub(super) segments: i32,
    pub(super) column_tiles: i32,
    pub(super) add: i32,
    pub(super) norm: NormPart,
}

/// `Conv3dZStreamWgradParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct ZStreamWgradParams {
    pub(super) x: DevPtr,
    pub(super) dy: DevPtr,
    pub(super) part: DevPtr,
    pub(super) extent: [i32; 3],
    pub(super) in_channels: i32,
    pub(super) out_channels: i32,
    pub(super) rows: i32,
    pub(super) planes: i32,
    pub(super) steps: i32,
}

/// `Conv3dIgemmParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct IgemmParams {
    pub(super) x: DevPtr,
    pub(super) w: DevPtr,
    pub(super) bias: DevPtr,
    pub(super) y: DevPtr,
    pub(super) part: DevPtr,
    pub(super) gelu: DevPtr,
    pub(super) batch: i32,
    pub(super) source: [i32; 3],
    pub(super) out: [i32; 3],
    pub(super) filter: [i32; 3],
    pub(super) stride: [i32; 3],
    pub(super) padding: [i32; 3],
    pub(super) in_channels: i32,
    pub(super) out_channels: i32,
    pub(super) x_stride: i32,
    pub(super) y_stride: i32,
    pub(super) y_offset: i32,
    pub(super) splits: i32,
    pub(super) add: i32,
    pub(super) unused: i32,
    pub(super) norm: NormPart,
}

/// `Conv3dIgemmWgradParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct IgemmWgradParams {
    pub(super) x: DevPtr,
    pub(super) dy: DevPtr,
    pub(super) part: DevPtr,
    pub(super) batch: i32,
    pub(super) source: [i32; 3],
    pub(super) out: [i32; 3],
    pub(super) filter: [i32; 3],
    pub(super) stride: [i32; 3],
    pub(super) padding: [i32; 3],
    pub(super) in_channels: i32,
    pub(super) out_channels: i32,
    pub(super) steps: i32,
    pub(super) x_stride: i32,
}

/// `Conv3dDirectParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct DirectParams {
    pub(super) x: DevPtr,
    pub(super) w: DevPtr,
    pub(super) bias: DevPtr,
    pub(super) y: DevPtr,
    pub(super) batch: i32,
    pub(super) extent: [i32; 3],
    pub(super) out_channels: i32,
    pub(super) unused: i32,
    pub(super) norm: NormPart,
}

/// `Conv3dDirectWgradParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct DirectWgradParams {
    pub(super) x: DevPtr,
    pub(super) dy: DevPtr,
    pub(super) part: DevPtr,
    pub(super) batch: i32,
    pub(super) extent: [i32; 3],
    pub(super) out_channels: i32,
    pub(super) boxes: i32,
    pub(super) boxes_per_block: i32,
    pub(super) unused: i32,
}

/// `Conv3dSumSplitsParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct SumSplitsParams {
    pub(super) part: DevPtr,
    pub(super) out: DevPtr,
    pub(super) len: i64,
    pub(super) splits: i32,
    pub(super) add: i32,
}

/// `Conv3dSumRowsParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct SumRowsParams {
    pub(super) part: DevPtr,
    pub(super) bias: DevPtr,
    pub(super) y: DevPtr,
    pub(super) gelu: DevPtr,
    pub(super) len: i64,
    pub(super) channels: i32,
    pub(super) y_stride: i32,
    pub(super) y_offset: i32,
    pub(super) splits: i32,
    pub(super) add: i32,
    pub(super) unused: i32,
}

/// `Conv3dBiasGradParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct BiasGradParams {
    pub(super) dy: DevPtr,
    pub(super) part: DevPtr,
    pub(super) rows: i64,
    pub(super) channels: i32,
    pub(super) rows_per_block: i32,
    pub(super) dy_stride: i32,
    pub(super) unused: i32,
}
