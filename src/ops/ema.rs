//! Exponential moving average of parameters: `avg += w (p - avg)`.

use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::backend::cuda::Queue;
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{
    CpuRule, CudaIo, CudaRule, Fusion, FusionCandidate, Op, OpRule, PIECE_THREADS, SCALARS, arity,
    piece_grid, refuse, scalar,
};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Inputs: scalars `[SCALARS]` (weight `w` at `scalar::EMA`), parameters `[n]`. Writes the average. `w = 1` copies
/// exactly, `w = 0` leaves the average as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Ema;

impl OpRule for Ema {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 2)?;
        if inputs[0].len() != SCALARS {
            return refuse(self, format!("needs scalars [{SCALARS}], got {}", inputs[0]));
        }
        Ok(vec![inputs[1]])
    }
}

impl<T: Scalar> CpuRule<T> for Ema {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (w, p, avg) = (io.read(0)[scalar::EMA], io.read(1), io.write(0));
        parallel::chunks(avg, 1, |at, avg| {
            let p = &p[at..at + avg.len()];
            if w == T::ONE {
                avg.copy_from_slice(p);
            } else if w != T::ZERO {
                for (avg, &p) in avg.iter_mut().zip(p) {
                    *avg += w * (p - *avg);
                }
            }
        });
    }

    fn backward(&self, _: &mut Io<'_, T>) {
        panic!("an average has no derivative");
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct EmaParams {
    scalars: DevPtr,
    param: DevPtr,
    average: DevPtr,
    half_copy: DevPtr,
    len: i64,
}

static KERNELS: [Kernel; 1] = [Kernel::new::<EmaParams>("ema_f32", PIECE_THREADS)];

impl CudaRule for Ema {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    /// The update that follows makes the average, too: it has the parameters in registers.
    fn fuses(&self, pair: &FusionCandidate<'_>) -> Option<Fusion> {
        let (first, second) = (pair.first, pair.second);
        let follows = pair.adjacent && matches!(second.op, Op::AdamW(_));
        let same = || {
            first.reads[0] == second.reads[0]
                && second.writes[0].is_some_and(|param| param.to == first.reads[1])
        };
        (follows && same()).then(Fusion::default)
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        if io.next.is_some() {
            return Ok(());
        }
        let len = io.shapes[1].len();
        let params = EmaParams {
            scalars: io.read(0),
            param: io.read(1),
            average: io.write(0),
            half_copy: io.write_half_copy(0),
            len: len as i64,
        };
        queue.launch(&KERNELS[0], piece_grid(len), &params)
    }

    fn cuda_backward(&self, _: &CudaIo<'_>, _: &Queue) -> Result<()> {
        panic!("an average has no derivative");
    }
}
