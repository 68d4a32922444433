//! Where the values of a tape lie in the memory of a CUDA device, and its records with those places bound.

use crate::backend::Write;
use crate::backend::cuda::{DevSpan, Storage};
use crate::driver::DevPtr;
use crate::ops::{Op, Pass};
use crate::shape::Shape;
use crate::tape::cuda::cost::Work;
use crate::tape::cuda::fusion::{FusedPair, Needs};
use crate::tape::cuda::places::{Arrangement, Places};
use crate::tape::cuda::storage::storages;
use crate::tape::plan::Units;
use crate::tape::{Plan, Record, Tape, ValueId};

/// Every place begins at a multiple of so many bytes.
pub(super) const ALIGN: usize = 256;

/// A record with its operands' places bound.
pub(super) struct Call {
    pub(super) name: String,
    pub(super) op: Op,
    pub(super) pass: Pass,
    pub(super) shapes: Vec<Shape>,
    pub(super) reads: Vec<DevSpan>,
    pub(super) writes: Vec<Option<Write<DevSpan>>>,
    /// Address and bytes of everything it writes, copies of filters included.
    pub(super) written: Vec<(DevPtr, usize)>,
    pub(super) work: Work,
    /// The calls it is fused with as the first and as the second, and the memory between them.
    pub(super) next: Option<(usize, DevPtr)>,
    pub(super) last: Option<(usize, DevPtr)>,
}

impl Call {
    /// What part of a step it is, for profilers.
    pub(super) fn phase(&self) -> &'static str {
        match (self.pass, &self.op) {
            (Pass::Backward, _) => "backward",
            (_, Op::AdamW(_) | Op::Ema(_) | Op::GradNorm(_)) => "optimiser",
            (_, Op::CosineLoss(_) | Op::GapAxisLoss(_) | Op::GapNormLoss(_))
            | (_, Op::RouteLoss(_) | Op::SpreadLoss(_) | Op::VectorLoss(_)) => "loss",
            _ => "forward",
        }
    }
}

/// Where the values of a tape lie.
pub(super) struct Layout {
    pub(super) plan: Plan,
    pub(super) arrangement: Arrangement,
    pub(super) pairs: Vec<FusedPair>,
    pub(super) storages: Vec<Storage>,
    /// Offset of the bf16 copy of each value that owns memory and has one.
    pub(super) half_copies: Vec<usize>,
    pub(super) len: usize,
}

impl Layout {
    pub(super) fn new(tape: &Tape, pairs: Vec<FusedPair>, arrangement: Arrangement) -> Layout {
        let storages = storages(tape);
        let element = |id: ValueId| storages[id.index()].element_len();
        let scratch = |r: &Record| r.op.cuda().cuda_workspace(r.pass, &r.shapes);
        let needs = Needs::of(tape, &pairs);
        let units = Units {
            element: &element,
            scratch: &scratch,
            align: ALIGN,
            uses: &needs.uses,
            eliminated: &needs.eliminated,
            fused_scratch: &needs.fused_scratch,
            apart: arrangement == Arrangement::Separate,
        };
        let plan = Plan::with(tape, &units);
        let mut len = plan.len;
        let mut half_copies = vec![0; storages.len()];
        for (id, value) in tape.values() {
            if value.alias.is_none() && storages[id.index()] == Storage::FullAndHalf {
                half_copies[id.index()] = len;
                len += (2 * value.shape.len()).next_multiple_of(ALIGN);
            }
        }
        Layout { plan, arrangement, pairs, storages, half_copies, len }
    }

    /// Offset of the bf16 copy of `id`, if there is one: as far into its root's copy as `id` lies in its root.
    pub(super) fn half_copy(&self, tape_root: (ValueId, usize)) -> Option<usize> {
        let (root, elements) = tape_root;
        (self.storages[root.index()] == Storage::FullAndHalf)
            .then(|| self.half_copies[root.index()] + 2 * elements)
    }

    /// All records with their places in memory.
    pub(super) fn calls(&self, tape: &Tape, places: &Places) -> Vec<Call> {
        let span = |id: ValueId| DevSpan {
            ptr: places.address(self.plan.span(id).offset),
            half_copy: self.half_copy(tape.root(id)).map_or(DevPtr::NULL, |at| places.address(at)),
        };
        let written = |id: ValueId| {
            let half_copy = |at| (places.address(at), 2 * tape.shape(id).len());
            let stored = self.plan.span(tape.root(id).0).len > 0;
            let whole = (span(id).ptr, self.plan.span(id).len);
            // A value that is handed on in registers lies nowhere.
            let both = [Some(whole), self.half_copy(tape.root(id)).map(half_copy)];
            both.into_iter().flatten().filter(move |_| stored)
        };
        let mut calls: Vec<Call> = tape
            .records()
            .iter()
            .map(|r| Call {
                name: r.name.clone(),
                op: r.op.clone(),
                pass: r.pass,
                shapes: r.shapes.clone(),
                reads: r.reads.iter().map(|&id| span(id)).collect(),
                writes: r.writes.iter().map(|w| w.map(|w| w.map(span))).collect(),
                written: r.writes.iter().flatten().flat_map(|write| written(write.to)).collect(),
                work: Work::new(tape, r, &self.storages),
                next: None,
                last: None,
            })
            .collect();
        for (pair, fused_scratch) in self.pairs.iter().zip(&self.plan.fused_scratch) {
            let fused_scratch = places.address(fused_scratch.offset);
            calls[pair.first].next = Some((pair.second, fused_scratch));
            calls[pair.second].last = Some((pair.first, fused_scratch));
        }
        calls
    }
}

impl Layout {
    /// What is allocated by itself: offsets and lengths.
    pub(super) fn allocations(&self, tape: &Tape) -> Vec<(usize, usize)> {
        match self.arrangement {
            Arrangement::Planned => vec![(0, self.len)],
            Arrangement::Separate => self.owned(tape),
        }
    }

    /// Offset and length of everything that has memory of its own: values, what is handed on between calls, scratch,
    /// copies.
    fn owned(&self, tape: &Tape) -> Vec<(usize, usize)> {
        let is_owner = |id: ValueId| tape.root(id).0 == id;
        let values: Vec<ValueId> =
            tape.values().map(|(id, _)| id).filter(|id| is_owner(*id)).collect();
        let spans = values.iter().map(|id| self.plan.span(*id));
        let shared = self.plan.fused_scratch.iter().copied().chain([self.plan.workspace]);
        let copies = values.iter().filter_map(|id| {
            let at = self.half_copy((*id, 0))?;
            Some((at, 2 * tape.shape(*id).len()))
        });
        let all = spans.chain(shared).map(|span| (span.offset, span.len));
        all.chain(copies).filter(|(_, len)| *len > 0).collect()
    }
}
