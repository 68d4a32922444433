//! nnU-Net's residual-encoder U-Net without its segmentation layers: the dense encoder.
//!
//! Tensor names, structure and initialisation are those of `ResidualEncoderUNet` in nnU-Net's
//! `dynamic-network-architectures`; the dense representation is the last decoder stage's output.

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{AvgPool, Axis, Concat, Conv3d, ConvTranspose3d, InstanceNorm};
use crate::tape::{Init, Tape, ValueId};

/// Slope of every leaky ReLU.
const SLOPE: f64 = 0.01;

/// One resolution of the encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Channels.
    pub features: usize,
    /// Residual blocks, the first of which changes resolution and channels.
    pub blocks: usize,
    /// Filter extents, (z, y, x), odd.
    pub kernel: [usize; 3],
    /// Stride of the first block, (z, y, x); of the first stage 1.
    pub stride: [usize; 3],
}

/// What a filter sees: its extents and its stride, (z, y, x).
#[derive(Clone, Copy)]
struct Window {
    kernel: [usize; 3],
    stride: [usize; 3],
}

impl Stage {
    fn window(&self, stride: [usize; 3]) -> Window {
        Window { kernel: self.kernel, stride }
    }
}

/// A residual-encoder U-Net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResEncUNet {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the stem.
    pub stem_channels: usize,
    /// Stages, finest first.
    pub stages: Vec<Stage>,
    /// Convolutions of each decoder stage.
    pub decoder_convs: usize,
    /// Whether 3x3x3 and transposed convolutions have a bias (those of the skips never do).
    pub conv_bias: bool,
}

/// What a convolution block adds to its convolution and norm.
#[derive(Clone, Copy)]
struct Tail {
    bias: bool,
    slope: Option<f64>,
    residual: Option<ValueId>,
    gamma: f64,
}

impl ResEncUNet {
    /// Channels of the dense representation.
    pub fn out_channels(&self) -> usize {
        self.stages[0].features
    }

    /// Product of all strides, (z, y, x): extents of the input must be multiples of it.
    pub fn total_stride(&self) -> [usize; 3] {
        std::array::from_fn(|a| self.stages.iter().map(|s| s.stride[a]).product())
    }

    /// Whether an input of this extent, (z, y, x), divides by the strides.
    pub fn takes(&self, size: [usize; 3]) -> bool {
        size.iter().zip(self.total_stride()).all(|(&s, t)| s > 0 && s.is_multiple_of(t))
    }

    /// Records the network on `x [N, D, H, W, C]`; returns the dense representation `[N, D, H, W, features]`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if `x` does not fit.
    pub fn record(&self, tape: &mut Tape, weights: &mut Weights, x: ValueId) -> Result<ValueId> {
        let Some(dense) = self.record_maps(tape, weights, x)?.pop() else {
            panic!("a network has a stage")
        };
        Ok(dense)
    }

    /// Records the network as [`ResEncUNet::record`] does; returns the maps of all resolutions, each `[N, D, H, W,
    /// features]` of its stage: the last encoder stage's, then that of every decoder stage, the dense representation
    /// last.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if `x` does not fit.
    pub fn record_maps(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        x: ValueId,
    ) -> Result<Vec<ValueId>> {
        let tail = Tail { bias: self.conv_bias, slope: Some(SLOPE), residual: None, gamma: 1.0 };
        let mut net = Recorder { tape, weights };
        let mut x = net.unit(
            "encoder.stem.convs.0",
            x,
            self.stem_channels,
            self.stages[0].window([1; 3]),
            tail,
        )?;
        let mut skips = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            for b in 0..stage.blocks {
                let stride = if b == 0 { stage.stride } else { [1; 3] };
                x = net.block(
                    &format!("encoder.stages.{s}.blocks.{b}"),
                    x,
                    stage,
                    stride,
                    self.conv_bias,
                )?;
            }
            skips.push(x);
        }
        let mut maps = vec![x];
        for d in 0..self.stages.len() - 1 {
            let (below, stage) =
                (&self.stages[self.stages.len() - 1 - d], &self.stages[self.stages.len() - 2 - d]);
            let up = net.upsample(
                &format!("decoder.transpconvs.{d}"),
                x,
                stage.features,
                below.stride,
                self.conv_bias,
            )?;
            let skip = skips[self.stages.len() - 2 - d];
            x = net.tape.record(
                &format!("decoder.stages.{d}.concat"),
                Concat { axis: Axis::Channel },
                &[up, skip],
            )?;
            for c in 0..self.decoder_convs {
                let name = format!("decoder.stages.{d}.convs.{c}");
                x = net.unit(&name, x, stage.features, stage.window([1; 3]), tail)?;
            }
            maps.push(x);
        }
        Ok(maps)
    }
}

