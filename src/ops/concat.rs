//! Concatenation along the batch or the channels.

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage};
use crate::backend::{Io, MAX_OPERANDS, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{
    CpuRule, CudaIo, CudaRule, FusedCall, Fusion, FusionCandidate, Op, OpRule, PIECE_THREADS, Pass,
    piece_grid, put_all, refuse,
};
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
            if let Some(Write { to: dx, add }) = io.grad(i) {
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

/// `ConcatParams` of `kernels/concat.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    whole: DevPtr,
    part: [DevPtr; MAX_OPERANDS],
    len: [i64; MAX_OPERANDS],
    start: [i64; MAX_OPERANDS],
    rows: i64,
    pitch: i64,
    add: [i32; MAX_OPERANDS],
    count: i32,
    reserved: i32,
}

/// Channels, batch; forward, backward.
static KERNELS: [Kernel; 4] = [
    Kernel::new::<Params>("concat_fwd_bf16", PIECE_THREADS),
    Kernel::new::<Params>("concat_bwd_bf16", PIECE_THREADS),
    Kernel::new::<Params>("concat_fwd_f32", PIECE_THREADS),
    Kernel::new::<Params>("concat_bwd_f32", PIECE_THREADS),
];

impl Concat {
    /// Copies between `whole`, the output or its gradient, and the parts for which `part` gives an address and whether
    /// to add, in one launch; in none, if there is nothing to copy.
    fn copy(
        &self,
        queue: &Queue,
        pass: Pass,
        whole: DevPtr,
        shapes: &[Shape],
        part: impl Fn(usize) -> Option<Write<DevPtr>>,
    ) -> Result<()> {
        let (rows, total) = self.rows(shapes);
        let mut params = Params {
            whole,
            part: [DevPtr::NULL; MAX_OPERANDS],
            len: [0; MAX_OPERANDS],
            start: [0; MAX_OPERANDS],
            rows: (shapes[0].len() / rows[0]) as i64,
            pitch: total as i64,
            add: [0; MAX_OPERANDS],
            count: 0,
            reserved: 0,
        };
        let (mut start, mut copied) = (0, 0);
        for (i, &len) in rows[..shapes.len()].iter().enumerate() {
            if let Some(Write { to: ptr, add }) = part(i) {
                let at = params.count as usize;
                let is_new = pass == Pass::Forward || !params.part[..at].contains(&ptr);
                assert!(is_new, "a value that is joined with itself has no gradient");
                (params.part[at], params.len[at]) = (ptr, len as i64);
                (params.start[at], params.add[at]) = (start as i64, add.into());
                params.count += 1;
                copied += shapes[i].len();
            }
            start += len;
        }
        if params.count == 0 {
            return Ok(());
        }
        let first = match self.axis {
            Axis::Channel => 0,
            Axis::Batch => 2,
        };
        queue.launch(&KERNELS[first + pass as usize], piece_grid(copied), &params)
    }

    /// Whether another operation may write input 0 straight into the output, and read the gradient of input 0 from the
    /// output's:
    /// two inputs that lie side by side in 16-byte pieces.
    pub(super) fn lends_first(&self, shapes: &[Shape]) -> bool {
        let in_pieces = shapes.iter().all(|shape| shape.channels().is_multiple_of(8));
        self.axis == Axis::Channel && shapes.len() == 2 && in_pieces
    }
}

/// Whether the other call of a pair works on input 0, or its gradient, in place.
fn is_in_place(other: Option<FusedCall<'_>>) -> bool {
    other.is_some_and(|other| matches!(other.op, Op::ConvTranspose3d(_)))
}

impl CudaRule for Concat {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    /// The gradient of an upsampled value stays in the gradient of the concatenation: the backward pass of the
    /// transposed convolution that follows reads it there.
    fn fuses(&self, pair: &FusionCandidate<'_>) -> Option<Fusion> {
        let (first, second) = (pair.first, pair.second);
        let backward = first.pass == Pass::Backward && second.pass == Pass::Backward;
        let follows = pair.adjacent && matches!(second.op, Op::ConvTranspose3d(_));
        if !(backward && follows && self.lends_first(first.shapes)) {
            return None;
        }
        let Write { to: up, add } = first.writes[0]?;
        let is_dy = second.reads.iter().position(|&value| value == up) == Some(2);
        let whole = !add && is_dy && (pair.sole_reader)(up);
        whole.then_some(Fusion { fused_scratch: 0, shares_operands: true, eliminated: Some(up) })
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let skipped = usize::from(is_in_place(io.last));
        self.copy(queue, Pass::Forward, io.write(0), io.shapes, |i| {
            (i >= skipped).then(|| Write { to: io.read(i), add: false })
        })
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let skipped = usize::from(is_in_place(io.next));
        self.copy(queue, Pass::Backward, io.read(0), io.shapes, |i| {
            if i >= skipped { io.grad(i) } else { None }
        })
    }
}
