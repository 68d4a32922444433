//! Average pool with stride equal to its window, no padding, incomplete windows dropped.

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{
    CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, Pass, activation, arity, piece_grid, refuse,
};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `y[n, z, p, q, c]` = mean of the window of `x` that starts at `(z, p, q) * window`.
#[derive(Clone, Debug, PartialEq)]
pub struct AvgPool {
    /// Window and stride, (z, y, x).
    pub window: [usize; 3],
}

impl AvgPool {
    fn output(&self, [n, d, h, w, c]: [usize; 5]) -> [usize; 5] {
        [n, d / self.window[0], h / self.window[1], w / self.window[2], c]
    }
}

impl OpRule for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        let out = self.output(activation(self, inputs[0])?);
        if out.contains(&0) {
            return refuse(
                self,
                format!("{} is smaller than the window {:?}", inputs[0], self.window),
            );
        }
        Ok(vec![Shape::new(&out)])
    }

    fn storage(&self, _: usize) -> Storage {
        Storage::Half
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl<T: Scalar> CpuRule<T> for AvgPool {
    fn forward(&self, io: &mut Io<'_, T>) {
        let Some(dims) = io.shapes[0].ndhwc() else { return };
        let [_, d, h, w, c] = dims;
        let [_, z, p, q, _] = self.output(dims);
        let [wz, wy, wx] = self.window;
        let share = T::from_f64(1.0 / (wz * wy * wx) as f64);
        let x = io.read(0);
        parallel::chunks(io.write(0), q * c, |at, y| {
            for (r, row) in y.chunks_mut(q * c).enumerate() {
                let r = at / (q * c) + r;
                let (n, oz, oy) = (r / (z * p), r / p % z, r % p);
                row.fill(T::ZERO);
                for k in 0..wz * wy {
                    let (iz, iy) = (oz * wz + k / wy, oy * wy + k % wy);
                    let x = &x[((n * d + iz) * h + iy) * w * c..][..w * c];
                    for (y, x) in row.chunks_exact_mut(c).zip(x.chunks_exact(wx * c)) {
                        for x in x.chunks_exact(c) {
                            for (y, &x) in y.iter_mut().zip(x) {
                                *y += x * share;
                            }
                        }
                    }
                }
            }
        });
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let Some(dims) = io.shapes[0].ndhwc() else { return };
        let [_, d, h, w, c] = dims;
        let [_, z, p, q, _] = self.output(dims);
        let [wz, wy, wx] = self.window;
        let share = T::from_f64(1.0 / (wz * wy * wx) as f64);
        let dy = io.read(0);
        let Some(Write { to: dx, add }) = io.grad(0) else { return };
        parallel::chunks(dx, w * c, |at, dx| {
            for (r, row) in dx.chunks_mut(w * c).enumerate() {
                let r = at / (w * c) + r;
                let (n, oz, oy) = (r / (d * h), r / h % d / wz, r % h / wy);
                let inside = oz < z && oy < p;
                let (pooled, dropped) = row.split_at_mut(if inside { q * wx * c } else { 0 });
                if !add {
                    dropped.fill(T::ZERO);
                }
                let from = if inside { ((n * z + oz) * p + oy) * q * c } else { 0 };
                let dy = dy[from..].chunks_exact(c);
                for (dx, dy) in pooled.chunks_exact_mut(wx * c).zip(dy) {
                    for dx in dx.chunks_exact_mut(c) {
                        if add {
                            dx.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy * share);
                        } else {
                            dx.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx = dy * share);
                        }
                    }
                }
            }
        });
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AvgPoolParams {
    /// `x`, or `dy`.
    from: DevPtr,
    /// `y`, or `dx`.
    to: DevPtr,
    instances: i64,
    input: [i32; 3],
    output: [i32; 3],
    window: [i32; 3],
    channels: i32,
    add: i32,
    reserved: i32,
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<AvgPoolParams>("avg_pool_fwd_bf16", PIECE_THREADS),
    Kernel::new::<AvgPoolParams>("avg_pool_bwd_bf16", PIECE_THREADS),
];

impl AvgPool {
    /// Launches `kernel`, which writes a tensor of the extents of the output, or of the input.
    fn launch(&self, pass: Pass, io: &CudaIo<'_>, queue: &Queue, to: Write<DevPtr>) -> Result<()> {
        let Some(dims) = io.shapes[0].ndhwc() else { return Ok(()) };
        let [n, d, h, w, c] = dims;
        let [_, z, p, q, _] = self.output(dims);
        let extents = |e: [usize; 3]| e.map(|e| e as i32);
        let params = AvgPoolParams {
            from: io.read(0),
            to: to.to,
            instances: n as i64,
            input: extents([d, h, w]),
            output: extents([z, p, q]),
            window: extents(self.window),
            channels: c as i32,
            add: to.add.into(),
            reserved: 0,
        };
        match pass {
            Pass::Forward => queue.launch(&KERNELS[0], piece_grid(n * z * p * q * c), &params),
            Pass::Backward => queue.launch(&KERNELS[1], piece_grid(n * d * h * w * c), &params),
        }
    }
}

impl CudaRule for AvgPool {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        self.launch(Pass::Forward, io, queue, Write { to: io.write(0), add: false })
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(dx) = io.grad(0) else { return Ok(()) };
        self.launch(Pass::Backward, io, queue, dx)
    }
}
