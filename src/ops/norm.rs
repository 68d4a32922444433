//! Instance norm, with the residual sum and the leaky ReLU that follow it in the encoder.

use super::{
    CpuRule, CudaIo, CudaRule, OpRule, Pass, Saved, activation, arity, grad_or_null, put, refuse,
};
use crate::backend::Io;
use crate::backend::cpu::norm;
use crate::backend::cuda::{Queue, Storage};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `y = act((x - mean) rstd gamma + beta + residual)` with the statistics of each sample and channel over its voxels,
/// biased variance, `rstd = 1 / sqrt(var + 1e-5)`.
///
/// Inputs `x [N, D, H, W, C]`, `gamma [C]`, `beta [C]`, and the residual, shaped as `x`, if there is one. Outputs `y`
/// and the statistics `[N, C, 2]` (mean, rstd).
///
/// Source: Ulyanov et al. 2016, arXiv 1607.08022; nnU-Net's epsilon.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceNorm {
    /// Slope of the leaky ReLU, above 0; none: no activation.
    pub slope: Option<f64>,
    /// Whether input 3 is added before the activation.
    pub residual: bool,
}

impl OpRule for InstanceNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 3 + usize::from(self.residual))?;
        let [n, .., c] = activation(self, inputs[0])?;
        if inputs[1].dims() != [c] || inputs[2].dims() != [c] {
            return refuse(self, format!("gamma {} and beta {} need [{c}]", inputs[1], inputs[2]));
        }
        if self.residual && inputs[3] != inputs[0] {
            return refuse(self, format!("residual {} is not shaped as {}", inputs[3], inputs[0]));
        }
        assert!(self.slope.is_none_or(|s| s > 0.0), "the slope of a leaky ReLU is positive");
        Ok(vec![inputs[0], Shape::new(&[n, c, 2])])
    }

    fn saved(&self) -> Saved {
        match (self.slope.is_some(), self.residual) {
            (false, _) => Saved { inputs: &[0, 1], outputs: &[1] },
            // The side of the activation: from the output, or, which saves a device from reading it, from x and beta.
            (true, true) => Saved { inputs: &[0, 1], outputs: &[1, 0] },
            (true, false) => Saved { inputs: &[0, 1, 2], outputs: &[1, 0] },
        }
    }

    fn workspace(&self, _: Pass, inputs: &[Shape]) -> usize {
        norm::workspace(inputs[0].len() / inputs[0].dims()[0], inputs[0].channels())
    }

    fn storage(&self, input: usize) -> Storage {
        match input {
            1 | 2 => Storage::Full,
            _ => Storage::Half,
        }
    }

    fn output_storage(&self, output: usize) -> Storage {
        if output == 0 { Storage::Half } else { Storage::Full }
    }
}

