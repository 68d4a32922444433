//! Concatenation along the batch or the channels.

use super::{CpuRule, CudaIo, CudaRule, OpRule, PIECE_THREADS, piece_grid, put_all, refuse};
use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, MAX_OPERANDS};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The extent along which values are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// The first extent.
    Batch,
    /// The last extent.
    Channel,
}

/// Joins values that agree in every other extent, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// Where they are joined.
    pub axis: Axis,
}

impl Concat {
    /// Elements each input contributes to one contiguous row of the output, and their sum.
    fn rows(&self, shapes: &[Shape]) -> ([usize; MAX_OPERANDS], usize) {
        let mut rows = [0; MAX_OPERANDS];
        for (row, shape) in rows.iter_mut().zip(shapes) {
            *row = match self.axis {
                Axis::Batch => shape.len(),
                Axis::Channel => shape.channels(),
            };
        }
        (rows, rows.iter().sum())
    }
}

impl OpRule for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        let Some(first) = inputs.first() else {
            return refuse(self, "needs inputs, got none".into());
        };
        let mut dims = first.dims().to_vec();
        let axis = match self.axis {
            Axis::Batch => 0,
            Axis::Channel => dims.len() - 1,
        };
        dims[axis] = 0;
        for shape in inputs {
            let mut other = shape.dims().to_vec();
            if other.len() != dims.len() {
                return refuse(self, format!("needs equal ranks, got {first} and {shape}"));
            }
            let extent = std::mem::replace(&mut other[axis], dims[axis]);
            if other != dims {
                return refuse(self, format!("{shape} does not fit {first} along {:?}", self.axis));
            }
            dims[axis] += extent;
        }
        Ok(vec![Shape::new(&dims)])
    }

    fn storage(&self, _: usize) -> Storage {
        match self.axis {
            Axis::Batch => Storage::Full,
            Axis::Channel => Storage::Half,
        }
    }

    fn output_storage(&self, _: usize) -> Storage {
        self.storage(0)
    }
}

impl<T: Scalar> CpuRule<T> for Concat {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (rows, total) = self.rows(io.shapes);
        let y = io.write(0);
        let inputs = io.shapes.len();
        parallel::chunks(y, total, |at, y| {
            for (r, row) in y.chunks_mut(total).enumerate() {
                let (r, mut start) = (at / total + r, 0);
                for (i, &len) in rows[..inputs].iter().enumerate() {
                    row[start..start + len].copy_from_slice(&io.read(i)[r * len..(r + 1) * len]);
                    start += len;
                }
            }
        });
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (rows, total) = self.rows(io.shapes);
        let dy = io.read(0);
        let mut start = 0;
        for (i, &len) in rows[..io.shapes.len()].iter().enumerate() {
            if let Some((dx, add)) = io.grad(i) {
                parallel::chunks(dx, len, |at, dx| {
                    for (r, row) in dx.chunks_mut(len).enumerate() {
                        let from = (at / len + r) * total + start;
                        put_all(row, &dy[from..from + len], add);
                    }
                });
            }
            start += len;
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct CopyParams {
    from: DevPtr,
    to: DevPtr,
    rows: i64,
    len: i64,
    from_first: i64,
    to_first: i64,
    from_pitch: i64,
    to_pitch: i64,
    add: i32,
    reserved: i32,
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<CopyParams>("concat_bf16", PIECE_THREADS),
    Kernel::new::<CopyParams>("concat_f32", PIECE_THREADS),
];

impl Concat {
    fn launch(&self, queue: &Queue, params: &CopyParams) -> Result<()> {
        let kernel = match self.axis {
            Axis::Batch => &KERNELS[1],
            Axis::Channel => &KERNELS[0],
        };
        queue.launch(kernel, piece_grid((params.rows * params.len) as usize), params)
    }
}

impl CudaRule for Concat {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (rows, total) = self.rows(io.shapes);
        let mut start = 0;
        for (i, &len) in rows[..io.shapes.len()].iter().enumerate() {
            let params = CopyParams {
                from: io.read(i),
                to: io.write(0),
                rows: (io.shapes[i].len() / len) as i64,
                len: len as i64,
                from_first: 0,
                to_first: start as i64,
                from_pitch: len as i64,
                to_pitch: total as i64,
                add: 0,
                reserved: 0,
            };
            self.launch(queue, &params)?;
            start += len;
        }
        Ok(())
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (rows, total) = self.rows(io.shapes);
        let mut start = 0;
        for (i, &len) in rows[..io.shapes.len()].iter().enumerate() {
            if let Some((dx, add)) = io.grad(i) {
                let params = CopyParams {
                    from: io.read(0),
                    to: dx,
                    rows: (io.shapes[i].len() / len) as i64,
                    len: len as i64,
                    from_first: start as i64,
                    to_first: 0,
                    from_pitch: total as i64,
                    to_pitch: len as i64,
                    add: add.into(),
                    reserved: 0,
                };
                self.launch(queue, &params)?;
            }
            start += len;
        }
        Ok(())
    }
}
