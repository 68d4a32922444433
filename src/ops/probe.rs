//! A name for a value whose backward pass measures the gradient that arrives there.

use super::grad_norm::sum_of_squares;
use super::{CpuRule, OpRule, arity, put_all};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Elements handled while they are in the nearest cache.
const PIECE: usize = 4096;

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
        let (dx, norm) = (io.grad(0), io.grad(1));
        if let Some((norm, _)) = norm {
            let square = match dx {
                Some((dx, add)) => pass_on(dx, dy, add),
                None => parallel::sum(dy.len(), |range| sum_of_squares(&dy[range])),
            };
            norm[0] = T::from_f64(square.sqrt());
        } else if let Some((dx, add)) = dx {
            parallel::chunks(dx, 1, |at, dx| put_all(dx, &dy[at..at + dx.len()], add));
        }
    }
}

/// Writes `dx` and returns the sum of squares of `dy`, which is read from memory once for both.
fn pass_on<T: Scalar>(dx: &mut [T], dy: &[T], add: bool) -> f64 {
    use rayon::prelude::*;
    let mut partial = [0.0; 64];
    let share = dy.len().div_ceil(parallel::parts(dy.len())).max(1);
    let pieces = dx.par_chunks_mut(share).zip(dy.par_chunks(share));
    pieces.zip(partial.par_iter_mut()).for_each(|((dx, dy), partial)| {
        for (dx, dy) in dx.chunks_mut(PIECE).zip(dy.chunks(PIECE)) {
            put_all(dx, dy, add);
            *partial += sum_of_squares(dy);
        }
    });
    partial.iter().sum()
}
