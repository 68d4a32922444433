//! AdamW with decoupled weight decay and a clipping factor, in place.

use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::backend::cuda::Queue;
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, arity, piece_grid, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Number of values that change from step to step and reach the update operations as one input.
pub const SCALARS: usize = 4;

/// Places in that input.
pub mod scalar {
    /// Learning rate.
    pub const LR: usize = 0;
    /// `1 - beta1^t`.
    pub const BIAS1: usize = 1;
    /// `1 - beta2^t`.
    pub const BIAS2: usize = 2;
    /// Weight of the new parameters in the averaged encoder, 0 to leave it.
    pub const EMA: usize = 3;
}

/// One update of a block of parameters:
///
/// ```text
/// p -= lr wd p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr (m / bias1) / (sqrt(v / bias2) + eps)
/// ```
///
/// with `g` the gradient times the clipping factor. Inputs: scalars `[SCALARS]`, `[norm, factor]` as
/// [`super::GradNorm`] writes them, gradient `[n]`. Writes parameters, `m`, `v`. If the norm is not finite nothing
/// changes:
/// the step is skipped.
///
/// Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl OpRule for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 3)?;
        if inputs[0].len() != SCALARS || inputs[1].len() != 2 {
            return refuse(
                self,
                format!(
                    "needs scalars [{SCALARS}] and a norm [2], got {} and {}",
                    inputs[0], inputs[1]
                ),
            );
        }
        Ok(vec![inputs[2]; 3])
    }
}

impl<T: Scalar> CpuRule<T> for AdamW {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (scalars, norm, grad) = (io.read(0), io.read(1), io.read(2));
        let (p, m, v) = (io.write(0), io.write(1), io.write(2));
        if !norm[0].to_f64().is_finite() {
            return;
        }
        use rayon::prelude::*;
        let grain = parallel::GRAIN;
        p.par_chunks_mut(grain)
            .zip(m.par_chunks_mut(grain))
            .zip(v.par_chunks_mut(grain))
            .zip(grad.par_chunks(grain))
            .for_each(|(((p, m), v), g)| update(self, scalars, norm[1], g, (p, m, v)));
    }

    fn backward(&self, _: &mut Io<'_, T>) {
        panic!("an update has no derivative");
    }
}

#[multiversion::multiversion(targets = "simd")]
fn update<T: Scalar>(
    op: &AdamW,
    scalars: &[T],
    factor: T,
    grad: &[T],
    state: (&mut [T], &mut [T], &mut [T]),
) {
    let (p, m, v) = state;
    let n = p.len();
    let (m, v, grad) = (&mut m[..n], &mut v[..n], &grad[..n]);
    let (b1, b2, eps) = (T::from_f64(op.beta1), T::from_f64(op.beta2), T::from_f64(op.eps));
    // 1 - beta from f64: the difference in f32 would be off by 5e-5 for beta2 = 0.999.
    let (c1, c2) = (T::from_f64(1.0 - op.beta1), T::from_f64(1.0 - op.beta2));
    let lr = scalars[scalar::LR];
    let keep = T::ONE - lr * T::from_f64(op.weight_decay);
    let (r1, r2) = (lr / scalars[scalar::BIAS1], T::ONE / scalars[scalar::BIAS2]);
    for i in 0..n {
        let g = grad[i] * factor;
        m[i] = b1 * m[i] + c1 * g;
        v[i] = b2 * v[i] + c2 * g * g;
        p[i] = p[i] * keep - r1 * m[i] / ((v[i] * r2).sqrt() + eps);
    }
}

/// The constants of the rule in f32, `1 - beta` from f64 as on the CPU.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AdamWRule {
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    eps: f32,
    weight_decay: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AdamWParams {
    scalars: DevPtr,
    norm: DevPtr,
    grad: DevPtr,
    param: DevPtr,
    m: DevPtr,
    v: DevPtr,
    half_copy: DevPtr,
    average: DevPtr,
    average_half: DevPtr,
    len: i64,
    rule: AdamWRule,
}

static KERNELS: [Kernel; 1] = [Kernel::new::<AdamWParams>("adamw_f32", PIECE_THREADS)];

impl CudaRule for AdamW {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let len = io.shapes[2].len();
        let rule = AdamWRule {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            eps: self.eps as f32,
            weight_decay: self.weight_decay as f32,
        };
        let average =
            io.last.and_then(|ema| ema.writes[0]).map(|write| write.to).unwrap_or_default();
        let params = AdamWParams {
            scalars: io.read(0),
            norm: io.read(1),
            grad: io.read(2),
            param: io.write(0),
            m: io.write(1),
            v: io.write(2),
            half_copy: io.write_half_copy(0),
            average: average.ptr,
            average_half: average.half_copy,
            len: len as i64,
            rule,
        };
        queue.launch(&KERNELS[0], piece_grid(len), &params)
    }

    fn cuda_backward(&self, _: &CudaIo<'_>, _: &Queue) -> Result<()> {
        panic!("an update has no derivative");
    }
}
