//! The instance norm on a CUDA device: how its work is cut, and its launches. docs/kernels/norm.md.

use crate::backend::cuda::{DevSpan, Queue, blocks};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::fusion::conv_norm;
use crate::ops::norm::parts::{NormShape, Parts};
use crate::ops::{CudaIo, CudaRule, InstanceNorm, OpRule, Pass, grad_or_null};
use crate::shape::Shape;

/// Threads of every kernel of the file.
const THREADS: u32 = 512;
/// Channels of a block that combines parts.
const FINISH_CHANNELS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormStatsParams {
    x: DevPtr,
    partial: DevPtr,
    counts: DevPtr,
    shape: NormShape,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormFinishParams {
    partial: DevPtr,
    counts: DevPtr,
    stats: DevPtr,
    voxels: i64,
    parts: i32,
    channels: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormApplyParams {
    x: DevPtr,
    residual: DevPtr,
    gamma: DevPtr,
    beta: DevPtr,
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
    sums: DevPtr,
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
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormGradFinishParams {
    partial: DevPtr,
    sums: DevPtr,
    dgamma: DevPtr,
    dbeta: DevPtr,
    instances: i32,
    parts: i32,
    channels: i32,
    add_dgamma: i32,
    add_dbeta: i32,
    reserved: i32,
}

const STATS: usize = 0;
const FINISH: usize = 1;
const APPLY: usize = 2;
const SMALL: usize = 3;
const GRAD_STATS: usize = 4;
const GRAD_FINISH: usize = 5;
const GRAD_APPLY: usize = 6;
const GRAD_SMALL: usize = 7;

static KERNELS: [Kernel; 8] = [
    Kernel::new::<NormStatsParams>("norm_stats_bf16", THREADS),
    Kernel::new::<NormFinishParams>("norm_finish_f32", THREADS),
    Kernel::new::<NormApplyParams>("norm_apply_bf16", THREADS),
    Kernel::new::<NormApplyParams>("norm_small_bf16", THREADS),
    Kernel::new::<NormGradParams>("norm_bwd_stats_bf16", THREADS),
    Kernel::new::<NormGradFinishParams>("norm_bwd_finish_f32", THREADS),
    Kernel::new::<NormGradParams>("norm_bwd_apply_bf16", THREADS),
    Kernel::new::<NormGradParams>("norm_bwd_small_bf16", THREADS),
];

/// What the backward pass reads, whoever does it.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Sources {
    /// Input of the norm.
    pub(in crate::ops) x: DevPtr,
    /// Output, if the side of the activation is to be told from it.
    pub(in crate::ops) y: DevPtr,
    /// Gradient of the output.
    pub(in crate::ops) dy: DevPtr,
    /// Scale.
    pub(in crate::ops) gamma: DevPtr,
    /// Shift, if the side of the activation is to be told from x.
    pub(in crate::ops) beta: DevPtr,
    /// `[N, C, 2]`: mean, rstd.
    pub(in crate::ops) stats: DevPtr,
    /// Slope of the activation, 1: none.
    pub(in crate::ops) slope: f32,
}

impl InstanceNorm {
    /// Among what the backward pass reads, in its order.
    pub(in crate::ops) fn sources(&self, reads: &[DevSpan]) -> Sources {
        let (read, inputs) = (|i: usize| reads[i].ptr, self.saved().inputs.len());
        let none = DevPtr::NULL;
        let (y, beta) = match (self.slope.is_some(), self.residual) {
            (false, _) => (none, none),
            (true, true) => (read(inputs + 1), none),
            (true, false) => (none, read(2)),
        };
        Sources {
            x: read(0),
            y,
            dy: read(self.dy()),
            gamma: read(1),
            beta,
            stats: read(inputs),
            slope: self.slope.unwrap_or(1.0) as f32,
        }
    }

    /// Place of the output's gradient among what the backward pass reads.
    pub(in crate::ops) fn dy(&self) -> usize {
        self.saved().inputs.len() + self.saved().outputs.len()
    }

    /// Whether the gradient before the activation is what the residual's gradient is made of.
    pub(in crate::ops) fn is_gated(&self) -> bool {
        self.slope.is_some() && self.residual
    }

    fn partial_moments(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<Parts> {
        if let Some(parts) = io.last.and_then(|conv| conv_norm::parts(&conv, Pass::Forward)) {
            return Ok(parts);
        }
        let (shape, grid) = NormShape::new(io.shapes[0]);
        let parts = Parts::at(io.workspace(), io.shapes[0], shape.slices as usize);
        let params =
            NormStatsParams { x: io.read(0), partial: parts.partial, counts: parts.counts, shape };
        queue.launch(&KERNELS[STATS], grid, &params)?;
        Ok(parts)
    }
}

/// Launches of a backward pass that is not small.
struct Backward<'a> {
    params: NormGradParams,
    grid: [u32; 3],
    queue: &'a Queue,
}

impl Backward<'_> {
    /// Partial sums. `early`: the gradient before the activation goes to dres, from where the other half reads it.
    fn stats(&mut self, early: bool) -> Result<()> {
        let params = self.params;
        let dres = if early { params.dres } else { DevPtr::NULL };
        self.queue.launch(&KERNELS[GRAD_STATS], self.grid, &NormGradParams { dres, ..params })?;
        if early {
            self.passed(dres);
        }
        Ok(())
    }

    /// The gradient before the activation lies at `g`, perhaps the place of dres.
    fn passed(&mut self, g: DevPtr) {
        let params = &mut self.params;
        params.dres = if g == params.dres { DevPtr::NULL } else { params.dres };
        (params.dy, params.y) = (g, DevPtr::NULL);
    }

    /// From partial sums of `parts` parts to the gradients.
    fn finish(&self, parts: usize) -> Result<()> {
        let p = &self.params;
        let channels = p.shape.channels as usize;
        let finish = NormGradFinishParams {
            partial: p.partial,
            sums: p.sums,
            dgamma: p.dgamma,
            dbeta: p.dbeta,
            instances: p.instances,
            parts: parts as i32,
            channels: p.shape.channels,
            add_dgamma: p.add_dgamma,
            add_dbeta: p.add_dbeta,
            reserved: 0,
        };
        let grid = [blocks(channels, FINISH_CHANNELS), 1, 1];
        self.queue.launch(&KERNELS[GRAD_FINISH], grid, &finish)?;
        if p.dx.is_null() && p.dres.is_null() {
            return Ok(());
        }
        self.queue.launch(&KERNELS[GRAD_APPLY], self.grid, p)
    }
}

impl CudaRule for InstanceNorm {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        let (shape, _) = NormShape::new(shapes[0]);
        let sums = 8 * shapes[0].dims()[0] * shapes[0].channels();
        Parts::len(shapes[0], shape.slices as usize) + if pass == Pass::Backward { sums } else { 0 }
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (shape, grid) = NormShape::new(io.shapes[0]);
        let instances = io.shapes[0].dims()[0];
        let params = NormApplyParams {
            x: io.read(0),
            residual: if self.residual { io.read(3) } else { DevPtr::NULL },
            gamma: io.read(1),
            beta: io.read(2),
            y: io.write(0),
            stats: io.write(1),
            shape,
            slope: self.slope.unwrap_or(1.0) as f32,
            reserved: 0,
        };
        if shape.is_small(Pass::Forward, instances) {
            return queue.launch(&KERNELS[SMALL], grid, &params);
        }
        let Parts { partial, counts, parts } = self.partial_moments(io, queue)?;
        let finish = NormFinishParams {
            partial,
            counts,
            stats: params.stats,
            voxels: shape.voxels,
            parts: parts as i32,
            channels: shape.channels,
        };
        let channel_blocks = blocks(shape.channels as usize, FINISH_CHANNELS);
        queue.launch(&KERNELS[FINISH], [channel_blocks, instances as u32, 1], &finish)?;
        queue.launch(&KERNELS[APPLY], grid, &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (shape, grid) = NormShape::new(io.shapes[0]);
        let instances = io.shapes[0].dims()[0];
        let from = self.sources(io.reads);
        let ((dx, add_dx), (dres, add_dres)) = (grad_or_null(io, 0), grad_or_null(io, 3));
        let (dgamma, add_dgamma) = grad_or_null(io, 1);
        let (dbeta, add_dbeta) = grad_or_null(io, 2);
        let sums = io.workspace();
        let params = NormGradParams {
            x: from.x,
            y: from.y,
            dy: from.dy,
            gamma: from.gamma,
            beta: from.beta,
            stats: from.stats,
            partial: sums.offset(8 * instances * shape.channels as usize),
            sums,
            dx,
            dres,
            dgamma,
            dbeta,
            shape,
            instances: instances as i32,
            slope: from.slope,
            add_dx,
            add_dres,
            add_dgamma,
            add_dbeta,
        };
        if shape.is_small(Pass::Backward, instances) {
            return queue.launch(&KERNELS[GRAD_SMALL], [1, grid[1], 1], &params);
        }
        let mut launches = Backward { params, grid, queue };
        if let Some(fused) = io.last.and_then(|conv| conv_norm::parts(&conv, Pass::Backward)) {
            launches.params.partial = fused.partial;
            if self.is_gated() {
                launches.passed(conv_norm::gradient_place(io.writes, from.dy));
            }
            return launches.finish(fused.parts);
        }
        // The gradient before the activation is dres: written by the first half, it spares the second dy and y.
        let early = self.is_gated() && !dx.is_null() && !dres.is_null() && add_dres == 0;
        launches.stats(early)?;
        launches.finish(shape.slices as usize)
    }
}