impl<T: Scalar> CpuRule<T> for InstanceNorm {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, gamma, beta) = (io.read(0), io.read(1), io.read(2));
        let residual = self.residual.then(|| io.read(3));
        let (y, stats, work) = (io.write(0), io.write(1), io.workspace());
        let c = gamma.len();
        let len = x.len() / io.shapes[0].dims()[0];
        for (n, (y, stats)) in y.chunks_mut(len).zip(stats.chunks_mut(2 * c)).enumerate() {
            let range = n * len..(n + 1) * len;
            norm::statistics(&x[range.clone()], stats, work);
            let apply = norm::Apply { stats, gamma, beta, slope: self.slope };
            apply.run(&x[range.clone()], residual.map(|r| &r[range]), y);
        }
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let inputs = self.saved().inputs.len();
        let (x, gamma, stats) = (io.read(0), io.read(1), io.read(inputs));
        let y = self.slope.map(|_| io.read(inputs + 1));
        let dy = io.read(inputs + 1 + usize::from(self.slope.is_some()));
        let (mut dx, mut dgamma, mut dbeta) = (io.grad(0), io.grad(1), io.grad(2));
        let (mut dres, work) = (io.grad(3), io.workspace());
        let c = gamma.len();
        let len = x.len() / io.shapes[0].dims()[0];
        for n in 0..io.shapes[0].dims()[0] {
            let range = n * len..(n + 1) * len;
            let slice = norm::Slice {
                x: &x[range.clone()],
                y: y.map(|y| &y[range.clone()]),
                dy: &dy[range.clone()],
                stats: &stats[n * 2 * c..(n + 1) * 2 * c],
                gamma,
                slope: self.slope,
            };
            let sums = slice.sums(work);
            for (grad, which) in [(&mut dbeta, 0), (&mut dgamma, 1)] {
                if let Some((grad, add)) = grad {
                    for (k, g) in grad.iter_mut().enumerate() {
                        put(g, sums[2 * k + which], *add || n > 0);
                    }
                }
            }
            if let Some((dx, add)) = &mut dx {
                let dres = dres.as_mut().map(|(d, add)| (&mut d[range.clone()], *add));
                slice.input_gradient(sums, (&mut dx[range.clone()], *add), dres);
            } else if let Some((d, add)) = &mut dres {
                slice.residual_gradient(&mut d[range.clone()], *add);
            }
        }
    }
}

/// Threads of every kernel of the file.
const THREADS: u32 = 512;
/// Channels that a block treats at most.
const TILE_CHANNELS: usize = 64;
/// Blocks that a pass is cut into, about.
const BLOCKS: usize = 256;
/// Slices of an instance at most: every block combines the partial results of all of them.
const SLICES: usize = 128;
/// Accesses that make a slice worth a block of its own.
const SLICE_ACCESSES: usize = 4096;
/// Accesses of an instance up to which one block does all of it in one launch.
const SMALL_ACCESSES: usize = 8192;
/// Instances up to which one block does the backward pass of all of them.
const SMALL_INSTANCES: usize = 4;

