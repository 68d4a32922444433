//! The operands of a call on a CUDA device.

use crate::backend::Write;
use crate::backend::cuda::DevSpan;
use crate::driver::DevPtr;
use crate::ops::Op;
use crate::shape::Shape;

/// The operands of one call.
#[derive(Clone, Copy)]
pub struct CudaIo<'a> {
    /// Shapes of the operation's inputs (of the forward pass, also when it runs backward).
    pub shapes: &'a [Shape],
    /// What is read, in the operation's order.
    pub reads: &'a [DevSpan],
    /// What is written, in the operation's order, and whether to add to it.
    pub writes: &'a [Option<Write<DevSpan>>],
    /// Scratch of the size the operation asked for, with undefined content.
    pub work: DevPtr,
    /// A later call of whose work this call does a part.
    pub next: Option<FusedCall<'a>>,
    /// An earlier call that did a part of this call's work.
    pub last: Option<FusedCall<'a>>,
}

/// The other call of a pair, see [`super::FusionCandidate`].
#[derive(Clone, Copy)]
pub struct FusedCall<'a> {
    /// The operation of the other call.
    pub op: &'a Op,
    /// Shapes of its inputs.
    pub shapes: &'a [Shape],
    /// What it reads.
    pub reads: &'a [DevSpan],
    /// What it writes.
    pub writes: &'a [Option<Write<DevSpan>>],
    /// Memory that the first call writes and the second reads.
    pub fused_scratch: DevPtr,
}

impl CudaIo<'_> {
    /// Address of the `i`-th value that is read.
    pub fn read(&self, i: usize) -> DevPtr {
        self.reads[i].ptr
    }

    /// Address of the bf16 copy of the `i`-th value that is read.
    ///
    /// # Panics
    /// If it has none: the operation did not declare [`crate::backend::cuda::Storage::FullAndHalf`].
    pub fn half_copy(&self, i: usize) -> DevPtr {
        let half_copy = self.reads[i].half_copy;
        assert!(!half_copy.is_null(), "operand {i} has no bf16 copy");
        half_copy
    }

    /// Address of the `i`-th value that is written.
    ///
    /// # Panics
    /// If it is not bound.
    pub fn write(&self, i: usize) -> DevPtr {
        let Some(Write { to: span, .. }) = self.writes[i] else {
            panic!("operand {i} is not bound for writing")
        };
        span.ptr
    }

    /// Address of the bf16 copy of the `i`-th value that is written, or none.
    pub fn write_half_copy(&self, i: usize) -> DevPtr {
        self.writes[i].map_or(DevPtr::NULL, |write| write.to.half_copy)
    }

    /// Address of the gradient of input `i` and whether to add to it; `None` if nobody wants it.
    pub fn grad(&self, i: usize) -> Option<Write<DevPtr>> {
        self.writes.get(i).copied().flatten().map(|write| write.map(|span| span.ptr))
    }

    /// Scratch of the size the operation asked for.
    pub fn workspace(&self) -> DevPtr {
        self.work
    }
}
