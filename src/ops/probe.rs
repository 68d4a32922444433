//! A name for a value whose backward pass measures the gradient that arrives there.

use super::{CpuRule, OpRule, arity, put};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The identity; the tape lets its output share the input's memory, so forward does nothing. Backward passes the
/// gradient on and writes its Euclidean norm into input 1, a result of one element: this is how the share of each
/// task in the gradient at the dense representation is seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe;

impl OpRule for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        Ok(vec![inputs[0]])
    }
}

impl<T: Scalar> CpuRule<T> for Probe {
    fn forward(&self, _: &mut Io<'_, T>) {}

    fn backward(&self, io: &mut Io<'_, T>) {
        let dy = io.read(0);
        if let Some((dx, add)) = io.grad(0) {
            parallel::chunks(dx, 1, |at, dx| {
                for (i, dx) in dx.iter_mut().enumerate() {
                    put(dx, dy[at + i], add);
                }
            });
        }
        if let Some((norm, _)) = io.grad(1) {
            let square = parallel::sum(dy.len(), |range| {
                dy[range].iter().map(|&g| g.to_f64() * g.to_f64()).sum()
            });
            norm[0] = T::from_f64(square.sqrt());
        }
    }
}