/// How a pass is cut into blocks; by the shape alone.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormShape {
    voxels: i64,
    channels: i32,
    /// Channels to an access.
    width: i32,
    /// Accesses of a voxel that a block makes.
    tile: i32,
    /// Parts of an instance.
    slices: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormStatsParams {
    x: DevPtr,
    partial: DevPtr,
    shape: NormShape,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormApplyParams {
    x: DevPtr,
    residual: DevPtr,
    gamma: DevPtr,
    beta: DevPtr,
    partial: DevPtr,
    y: DevPtr,
    stats: DevPtr,
    shape: NormShape,
    slope: f32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormGradParams {
    x: DevPtr,
    y: DevPtr,
    dy: DevPtr,
    gamma: DevPtr,
    beta: DevPtr,
    stats: DevPtr,
    partial: DevPtr,
    dx: DevPtr,
    dres: DevPtr,
    dgamma: DevPtr,
    dbeta: DevPtr,
    shape: NormShape,
    instances: i32,
    slope: f32,
    add_dx: i32,
    add_dres: i32,
    add_dgamma: i32,
    add_dbeta: i32,
    early_dres: i32,
    reserved: i32,
}

static KERNELS: [Kernel; 6] = [
    Kernel::new::<NormStatsParams>("norm_stats_bf16", THREADS),
    Kernel::new::<NormApplyParams>("norm_apply_bf16", THREADS),
    Kernel::new::<NormApplyParams>("norm_small_bf16", THREADS),
    Kernel::new::<NormGradParams>("norm_grad_stats_bf16", THREADS),
    Kernel::new::<NormGradParams>("norm_grad_apply_bf16", THREADS),
    Kernel::new::<NormGradParams>("norm_grad_small_bf16", THREADS),
];

impl NormShape {
    /// The cut of `x`, and its grid.
    fn new(x: Shape) -> (NormShape, [u32; 3]) {
        let (n, channels) = (x.dims()[0], x.channels());
        let voxels = x.len() / (n * channels);
        let width = if channels % 8 == 0 { 8 } else { 1 };
        let groups = channels / width;
        let tile = groups.div_ceil(groups.div_ceil(TILE_CHANNELS / width));
        let tiles = groups.div_ceil(tile);
        assert!(n.max(tiles) < 1 << 16, "{x} has more instances or channels than a grid can have");
        let accesses = voxels * tile;
        let slices = if accesses <= SMALL_ACCESSES {
            1
        } else {
            SLICES
                .min(BLOCKS.div_ceil(n * tiles))
                .min(accesses.div_ceil(SLICE_ACCESSES))
                .min(voxels)
        };
        let shape = NormShape {
            voxels: voxels as i64,
            channels: channels as i32,
            width: width as i32,
            tile: tile as i32,
            slices: slices as i32,
        };
        (shape, [slices as u32, tiles as u32, n as u32])
    }

    /// Whether one block does the backward pass of all instances.
    fn is_small(&self, instances: usize) -> bool {
        self.voxels * i64::from(self.tile) <= SMALL_ACCESSES as i64 && instances <= SMALL_INSTANCES
    }
}

impl CudaRule for InstanceNorm {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_workspace(&self, _: Pass, shapes: &[Shape]) -> usize {
        // Two floats for each instance, slice and channel.
        let (shape, _) = NormShape::new(shapes[0]);
        8 * shapes[0].dims()[0] * shape.slices as usize * shapes[0].channels()
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (shape, grid) = NormShape::new(io.shapes[0]);
        let partial = io.workspace();
        let params = NormApplyParams {
            x: io.read(0),
            residual: if self.residual { io.read(3) } else { DevPtr::NULL },
            gamma: io.read(1),
            beta: io.read(2),
            partial,
            y: io.write(0),
            stats: io.write(1),
            shape,
            slope: self.slope.unwrap_or(1.0) as f32,
            reserved: 0,
        };
        if shape.slices == 1 {
            return queue.launch(&KERNELS[2], grid, &params);
        }
        queue.launch(&KERNELS[0], grid, &NormStatsParams { x: io.read(0), partial, shape })?;
        queue.launch(&KERNELS[1], grid, &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (shape, grid) = NormShape::new(io.shapes[0]);
        let instances = io.shapes[0].dims()[0];
        let inputs = self.saved().inputs.len();
        let (y, beta, dy) = match (self.slope.is_some(), self.residual) {
            (false, _) => (DevPtr::NULL, DevPtr::NULL, io.read(inputs + 1)),
            (true, true) => (io.read(inputs + 1), DevPtr::NULL, io.read(inputs + 2)),
            (true, false) => (DevPtr::NULL, io.read(2), io.read(inputs + 2)),
        };
        let ((dx, add_dx), (dres, add_dres)) = (grad_or_null(io, 0), grad_or_null(io, 3));
        let (dgamma, add_dgamma) = grad_or_null(io, 1);
        let (dbeta, add_dbeta) = grad_or_null(io, 2);
        let is_small = shape.is_small(instances);
        // The gradient before the activation is dres: written by the first half, it spares the second dy and y.
        let early_dres =
            !is_small && !y.is_null() && !dx.is_null() && !dres.is_null() && add_dres == 0;
        let params = NormGradParams {
            x: io.read(0),
            y,
            dy,
            gamma: io.read(1),
            beta,
            stats: io.read(inputs),
            partial: io.workspace(),
            dx,
            dres,
            dgamma,
            dbeta,
            shape,
            instances: instances as i32,
            slope: self.slope.unwrap_or(1.0) as f32,
            add_dx,
            add_dres,
            add_dgamma,
            add_dbeta,
            early_dres: early_dres.into(),
            reserved: 0,
        };
        if is_small {
            return queue.launch(&KERNELS[5], [1, grid[1], 1], &params);
        }
        queue.launch(&KERNELS[3], grid, &params)?;
        queue.launch(&KERNELS[4], grid, &params)
    }
}
