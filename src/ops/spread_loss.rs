//! How alike the embeddings of different boxes of a sample are.

use bytemuck::NoUninit;
use rayon::prelude::*;

use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, Saved, activation, arity, put, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Each norm is clamped from below by this, as PyTorch does.
const EPS: f64 = 1e-8;
/// Most boxes of a sample: those of seven views. The kernel's shared array holds so many.
const MOST_ROWS: usize = 84;

/// Mean of `K[i][j]^2`, `K[i][j]` the cosine over channels of boxes `i` and `j` of a sample at a voxel: over samples,
/// voxels, and ordered pairs of different boxes other than the adjacent boxes of a pair of views.
///
/// Input `[4 N P, D, H, W, C]`, role-major as [`super::SubView`] cuts. With `G = N D H W` groups and `R = 4 P` boxes in
/// each, in the order (role, pair), outputs: the loss `[1]`, the cosines `[G, R, R]`, the lengths of the embeddings
/// `[G, R]`.
///
/// Backward: `dx_i = 4 dy / (G Q) sum_j K[i][j] (x_j / n_j - K[i][j] x_i / |x_i|) / n_i` with `Q = R (R - 1) - 2 P`,
/// `n` the lengths clamped from below and the second term 0 where `x_i = 0`.
///
/// Source: HaoChen et al. 2021, arXiv 2106.04156: in the spectral contrastive loss this term keeps the embedding from
/// collapsing, and from using fewer dimensions than it has.
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadLoss {
    /// Number of samples, N.
    pub samples: usize,
}

/// Extents of the problem.
#[derive(Clone, Copy)]
struct Boxes {
    samples: usize,
    pairs: usize,
    voxels: usize,
    channels: usize,
}

impl Boxes {
    fn rows(&self) -> usize {
        4 * self.pairs
    }

    fn groups(&self) -> usize {
        self.samples * self.voxels
    }

    /// Ordered pairs that count, in all groups.
    fn counted(&self) -> f64 {
        let rows = self.rows();
        (self.groups() * (rows * (rows - 1) - 2 * self.pairs)) as f64
    }

    /// Whether rows `i` and `j` count: different boxes, and not the adjacent ones of a pair.
    fn counts(&self, i: usize, j: usize) -> bool {
        let adjacent = i.max(j) < 2 * self.pairs && i.abs_diff(j) == self.pairs;
        i != j && !adjacent
    }

    /// The embedding of row `row` of group `group`.
    fn embedding<'a, T>(&self, x: &'a [T], group: usize, row: usize) -> &'a [T] {
        &x[self.start(group, row)..][..self.channels]
    }

    fn start(&self, group: usize, row: usize) -> usize {
        let (sample, voxel) = (group / self.voxels, group % self.voxels);
        let (role, pair) = (row / self.pairs, row % self.pairs);
        let image = (role * self.samples + sample) * self.pairs + pair;
        (image * self.voxels + voxel) * self.channels
    }
}

impl SpreadLoss {
    fn boxes(&self, x: Shape) -> Boxes {
        let dims = x.dims();
        Boxes {
            samples: self.samples,
            pairs: dims[0] / (4 * self.samples),
            voxels: dims[1] * dims[2] * dims[3],
            channels: dims[4],
        }
    }
}

impl OpRule for SpreadLoss {
    fn name(&self) -> &'static str {
        "spread_loss"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        let [images, ..] = activation(self, inputs[0])?;
        if self.samples == 0 || !images.is_multiple_of(4 * self.samples) {
            let samples = self.samples;
            return refuse(
                self,
                format!("needs four roles of {samples} samples, got {images} images"),
            );
        }
        let boxes = self.boxes(inputs[0]);
        let (groups, rows) = (boxes.groups(), boxes.rows());
        if rows > MOST_ROWS {
            return refuse(self, format!("takes {MOST_ROWS} boxes of a sample, got {rows}"));
        }
        let outputs: [&[usize]; 3] = [&[1], &[groups, rows, rows], &[groups, rows]];
        Ok(outputs.map(Shape::new).into())
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[0], outputs: &[1, 2] }
    }

    fn storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

fn dot<T: Scalar>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| a.to_f64().mul_add(b.to_f64(), sum))
}

