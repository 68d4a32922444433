//! Hides blocks of voxels of a map.

use bytemuck::NoUninit;

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::block_mask::{Blocks, BlocksParams, check_mask};
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, Saved, arity, piece_grid, put};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `y = (1 - m) x`, `m` the weight of the block that an element lies in: what has weight 1 becomes 0, the mean of a
/// normalised volume.
///
/// Inputs `x [N, D, H, W, C]`, `mask [N, D / bz, H / by, W / bx]`. Only `x` has a gradient: `dx = (1 - m) dy`.
///
/// Source: He et al. 2022, arXiv 2111.06377 (masked autoencoders), with zeros in place of what is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct HideBlocks {
    /// Extent of a block in voxels, (z, y, x).
    pub block: [usize; 3],
}

impl OpRule for HideBlocks {
    fn name(&self) -> &'static str {
        "hide_blocks"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 2)?;
        check_mask(self, inputs[0], self.block, inputs[1])?;
        Ok(vec![inputs[0]])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[1], outputs: &[] }
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn storage(&self, input: usize) -> Storage {
        if input == 1 { Storage::Full } else { Storage::Half }
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl HideBlocks {
    /// `to = (1 - m) from`, or `to += (1 - m) from`, for a map of shape `map`.
    fn apply<T: Scalar>(&self, map: Shape, mask: &[T], from: &[T], to: &mut [T], add: bool) {
        let blocks = Blocks::of(map, self.block);
        parallel::chunks(to, 1, |first, to| {
            blocks.for_each(mask, first..first + to.len(), |m, at| {
                let to = &mut to[at.start - first..at.end - first];
                for (to, &from) in to.iter_mut().zip(&from[at]) {
                    put(to, (T::ONE - m) * from, add);
                }
            });
        });
    }
}

impl<T: Scalar> CpuRule<T> for HideBlocks {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, mask) = (io.read(0), io.read(1));
        self.apply(io.shapes[0], mask, x, io.write(0), false);
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (mask, dy) = (io.read(0), io.read(1));
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
        self.apply(io.shapes[0], mask, dy, dx, add);
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct HideBlocksParams {
    from: DevPtr,
    mask: DevPtr,
    to: DevPtr,
    elements: i64,
    blocks: BlocksParams,
    add: i32,
    reserved: i32,
}

static KERNELS: [Kernel; 1] = [Kernel::new::<HideBlocksParams>("hide_blocks_bf16", PIECE_THREADS)];

impl HideBlocks {
    fn launch(
        &self,
        queue: &Queue,
        map: Shape,
        mask: DevPtr,
        from: DevPtr,
        to: Write<DevPtr>,
    ) -> Result<()> {
        let params = HideBlocksParams {
            from,
            mask,
            to: to.to,
            elements: map.len() as i64,
            blocks: Blocks::of(map, self.block).params(),
            add: i32::from(to.add),
            reserved: 0,
        };
        queue.launch(&KERNELS[0], piece_grid(map.len()), &params)
    }
}

impl CudaRule for HideBlocks {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let to = Write { to: io.write(0), add: false };
        self.launch(queue, io.shapes[0], io.read(1), io.read(0), to)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(to) = io.grad(0) else { return Ok(()) };
        self.launch(queue, io.shapes[0], io.read(0), io.read(1), to)
    }
}
