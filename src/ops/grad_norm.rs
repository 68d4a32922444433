//! Global gradient norm and the clipping factor that follows from it.

use super::{CpuRule, OpRule, arity};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
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