impl<T: Scalar> CpuRule<T> for SpreadLoss {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, loss) = (io.read(0), io.write(0));
        let (cosines, lengths) = (io.write(1), io.write(2));
        let boxes = self.boxes(io.shapes[0]);
        let rows = boxes.rows();
        let of_groups = cosines.par_chunks_mut(rows * rows).zip(lengths.par_chunks_mut(rows));
        of_groups.enumerate().for_each(|(group, (cosines, lengths))| {
            let row = |i: usize| boxes.embedding(x, group, i);
            for (i, length) in lengths.iter_mut().enumerate() {
                *length = T::from_f64(dot(row(i), row(i)).sqrt());
            }
            for i in 0..rows {
                for j in 0..rows {
                    let size = |i: usize| lengths[i].to_f64().max(EPS);
                    let cosine = if j < i {
                        cosines[j * rows + i].to_f64()
                    } else {
                        dot(row(i), row(j)) / (size(i) * size(j))
                    };
                    cosines[i * rows + j] = T::from_f64(cosine);
                }
            }
        });
        let squares = cosines.iter().enumerate().filter(|(at, _)| {
            let at = at % (rows * rows);
            boxes.counts(at / rows, at % rows)
        });
        let sum: f64 = squares.map(|(_, cosine)| cosine.to_f64().powi(2)).sum();
        loss[0] = T::from_f64(sum / boxes.counted());
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (x, cosines, lengths, dy) =
            (io.read(0), io.read(1), io.read(2), io.read(3)[0].to_f64());
        let boxes = self.boxes(io.shapes[0]);
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
        let rows = boxes.rows();
        let factor = 4.0 * dy / boxes.counted();
        for group in 0..boxes.groups() {
            let length = |i: usize| lengths[group * rows + i].to_f64();
            for i in 0..rows {
                let start = boxes.start(group, i);
                let own = boxes.embedding(x, group, i);
                let to = &mut dx[start..][..boxes.channels];
                let outer = factor / length(i).max(EPS);
                let cosine = |j: usize| cosines[(group * rows + i) * rows + j].to_f64();
                let squares: f64 =
                    (0..rows).filter(|&j| boxes.counts(i, j)).map(|j| cosine(j).powi(2)).sum();
                let along = if length(i) > 0.0 { outer * squares / length(i) } else { 0.0 };
                for (c, to) in to.iter_mut().enumerate() {
                    let mut sum = -along * own[c].to_f64();
                    for j in (0..rows).filter(|&j| boxes.counts(i, j)) {
                        let weight = outer * cosine(j) / length(j).max(EPS);
                        sum = weight.mul_add(boxes.embedding(x, group, j)[c].to_f64(), sum);
                    }
                    put(to, T::from_f64(sum), add);
                }
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SpreadShape {
    voxels: i64,
    samples: i32,
    pairs: i32,
    channels: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ForwardParams {
    x: DevPtr,
    cosines: DevPtr,
    lengths: DevPtr,
    shape: SpreadShape,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct FinishParams {
    cosines: DevPtr,
    loss: DevPtr,
    groups: i64,
    pairs: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct BackwardParams {
    x: DevPtr,
    cosines: DevPtr,
    lengths: DevPtr,
    dy: DevPtr,
    dx: DevPtr,
    shape: SpreadShape,
    add: i32,
    reserved: i32,
}

impl From<Boxes> for SpreadShape {
    fn from(boxes: Boxes) -> SpreadShape {
        SpreadShape {
            voxels: boxes.voxels as i64,
            samples: boxes.samples as i32,
            pairs: boxes.pairs as i32,
            channels: boxes.channels as i32,
            reserved: 0,
        }
    }
}

const THREADS: u32 = 256;

static KERNELS: [Kernel; 3] = [
    Kernel::new::<ForwardParams>("spread_loss_fwd_bf16", THREADS),
    Kernel::new::<FinishParams>("spread_loss_finish_f32", THREADS),
    Kernel::new::<BackwardParams>("spread_loss_bwd_bf16", THREADS),
];

impl CudaRule for SpreadLoss {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let boxes = self.boxes(io.shapes[0]);
        let (cosines, grid) = (io.write(1), [(boxes.groups() * boxes.rows()) as u32, 1, 1]);
        let params =
            ForwardParams { x: io.read(0), cosines, lengths: io.write(2), shape: boxes.into() };
        queue.launch(&KERNELS[0], grid, &params)?;
        let params = FinishParams {
            cosines,
            loss: io.write(0),
            groups: boxes.groups() as i64,
            pairs: boxes.pairs as i32,
            reserved: 0,
        };
        queue.launch(&KERNELS[1], [1; 3], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(Write { to: dx, add }) = io.grad(0) else { return Ok(()) };
        let boxes = self.boxes(io.shapes[0]);
        let params = BackwardParams {
            x: io.read(0),
            cosines: io.read(1),
            lengths: io.read(2),
            dy: io.read(3),
            dx,
            shape: boxes.into(),
            add: i32::from(add),
            reserved: 0,
        };
        queue.launch(&KERNELS[2], [(boxes.groups() * boxes.rows()) as u32, 1, 1], &params)
    }
}
