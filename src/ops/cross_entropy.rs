//! Cross-entropy of the softmax of logits, each class with a weight.

use bytemuck::NoUninit;

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, Pass, Saved, arity, put, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `sum w[t] (log sum_c exp(x[c]) - x[t]) / sum w[t]` over all rows, `t` the class of the row; 0 if the weights add up
/// to 0.
///
/// Inputs `x [.., C]`, classes `t` as whole numbers `[..]`, weights `w [C]`, 0 or more. Outputs: the loss `[1]`, and
/// the sum of the rows' weights `[1]`. A row whose `t` is no class, below 0 or `C` and above, counts nowhere. Only `x`
/// has a gradient: `dx[c] = dy w[t] (softmax(x)[c] - [c = t]) / sum w[t]`.
///
/// Source: Bishop 2006, "Pattern Recognition and Machine Learning", 4.3.4; the weighted mean is that of PyTorch's
/// `cross_entropy`.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy;

/// Slices that the sums are cut into on the device, at most.
const MAX_SLICES: usize = 512;

/// The class a row belongs to, if it is one.
fn class_of<T: Scalar>(target: T, classes: usize) -> Option<usize> {
    let target = target.to_f64();
    (target >= 0.0 && target < classes as f64).then_some(target as usize)
}

/// Largest logit of a row, and the sum of the exponentials of all after it is taken off.
fn row_sums<T: Scalar>(x: &[T]) -> (f64, f64) {
    let largest = x.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.to_f64()));
    (largest, x.iter().map(|x| (x.to_f64() - largest).exp()).sum())
}

impl OpRule for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 3)?;
        let (x, classes) = (inputs[0], inputs[0].channels());
        let Some((_, rows)) = x.dims().split_last().filter(|(_, rows)| !rows.is_empty()) else {
            return refuse(self, format!("needs logits [.., C], got {x}"));
        };
        if inputs[1].dims() != rows || inputs[2].dims() != [classes] {
            return refuse(
                self,
                format!("classes {} or weights {} do not fit logits {x}", inputs[1], inputs[2]),
            );
        }
        Ok(vec![Shape::new(&[1]); 2])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[0, 1, 2], outputs: &[1] }
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }
}

impl<T: Scalar> CpuRule<T> for CrossEntropy {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, target, weights) = (io.read(0), io.read(1), io.read(2));
        let classes = weights.len();
        let sum = |term: &(dyn Fn(usize, usize) -> f64 + Sync)| {
            parallel::sum(target.len(), |rows| {
                let counted = rows.filter_map(|m| Some((m, class_of(target[m], classes)?)));
                counted.map(|(m, t)| weights[t].to_f64() * term(m, t)).sum()
            })
        };
        let total = sum(&|_, _| 1.0);
        let losses = sum(&|m, t| {
            let row = &x[m * classes..(m + 1) * classes];
            let (largest, exponentials) = row_sums(row);
            exponentials.ln() + (largest - row[t].to_f64())
        });
        io.write(0)[0] = T::from_f64(if total > 0.0 { losses / total } else { 0.0 });
        io.write(1)[0] = T::from_f64(total);
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (x, target, weights) = (io.read(0), io.read(1), io.read(2));
        let (total, dy) = (io.read(3)[0].to_f64(), io.read(4)[0].to_f64());
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
        let classes = weights.len();
        parallel::chunks(dx, classes, |first, dx| {
            for (i, dx) in dx.chunks_mut(classes).enumerate() {
                let m = first / classes + i;
                let row = &x[m * classes..(m + 1) * classes];
                let Some(t) = class_of(target[m], classes).filter(|_| total > 0.0) else {
                    dx.iter_mut().for_each(|dx| put(dx, T::ZERO, add));
                    continue;
                };
                let (largest, exponentials) = row_sums(row);
                let factor = dy * weights[t].to_f64() / total;
                for (c, (dx, x)) in dx.iter_mut().zip(row).enumerate() {
                    let share = (x.to_f64() - largest).exp() / exponentials;
                    let truth = if c == t { 1.0 } else { 0.0 };
                    put(dx, T::from_f64(factor * (share - truth)), add);
                }
            }
        });
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CrossEntropyParams {
    x: DevPtr,
    target: DevPtr,
    weights: DevPtr,
    partial: DevPtr,
    rows: i64,
    classes: i32,
    slices: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CrossEntropyFinishParams {
    partial: DevPtr,
    loss: DevPtr,
    weight: DevPtr,
    slices: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CrossEntropyBackwardParams {
    x: DevPtr,
    target: DevPtr,
    weights: DevPtr,
    weight: DevPtr,
    dy: DevPtr,
    dx: DevPtr,
    rows: i64,
    classes: i32,
    add: i32,
}

/// Threads per block: one computes a row.
const THREADS: usize = 256;

static KERNELS: [Kernel; 3] = [
    Kernel::new::<CrossEntropyParams>("cross_entropy_fwd_f32", THREADS as u32),
    Kernel::new::<CrossEntropyFinishParams>("cross_entropy_finish_f32", THREADS as u32),
    Kernel::new::<CrossEntropyBackwardParams>("cross_entropy_bwd_f32", THREADS as u32),
];

/// Slices of the sums over `rows`: 4 rows or more to a thread.
fn slices(rows: usize) -> usize {
    (blocks(rows, 4 * THREADS) as usize).min(MAX_SLICES)
}

impl CudaRule for CrossEntropy {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        if pass == Pass::Forward { 8 * slices(shapes[1].len()) } else { 0 }
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let rows = io.shapes[1].len();
        let slices = slices(rows);
        let params = CrossEntropyParams {
            x: io.read(0),
            target: io.read(1),
            weights: io.read(2),
            partial: io.workspace(),
            rows: rows as i64,
            classes: io.shapes[2].len() as i32,
            slices: slices as i32,
        };
        queue.launch(&KERNELS[0], [slices as u32, 1, 1], &params)?;
        let params = CrossEntropyFinishParams {
            partial: io.workspace(),
            loss: io.write(0),
            weight: io.write(1),
            slices: slices as i32,
            reserved: 0,
        };
        queue.launch(&KERNELS[1], [1; 3], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(Write { to: dx, add }) = io.grad(0) else { return Ok(()) };
        let rows = io.shapes[1].len();
        let params = CrossEntropyBackwardParams {
            x: io.read(0),
            target: io.read(1),
            weights: io.read(2),
            weight: io.read(3),
            dy: io.read(4),
            dx,
            rows: rows as i64,
            classes: io.shapes[2].len() as i32,
            add: i32::from(add),
        };
        queue.launch(&KERNELS[2], [blocks(rows, THREADS), 1, 1], &params)
    }
}
