//! Smooth L1 between predicted and true vectors of all ordered pairs.

use crate::backend::cuda::Queue;
use crate::backend::{Io, Write};
use crate::driver::Kernel;
use crate::error::Result;
use crate::ops::gap_loss::{
    LOSS_THREADS, LossBackwardParams, LossForwardParams, SAVED, infer_loss, loss_backward,
    loss_forward,
};
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, Saved, put};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `mean h(d - g)` with `h(e) = e^2 / 2` where `|e| < 1`, else `|e| - 1/2`; `pred`, `target` `[N, V, V, 3]`, output
/// `[1]`.
///
/// Source: arXiv 2509.05967, vector task, as its authors' program computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorLoss;

/// Smooth L1 with beta 1.
pub(super) fn smooth_l1(e: f64) -> f64 {
    if e.abs() < 1.0 { 0.5 * e * e } else { e.abs() - 0.5 }
}

/// How far `e` is from where the second derivative jumps.
pub(super) fn smooth_l1_kink(e: f64) -> f64 {
    (e.abs() - 1.0).abs()
}

/// Its derivative.
pub(super) fn smooth_l1_slope(e: f64) -> f64 {
    e.clamp(-1.0, 1.0)
}

impl OpRule for VectorLoss {
    fn name(&self) -> &'static str {
        "vector_loss"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        infer_loss(self, inputs)
    }

    fn saved(&self) -> Saved {
        SAVED
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn kink_distance(&self, _: &[Shape], inputs: &[&[f64]], _: &[f64]) -> f64 {
        let errors = inputs[0].iter().zip(inputs[1]).map(|(p, g)| p - g);
        errors.fold(f64::INFINITY, |least, e| least.min(smooth_l1_kink(e)))
    }
}

impl<T: Scalar> CpuRule<T> for VectorLoss {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (p, g, loss) = (io.read(0), io.read(1), io.write(0));
        let sum: f64 = p.iter().zip(g).map(|(&p, &g)| smooth_l1((p - g).to_f64())).sum();
        loss[0] = T::from_f64(sum / p.len() as f64);
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (p, g, dy) = (io.read(0), io.read(1), io.read(2)[0].to_f64());
        let Some(Write { to: dp, add }) = io.grad(0) else { return };
        let factor = dy / p.len() as f64;
        for ((dp, &p), &g) in dp.iter_mut().zip(p).zip(g) {
            put(dp, T::from_f64(factor * smooth_l1_slope((p - g).to_f64())), add);
        }
    }
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<LossForwardParams>("vector_loss_fwd_f32", LOSS_THREADS as u32),
    Kernel::new::<LossBackwardParams>("vector_loss_bwd_f32", LOSS_THREADS as u32),
];

impl CudaRule for VectorLoss {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        loss_forward(&KERNELS[0], io, queue)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        loss_backward(&KERNELS[1], io, queue)
    }
}