struct Recorder<'a> {
    tape: &'a mut Tape,
    weights: &'a mut Weights,
}

impl Recorder<'_> {
    /// Convolution and instance norm, then what `tail` adds. `window` is what the filter sees.
    fn unit(
        &mut self,
        name: &str,
        x: ValueId,
        features: usize,
        window: Window,
        tail: Tail,
    ) -> Result<ValueId> {
        let Window { kernel, stride } = window;
        let channels = self.tape.shape(x).channels();
        let fan_in = channels * kernel.iter().product::<usize>();
        let dims = [features, kernel[0], kernel[1], kernel[2], channels];
        let mut inputs = vec![x, self.get(&format!("{name}.conv.weight"), &dims, he(fan_in))];
        if tail.bias {
            inputs.push(self.get(&format!("{name}.conv.bias"), &[features], Init::Constant(0.0)));
        }
        let padding = kernel.map(|k| (k - 1) / 2);
        let conv = Conv3d { stride, padding, bias: tail.bias, normed: true };
        let y = self.tape.record(&format!("{name}.conv"), conv, &inputs)?;
        let gamma =
            self.get(&format!("{name}.norm.weight"), &[features], Init::Constant(tail.gamma));
        let beta = self.get(&format!("{name}.norm.bias"), &[features], Init::Constant(0.0));
        let mut inputs = vec![y, gamma, beta];
        inputs.extend(tail.residual);
        let norm = InstanceNorm { slope: tail.slope, residual: tail.residual.is_some() };
        self.tape.record(&format!("{name}.norm"), norm, &inputs)
    }

    /// `act(norm(conv(act(norm(conv x)))) + skip(x))`. The last norm starts at 0, so a new block is its skip.
    fn block(
        &mut self,
        name: &str,
        x: ValueId,
        stage: &Stage,
        stride: [usize; 3],
        bias: bool,
    ) -> Result<ValueId> {
        let plain = Tail { bias, slope: Some(SLOPE), residual: None, gamma: 1.0 };
        let y =
            self.unit(&format!("{name}.conv1"), x, stage.features, stage.window(stride), plain)?;
        let mut skip = x;
        let strided = stride != [1; 3];
        if strided {
            skip = self.tape.record(&format!("{name}.skip.0"), AvgPool { window: stride }, &[x])?;
        }
        if self.tape.shape(x).channels() != stage.features {
            let tail = Tail { bias: false, slope: None, ..plain };
            let name = format!("{name}.skip.{}", usize::from(strided));
            let point = Window { kernel: [1; 3], stride: [1; 3] };
            skip = self.unit(&name, skip, stage.features, point, tail)?;
        }
        let last = Tail { residual: Some(skip), gamma: 0.0, ..plain };
        self.unit(&format!("{name}.conv2"), y, stage.features, stage.window([1; 3]), last)
    }

    fn upsample(
        &mut self,
        name: &str,
        x: ValueId,
        features: usize,
        stride: [usize; 3],
        bias: bool,
    ) -> Result<ValueId> {
        let channels = self.tape.shape(x).channels();
        let dims = [channels, stride[0], stride[1], stride[2], features];
        // PyTorch counts the fan of a transposed filter [in, out, ...] along its second extent.
        let fan_in = features * stride.iter().product::<usize>();
        let mut inputs = vec![x, self.get(&format!("{name}.weight"), &dims, he(fan_in))];
        if bias {
            inputs.push(self.get(&format!("{name}.bias"), &[features], Init::Constant(0.0)));
        }
        self.tape.record(name, ConvTranspose3d { bias }, &inputs)
    }

    fn get(&mut self, name: &str, dims: &[usize], init: Init) -> ValueId {
        self.weights.get(self.tape, name, dims, init)
    }
}

/// He's normal initialisation for leaky ReLUs.
fn he(fan_in: usize) -> Init {
    Init::Normal { std: (2.0 / ((1.0 + SLOPE * SLOPE) * fan_in as f64)).sqrt() }
}
