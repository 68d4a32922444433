//! Mean cosine between the embeddings of paired sub-views.

use bytemuck::NoUninit;

use crate::backend::cuda::{Queue, Storage, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, Saved, arity, put, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Each norm is clamped from below by this, as PyTorch does.
const EPS: f64 = 1e-8;

/// `factor * mean cos(a, b)` over voxels, pairs and samples, the cosine over channels.
///
/// Input `[4 M, D, H, W, C]`, role-major as [`super::SubView`] cuts: `a` and `b` are the roles `first` and `first + 1`.
/// Outputs: the loss `[1]`, and the cosine of each of the `M` pairs, `[M]`, averaged over voxels.
///
/// Backward: `d cos / da = b / (na nb) - (a.b) / (na^2 nb) a / |a|` with the clamped norms `na`, `nb` as values and
/// the second term 0 where `a = 0`.
///
/// Source: arXiv 2509.05967, similarity task.
#[derive(Clone, Debug, PartialEq)]
pub struct CosineLoss {
    /// Role of `a`: 0 for the adjacent pair, 2 for the distant pair.
    pub first: usize,
    /// -1 where likeness is wanted, +1 where unlikeness is.
    pub factor: f64,
}

/// Dot product and the two norms of a voxel, in f64.
fn products<T: Scalar>(a: &[T], b: &[T]) -> (f64, f64, f64) {
    let mut sums = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a.to_f64(), b.to_f64());
        sums = (a.mul_add(b, sums.0), a.mul_add(a, sums.1), b.mul_add(b, sums.2));
    }
    (sums.0, sums.1.sqrt(), sums.2.sqrt())
}

impl CosineLoss {
    /// Elements of one role, and where `a` and `b` begin.
    fn halves(&self, len: usize) -> (usize, usize, usize) {
        let role = len / 4;
        (role, self.first * role, (self.first + 1) * role)
    }
}

impl OpRule for CosineLoss {
    fn name(&self) -> &'static str {
        "cosine_loss"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        let [images, ..] = super::activation(self, inputs[0])?;
        if !images.is_multiple_of(4) {
            return refuse(self, format!("needs four roles of equal number, got {images} images"));
        }
        Ok(vec![Shape::new(&[1]), Shape::new(&[images / 4])])
    }

    fn saved(&self) -> Saved {
        Saved { inputs: &[0], outputs: &[] }
    }

    fn storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl<T: Scalar> CpuRule<T> for CosineLoss {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, loss, cosines) = (io.read(0), io.write(0), io.write(1));
        let c = io.shapes[0].channels();
        let (role, a, b) = self.halves(x.len());
        let image = role / cosines.len();
        let mut total = 0.0;
        for (i, cosine) in cosines.iter_mut().enumerate() {
            let pair =
                x[a + i * image..][..image].chunks(c).zip(x[b + i * image..][..image].chunks(c));
            let sum: f64 = pair
                .map(|(a, b)| {
                    let (dot, na, nb) = products(a, b);
                    dot / (na.max(EPS) * nb.max(EPS))
                })
                .sum();
            let mean = sum * c as f64 / image as f64;
            *cosine = T::from_f64(mean);
            total += mean;
        }
        loss[0] = T::from_f64(self.factor * total / cosines.len() as f64);
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (x, dy) = (io.read(0), io.read(1)[0].to_f64());
        let c = io.shapes[0].channels();
        let (role, a, b) = self.halves(x.len());
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
        if !add {
            dx.fill(T::ZERO);
        }
        let factor = dy * self.factor * c as f64 / role as f64;
        for voxel in (0..role).step_by(c) {
            let (va, vb) = (&x[a + voxel..][..c], &x[b + voxel..][..c]);
            let (dot, norm_a, norm_b) = products(va, vb);
            let (na, nb) = (norm_a.max(EPS), norm_b.max(EPS));
            let own = |n: f64, other: f64, raw: f64| {
                if raw > 0.0 { dot / (n * n * other * raw) } else { 0.0 }
            };
            let (own_a, own_b) = (own(na, nb, norm_a), own(nb, na, norm_b));
            for k in 0..c {
                let (fa, fb) = (va[k].to_f64(), vb[k].to_f64());
                put(
                    &mut dx[a + voxel + k],
                    T::from_f64(factor * (fb / (na * nb) - own_a * fa)),
                    true,
                );
                put(
                    &mut dx[b + voxel + k],
                    T::from_f64(factor * (fa / (na * nb) - own_b * fb)),
                    true,
                );
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ForwardParams {
    x: DevPtr,
    cosines: DevPtr,
    voxels: i64,
    role: i64,
    channels: i32,
    first: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct FinishParams {
    cosines: DevPtr,
    loss: DevPtr,
    pairs: i64,
    factor: f32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct BackwardParams {
    x: DevPtr,
    dy: DevPtr,
    dx: DevPtr,
    voxels: i64,
    role: i64,
    channels: i32,
    first: i32,
    factor: f32,
    add: i32,
}

/// Threads per block, and warps: one computes a voxel pair.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;

static KERNELS: [Kernel; 3] = [
    Kernel::new::<ForwardParams>("cosine_loss_fwd_bf16", THREADS as u32),
    Kernel::new::<FinishParams>("cosine_loss_finish_f32", THREADS as u32),
    Kernel::new::<BackwardParams>("cosine_loss_bwd_bf16", THREADS as u32),
];

impl CudaRule for CosineLoss {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (channels, pairs) = (io.shapes[0].channels(), io.shapes[0].dims()[0] / 4);
        let (role, ..) = self.halves(io.shapes[0].len());
        let cosines = io.write(1);
        let params = ForwardParams {
            x: io.read(0),
            cosines,
            voxels: (role / pairs / channels) as i64,
            role: role as i64,
            channels: channels as i32,
            first: self.first as i32,
        };
        queue.launch(&KERNELS[0], [pairs as u32, 1, 1], &params)?;
        let params = FinishParams {
            cosines,
            loss: io.write(0),
            pairs: pairs as i64,
            factor: self.factor as f32,
            reserved: 0,
        };
        queue.launch(&KERNELS[1], [1; 3], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(Write { to: dx, add }) = io.grad(0) else { return Ok(()) };
        let channels = io.shapes[0].channels();
        let (role, ..) = self.halves(io.shapes[0].len());
        let voxels = role / channels;
        let params = BackwardParams {
            x: io.read(0),
            dy: io.read(1),
            dx,
            voxels: voxels as i64,
            role: role as i64,
            channels: channels as i32,
            first: self.first as i32,
            factor: self.factor as f32,
            add: i32::from(add),
        };
        queue.launch(&KERNELS[2], [blocks(voxels, WARPS), 1, 1], &params)
    }
}
