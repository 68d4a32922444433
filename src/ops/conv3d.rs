//! 3D convolution, channels last: `y[n,z,p,q,k] = b[k] + sum_{t,r,s,c} x[n, z sd + t - pd, ..., c] w[k,t,r,s,c]`.

pub(in crate::ops) mod kernels;
pub(in crate::ops) mod launch;

pub(in crate::ops) mod params;
pub(in crate::ops) mod select;
pub(in crate::ops) mod wgrad;

use self::launch::{Extras, Operands};
use self::select::Product;
use self::wgrad::{BiasOperands, FilterOperands};
use crate::backend::cpu::conv;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{ConvGeometry, ConvPass, Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::fusion::{conv_gelu, conv_norm};
use crate::ops::{
    CpuRule, CudaIo, CudaRule, Fusion, FusionCandidate, OpRule, Pass, Saved, activation, arity,
    refuse,
};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Inputs `x [N, D, H, W, C]`, filter `w [K, T, R, S, C]`, and a bias `b [K]` if there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv3d {
    /// Stride, (z, y, x).
    pub stride: [usize; 3],
    /// Zero padding on both sides, (z, y, x).
    pub padding: [usize; 3],
    /// Whether input 2 is a bias.
    pub bias: bool,
    /// Whether an instance norm follows, which takes any bias out again. The bias is then neither added, which would
    /// only cost precision, nor given a gradient, which is exactly 0.
    pub normed: bool,
}

impl Conv3d {
    fn geometry(&self, x: Shape, w: Shape) -> Option<ConvGeometry> {
        let ([n, d, h, width, c], [k, t, r, s, filter_c]) = (x.ndhwc()?, w.ndhwc()?);
        let fits =
            [d, h, width].iter().zip([t, r, s]).zip(self.padding).all(|((i, f), p)| i + 2 * p >= f);
        (c == filter_c && fits).then_some(ConvGeometry {
            batch: n,
            input: [d, h, width],
            in_channels: c,
            out_channels: k,
            filter: [t, r, s],
            stride: self.stride,
            padding: self.padding,
        })
    }

    pub(in crate::ops) fn bound(&self, shapes: &[Shape]) -> ConvGeometry {
        let Some(geometry) = self.geometry(shapes[0], shapes[1]) else {
            panic!("conv3d was recorded with shapes that fit")
        };
        geometry
    }
}

impl OpRule for Conv3d {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 2 + usize::from(self.bias))?;
        activation(self, inputs[0])?;
        let Some(g) = self.geometry(inputs[0], inputs[1]) else {
            return refuse(
                self,
                format!(
                    "filter {} does not fit input {} padded by {:?}",
                    inputs[1], inputs[0], self.padding
                ),
            );
        };
        if self.bias && inputs[2].dims() != [g.out_channels] {
            return refuse(self, format!("bias {} needs [{}]", inputs[2], g.out_channels));
        }
        let [z, p, q] = g.output();
        Ok(vec![Shape::new(&[g.batch, z, p, q, g.out_channels])])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[0, 1], outputs: &[] }
    }

    fn differentiable(&self, input: usize) -> bool {
        input < 2 || !self.normed
    }

    fn workspace(&self, pass: Pass, inputs: &[Shape]) -> usize {
        let g = self.bound(inputs);
        match pass {
            Pass::Forward => conv::workspace_len(&g, ConvPass::Fprop),
            Pass::Backward => conv::workspace_len(&g, ConvPass::Dgrad)
                .max(conv::workspace_len(&g, ConvPass::Wgrad)),
        }
    }

    fn storage(&self, input: usize) -> Storage {
        [Storage::Half, Storage::FullAndHalf, Storage::Full][input]
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        let g = self.bound(inputs);
        (2 * g.batch * g.output().iter().product::<usize>() * inputs[1].len()) as u64
    }
}

impl<T: Scalar> CpuRule<T> for Conv3d {
    fn forward(&self, io: &mut Io<'_, T>) {
        let bias = (self.bias && !self.normed).then(|| io.read(2));
        let g = self.bound(io.shapes);
        conv::fprop(&g, io.read(0), io.read(1), bias, io.write(0), io.workspace());
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (x, w, dy, g) = (io.read(0), io.read(1), io.read(2), self.bound(io.shapes));
        let work = io.workspace();
        if let Some(Write { to: dx, add }) = io.grad(0) {
            conv::dgrad(&g, dy, w, None, dx, add, work);
        }
        if let Some(Write { to: dw, add }) = io.grad(1) {
            conv::wgrad(&g, x, dy, dw, add, work);
        }
        if let Some(Write { to: db, add }) = io.grad(2) {
            conv::bias_grad(dy, g.out_channels, db, add);
        }
    }
}

impl CudaRule for Conv3d {
    fn kernels(&self) -> &'static [Kernel] {
        &kernels::KERNELS
    }

    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        let g = self.bound(shapes);
        if pass == Pass::Forward {
            return select::product_workspace(&g, Product::Fprop);
        }
        select::product_workspace(&g, Product::Dgrad)
            .max(wgrad::wgrad_workspace(&g))
            .max(wgrad::bias_workspace(g.output_len() / g.out_channels, g.out_channels))
    }

    fn fuses(&self, pair: &FusionCandidate<'_>) -> Option<Fusion> {
        conv_norm::fuses(self, pair).or_else(|| conv_gelu::fuses(self, pair))
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let operands = Operands {
            input: io.read(0),
            filter: io.half_copy(1),
            bias: if self.bias && !self.normed { io.read(2) } else { DevPtr::NULL },
            output: io.write(0),
            add: false,
            work: io.workspace(),
        };
        let norm = conv_norm::norm_part(io, self, Pass::Forward);
        let extras = Extras { gelu: conv_gelu::output(io), norm, ..Extras::default() };
        launch::run(queue, &self.bound(io.shapes), Product::Fprop, &operands, &extras)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (dy, work, g) = (io.read(2), io.workspace(), self.bound(io.shapes));
        if let Some(Write { to: dx, add }) = io.grad(0) {
            let operands = Operands {
                input: dy,
                filter: io.half_copy(1),
                bias: DevPtr::NULL,
                output: dx,
                add,
                work,
            };
            let norm = conv_norm::norm_part(io, self, Pass::Backward);
            let extras = Extras { norm, ..Extras::default() };
            launch::run(queue, &g, Product::Dgrad, &operands, &extras)?;
        }
        if let Some(Write { to: dw, add }) = io.grad(1) {
            let (x, x_stride) = (io.read(0), g.in_channels);
            wgrad::wgrad(queue, &g, &FilterOperands { x, x_stride, dy, dw, add, work })?;
        }
        if let Some(db) = io.grad(2) {
            let rows = g.output_len() / g.out_channels;
            let (dy_stride, channels) = (g.out_channels, g.out_channels);
            wgrad::bias_bwd(queue, &BiasOperands { dy, dy_stride, rows, channels }, db, work)?;
        }
        Ok(())
    }
}
