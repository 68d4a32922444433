//! What a convolution does for the instance norm beside it: forward the partial statistics of its output, in the input
//! gradient the partial sums of the norm whose output had that gradient. kernels/conv3d/epilogue.cuh,
//! docs/kernels/norm.md.

use crate::backend::Write;
use crate::backend::cuda::DevSpan;
use crate::driver::DevPtr;
use crate::ops::conv3d::select;
use crate::ops::conv3d::select::Product;
use crate::ops::fusion::norm_part::NormPart;
use crate::ops::norm::parts::{Parts, is_small};
use crate::ops::{Conv3d, CudaIo, FusedCall, Fusion, FusionCandidate, Op, Pass};
use crate::shape::Shape;

/// What the call `io`, a pass of a convolution, does for the norm after it.
pub(in crate::ops) fn norm_part(io: &CudaIo<'_>, op: &Conv3d, pass: Pass) -> NormPart {
    let Some(norm) = io.next else { return NormPart::NONE };
    let Op::InstanceNorm(rule) = norm.op else { return NormPart::NONE };
    let Some(parts) = parts_at(op, io.shapes, pass, norm.fused_scratch) else {
        return NormPart::NONE;
    };
    let Parts { partial, counts, .. } = parts;
    if pass == Pass::Forward {
        return NormPart { partial, counts, ..NormPart::NONE };
    }
    let from = rule.sources(norm.reads);
    let g = if rule.is_gated() { gradient_place(norm.writes, from.dy) } else { DevPtr::NULL };
    NormPart {
        partial,
        counts: DevPtr::NULL,
        x: from.x,
        y: from.y,
        stats: from.stats,
        gamma: from.gamma,
        beta: from.beta,
        g,
        slope: from.slope,
        unused: 0,
    }
}

/// Where the gradient before the activation goes, of a norm that writes `writes` and whose output's gradient lies at
/// `dy`: to the residual's gradient if that is just this, else to the place of `dy`, which only the norm reads.
pub(in crate::ops) fn gradient_place(writes: &[Option<Write<DevSpan>>], dy: DevPtr) -> DevPtr {
    match writes.get(3) {
        Some(Some(Write { to: dres, add: false })) => dres.ptr,
        _ => dy,
    }
}

/// The partial results that the pass of the convolution `conv` left for the norm after it.
pub(in crate::ops) fn parts(conv: &FusedCall<'_>, pass: Pass) -> Option<Parts> {
    let Op::Conv3d(op) = conv.op else { return None };
    parts_at(op, conv.shapes, pass, conv.fused_scratch)
}

fn product(pass: Pass) -> Product {
    if pass == Pass::Forward { Product::Fprop } else { Product::Dgrad }
}

/// Shape of what a pass makes.
fn written(op: &Conv3d, shapes: &[Shape], pass: Pass) -> Shape {
    let g = op.bound(shapes);
    let [z, y, x] = g.output();
    if pass == Pass::Forward { Shape::new(&[g.batch, z, y, x, g.out_channels]) } else { shapes[0] }
}

fn parts_at(op: &Conv3d, shapes: &[Shape], pass: Pass, memory: DevPtr) -> Option<Parts> {
    let parts = select::parts(&op.bound(shapes), product(pass))?;
    Some(Parts::at(memory, written(op, shapes, pass), parts))
}

/// Whether the convolution `op` does a part of the work of the norm that follows it in `pair`.
pub(in crate::ops) fn fuses(op: &Conv3d, pair: &FusionCandidate<'_>) -> Option<Fusion> {
    let (conv, norm, pass) = (pair.first, pair.second, pair.first.pass);
    let Op::InstanceNorm(rule) = norm.op else { return None };
    let x = norm.shapes[0];
    if norm.pass != pass || is_small(x, pass) {
        return None;
    }
    let fused_scratch = Parts::len(x, select::parts(&op.bound(conv.shapes), product(pass))?);
    let fusion = Fusion { fused_scratch, ..Fusion::default() };
    let Write { to: value, add } = (*conv.writes.first()?)?;
    if pass == Pass::Forward {
        return (norm.reads[0] == value).then_some(fusion);
    }
    if norm.reads[rule.dy()] != value {
        return None;
    }
    if !rule.is_gated() {
        return Some(fusion);
    }
    // The gradient before the activation takes the place of the output's gradient, or that of the residual's gradient.
    // Then the output's gradient is not even written; an old one, to which this is added, is still read.
    let shares_operands = matches!(norm.writes.get(3), Some(Some(Write { add: false, .. })));
    let eliminated = (shares_operands && !add).then_some(value);
    let alone = (pair.sole_reader)(value) && (pair.adjacent || !shares_operands);
    alone.then_some(Fusion { shares_operands, eliminated, ..fusion })
}
