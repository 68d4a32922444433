//! Instance norm, with the residual sum and the leaky ReLU that follow it in the encoder.

pub(in crate::ops) mod cuda;
pub(in crate::ops) mod parts;

use crate::backend::cpu::norm;
use crate::backend::cuda::Storage;
use crate::backend::{Io, Write};
use crate::error::Result;
use crate::ops::{CpuRule, OpRule, Pass, Saved, activation, arity, put, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `y = act((x - mean) rstd gamma + beta + residual)` with the statistics of each sample and channel over its voxels,
/// biased variance, `rstd = 1 / sqrt(var + 1e-5)`.
///
/// Inputs `x [N, D, H, W, C]`, `gamma [C]`, `beta [C]`, and the residual, shaped as `x`, if there is one. Outputs `y`
/// and the statistics `[N, C, 2]` (mean, rstd).
///
/// Source: Ulyanov et al. 2016, arXiv 1607.08022; nnU-Net's epsilon.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceNorm {
    /// Slope of the leaky ReLU, above 0; none: no activation.
    pub slope: Option<f64>,
    /// Whether input 3 is added before the activation.
    pub residual: bool,
}

impl OpRule for InstanceNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 3 + usize::from(self.residual))?;
        let [n, .., c] = activation(self, inputs[0])?;
        if inputs[1].dims() != [c] || inputs[2].dims() != [c] {
            return refuse(self, format!("gamma {} and beta {} need [{c}]", inputs[1], inputs[2]));
        }
        if self.residual && inputs[3] != inputs[0] {
            return refuse(self, format!("residual {} is not shaped as {}", inputs[3], inputs[0]));
        }
        assert!(self.slope.is_none_or(|s| s > 0.0), "the slope of a leaky ReLU is positive");
        Ok(vec![inputs[0], Shape::new(&[n, c, 2])])
    }

    fn saved(&self) -> Saved {
        match (self.slope.is_some(), self.residual) {
            (false, _) => Saved { inputs: &[0, 1], outputs: &[1] },
            // The side of the activation: from the output, or, which saves a device from reading it, from x and beta.
            (true, true) => Saved { inputs: &[0, 1], outputs: &[1, 0] },
            (true, false) => Saved { inputs: &[0, 1, 2], outputs: &[1, 0] },
        }
    }

    fn workspace(&self, _: Pass, inputs: &[Shape]) -> usize {
        norm::workspace(inputs[0].len() / inputs[0].dims()[0], inputs[0].channels())
    }

    fn kink_distance(&self, _: &[Shape], _: &[&[f64]], output: &[f64]) -> f64 {
        let Some(slope) = self.slope else { return f64::INFINITY };
        let before = |y: f64| if y > 0.0 { y } else { -y / slope };
        output.iter().fold(f64::INFINITY, |least, &y| least.min(before(y)))
    }

    fn storage(&self, input: usize) -> Storage {
        match input {
            1 | 2 => Storage::Full,
            _ => Storage::Half,
        }
    }

    fn output_storage(&self, output: usize) -> Storage {
        if output == 0 { Storage::Half } else { Storage::Full }
    }
}

impl<T: Scalar> CpuRule<T> for InstanceNorm {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, gamma, beta) = (io.read(0), io.read(1), io.read(2));
        let residual = self.residual.then(|| io.read(3));
        let (y, stats, work) = (io.write(0), io.write(1), io.workspace());
        let c = gamma.len();
        let len = x.len() / io.shapes[0].dims()[0];
        for (n, (y, stats)) in y.chunks_mut(len).zip(stats.chunks_mut(2 * c)).enumerate() {
            let range = n * len..(n + 1) * len;
            norm::statistics(&x[range.clone()], stats, work);
            let apply = norm::Apply { stats, gamma, beta, slope: self.slope };
            apply.run(&x[range.clone()], residual.map(|r| &r[range]), y);
        }
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let inputs = self.saved().inputs.len();
        let (x, gamma, stats) = (io.read(0), io.read(1), io.read(inputs));
        let y = self.slope.map(|_| io.read(inputs + 1));
        let dy = io.read(inputs + 1 + usize::from(self.slope.is_some()));
        let (mut dx, mut dgamma, mut dbeta) = (io.grad(0), io.grad(1), io.grad(2));
        let (mut dres, work) = (io.grad(3), io.workspace());
        let c = gamma.len();
        let len = x.len() / io.shapes[0].dims()[0];
        for n in 0..io.shapes[0].dims()[0] {
            let range = n * len..(n + 1) * len;
            let slice = norm::Slice {
                x: &x[range.clone()],
                y: y.map(|y| &y[range.clone()]),
                dy: &dy[range.clone()],
                stats: &stats[n * 2 * c..(n + 1) * 2 * c],
                gamma,
                slope: self.slope,
            };
            let sums = slice.sums(work);
            for (grad, which) in [(&mut dbeta, 0), (&mut dgamma, 1)] {
                if let Some(Write { to: grad, add }) = grad {
                    for (k, g) in grad.iter_mut().enumerate() {
                        put(g, sums[2 * k + which], *add || n > 0);
                    }
                }
            }
            if let Some(Write { to: dx, add }) = &mut dx {
                let dres =
                    dres.as_mut().map(|d| Write { to: &mut d.to[range.clone()], add: d.add });
                slice.input_gradient(sums, Write { to: &mut dx[range.clone()], add: *add }, dres);
            } else if let Some(Write { to: d, add }) = &mut dres {
                slice.residual_gradient(&mut d[range.clone()], *add);
            }
        }
    }
}
