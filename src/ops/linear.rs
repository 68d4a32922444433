//! Linear map of rows: `y[m, o] = sum_k x[m, k] w[o, k] + b[o]`.

use bytemuck::NoUninit;

use crate::backend::cuda::{Queue, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, Saved, arity, put, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `x [.., K]`, `w [O, K]`, with a bias `b [O]`; output `[.., O]`. The heads apply it to a few rows, so plain loops do.
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

    fn flops(&self, inputs: &[Shape]) -> u64 {
        2 * (inputs[0].len() * inputs[1].dims()[0]) as u64
    }
}

impl<T: Scalar> CpuRule<T> for Linear {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, w, y) = (io.read(0), io.read(1), io.write(0));
        let width = io.shapes[1].channels();
        for (x, y) in x.chunks(width).zip(y.chunks_mut(io.shapes[1].dims()[0])) {
            for (o, y) in y.iter_mut().enumerate() {
                let start = if self.bias { io.read(2)[o] } else { T::ZERO };
                let row = &w[o * width..(o + 1) * width];
                *y = x.iter().zip(row).fold(start, |sum, (&x, &w)| x.mul_add(w, sum));
            }
        }
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (x, w, dy) = (io.read(0), io.read(1), io.read(2));
        let (out, width) = (io.shapes[1].dims()[0], io.shapes[1].channels());
        let rows = dy.len() / out;
        let over_rows =
            |value: &dyn Fn(usize) -> T| (0..rows).fold(T::ZERO, |sum, m| sum + value(m));
        if let Some(Write { to: dx, add }) = io.grad(0) {
            for (i, dx) in dx.iter_mut().enumerate() {
                let (m, k) = (i / width, i % width);
                let sum =
                    (0..out).fold(T::ZERO, |sum, o| dy[m * out + o].mul_add(w[o * width + k], sum));
                put(dx, sum, add);
            }
        }
        if let Some(Write { to: dw, add }) = io.grad(1) {
            for (i, dw) in dw.iter_mut().enumerate() {
                let (o, k) = (i / width, i % width);
                put(dw, over_rows(&|m| dy[m * out + o] * x[m * width + k]), add);
            }
        }
        if let Some(Write { to: db, add }) = io.grad(2) {
            for (o, db) in db.iter_mut().enumerate() {
                put(db, over_rows(&|m| dy[m * out + o]), add);
            }
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
