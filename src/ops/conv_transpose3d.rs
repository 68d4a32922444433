//! Transposed 3D convolution: the adjoint of [`super::Conv3d`], here with stride equal to the filter (nnU-Net's upsampling).

use super::{CpuRule, OpRule, Pass, Saved, activation, arity, refuse};
use crate::backend::Io;
use crate::backend::cpu::conv::{self, ConvGeometry, ConvPass};
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Inputs `x [N, D, H, W, C]`, filter `w [C, T, R, S, K]`, and a bias `b [K]` if there is one; output
/// `[N, D T, H R, W S, K]`. As the adjoint of a convolution from the output to the input it runs that convolution's
/// passes: forward is its dgrad, the input gradient its fprop, the filter gradient its wgrad.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTranspose3d {
    /// Whether input 2 is a bias.
    pub bias: bool,
}

impl ConvTranspose3d {
    /// The convolution this is the adjoint of: its input is our output.
    fn adjoint(&self, x: Shape, w: Shape) -> Option<ConvGeometry> {
        let ([n, d, h, width, c], [in_c, t, r, s, k]) = (x.ndhwc()?, w.ndhwc()?);
        (c == in_c).then_some(ConvGeometry {
            batch: n,
            input: [d * t, h * r, width * s],
            in_channels: k,
            out_channels: c,
            filter: [t, r, s],
            stride: [t, r, s],
            padding: [0; 3],
        })
    }

    fn bound(&self, shapes: &[Shape]) -> ConvGeometry {
        let Some(geometry) = self.adjoint(shapes[0], shapes[1]) else {
            panic!("conv_transpose3d was recorded with shapes that fit")
        };
        geometry
    }
}

impl OpRule for ConvTranspose3d {
    fn name(&self) -> &'static str {
        "conv_transpose3d"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 2 + usize::from(self.bias))?;
        activation(self, inputs[0])?;
        let Some(g) = self.adjoint(inputs[0], inputs[1]) else {
            return refuse(self, format!("filter {} does not fit input {}", inputs[1], inputs[0]));
        };
        if self.bias && inputs[2].dims() != [g.in_channels] {
            return refuse(self, format!("bias {} needs [{}]", inputs[2], g.in_channels));
        }
        let [d, h, w] = g.input;
        Ok(vec![Shape::new(&[g.batch, d, h, w, g.in_channels])])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[0, 1], outputs: &[] }
    }

    fn workspace(&self, pass: Pass, inputs: &[Shape]) -> usize {
        let g = self.bound(inputs);
        match pass {
            Pass::Forward => conv::workspace_len(&g, ConvPass::Dgrad),
            Pass::Backward => conv::workspace_len(&g, ConvPass::Fprop)
                .max(conv::workspace_len(&g, ConvPass::Wgrad)),
        }
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        2 * (inputs[0].len() * inputs[1].len() / inputs[0].channels()) as u64
    }
}

impl<T: Scalar> CpuRule<T> for ConvTranspose3d {
    fn forward(&self, io: &mut Io<'_, T>) {
        let bias = self.bias.then(|| io.read(2));
        let g = self.bound(io.shapes);
        conv::dgrad(&g, io.read(0), io.read(1), bias, io.write(0), false, io.workspace());
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (x, w, dy, g) = (io.read(0), io.read(1), io.read(2), self.bound(io.shapes));
        let work = io.workspace();
        if let Some((dx, add)) = io.grad(0) {
            assert!(!add, "the input of an upsampling has one reader");
            conv::fprop(&g, dy, w, None, dx, work);
        }
        if let Some((dw, add)) = io.grad(1) {
            conv::wgrad(&g, dy, x, dw, add, work);
        }
        if let Some((db, add)) = io.grad(2) {
            conv::bias_grad(dy, g.in_channels, db, add);
        }
    }
}
