//! Linear map of rows: `y[m, o] = sum_k x[m, k] w[o, k] + b[o]`.

use bytemuck::NoUninit;
use multiversion::multiversion;
use rayon::prelude::*;

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, Pass, Saved, arity, put, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `x [.., K]`, `w [O, K]`, with a bias `b [O]`; output `[.., O]`. The heads apply it to a few
/// rows, the probe to thousands.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Whether input 2 is a bias.
    pub bias: bool,
}

impl OpRule for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 2 + usize::from(self.bias))?;
        let (x, w) = (inputs[0], inputs[1]);
        let [out, width] = w.dims() else {
            return refuse(self, format!("needs a weight [O K], got {w}"));
        };
        if x.channels() != *width || (self.bias && inputs[2].dims() != [*out]) {
            return refuse(
                self,
                format!("input {x} does not fit weight {w}, or the bias does not"),
            );
        }
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = *out;
        }
        Ok(vec![Shape::new(&dims)])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[0, 1], outputs: &[] }
    }

    fn workspace(&self, pass: Pass, inputs: &[Shape]) -> usize {
        let weights = inputs[1].len() + inputs[1].dims()[0];
        if pass == Pass::Backward { parallel::parts(inputs[0].len()) * weights } else { 0 }
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        2 * (inputs[0].len() * inputs[1].dims()[0]) as u64
    }
}

/// Partial sums of a dot product, added in a fixed order: enough for vector registers.
const LANES: usize = 16;

/// Rows of `x`, each times every row of `w`: `y[m, o] = bias[o] + sum_k x[m, k] w[o, k]`.
#[multiversion(targets = "simd")]
fn products<T: Scalar>(x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T], width: usize) {
    let out = w.len() / width;
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(out)) {
        for (o, (w, y)) in w.chunks_exact(width).zip(y.iter_mut()).enumerate() {
            let mut lanes = [T::ZERO; LANES];
            let (xs, ws) = (x.chunks_exact(LANES), w.chunks_exact(LANES));
            for (lane, (&x, &w)) in lanes.iter_mut().zip(xs.remainder().iter().zip(ws.remainder()))
            {
                *lane = x * w;
            }
            for (x, w) in xs.zip(ws) {
                for i in 0..LANES {
                    lanes[i] += x[i] * w[i];
                }
            }
            let sum = lanes.iter().fold(T::ZERO, |sum, &lane| sum + lane);
            *y = bias.map_or(sum, |bias| bias[o] + sum);
        }
    }
}

