//! From lifetimes to places: values that are never alive together share memory.

use crate::backend::Span;
use crate::tape::{Record, Role, Tape, ValueId};

/// What a plan counts in, and how much of it values and calls need.
pub struct Units<'a> {
    /// Units of one element of a value (asked of values that own memory).
    pub element: &'a dyn Fn(ValueId) -> usize,
    /// Units of scratch a record needs.
    pub scratch: &'a dyn Fn(&Record) -> usize,
    /// Every place begins at a multiple of this.
    pub align: usize,
    /// Further lifetimes of values: used at this record, too.
    pub uses: &'a [(ValueId, usize)],
    /// Values that are never written or read in truth.
    pub eliminated: &'a [ValueId],
    /// Memory between two records: first, last, units.
    pub fused_scratch: &'a [(usize, usize, usize)],
    /// Whether values share no memory even if they are never alive together.
    pub apart: bool,
}

/// Where every value lives. Everything is counted in the units it was planned in: elements on the CPU, where all have
/// the same size, bytes on a device.
#[derive(Clone, Debug)]
pub struct Plan {
    spans: Vec<Span>,
    /// Memory between two records, in the order it was asked for.
    pub fused_scratch: Vec<Span>,
    /// Scratch of all calls, one region of the size of the largest.
    pub workspace: Span,
    /// Values written from outside before each run.
    pub inputs: Span,
    /// Values read from outside after a run.
    pub results: Span,
    /// Length of values kept across steps or read and written from outside.
    pub persistent_len: usize,
    /// Length of the shared arena.
    pub arena_len: usize,
    /// Length the arena would have if nothing were shared.
    pub unshared_len: usize,
    /// Length in all.
    pub len: usize,
}

/// A temporary value: its size and the records between which it must survive.
struct Lifetime {
    /// Index of its place.
    id: usize,
    len: usize,
    first: usize,
    last: usize,
}

impl Plan {
    /// Plans the memory of `tape` in elements, each value on a cache line of 16 of them.
    pub fn new(tape: &Tape) -> Self {
        let scratch = |r: &Record| r.op.rule().workspace(r.pass, &r.shapes);
        let units = Units {
            element: &|_| 1,
            scratch: &scratch,
            align: 16,
            uses: &[],
            eliminated: &[],
            fused_scratch: &[],
            apart: false,
        };
        Plan::with(tape, &units)
    }

    /// Plans the memory of `tape` in the units given.
    pub fn with(tape: &Tape, units: &Units<'_>) -> Self {
        let mut spans = vec![Span::default(); tape.values.len()];
        let owns = |id: ValueId| tape.values[id.index()].alias.is_none();
        let len_of = |id: ValueId| tape.shape(id).len() * (units.element)(id);
        let mut end = 0;
        let mut lay = |wanted: &dyn Fn(Role) -> bool| {
            let offset = end;
            for (id, value) in tape.values().filter(|(id, v)| owns(*id) && wanted(v.role)) {
                spans[id.index()] =
                    Span { offset: end, len: value.shape.len() * (units.element)(id) };
                end += spans[id.index()].len.next_multiple_of(units.align);
            }
            Span { offset, len: end - offset }
        };
        let inputs = lay(&|role| role == Role::Input);
        let results = lay(&|role| role == Role::Result);
        lay(&|role| matches!(role, Role::Param(_) | Role::State));
        let persistent_len = end;
        let mut lifetimes = lifetimes(tape, &len_of, units);
        spans.resize(tape.values.len() + units.fused_scratch.len(), Span::default());
        lifetimes.extend(units.fused_scratch.iter().enumerate().map(|(i, &(first, last, len))| {
            Lifetime { id: tape.values.len() + i, len, first, last }
        }));
        if units.apart {
            lifetimes.iter_mut().for_each(|l| (l.first, l.last) = (0, tape.records.len()));
        }
        let unshared_len = lifetimes.iter().map(|l| l.len.next_multiple_of(units.align)).sum();
        let arena_len = place(&lifetimes, persistent_len, units.align, &mut spans);
        let scratch = tape.records.iter().map(units.scratch).max().unwrap_or(0);
        for id in 0..tape.values.len() {
            let (root, offset) = tape.root(ValueId(id as u32));
            if root.index() != id {
                let element = (units.element)(root);
                spans[id] = Span {
                    offset: spans[root.index()].offset + offset * element,
                    len: tape.values[id].shape.len() * element,
                };
            }
        }
        let fused_scratch = spans.split_off(tape.values.len());
        let workspace =
            Span { offset: persistent_len + arena_len, len: scratch.next_multiple_of(units.align) };
        let len = workspace.offset + workspace.len;
        Plan {
            spans,
            fused_scratch,
            workspace,
            inputs,
            results,
            persistent_len,
            arena_len,
            unshared_len,
            len,
        }
    }

    /// Place of `id`.
    pub fn span(&self, id: ValueId) -> Span {
        self.spans[id.index()]
    }
}

/// First and last use of every temporary value that owns memory; uses of a value that shares it count for the owner.
fn lifetimes(tape: &Tape, len_of: &dyn Fn(ValueId) -> usize, units: &Units<'_>) -> Vec<Lifetime> {
    let mut uses: Vec<Option<(usize, usize)>> = vec![None; tape.values.len()];
    let mut use_at = |id: ValueId, at: usize| {
        let slot = &mut uses[tape.root(id).0.index()];
        *slot = Some(slot.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
    };
    for (at, record) in tape.records.iter().enumerate() {
        let written = record.writes.iter().flatten().map(|write| &write.to);
        record.reads.iter().chain(written).for_each(|&id| use_at(id, at));
    }
    units.uses.iter().for_each(|&(id, at)| use_at(id, at));
    units.eliminated.iter().for_each(|id| uses[id.index()] = None);
    tape.values()
        .filter(|(_, v)| v.alias.is_none() && v.role == Role::Temporary)
        .filter_map(|(id, _)| {
            let id_at = id.index();
            uses[id_at].map(|(first, last)| Lifetime { id: id_at, len: len_of(id), first, last })
        })
        .collect()
}

/// Largest first, each at the lowest place that is free during its life. Returns the length of the arena.
fn place(lifetimes: &[Lifetime], base: usize, align: usize, spans: &mut [Span]) -> usize {
    let mut order: Vec<&Lifetime> = lifetimes.iter().collect();
    order.sort_by_key(|l| (std::cmp::Reverse(l.len), l.first, l.id));
    let mut placed: Vec<&Lifetime> = Vec::with_capacity(order.len());
    let mut end = 0;
    for life in order {
        let len = life.len.next_multiple_of(align);
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|p| p.first <= life.last && life.first <= p.last)
            .map(|p| (spans[p.id].offset, p.len.next_multiple_of(align)))
            .collect();
        taken.sort_unstable();
        let mut at = base;
        for (offset, len_taken) in taken {
            if at + len <= offset {
                break;
            }
            at = at.max(offset + len_taken);
        }
        spans[life.id] = Span { offset: at, len: life.len };
        end = end.max(at + len - base);
        placed.push(life);
    }
    end
}
