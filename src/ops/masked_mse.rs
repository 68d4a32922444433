//! Mean squared error between two maps over the blocks of voxels that a mask selects.

use bytemuck::NoUninit;

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::block_mask::{Blocks, BlocksParams, check_mask};
use crate::ops::{
    CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, Pass, Saved, activation, arity, piece_grid,
    put, refuse,
};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `sum m (p - t)^2 / sum m` over all elements, `m` the weight of the block that an element lies in, 0 or more; 0 if
/// all are 0.
///
/// Inputs `pred` and `target` `[N, D, H, W, C]`, `mask [N, D / bz, H / by, W / bx]`. Outputs: the loss `[1]`, and the
/// sum of weights `[1]`. Only `pred` has a gradient: `dp = dy 2 m (p - t) / sum m`.
///
/// Source: He et al. 2022, arXiv 2111.06377 (masked autoencoders: the error counts where the input was hidden).
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedMse {
    /// Extent of a block in voxels, (z, y, x).
    pub block: [usize; 3],
}

/// Slices that the sum is cut into on the device, at most.
const MAX_SLICES: usize = 512;

impl OpRule for MaskedMse {
    fn name(&self) -> &'static str {
        "masked_mse"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 3)?;
        activation(self, inputs[0])?;
        if inputs[1] != inputs[0] {
            return refuse(
                self,
                format!("prediction {} and target {} differ", inputs[0], inputs[1]),
            );
        }
        check_mask(self, inputs[0], self.block, inputs[2])?;
        Ok(vec![Shape::new(&[1]); 2])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[0, 1, 2], outputs: &[1] }
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn storage(&self, input: usize) -> Storage {
        if input == 2 { Storage::Full } else { Storage::Half }
    }
}

impl<T: Scalar> CpuRule<T> for MaskedMse {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (p, t, mask) = (io.read(0), io.read(1), io.read(2));
        let blocks = Blocks::of(io.shapes[0], self.block);
        let sum = parallel::sum(p.len(), |range| {
            let mut sum = 0.0;
            blocks.for_each(mask, range, |m, at| {
                if m != T::ZERO {
                    let errors = p[at.clone()].iter().zip(&t[at]);
                    let squares: f64 = errors.map(|(&p, &t)| (p - t).to_f64().powi(2)).sum();
                    sum += m.to_f64() * squares;
                }
            });
            sum
        });
        let weight = mask.iter().map(|m| m.to_f64()).sum::<f64>() * blocks.len() as f64;
        io.write(0)[0] = T::from_f64(if weight > 0.0 { sum / weight } else { 0.0 });
        io.write(1)[0] = T::from_f64(weight);
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (p, t, mask) = (io.read(0), io.read(1), io.read(2));
        let (weight, dy) = (io.read(3)[0].to_f64(), io.read(4)[0].to_f64());
        let Some(Write { to: dp, add }) = io.grad(0) else { return };
        let factor = if weight > 0.0 { 2.0 * dy / weight } else { 0.0 };
        let blocks = Blocks::of(io.shapes[0], self.block);
        parallel::chunks(dp, 1, |first, dp| {
            blocks.for_each(mask, first..first + dp.len(), |m, at| {
                let scale = T::from_f64(factor * m.to_f64());
                let to = &mut dp[at.start - first..at.end - first];
                for ((dp, &p), &t) in to.iter_mut().zip(&p[at.clone()]).zip(&t[at.clone()]) {
                    put(dp, scale * (p - t), add);
                }
            });
        });
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct MaskedMseParams {
    pred: DevPtr,
    target: DevPtr,
    mask: DevPtr,
    partial: DevPtr,
    elements: i64,
    blocks: BlocksParams,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct MaskedMseFinishParams {
    partial: DevPtr,
    mask: DevPtr,
    loss: DevPtr,
    weight: DevPtr,
    cells: i64,
    slices: i32,
    cell_elements: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct MaskedMseBackwardParams {
    pred: DevPtr,
    target: DevPtr,
    mask: DevPtr,
    weight: DevPtr,
    dy: DevPtr,
    dpred: DevPtr,
    elements: i64,
    blocks: BlocksParams,
    add: i32,
    reserved: i32,
}

static KERNELS: [Kernel; 3] = [
    Kernel::new::<MaskedMseParams>("masked_mse_fwd_bf16", PIECE_THREADS),
    Kernel::new::<MaskedMseFinishParams>("masked_mse_finish_f32", PIECE_THREADS),
    Kernel::new::<MaskedMseBackwardParams>("masked_mse_bwd_bf16", PIECE_THREADS),
];

/// Slices of the sum over `elements`: 32 elements or more to a thread.
fn slices(elements: usize) -> usize {
    (blocks(elements, 32 * PIECE_THREADS as usize) as usize).min(MAX_SLICES)
}

impl CudaRule for MaskedMse {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        if pass == Pass::Forward { 4 * slices(shapes[0].len()) } else { 0 }
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (elements, blocks) = (io.shapes[0].len(), Blocks::of(io.shapes[0], self.block));
        let slices = slices(elements);
        let params = MaskedMseParams {
            pred: io.read(0),
            target: io.read(1),
            mask: io.read(2),
            partial: io.workspace(),
            elements: elements as i64,
            blocks: blocks.params(),
        };
        queue.launch(&KERNELS[0], [slices as u32, 1, 1], &params)?;
        let params = MaskedMseFinishParams {
            partial: io.workspace(),
            mask: io.read(2),
            loss: io.write(0),
            weight: io.write(1),
            cells: io.shapes[2].len() as i64,
            slices: slices as i32,
            cell_elements: blocks.len() as i32,
        };
        queue.launch(&KERNELS[1], [1; 3], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(Write { to: dpred, add }) = io.grad(0) else { return Ok(()) };
        let elements = io.shapes[0].len();
        let params = MaskedMseBackwardParams {
            pred: io.read(0),
            target: io.read(1),
            mask: io.read(2),
            weight: io.read(3),
            dy: io.read(4),
            dpred,
            elements: elements as i64,
            blocks: Blocks::of(io.shapes[0], self.block).params(),
            add: i32::from(add),
            reserved: 0,
        };
        queue.launch(&KERNELS[2], piece_grid(elements), &params)
    }
}
