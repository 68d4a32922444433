//! A name for a value whose backward pass measures the gradient that arrives there.

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::grad_norm::{sum_blocks, sum_of_squares};
use crate::ops::{
    CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, Pass, arity, grad_or_null, piece_grid,
    put_all,
};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Elements handled while they are in the nearest cache.
const PIECE: usize = 4096;

/// The identity; the tape lets its output share the input's memory, so forward does nothing. Backward passes the
/// gradient on and writes its Euclidean norm into input 1, a result of one element: this is how the share of each
/// task in the gradient at the dense representation is seen.
#[derive(Clone, Debug, PartialEq)]
pub struct GradNormTap;

impl OpRule for GradNormTap {
    fn name(&self) -> &'static str {
        "grad_norm_tap"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        Ok(vec![inputs[0]])
    }

    fn storage(&self, input: usize) -> Storage {
        // Operand 1 is the norm, a result.
        if input == 0 { Storage::Half } else { Storage::Full }
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl<T: Scalar> CpuRule<T> for GradNormTap {
    fn forward(&self, _: &mut Io<'_, T>) {}

    fn backward(&self, io: &mut Io<'_, T>) {
        let dy = io.read(0);
        let (dx, norm) = (io.grad(0), io.grad(1));
        if let Some(Write { to: norm, .. }) = norm {
            let square = match dx {
                Some(Write { to: dx, add }) => pass_on(dx, dy, add),
                None => parallel::sum(dy.len(), |range| sum_of_squares(&dy[range])),
            };
            norm[0] = T::from_f64(square.sqrt());
        } else if let Some(Write { to: dx, add }) = dx {
            parallel::chunks(dx, 1, |at, dx| put_all(dx, &dy[at..at + dx.len()], add));
        }
    }
}

/// Writes `dx` and returns the sum of squares of `dy`, which is read from memory once for both.
fn pass_on<T: Scalar>(dx: &mut [T], dy: &[T], add: bool) -> f64 {
    use rayon::prelude::*;
    let mut partial = [0.0; 64];
    let share = dy.len().div_ceil(parallel::parts(dy.len())).max(1);
    let pieces = dx.par_chunks_mut(share).zip(dy.par_chunks(share));
    pieces.zip(partial.par_iter_mut()).for_each(|((dx, dy), partial)| {
        for (dx, dy) in dx.chunks_mut(PIECE).zip(dy.chunks(PIECE)) {
            put_all(dx, dy, add);
            *partial += sum_of_squares(dy);
        }
    });
    partial.iter().sum()
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradNormTapParams {
    dy: DevPtr,
    dx: DevPtr,
    partial: DevPtr,
    len: i64,
    add: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradNormTapFinishParams {
    partial: DevPtr,
    norm: DevPtr,
    count: i64,
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<GradNormTapParams>("grad_norm_tap_bwd_bf16", PIECE_THREADS),
    Kernel::new::<GradNormTapFinishParams>("grad_norm_tap_finish_f64", PIECE_THREADS),
];

impl CudaRule for GradNormTap {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        match pass {
            Pass::Forward => 0,
            Pass::Backward => 8 * sum_blocks(shapes[0].len()),
        }
    }

    fn cuda_forward(&self, _: &CudaIo<'_>, _: &Queue) -> Result<()> {
        Ok(())
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let len = io.shapes[0].len();
        let ((dx, add), norm) = (grad_or_null(io, 0), io.grad(1));
        let partial = if norm.is_some() { io.workspace() } else { DevPtr::NULL };
        let count = sum_blocks(len);
        let params =
            GradNormTapParams { dy: io.read(0), dx, partial, len: len as i64, add, reserved: 0 };
        let grid = if norm.is_some() { [count as u32, 1, 1] } else { piece_grid(len) };
        queue.launch(&KERNELS[0], grid, &params)?;
        let Some(Write { to: norm, .. }) = norm else { return Ok(()) };
        let params = GradNormTapFinishParams { partial, norm, count: count as i64 };
        queue.launch(&KERNELS[1], [1; 3], &params)
    }
}
