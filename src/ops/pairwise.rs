//! Features of all ordered pairs of views, as difference or as concatenation.

use bytemuck::NoUninit;

use crate::backend::cuda::{Queue, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, arity, refuse};
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
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
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

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    from: DevPtr,
    to: DevPtr,
    elements: i64,
    views: i32,
    batch: i32,
    width: i32,
    concat: i32,
    add: i32,
    reserved: i32,
}

const THREADS: usize = 256;

static KERNELS: [Kernel; 2] = [
    Kernel::new::<Params>("pairwise_fwd_f32", THREADS as u32),
    Kernel::new::<Params>("pairwise_bwd_f32", THREADS as u32),
];

impl Pairwise {
    /// What the kernel of either pass gets: `elements` are those of `to`, for inputs of shape `x`.
    fn params(&self, x: Shape, from: DevPtr, to: Write<DevPtr>, elements: usize) -> Params {
        let [views, batch, width] = *x.dims() else {
            panic!("pairwise was recorded with shapes that fit")
        };
        Params {
            from,
            to: to.to,
            elements: elements as i64,
            views: views as i32,
            batch: batch as i32,
            width: width as i32,
            concat: i32::from(self.kind == PairwiseKind::Concat),
            add: i32::from(to.add),
            reserved: 0,
        }
    }
}

impl CudaRule for Pairwise {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let elements = self.infer(io.shapes)?[0].len();
        let to = Write { to: io.write(0), add: false };
        let params = self.params(io.shapes[0], io.read(0), to, elements);
        queue.launch(&KERNELS[0], [blocks(elements, THREADS), 1, 1], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(to) = io.grad(0) else { return Ok(()) };
        let elements = io.shapes[0].len();
        let params = self.params(io.shapes[0], io.read(0), to, elements);
        queue.launch(&KERNELS[1], [blocks(elements, THREADS), 1, 1], &params)
    }
}
