//! Features of all ordered pairs of views, as difference or as concatenation.

use super::{CpuRule, OpRule, arity, refuse};
use crate::backend::Io;
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// How two views' features make the feature of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairwiseKind {
    /// `x_i - x_j`
    Difference,
    /// `[x_i; x_j]`
    Concat,
}

/// `x [V, N, K]`, view-major, to `y [N, V, V, K]` (difference) or `[N, V, V, 2 K]` (concatenation), entry `(i, j)` from
/// views `i` and `j`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairwise {
    /// Difference or concatenation.
    pub kind: PairwiseKind,
}

impl OpRule for Pairwise {
    fn name(&self) -> &'static str {
        "pairwise"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        let [v, n, k] = *inputs[0].dims() else {
            return refuse(self, format!("needs [V N K], got {}", inputs[0]));
        };
        let width = if self.kind == PairwiseKind::Difference { k } else { 2 * k };
        Ok(vec![Shape::new(&[n, v, v, width])])
    }
}

impl<T: Scalar> CpuRule<T> for Pairwise {
    fn forward(&self, io: &mut Io<'_, T>) {
        let [views, batch, k] = *io.shapes[0].dims() else { return };
        let (x, y) = (io.read(0), io.write(0));
        let row = |v: usize, n: usize| &x[(v * batch + n) * k..][..k];
        let width = y.len() / (batch * views * views);
        for (e, y) in y.chunks_mut(width).enumerate() {
            let (n, i, j) = (e / (views * views), e / views % views, e % views);
            match self.kind {
                PairwiseKind::Difference => {
                    for ((y, &a), &b) in y.iter_mut().zip(row(i, n)).zip(row(j, n)) {
                        *y = a - b;
                    }
                }
                PairwiseKind::Concat => {
                    y[..k].copy_from_slice(row(i, n));
                    y[k..].copy_from_slice(row(j, n));
                }
            }
        }
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let [views, batch, k] = *io.shapes[0].dims() else { return };
        let dy = io.read(0);
        let Some((dx, add)) = io.grad(0) else { return };
        if !add {
            dx.fill(T::ZERO);
        }
        let width = dy.len() / (batch * views * views);
        for (e, dy) in dy.chunks(width).enumerate() {
            let (n, i, j) = (e / (views * views), e / views % views, e % views);
            let (first, second) = ((i * batch + n) * k, (j * batch + n) * k);
            for c in 0..k {
                dx[first + c] += dy[c];
                match self.kind {
                    PairwiseKind::Difference => dx[second + c] -= dy[c],
                    PairwiseKind::Concat => dx[second + c] += dy[k + c],
                }
            }
        }
    }
}
