//! A GELU behind a convolution: the convolution makes it while its sums are in registers.

use crate::driver::DevPtr;
use crate::ops::conv3d::select;
use crate::ops::conv3d::select::Product;
use crate::ops::{Conv3d, CudaIo, Fusion, FusionCandidate, Op, Pass};

/// The GELU that follows at once, if the kernel of this convolution can make it. The output is written all the same:
/// the backward pass of the GELU reads it.
pub(in crate::ops) fn fuses(op: &Conv3d, pair: &FusionCandidate<'_>) -> Option<Fusion> {
    let (first, second) = (pair.first, pair.second);
    let forward = first.pass == Pass::Forward && second.pass == Pass::Forward;
    if !(forward && pair.adjacent && matches!(second.op, Op::Gelu(_))) {
        return None;
    }
    let reads = first.writes[0].is_some_and(|y| second.reads[0] == y.to);
    let fusion = Fusion { shares_operands: true, ..Fusion::default() };
    (reads && select::is_implicit_gemm(&op.bound(first.shapes), Product::Fprop)).then_some(fusion)
}

/// Where the GELU goes that a forward pass makes, or none.
pub(in crate::ops) fn output(io: &CudaIo<'_>) -> DevPtr {
    let gelu = io.next.filter(|next| matches!(next.op, Op::Gelu(_)));
    gelu.and_then(|gelu| gelu.writes[0]).map_or(DevPtr::NULL, |write| write.to.ptr)
}
