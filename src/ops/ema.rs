//! Exponential moving average of parameters: `avg += w (p - avg)`.

use super::{CpuRule, OpRule, SCALARS, arity, refuse, scalar};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Inputs: scalars `[SCALARS]` (weight `w` at `scalar::EMA`), parameters `[n]`. Writes the average. `w = 1` copies exactly,
/// `w = 0` leaves the average as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Ema;

impl OpRule for Ema {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 2)?;
        if inputs[0].len() != SCALARS {
            return refuse(self, format!("needs scalars [{SCALARS}], got {}", inputs[0]));
        }
        Ok(vec![inputs[1]])
    }
}

impl<T: Scalar> CpuRule<T> for Ema {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (w, p, avg) = (io.read(0)[scalar::EMA], io.read(1), io.write(0));
        parallel::chunks(avg, 1, |at, avg| {
            let p = &p[at..at + avg.len()];
            if w == T::ONE {
                avg.copy_from_slice(p);
            } else if w != T::ZERO {
                for (avg, &p) in avg.iter_mut().zip(p) {
                    *avg += w * (p - *avg);
                }
            }
        });
    }

    fn backward(&self, _: &mut Io<'_, T>) {
        panic!("an average has no derivative");
    }
}
