//! The two losses of the gap task: squared error per axis, and squared error of the length.

use bytemuck::NoUninit;

use crate::backend::cuda::{Queue, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, Saved, arity, put, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `mean (p - g)^2` over everything; `pred`, `target` `[N, V, V, 3]`, output `[1]`. The diagonal counts.
///
/// Source: arXiv 2509.05967, gap task, as its authors' program computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct GapAxisLoss;

/// `mean (|p| - |g|)^2` over pairs, Euclidean norms over the last extent; shapes as [`GapAxisLoss`]. The gradient
/// of `|p|` at 0 is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct GapNormLoss;

/// Prediction and target of one shape make a loss of one element.
pub(super) fn infer_loss(op: &dyn OpRule, inputs: &[Shape]) -> Result<Vec<Shape>> {
    arity(op, inputs, 2)?;
    if inputs[0] != inputs[1] {
        return refuse(op, format!("prediction {} and target {} differ", inputs[0], inputs[1]));
    }
    Ok(vec![Shape::new(&[1])])
}

/// Losses read prediction and target again; only the prediction has a gradient.
pub(super) const SAVED: Saved = Saved { inputs: &[0, 1], outputs: &[] };

impl OpRule for GapAxisLoss {
    fn name(&self) -> &'static str {
        "gap_axis_loss"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        infer_loss(self, inputs)
    }

    fn saved(&self) -> Saved {
        SAVED
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }
}

impl<T: Scalar> CpuRule<T> for GapAxisLoss {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (p, g, loss) = (io.read(0), io.read(1), io.write(0));
        let sum: f64 = p.iter().zip(g).map(|(&p, &g)| (p - g).to_f64().powi(2)).sum();
        loss[0] = T::from_f64(sum / p.len() as f64);
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (p, g, dy) = (io.read(0), io.read(1), io.read(2)[0]);
        let Some(Write { to: dp, add }) = io.grad(0) else { return };
        let factor = dy * T::from_f64(2.0 / p.len() as f64);
        for ((dp, &p), &g) in dp.iter_mut().zip(p).zip(g) {
            put(dp, factor * (p - g), add);
        }
    }
}

/// Euclidean norm in f64.
fn norm<T: Scalar>(v: &[T]) -> f64 {
    v.iter().map(|x| x.to_f64().powi(2)).sum::<f64>().sqrt()
}

impl OpRule for GapNormLoss {
    fn name(&self) -> &'static str {
        "gap_norm_loss"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        infer_loss(self, inputs)
    }

    fn saved(&self) -> Saved {
        SAVED
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn kink_distance(&self, shapes: &[Shape], inputs: &[&[f64]], _: &[f64]) -> f64 {
        let lengths = inputs[0].chunks(shapes[0].channels()).map(norm);
        lengths.fold(f64::INFINITY, f64::min)
    }
}

impl<T: Scalar> CpuRule<T> for GapNormLoss {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (p, g, loss) = (io.read(0), io.read(1), io.write(0));
        let axes = io.shapes[0].channels();
        let sum: f64 =
            p.chunks(axes).zip(g.chunks(axes)).map(|(p, g)| (norm(p) - norm(g)).powi(2)).sum();
        loss[0] = T::from_f64(sum * axes as f64 / p.len() as f64);
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (p, g, dy) = (io.read(0), io.read(1), io.read(2)[0].to_f64());
        let Some(Write { to: dp, add }) = io.grad(0) else { return };
        let axes = io.shapes[0].channels();
        let factor = dy * 2.0 * axes as f64 / p.len() as f64;
        for ((dp, p), g) in dp.chunks_mut(axes).zip(p.chunks(axes)).zip(g.chunks(axes)) {
            let length = norm(p);
            let slope = if length > 0.0 { factor * (length - norm(g)) / length } else { 0.0 };
            for (dp, &p) in dp.iter_mut().zip(p) {
                put(dp, T::from_f64(slope * p.to_f64()), add);
            }
        }
    }
}

/// Parameters of the forward kernels of losses that take terms one by one.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct LossForwardParams {
    pred: DevPtr,
    target: DevPtr,
    loss: DevPtr,
    elements: i64,
}

/// Parameters of their backward kernels.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct LossBackwardParams {
    pred: DevPtr,
    target: DevPtr,
    dy: DevPtr,
    dpred: DevPtr,
    elements: i64,
    add: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct NormForwardParams {
    pred: DevPtr,
    target: DevPtr,
    loss: DevPtr,
    pairs: i64,
    axes: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct NormBackwardParams {
    pred: DevPtr,
    target: DevPtr,
    dy: DevPtr,
    dpred: DevPtr,
    pairs: i64,
    axes: i32,
    add: i32,
}

/// Threads per block of the kernels of losses.
pub(super) const LOSS_THREADS: usize = 256;

/// Launches the forward kernel of a loss whose terms are its elements: one block.
pub(super) fn loss_forward(kernel: &'static Kernel, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
    let elements = io.shapes[0].len() as i64;
    let params =
        LossForwardParams { pred: io.read(0), target: io.read(1), loss: io.write(0), elements };
    queue.launch(kernel, [1; 3], &params)
}

/// Launches the backward kernel of a loss whose terms are its elements.
pub(super) fn loss_backward(kernel: &'static Kernel, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
    let Some(Write { to: dpred, add }) = io.grad(0) else { return Ok(()) };
    let elements = io.shapes[0].len();
    let params = LossBackwardParams {
        pred: io.read(0),
        target: io.read(1),
        dy: io.read(2),
        dpred,
        elements: elements as i64,
        add: i32::from(add),
        reserved: 0,
    };
    queue.launch(kernel, [blocks(elements, LOSS_THREADS), 1, 1], &params)
}

static AXIS_KERNELS: [Kernel; 2] = [
    Kernel::new::<LossForwardParams>("gap_axis_loss_fwd_f32", LOSS_THREADS as u32),
    Kernel::new::<LossBackwardParams>("gap_axis_loss_bwd_f32", LOSS_THREADS as u32),
];

impl CudaRule for GapAxisLoss {
    fn kernels(&self) -> &'static [Kernel] {
        &AXIS_KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        loss_forward(&AXIS_KERNELS[0], io, queue)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        loss_backward(&AXIS_KERNELS[1], io, queue)
    }
}

static NORM_KERNELS: [Kernel; 2] = [
    Kernel::new::<NormForwardParams>("gap_norm_loss_fwd_f32", LOSS_THREADS as u32),
    Kernel::new::<NormBackwardParams>("gap_norm_loss_bwd_f32", LOSS_THREADS as u32),
];

impl CudaRule for GapNormLoss {
    fn kernels(&self) -> &'static [Kernel] {
        &NORM_KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let axes = io.shapes[0].channels();
        let params = NormForwardParams {
            pred: io.read(0),
            target: io.read(1),
            loss: io.write(0),
            pairs: (io.shapes[0].len() / axes) as i64,
            axes: axes as i32,
            reserved: 0,
        };
        queue.launch(&NORM_KERNELS[0], [1; 3], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(Write { to: dpred, add }) = io.grad(0) else { return Ok(()) };
        let axes = io.shapes[0].channels();
        let pairs = io.shapes[0].len() / axes;
        let params = NormBackwardParams {
            pred: io.read(0),
            target: io.read(1),
            dy: io.read(2),
            dpred,
            pairs: pairs as i64,
            axes: axes as i32,
            add: i32::from(add),
        };
        queue.launch(&NORM_KERNELS[1], [blocks(pairs, LOSS_THREADS), 1, 1], &params)
    }
}
