//! Transposed 3D convolution: the adjoint of [`super::Conv3d`], here with stride equal to the filter (nnU-Net's
//! upsampling).

use bytemuck::NoUninit;

use crate::backend::cpu::conv;
use crate::backend::cuda::{Queue, Storage, blocks};
use crate::backend::{ConvGeometry, ConvPass, Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::conv3d::launch::{Extras, Operands};
use crate::ops::conv3d::params::{int, ints};
use crate::ops::conv3d::select::Product;
use crate::ops::conv3d::wgrad::{BiasOperands, FilterOperands};
use crate::ops::conv3d::{kernels, launch, select, wgrad};
use crate::ops::{
    CpuRule, CudaIo, CudaRule, FusedCall, Fusion, FusionCandidate, Op, OpRule, Pass, Saved,
    activation, arity, refuse,
};
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

    fn storage(&self, input: usize) -> Storage {
        [Storage::Half, Storage::FullAndHalf, Storage::Full][input]
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
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
        if let Some(Write { to: dx, add }) = io.grad(0) {
            // No network gives the input of an upsampling a second reader, so this may allocate.
            let before = if add { dx.to_vec() } else { Vec::new() };
            conv::fprop(&g, dy, w, None, dx, work);
            dx.iter_mut().zip(before).for_each(|(dx, before)| *dx += before);
        }
        if let Some(Write { to: dw, add }) = io.grad(1) {
            conv::wgrad(&g, dy, x, dw, add, work);
        }
        if let Some(Write { to: db, add }) = io.grad(2) {
            conv::bias_grad(dy, g.in_channels, db, add);
        }
    }
}

/// `ConvTranspose3dParams`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    x: DevPtr,
    w: DevPtr,
    bias: DevPtr,
    y: DevPtr,
    batch: i32,
    extent: [i32; 3],
    filter: [i32; 3],
    in_channels: i32,
    out_channels: i32,
    y_stride: i32,
    y_offset: i32,
    column_tiles: i32,
}

static C128: Kernel = Kernel::new::<Params>("conv_transpose3d_fprop_c128", 128).with_shared(61_952);
static C512: Kernel = Kernel::new::<Params>("conv_transpose3d_fprop_c512", 64).with_shared(86_272);

static KERNELS: [Kernel; 2 + kernels::KERNELS.len()] = {
    let mut all = [C128; 2 + kernels::KERNELS.len()];
    all[1] = C512;
    let mut i = 0;
    while i < kernels::KERNELS.len() {
        all[2 + i] = kernels::KERNELS[i];
        i += 1;
    }
    all
};

/// The forward pass as one product, of up to 512 input channels; channels are multiples of 8. `y_stride` channels lie
/// between one voxel of the output and the next.
fn upsample(queue: &Queue, g: &ConvGeometry, o: &Operands, y_stride: usize) -> Result<()> {
    let (c, k) = (g.out_channels, g.in_channels);
    let (kernel, rows_per_block) = if c <= 128 { (&C128, 128) } else { (&C512, 64) };
    let extent = g.output();
    let rows = (g.batch * extent.iter().product::<usize>()).div_ceil(rows_per_block);
    let tiles = (g.filter.iter().product::<usize>() * k).div_ceil(64);
    // Few voxels: blocks share them and divide the columns.
    let each = tiles.div_ceil((128 / rows).clamp(1, tiles));
    let params = Params {
        x: o.input,
        w: o.filter,
        bias: o.bias,
        y: o.output,
        batch: int(g.batch),
        extent: ints(extent),
        filter: ints(g.filter),
        in_channels: int(c),
        out_channels: int(k),
        y_stride: int(y_stride),
        y_offset: 0,
        column_tiles: int(each),
    };
    queue.launch(kernel, [blocks(rows, 1), blocks(tiles, each), 1], &params)
}

/// Channels of a voxel of a concatenation that the other call of a pair is.
fn concatenated(other: Option<FusedCall<'_>>) -> Option<(FusedCall<'_>, usize)> {
    let other = other.filter(|other| matches!(other.op, Op::Concat(_)))?;
    Some((other, other.shapes.iter().map(Shape::channels).sum()))
}

impl CudaRule for ConvTranspose3d {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    /// The output is written straight into the concatenation that follows, its only reader.
    fn fuses(&self, pair: &FusionCandidate<'_>) -> Option<Fusion> {
        let (first, second) = (pair.first, pair.second);
        let forward = first.pass == Pass::Forward && second.pass == Pass::Forward;
        let Op::Concat(concat) = second.op else { return None };
        if !(forward && pair.adjacent && concat.lends_first(second.shapes)) {
            return None;
        }
        let up = first.writes[0]?.to;
        let once = second.reads[0] == up && second.reads[1] != up && (pair.sole_reader)(up);
        once.then_some(Fusion { fused_scratch: 0, shares_operands: true, eliminated: Some(up) })
    }

    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        let g = self.bound(shapes);
        if pass == Pass::Forward {
            return select::product_workspace(&g, Product::Dgrad);
        }
        select::product_workspace(&g, Product::Fprop)
            .max(wgrad::wgrad_workspace(&g))
            .max(wgrad::bias_workspace(g.input_len() / g.in_channels, g.in_channels))
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let g = self.bound(io.shapes);
        let (output, y_stride) = match concatenated(io.next) {
            Some((concat, channels)) => (concat.writes[0].map(|write| write.to.ptr), channels),
            None => (Some(io.write(0)), g.in_channels),
        };
        let operands = Operands {
            input: io.read(0),
            filter: io.half_copy(1),
            bias: if self.bias { io.read(2) } else { DevPtr::NULL },
            output: output.unwrap_or(DevPtr::NULL),
            add: false,
            work: io.workspace(),
        };
        let aligned = g.in_channels.is_multiple_of(8) && g.out_channels.is_multiple_of(8);
        if aligned && g.out_channels <= 512 {
            return upsample(queue, &g, &operands, y_stride);
        }
        let extras = Extras { output_stride: Some(y_stride), ..Extras::default() };
        launch::run(queue, &g, Product::Dgrad, &operands, &extras)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (work, g) = (io.workspace(), self.bound(io.shapes));
        let (dy, stride) = match concatenated(io.last) {
            Some((concat, channels)) => (concat.reads[0].ptr, channels),
            None => (io.read(2), g.in_channels),
        };
        if let Some(Write { to: dx, add }) = io.grad(0) {
            let operands = Operands {
                input: dy,
                filter: io.half_copy(1),
                bias: DevPtr::NULL,
                output: dx,
                add,
                work,
            };
            let extras = Extras { input_stride: Some(stride), ..Extras::default() };
            launch::run(queue, &g, Product::Fprop, &operands, &extras)?;
        }
        if let Some(Write { to: dw, add }) = io.grad(1) {
            // The convolution's input is our output, and its output our input.
            let operands =
                FilterOperands { x: dy, x_stride: stride, dy: io.read(0), dw, add, work };
            wgrad::wgrad(queue, &g, &operands)?;
        }
        if let Some(db) = io.grad(2) {
            let rows = g.input_len() / g.in_channels;
            let (dy_stride, channels) = (stride, g.in_channels);
            wgrad::bias_bwd(queue, &BiasOperands { dy, dy_stride, rows, channels }, db, work)?;
        }
        Ok(())
    }
}
