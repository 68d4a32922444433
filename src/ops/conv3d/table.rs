//! The convolution kernels by pass and by what a block of them makes.

use crate::driver::Kernel;
use crate::ops::conv3d::params::{
    BiasGradParams, GatherParams, GatherWgradParams, HaloParams, HaloWgradParams, StemParams,
    StemWgradParams, SumRowsParams, SumSplitsParams, WalkParams,
};

/// A kernel and what a block of it makes.
pub(super) struct Tile {
    pub(super) kernel: Kernel,
    /// Output voxels: a box, or a number of rows.
    pub(super) voxels: [usize; 3],
    /// Output channels.
    pub(super) channels: usize,
}

const fn walk(name: &'static str, sum: usize, channels: usize) -> Tile {
    let shared = 27 * 2 * sum * channels + 4 * 18 * 10 * 2 * sum;
    let kernel = Kernel::new::<WalkParams>(name, 256).with_shared(shared as u32);
    Tile { kernel, voxels: [1, 16, 8], channels }
}

const fn halo(name: &'static str, z: usize, channels: usize, threads: u32) -> Tile {
    let shared = 2 * (z + 2) * 10 * 10 * 32 + 3 * 3 * channels * 32;
    let kernel = Kernel::new::<HaloParams>(name, threads).with_shared(shared as u32);
    Tile { kernel, voxels: [z, 8, 8], channels }
}

const fn gather(name: &'static str, rows: usize, channels: usize) -> Tile {
    let shared = 3 * 64 * (rows + channels) + 20 * rows + 108;
    let kernel = Kernel::new::<GatherParams>(name, 128).with_shared(shared as u32);
    Tile { kernel, voxels: [1, 1, rows], channels }
}

const fn halo_wgrad(name: &'static str, k: usize, c: usize) -> Kernel {
    let width = if k + c == 64 { 8 } else { 16 };
    let shared = 2 * 18 * (width + 2) * 2 * c + 4 * 16 * width * 2 * k;
    Kernel::new::<HaloWgradParams>(name, 384).with_shared(shared as u32)
}

const fn gather_wgrad(name: &'static str) -> Kernel {
    Kernel::new::<GatherWgradParams>(name, 128).with_shared(24_576)
}

/// Forward, input gradient; 16, 32 summed channels; 16, 32 output channels a block.
pub(super) static WALK: [[[Tile; 2]; 2]; 2] = [
    [
        [walk("conv3d_walk_fwd_c16_n16", 16, 16), walk("conv3d_walk_fwd_c16_n32", 16, 32)],
        [walk("conv3d_walk_fwd_c32_n16", 32, 16), walk("conv3d_walk_fwd_c32_n32", 32, 32)],
    ],
    [
        [walk("conv3d_walk_dgrad_c16_n16", 16, 16), walk("conv3d_walk_dgrad_c16_n32", 16, 32)],
        [walk("conv3d_walk_dgrad_c32_n16", 32, 16), walk("conv3d_walk_dgrad_c32_n32", 32, 32)],
    ],
];
/// Forward, input gradient; 16, 32, 64 output channels a block, 64 of twice the planes.
pub(super) static HALO: [[Tile; 4]; 2] = [
    [
        halo("conv3d_halo_fwd_n16", 8, 16, 256),
        halo("conv3d_halo_fwd_n32", 8, 32, 256),
        halo("conv3d_halo_fwd_n64", 4, 64, 256),
        halo("conv3d_halo_fwd_n64_z8", 8, 64, 512),
    ],
    [
        halo("conv3d_halo_dgrad_n16", 8, 16, 256),
        halo("conv3d_halo_dgrad_n32", 8, 32, 256),
        halo("conv3d_halo_dgrad_n64", 4, 64, 256),
        halo("conv3d_halo_dgrad_n64_z8", 8, 64, 512),
    ],
];
/// Forward, input gradient; 32, 64 output channels a block, any number of channels.
pub(super) static GATHER: [[Tile; 3]; 2] = [
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
pub(super) static HALO_WGRAD: [[Kernel; 2]; 2] = [
    [halo_wgrad("conv3d_halo_wgrad_16x16", 16, 16), halo_wgrad("conv3d_halo_wgrad_16x32", 16, 32)],
    [halo_wgrad("conv3d_halo_wgrad_32x16", 32, 16), halo_wgrad("conv3d_halo_wgrad_32x32", 32, 32)],
];
/// Channels multiples of 8, any number of channels.
pub(super) static GATHER_WGRAD: [Kernel; 2] =
    [gather_wgrad("conv3d_gather_wgrad"), gather_wgrad("conv3d_gather_wgrad_any")];
pub(super) static STEM: Kernel =
    Kernel::new::<StemParams>("conv3d_stem_fwd", 256).with_shared(19_984);
pub(super) static STEM_WGRAD: Kernel =
    Kernel::new::<StemWgradParams>("conv3d_stem_wgrad", 256).with_shared(69_536);
pub(super) static SUM_SPLITS: Kernel = Kernel::new::<SumSplitsParams>("conv3d_sum_splits", 256);
pub(super) static SUM_ROWS: Kernel = Kernel::new::<SumRowsParams>("conv3d_sum_rows", 256);
pub(super) static BIAS_GRAD: Kernel = Kernel::new::<BiasGradParams>("conv3d_bias_grad", 256);

/// All of them.
pub(in crate::ops) static KERNELS: [Kernel; 33] = [
    WALK[0][0][0].kernel,
    WALK[0][0][1].kernel,
    WALK[0][1][0].kernel,
    WALK[0][1][1].kernel,
    WALK[1][0][0].kernel,
    WALK[1][0][1].kernel,
    WALK[1][1][0].kernel,
    WALK[1][1][1].kernel,
    HALO[0][0].kernel,
    HALO[0][1].kernel,
    HALO[0][2].kernel,
    HALO[0][3].kernel,
    HALO[1][0].kernel,
    HALO[1][1].kernel,
    HALO[1][2].kernel,
    HALO[1][3].kernel,
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
