//! The convolution kernels by pass and by what a block of them makes.

use crate::driver::Kernel;
use crate::ops::conv3d::params::{
    BiasGradParams, DirectParams, DirectWgradParams, IgemmParams, IgemmWgradParams, SpatialParams,
    SumRowsParams, SumSplitsParams, ZStreamParams, ZStreamWgradParams,
};

/// A kernel and what a block of it makes.
pub(super) struct Tile {
    pub(super) kernel: Kernel,
    /// Output voxels: a box, or a number of rows.
    pub(super) voxels: [usize; 3],
    /// Output channels.
    pub(super) channels: usize,
}

/// `kShared` of `ZStream` in kernels/conv3d/zstream.cuh. What these functions say is compared with the kernels' own
/// sizes at each launch on the emulated driver.
const fn zstream(name: &'static str, reduction: usize, channels: usize) -> Tile {
    let shared = 27 * 2 * reduction * channels + 4 * 18 * 10 * 2 * reduction;
    let kernel = Kernel::new::<ZStreamParams>(name, 256).with_shared(shared as u32);
    Tile { kernel, voxels: [1, 16, 8], channels }
}

/// Of `Spatial` in kernels/conv3d/spatial.cuh.
const fn spatial(name: &'static str, z: usize, channels: usize, threads: u32) -> Tile {
    let shared = 2 * (z + 2) * 10 * 10 * 32 + 3 * 3 * channels * 32;
    let kernel = Kernel::new::<SpatialParams>(name, threads).with_shared(shared as u32);
    Tile { kernel, voxels: [z, 8, 8], channels }
}

/// Of `Igemm` in kernels/conv3d/igemm.cuh.
const fn igemm(name: &'static str, rows: usize, channels: usize) -> Tile {
    let shared = 3 * 64 * (rows + channels) + 20 * rows + 108;
    let kernel = Kernel::new::<IgemmParams>(name, 128).with_shared(shared as u32);
    Tile { kernel, voxels: [1, 1, rows], channels }
}

/// Of `ZStreamWgrad` in kernels/conv3d/zstream_wgrad.cuh.
const fn zstream_wgrad(name: &'static str, k: usize, c: usize) -> Kernel {
    let width = if k + c == 64 { 8 } else { 16 };
    let shared = 2 * 18 * (width + 2) * 2 * c + 4 * 16 * width * 2 * k;
    Kernel::new::<ZStreamWgradParams>(name, 384).with_shared(shared as u32)
}

/// Of `IgemmWgrad` in kernels/conv3d/igemm_wgrad.cuh: three stages of 64 rows and 64 columns by 32 voxels.
const fn igemm_wgrad(name: &'static str) -> Kernel {
    Kernel::new::<IgemmWgradParams>(name, 128).with_shared(3 * 2 * 64 * 32 * 2)
}