/// Adds `factor * from` to `to`.
#[inline(always)]
fn add_scaled<T: Scalar>(to: &mut [T], factor: T, from: &[T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// Adds to each row of `dx` the rows of `w`, times the row's gradients.
#[multiversion(targets = "simd")]
fn input_gradients<T: Scalar>(dy: &[T], w: &[T], dx: &mut [T], width: usize) {
    for (dx, dy) in dx.chunks_exact_mut(width).zip(dy.chunks_exact(w.len() / width)) {
        for (w, &dy) in w.chunks_exact(width).zip(dy) {
            add_scaled(dx, dy, w);
        }
    }
}

/// Gradients of weight and bias, one behind the other in `sums`, over the rows given.
#[multiversion(targets = "simd")]
fn weight_gradients<T: Scalar>(x: &[T], dy: &[T], sums: &mut [T], width: usize) {
    let out = sums.len() / (width + 1);
    let (dw, db) = sums.split_at_mut(out * width);
    dw.fill(T::ZERO);
    db.fill(T::ZERO);
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(out)) {
        for (dw, &dy) in dw.chunks_exact_mut(width).zip(dy) {
            add_scaled(dw, dy, x);
        }
        add_scaled(db, T::ONE, dy);
    }
}

impl<T: Scalar> CpuRule<T> for Linear {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, w, y) = (io.read(0), io.read(1), io.write(0));
        let (out, width) = (io.shapes[1].dims()[0], io.shapes[1].channels());
        let bias = self.bias.then(|| io.read(2));
        parallel::chunks(y, out, |first, y| {
            let rows = first / out..(first + y.len()) / out;
            products(&x[rows.start * width..rows.end * width], w, bias, y, width);
        });
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (x, w, dy) = (io.read(0), io.read(1), io.read(2));
        let (out, width) = (io.shapes[1].dims()[0], io.shapes[1].channels());
        if let Some(Write { to: dx, add }) = io.grad(0) {
            if !add {
                dx.fill(T::ZERO);
            }
            parallel::chunks(dx, width, |first, dx| {
                let rows = first / width..(first + dx.len()) / width;
                input_gradients(&dy[rows.start * out..rows.end * out], w, dx, width);
            });
        }
        let (dw, db) = (io.grad(1), io.grad(2));
        if dw.is_none() && db.is_none() {
            return;
        }
        // Parts of the rows, by their number alone, then the parts in order.
        let (work, count) = (io.workspace(), parallel::parts(x.len()));
        let len = out * (width + 1);
        work.par_chunks_mut(len).enumerate().for_each(|(i, sums)| {
            let rows = parallel::part(x.len() / width, count, i);
            let (x, dy) = (&x[rows.start * width..rows.end * width], &dy[rows.start * out..]);
            weight_gradients(x, &dy[..rows.len() * out], sums, width);
        });
        let total = |at: usize| work.iter().skip(at).step_by(len).fold(T::ZERO, |sum, &v| sum + v);
        for (grad, first) in [(dw, 0), (db, out * width)] {
            let Some(Write { to, add }) = grad else { continue };
            to.iter_mut().enumerate().for_each(|(i, to)| put(to, total(first + i), add));
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ForwardParams {
    x: DevPtr,
    w: DevPtr,
    b: DevPtr,
    y: DevPtr,
    outputs: i64,
    width: i32,
    out: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct BackwardParams {
    x: DevPtr,
    w: DevPtr,
    dy: DevPtr,
    dx: DevPtr,
    dw: DevPtr,
    db: DevPtr,
    rows: i64,
    width: i32,
    out: i32,
    dx_blocks: i32,
    add: [i32; 3],
}

/// Threads per block, and warps.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;

static KERNELS: [Kernel; 2] = [
    Kernel::new::<ForwardParams>("linear_fwd_f32", THREADS as u32),
    Kernel::new::<BackwardParams>("linear_bwd_f32", THREADS as u32),
];

impl CudaRule for Linear {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (out, width) = (io.shapes[1].dims()[0], io.shapes[1].channels());
        let outputs = io.shapes[0].len() / width * out;
        let params = ForwardParams {
            x: io.read(0),
            w: io.read(1),
            b: if self.bias { io.read(2) } else { DevPtr::NULL },
            y: io.write(0),
            outputs: outputs as i64,
            width: width as i32,
            out: out as i32,
        };
        queue.launch(&KERNELS[0], [blocks(outputs, THREADS), 1, 1], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (out, width) = (io.shapes[1].dims()[0], io.shapes[1].channels());
        let rows = io.shapes[0].len() / width;
        let grads: [_; 3] = std::array::from_fn(|i| io.grad(i));
        let [dx, dw, db] = grads.map(|g| g.map_or(DevPtr::NULL, |grad| grad.to));
        let dx_blocks = if dx.is_null() { 0 } else { blocks(rows * width, THREADS) };
        let weights = !(dw.is_null() && db.is_null());
        let others = if weights { blocks(out * width + out, WARPS) } else { 0 };
        let params = BackwardParams {
            x: io.read(0),
            w: io.read(1),
            dy: io.read(2),
            dx,
            dw,
            db,
            rows: rows as i64,
            width: width as i32,
            out: out as i32,
            dx_blocks: dx_blocks as i32,
            add: grads.map(|g| i32::from(g.is_some_and(|g| g.add))),
        };
        queue.launch(&KERNELS[1], [dx_blocks + others, 1, 1], &params)
    }
}
