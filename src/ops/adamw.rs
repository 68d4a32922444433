//! AdamW with decoupled weight decay and a clipping factor, in place.

use super::{CpuRule, OpRule, arity, refuse};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
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
/// [`super::GradNorm`] writes them, gradient `[n]`. Writes parameters, `m`, `v`. If the norm is not finite nothing changes:
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