/// Forward, input gradient; 16, 32 reduction channels; 16, 32 output channels of a block.
pub(super) static ZSTREAM: [[[Tile; 2]; 2]; 2] = [
    [
        [
            zstream("conv3d_zstream_fprop_c16_n16", 16, 16),
            zstream("conv3d_zstream_fprop_c16_n32", 16, 32),
        ],
        [
            zstream("conv3d_zstream_fprop_c32_n16", 32, 16),
            zstream("conv3d_zstream_fprop_c32_n32", 32, 32),
        ],
    ],
    [
        [
            zstream("conv3d_zstream_dgrad_c16_n16", 16, 16),
            zstream("conv3d_zstream_dgrad_c16_n32", 16, 32),
        ],
        [
            zstream("conv3d_zstream_dgrad_c32_n16", 32, 16),
            zstream("conv3d_zstream_dgrad_c32_n32", 32, 32),
        ],
    ],
];
/// Forward, input gradient; 16, 32, 64 output channels of a block, 64 of twice the planes.
pub(super) static SPATIAL: [[Tile; 4]; 2] = [
    [
        spatial("conv3d_spatial_fprop_n16", 8, 16, 256),
        spatial("conv3d_spatial_fprop_n32", 8, 32, 256),
        spatial("conv3d_spatial_fprop_n64", 4, 64, 256),
        spatial("conv3d_spatial_fprop_n64_z8", 8, 64, 512),
    ],
    [
        spatial("conv3d_spatial_dgrad_n16", 8, 16, 256),
        spatial("conv3d_spatial_dgrad_n32", 8, 32, 256),
        spatial("conv3d_spatial_dgrad_n64", 4, 64, 256),
        spatial("conv3d_spatial_dgrad_n64_z8", 8, 64, 512),
    ],
];
/// Forward, input gradient; 32, 64 output channels of a block, any number of channels.
pub(super) static IGEMM: [[Tile; 3]; 2] = [
    [
        igemm("conv3d_igemm_fprop_n32", 256, 32),
        igemm("conv3d_igemm_fprop_n64", 128, 64),
        igemm("conv3d_igemm_fprop_any", 128, 64),
    ],
    [
        igemm("conv3d_igemm_dgrad_n32", 256, 32),
        igemm("conv3d_igemm_dgrad_n64", 128, 64),
        igemm("conv3d_igemm_dgrad_any", 128, 64),
    ],
];
/// By 16 or 32 output channels, then 16 or 32 input channels.
pub(super) static ZSTREAM_WGRAD: [[Kernel; 2]; 2] = [
    [
        zstream_wgrad("conv3d_zstream_wgrad_16x16", 16, 16),
        zstream_wgrad("conv3d_zstream_wgrad_16x32", 16, 32),
    ],
    [
        zstream_wgrad("conv3d_zstream_wgrad_32x16", 32, 16),
        zstream_wgrad("conv3d_zstream_wgrad_32x32", 32, 32),
    ],
];
/// Channels multiples of 8, any number of channels.
pub(super) static IGEMM_WGRAD: [Kernel; 2] =
    [igemm_wgrad("conv3d_igemm_wgrad"), igemm_wgrad("conv3d_igemm_wgrad_any")];
pub(super) static DIRECT: Kernel =
    Kernel::new::<DirectParams>("conv3d_direct_fprop", 256).with_shared(19_984);
pub(super) static DIRECT_WGRAD: Kernel =
    Kernel::new::<DirectWgradParams>("conv3d_direct_wgrad", 256).with_shared(69_536);
pub(super) static SUM_SPLITS: Kernel = Kernel::new::<SumSplitsParams>("conv3d_sum_splits", 256);
pub(super) static SUM_ROWS: Kernel = Kernel::new::<SumRowsParams>("conv3d_sum_rows", 256);
pub(super) static BIAS_BWD: Kernel = Kernel::new::<BiasGradParams>("conv3d_bias_bwd", 256);

/// Number of the kernels above.
const COUNT: usize = 2 * 4 + 2 * 4 + 2 * 3 + 4 + 2 + 5;

/// All of them.
pub(in crate::ops) static KERNELS: [Kernel; COUNT] = {
    let mut all = [SUM_SPLITS; COUNT];
    let mut next = 0;
    // Constant functions have no iterators.
    macro_rules! push {
        ($kernel:expr) => {{
            all[next] = $kernel;
            next += 1;
        }};
    }
    let mut product = 0;
    while product < 2 {
        let mut i = 0;
        while i < 4 {
            push!(ZSTREAM[product][i / 2][i % 2].kernel);
            push!(SPATIAL[product][i].kernel);
            if i < 3 {
                push!(IGEMM[product][i].kernel);
            }
            i += 1;
        }
        push!(ZSTREAM_WGRAD[product][0]);
        push!(ZSTREAM_WGRAD[product][1]);
        push!(IGEMM_WGRAD[product]);
        product += 1;
    }
    push!(DIRECT);
    push!(DIRECT_WGRAD);
    push!(SUM_SPLITS);
    push!(SUM_ROWS);
    push!(BIAS_BWD);
    assert!(next == COUNT, "every kernel once");
    all
};
