//! Sum of two values of one shape: `y = a + b`.

use super::{CpuRule, OpRule, arity, put_all, refuse};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
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
            if let Some((dx, add)) = io.grad(input) {
                parallel::chunks(dx, 1, |at, dx| put_all(dx, &dy[at..at + dx.len()], add));
            }
        }
    }
}
