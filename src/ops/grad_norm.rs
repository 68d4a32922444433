//! Global gradient norm and the clipping factor that follows from it.

use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::backend::cuda::Queue;
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, Pass, arity};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Inputs: gradient blocks of any shape. Writes `[norm, factor]`: the Euclidean norm over all of them, and
/// `min(1, max_norm / (norm + 1e-6))`, or 1 without a limit. A NaN or infinity anywhere makes the norm not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct GradNorm {
    /// Largest norm let through; none: no clipping.
    pub max_norm: Option<f64>,
}

impl OpRule for GradNorm {
    fn name(&self) -> &'static str {
        "grad_norm"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        if inputs.is_empty() {
            arity(self, inputs, 1)?;
        }
        Ok(vec![Shape::new(&[2])])
    }
}

impl<T: Scalar> CpuRule<T> for GradNorm {
    fn forward(&self, io: &mut Io<'_, T>) {
        let mut square = 0.0;
        for i in 0..io.shapes.len() {
            let grad = io.read(i);
            square += parallel::sum(grad.len(), |range| sum_of_squares(&grad[range]));
        }
        let norm = square.sqrt();
        let factor = self.max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
        let out = io.write(0);
        out[0] = T::from_f64(norm);
        out[1] = T::from_f64(factor);
    }

    fn backward(&self, _: &mut Io<'_, T>) {
        panic!("a measurement has no derivative");
    }
}

/// Sum of squares in f64, in which no square of a finite f32 overflows.
#[multiversion::multiversion(targets = "simd")]
pub(super) fn sum_of_squares<T: Scalar>(x: &[T]) -> f64 {
    let mut lanes = [0.0f64; 16];
    let (runs, rest) = x.as_chunks::<16>();
    for run in runs {
        for (lane, x) in lanes.iter_mut().zip(run) {
            let x = x.to_f64();
            *lane = x.mul_add(x, *lane);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|x| x.to_f64().powi(2)).sum::<f64>()
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradNormParams {
    grad: DevPtr,
    partial: DevPtr,
    len: i64,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradNormFinishParams {
    partial: DevPtr,
    out: DevPtr,
    count: i64,
    max_norm: f64,
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<GradNormParams>("grad_norm_sum_f32", PIECE_THREADS),
    Kernel::new::<GradNormFinishParams>("grad_norm_finish_f64", PIECE_THREADS),
];

/// Blocks that sum `len` elements, each of which leaves one partial sum of eight bytes.
pub(super) fn sum_blocks(len: usize) -> usize {
    len.div_ceil(16 * PIECE_THREADS as usize).clamp(1, 1024)
}

impl CudaRule for GradNorm {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        match pass {
            Pass::Forward => shapes.iter().map(|shape| 8 * sum_blocks(shape.len())).sum(),
            Pass::Backward => 0,
        }
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let mut count = 0;
        for (i, shape) in io.shapes.iter().enumerate() {
            let partial = io.workspace().offset(8 * count);
            let params = GradNormParams { grad: io.read(i), partial, len: shape.len() as i64 };
            let blocks = sum_blocks(shape.len());
            queue.launch(&KERNELS[0], [blocks as u32, 1, 1], &params)?;
            count += blocks;
        }
        let params = GradNormFinishParams {
            partial: io.workspace(),
            out: io.write(0),
            count: count as i64,
            max_norm: self.max_norm.unwrap_or(f64::INFINITY),
        };
        queue.launch(&KERNELS[1], [1; 3], &params)
    }

    fn cuda_backward(&self, _: &CudaIo<'_>, _: &Queue) -> Result<()> {
        panic!("a measurement has no derivative");
    }
}
