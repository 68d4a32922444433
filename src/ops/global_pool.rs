//! Global average pool: the mean over all voxels of each channel.

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{
    CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, Pass, activation, arity, piece_grid, put,
};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Channels summed at once.
const LANES: usize = 16;

/// `[N, D, H, W, C]` to `[N, C]`. Sums are kept in f64: the map may have a million voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalPool;

impl OpRule for GlobalPool {
    fn name(&self) -> &'static str {
        "global_pool"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        let [n, .., c] = activation(self, inputs[0])?;
        Ok(vec![Shape::new(&[n, c])])
    }

    fn storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl<T: Scalar> CpuRule<T> for GlobalPool {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, y) = (io.read(0), io.write(0));
        let (channels, batch) = (io.shapes[0].channels(), io.shapes[0].dims()[0]);
        let per_sample = x.len() / batch;
        let voxels = (per_sample / channels) as f64;
        for (x, y) in x.chunks(per_sample).zip(y.chunks_mut(channels)) {
            for (group, y) in y.chunks_mut(LANES).enumerate() {
                let sums = sums(x, channels, group * LANES);
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = T::from_f64(sum / voxels);
                }
            }
        }
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let dy = io.read(0);
        let (channels, batch) = (io.shapes[0].channels(), io.shapes[0].dims()[0]);
        let per_sample = io.shapes[0].len() / batch;
        let share = T::from_f64(channels as f64 / per_sample as f64);
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
        for (dx, dy) in dx.chunks_mut(per_sample).zip(dy.chunks(channels)) {
            parallel::chunks(dx, channels, |_, dx| {
                for voxel in dx.chunks_mut(channels) {
                    for (dx, &dy) in voxel.iter_mut().zip(dy) {
                        put(dx, dy * share, add);
                    }
                }
            });
        }
    }
}

/// Sums over voxels of the channels from `first` on, up to [`LANES`] of them, as a tree that the number of voxels alone
/// shapes.
fn sums<T: Scalar>(x: &[T], channels: usize, first: usize) -> [f64; LANES] {
    let voxels = x.len() / channels;
    let mut sums = [0.0; LANES];
    if x.len() > parallel::GRAIN && voxels > 1 {
        let (low, high) = x.split_at(voxels / 2 * channels);
        let half = |x| self::sums(x, channels, first);
        let (low, high) = rayon::join(|| half(low), || half(high));
        for (sum, (low, high)) in sums.iter_mut().zip(low.into_iter().zip(high)) {
            *sum = low + high;
        }
    } else {
        for voxel in x.chunks_exact(channels) {
            for (sum, x) in sums.iter_mut().zip(&voxel[first..]) {
                *sum += x.to_f64();
            }
        }
    }
    sums
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GlobalPoolParams {
    x: DevPtr,
    out: DevPtr,
    voxels: i64,
    channels: i32,
    width: i32,
    tile: i32,
    slices: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GlobalPoolFinishParams {
    partial: DevPtr,
    y: DevPtr,
    voxels: i64,
    channels: i32,
    slices: i32,
    instances: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GlobalPoolGradParams {
    dy: DevPtr,
    dx: DevPtr,
    voxels: i64,
    channels: i32,
    instances: i32,
    add: i32,
    reserved: i32,
}

static KERNELS: [Kernel; 3] = [
    Kernel::new::<GlobalPoolParams>("global_pool_fwd_bf16", PIECE_THREADS),
    Kernel::new::<GlobalPoolFinishParams>("global_pool_finish_f32", PIECE_THREADS),
    Kernel::new::<GlobalPoolGradParams>("global_pool_bwd_bf16", PIECE_THREADS),
];

impl CudaRule for GlobalPool {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        match pass {
            Pass::Forward => 4 * shapes[0].dims()[0] * shapes[0].channels() * cut(shapes[0]).slices,
            Pass::Backward => 0,
        }
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (x, cut) = (io.shapes[0], cut(io.shapes[0]));
        let (n, c) = (x.dims()[0], x.channels());
        let voxels = (x.len() / (n * c)) as i64;
        let (y, whole) = (io.write(0), cut.slices == 1);
        let params = GlobalPoolParams {
            x: io.read(0),
            out: if whole { y } else { io.workspace() },
            voxels,
            channels: c as i32,
            width: cut.width as i32,
            tile: cut.tile as i32,
            slices: cut.slices as i32,
        };
        queue.launch(&KERNELS[0], [cut.slices as u32, cut.tiles as u32, n as u32], &params)?;
        if whole {
            return Ok(());
        }
        let params = GlobalPoolFinishParams {
            partial: io.workspace(),
            y,
            voxels,
            channels: c as i32,
            slices: cut.slices as i32,
            instances: n as i32,
            reserved: 0,
        };
        queue.launch(&KERNELS[1], [blocks(n * c, PIECE_THREADS as usize), 1, 1], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let x = io.shapes[0];
        let (n, c) = (x.dims()[0], x.channels());
        let Some(Write { to: dx, add }) = io.grad(0) else { return Ok(()) };
        let params = GlobalPoolGradParams {
            dy: io.read(0),
            dx,
            voxels: (x.len() / (n * c)) as i64,
            channels: c as i32,
            instances: n as i32,
            add: add.into(),
            reserved: 0,
        };
        queue.launch(&KERNELS[2], piece_grid(x.len()), &params)
    }
}

/// How the forward pass is cut into blocks: tiles of at most 64 channels, slices of the voxels.
struct Cut {
    width: usize,
    tile: usize,
    tiles: usize,
    slices: usize,
}

fn cut(x: Shape) -> Cut {
    let (n, c) = (x.dims()[0], x.channels());
    let width = if c % 8 == 0 { 8 } else { 1 };
    let groups = c / width;
    let tiles = groups.div_ceil(64 / width);
    let tile = groups.div_ceil(tiles);
    let tiles = groups.div_ceil(tile);
    let accesses = x.len() / (n * c) * tile;
    let slices = 512usize.div_ceil(n * tiles).min(accesses.div_ceil(2048)).clamp(1, 128);
    Cut { width, tile, tiles, slices }
}
