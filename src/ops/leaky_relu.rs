//! Leaky ReLU: `y = x` where `x > 0`, else `slope x`.

use super::{CpuRule, OpRule, Saved, arity, put};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
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
        let Some((dx, add)) = io.grad(0) else { return };
        parallel::chunks(dx, 1, |at, dx| {
            let end = at + dx.len();
            for ((dx, &dy), &y) in dx.iter_mut().zip(&dy[at..end]).zip(&y[at..end]) {
                put(dx, if y > T::ZERO { dy } else { dy * slope }, add);
            }
        });
    }
}
