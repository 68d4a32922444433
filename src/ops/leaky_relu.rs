//! Leaky ReLU: `y = x` where `x > 0`, else `slope x`.

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, Saved, arity, piece_grid, put};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Leaky rectified linear unit, any shape. `slope` is positive, so the sign of the output tells that of the input
/// and backward needs only the output. The derivative at 0 is `slope`, as PyTorch's.
#[derive(Clone, Debug, PartialEq)]
pub struct LeakyRelu {
    /// Factor of negative inputs, above 0.
    pub slope: f64,
}

impl OpRule for LeakyRelu {
    fn name(&self) -> &'static str {
        "leaky_relu"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        assert!(self.slope > 0.0, "the slope of a leaky ReLU is positive");
        Ok(vec![inputs[0]])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[], outputs: &[0] }
    }

    fn kink_distance(&self, _: &[Shape], inputs: &[&[f64]], _: &[f64]) -> f64 {
        inputs[0].iter().fold(f64::INFINITY, |least, x| least.min(x.abs()))
    }

    fn storage(&self, _: usize) -> Storage {
        Storage::Half
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl<T: Scalar> CpuRule<T> for LeakyRelu {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, slope) = (io.read(0), T::from_f64(self.slope));
        parallel::chunks(io.write(0), 1, |at, y| {
            let len = y.len();
            for (y, &x) in y.iter_mut().zip(&x[at..at + len]) {
                *y = if x > T::ZERO { x } else { x * slope };
            }
        });
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (y, dy, slope) = (io.read(0), io.read(1), T::from_f64(self.slope));
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
        parallel::chunks(dx, 1, |at, dx| {
            let end = at + dx.len();
            for ((dx, &dy), &y) in dx.iter_mut().zip(&dy[at..end]).zip(&y[at..end]) {
                put(dx, if y > T::ZERO { dy } else { dy * slope }, add);
            }
        });
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct LeakyReluParams {
    x: DevPtr,
    y: DevPtr,
    len: i64,
    slope: f32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct LeakyReluGradParams {
    y: DevPtr,
    dy: DevPtr,
    dx: DevPtr,
    len: i64,
    slope: f32,
    add: i32,
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<LeakyReluParams>("leaky_relu_fwd_bf16", PIECE_THREADS),
    Kernel::new::<LeakyReluGradParams>("leaky_relu_bwd_bf16", PIECE_THREADS),
];

impl CudaRule for LeakyRelu {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (x, y, len) = (io.read(0), io.write(0), io.shapes[0].len());
        let slope = self.slope as f32;
        let params = LeakyReluParams { x, y, len: len as i64, slope, reserved: 0 };
        queue.launch(&KERNELS[0], piece_grid(len), &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (y, dy, len) = (io.read(0), io.read(1), io.shapes[0].len());
        let Some(Write { to: dx, add }) = io.grad(0) else { return Ok(()) };
        let (slope, add) = (self.slope as f32, add.into());
        let params = LeakyReluGradParams { y, dy, dx, len: len as i64, slope, add };
        queue.launch(&KERNELS[1], piece_grid(len), &params)
    }
}
