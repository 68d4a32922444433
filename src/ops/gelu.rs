//! GELU, exact: `y = x / 2 (1 + erf(x / sqrt 2))`.

use multiversion::multiversion;

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{
    CpuRule, CudaIo, CudaRule, Op, OpRule, PIECE_THREADS, Saved, arity, piece_grid, put,
};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Gaussian error linear unit with the error function (not the tanh approximation), any shape.
///
/// Source: Hendrycks and Gimpel 2016, arXiv 1606.08415.
#[derive(Clone, Debug, PartialEq)]
pub struct Gelu;

impl OpRule for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        Ok(vec![inputs[0]])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[0], outputs: &[] }
    }

    fn storage(&self, _: usize) -> Storage {
        Storage::Half
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl<T: Scalar> CpuRule<T> for Gelu {
    fn forward(&self, io: &mut Io<'_, T>) {
        let x = io.read(0);
        parallel::chunks(io.write(0), 1, |at, y| forward(&x[at..at + y.len()], y));
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (x, dy) = (io.read(0), io.read(1));
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
        parallel::chunks(dx, 1, |at, dx| {
            let end = at + dx.len();
            backward(&x[at..end], &dy[at..end], dx, add);
        });
    }
}

#[multiversion(targets = "simd")]
fn forward<T: Scalar>(x: &[T], y: &mut [T]) {
    let (half, root) = (T::from_f64(0.5), T::from_f64(std::f64::consts::FRAC_1_SQRT_2));
    for (y, &x) in y.iter_mut().zip(x) {
        *y = half * x * (T::ONE + (x * root).erf());
    }
}

/// `d gelu / dx = Phi(x) + x phi(x)` with the normal distribution `Phi` and its density `phi`.
#[multiversion(targets = "simd")]
fn backward<T: Scalar>(x: &[T], dy: &[T], dx: &mut [T], add: bool) {
    let (half, root) = (T::from_f64(0.5), T::from_f64(std::f64::consts::FRAC_1_SQRT_2));
    let density = T::from_f64(0.398_942_280_401_432_7); // 1 / sqrt(2 pi)
    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
        let cumulative = half * (T::ONE + (x * root).erf());
        let slope = (-half * x * x).exp() * density * x + cumulative;
        put(dx, dy * slope, add);
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GeluParams {
    x: DevPtr,
    y: DevPtr,
    len: i64,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GeluGradParams {
    x: DevPtr,
    dy: DevPtr,
    dx: DevPtr,
    len: i64,
    add: i32,
    reserved: i32,
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<GeluParams>("gelu_fwd_bf16", PIECE_THREADS),
    Kernel::new::<GeluGradParams>("gelu_bwd_bf16", PIECE_THREADS),
];

impl CudaRule for Gelu {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        // A convolution before it may have made it.
        if io.last.is_some_and(|last| matches!(last.op, Op::Conv3d(_))) {
            return Ok(());
        }
        let len = io.shapes[0].len();
        let params = GeluParams { x: io.read(0), y: io.write(0), len: len as i64 };
        queue.launch(&KERNELS[0], piece_grid(len), &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let len = io.shapes[0].len();
        let Some(Write { to: dx, add }) = io.grad(0) else { return Ok(()) };
        let params = GeluGradParams {
            x: io.read(0),
            dy: io.read(1),
            dx,
            len: len as i64,
            add: add.into(),
            reserved: 0,
        };
        queue.launch(&KERNELS[1], piece_grid(len), &params)
    }
}
