//! Sum of two values of one shape: `y = a + b`.

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{
    CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, arity, grad_or_null, piece_grid, put_all,
    refuse,
};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Elementwise sum, any shape. Inside the encoder the sum is part of [`super::InstanceNorm`]; this is the
/// operation on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct ResidualAdd;

impl OpRule for ResidualAdd {
    fn name(&self) -> &'static str {
        "residual_add"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 2)?;
        if inputs[0] != inputs[1] {
            return refuse(
                self,
                format!("needs equal shapes, got {} and {}", inputs[0], inputs[1]),
            );
        }
        Ok(vec![inputs[0]])
    }

    fn storage(&self, _: usize) -> Storage {
        Storage::Half
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl<T: Scalar> CpuRule<T> for ResidualAdd {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (a, b) = (io.read(0), io.read(1));
        parallel::chunks(io.write(0), 1, |at, y| {
            let end = at + y.len();
            for ((y, &a), &b) in y.iter_mut().zip(&a[at..end]).zip(&b[at..end]) {
                *y = a + b;
            }
        });
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let dy = io.read(0);
        for input in 0..2 {
            if let Some(Write { to: dx, add }) = io.grad(input) {
                parallel::chunks(dx, 1, |at, dx| put_all(dx, &dy[at..at + dx.len()], add));
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ResidualAddParams {
    a: DevPtr,
    b: DevPtr,
    y: DevPtr,
    len: i64,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ResidualAddGradParams {
    dy: DevPtr,
    da: DevPtr,
    db: DevPtr,
    len: i64,
    add_a: i32,
    add_b: i32,
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<ResidualAddParams>("residual_add_fwd_bf16", PIECE_THREADS),
    Kernel::new::<ResidualAddGradParams>("residual_add_bwd_bf16", PIECE_THREADS),
];

impl CudaRule for ResidualAdd {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let len = io.shapes[0].len();
        let (a, b, y) = (io.read(0), io.read(1), io.write(0));
        let params = ResidualAddParams { a, b, y, len: len as i64 };
        queue.launch(&KERNELS[0], piece_grid(len), &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (dy, len) = (io.read(0), io.shapes[0].len());
        let ((da, add_a), (db, add_b)) = (grad_or_null(io, 0), grad_or_null(io, 1));
        let params = ResidualAddGradParams { dy, da, db, len: len as i64, add_a, add_b };
        queue.launch(&KERNELS[1], piece_grid(len), &params)
    }
}
