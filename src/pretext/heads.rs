//! What the heads share: the dense representations of all views, and PyTorch's initialisation of a layer.

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{Conv3d, Gelu, Linear};
use crate::tape::{Init, Tape, ValueId};

/// Dense representations of the `count` views of a batch, view-major: one value `[V N, D, H, W, C]`, or two, of view 0
/// and of the others.
#[derive(Clone, Debug)]
pub struct Views {
    /// Number of views of a sample.
    pub count: usize,
    /// One value or two.
    pub values: Vec<ValueId>,
}

impl Views {
    /// Channels of a representation.
    pub fn channels(&self, tape: &Tape) -> usize {
        tape.shape(self.values[0]).channels()
    }

    /// Number of samples.
    pub fn batch(&self, tape: &Tape) -> usize {
        let images: usize = self.values.iter().map(|&v| tape.shape(v).dims()[0]).sum();
        images / self.count
    }

    /// The same views under names at which gradients are measured, and the results that hold the norms (of values no
    /// gradient reaches the result stays 0).
    ///
    /// # Errors
    /// None in practice.
    pub fn tapped(&self, tape: &mut Tape, task: &str) -> Result<(Views, ValueId)> {
        let (first, norm) = tape.tap(&format!("dense.{task}"), self.values[0])?;
        let mut values = self.values.clone();
        values[0] = first;
        Ok((Views { count: self.count, values }, norm))
    }
}

/// PyTorch's initialisation of a layer: weights and bias uniform in `+- 1 / sqrt(fan_in)`.
pub(super) fn uniform(fan_in: usize) -> Init {
    Init::Uniform { bound: 1.0 / (fan_in as f64).sqrt() }
}

/// A convolution of stride 2 with bias, to `features` channels by filters of `kernel` voxels a side, then GELU.
pub(super) fn conv_gelu(
    tape: &mut Tape,
    weights: &mut Weights,
    name: &str,
    x: ValueId,
    features: usize,
    kernel: usize,
) -> Result<ValueId> {
    let channels = tape.shape(x).channels();
    let init = uniform(channels * kernel.pow(3));
    let dims = [features, kernel, kernel, kernel, channels];
    let w = weights.get(tape, &format!("{name}.weight"), &dims, init);
    let b = weights.get(tape, &format!("{name}.bias"), &[features], init);
    let conv = Conv3d { stride: [2; 3], padding: [1; 3], bias: true, normed: false };
    let y = tape.record(name, conv, &[x, w, b])?;
    tape.record(&format!("{name}.gelu"), Gelu, &[y])
}

/// How a linear layer is initialised.
#[derive(Clone, Copy)]
pub(super) struct LinearInit {
    /// Its weight.
    pub(super) weight: Init,
    /// Its bias, if there is one.
    pub(super) bias: Option<Init>,
}

/// A linear layer.
pub(super) fn linear(
    tape: &mut Tape,
    weights: &mut Weights,
    name: &str,
    x: ValueId,
    inits: LinearInit,
) -> Result<ValueId> {
    let width = tape.shape(x).channels();
    let mut inputs =
        vec![x, weights.get(tape, &format!("{name}.weight"), &[3, width], inits.weight)];
    if let Some(init) = inits.bias {
        inputs.push(weights.get(tape, &format!("{name}.bias"), &[3], init));
    }
    tape.record(name, Linear { bias: inits.bias.is_some() }, &inputs)
}
