//! From lifetimes to places: values that are never alive together share memory.

use super::{Role, Tape, ValueId};
use crate::backend::Span;

/// Every place begins on a cache line of 16 elements.
const ALIGN: usize = 16;

/// Where every value lives.
#[derive(Clone, Debug)]
pub struct Plan {
    spans: Vec<Span>,
    /// Scratch of all calls, one region of the size of the largest.
    pub workspace: Span,
    /// Elements of values kept across steps or read and written from outside.
    pub persistent_len: usize,
    /// Elements of the shared arena.
    pub arena_len: usize,
    /// Elements the arena would need if nothing were shared.
    pub unshared_len: usize,
    /// Elements in all.
    pub len: usize,
}

/// A temporary value: its size and the records between which it must survive.
struct Lifetime {
    id: ValueId,
    len: usize,
    first: usize,
    last: usize,
}

impl Plan {
    /// Plans the memory of `tape`.
    pub fn new(tape: &Tape) -> Self {
        let mut spans = vec![Span::default(); tape.values.len()];
        let mut persistent_len = 0;
        for (id, value) in tape.values() {
            if value.alias.is_none() && value.role != Role::Temporary {
                spans[id.index()] = Span { offset: persistent_len, len: value.shape.len() };
                persistent_len += value.shape.len().next_multiple_of(ALIGN);
            }
        }
        let lifetimes = lifetimes(tape);
        let unshared_len = lifetimes.iter().map(|l| l.len.next_multiple_of(ALIGN)).sum();
        let arena_len = place(&lifetimes, persistent_len, &mut spans);
        let scratch = |r: &super::Record| r.op.rule().workspace(r.pass, &r.shapes);
        let workspace = tape.records.iter().map(scratch).max().unwrap_or(0).next_multiple_of(ALIGN);
        for id in 0..tape.values.len() {
            let (root, offset) = tape.root(ValueId(id as u32));
            if root.index() != id {
                spans[id] = Span {
                    offset: spans[root.index()].offset + offset,
                    len: tape.values[id].shape.len(),
                };
            }
        }
        let workspace = Span { offset: persistent_len + arena_len, len: workspace };
        Plan {
            spans,
            workspace,
            persistent_len,
            arena_len,
            unshared_len,
            len: workspace.offset + workspace.len,
        }
    }

    /// Place of `id`.
    pub fn span(&self, id: ValueId) -> Span {
        self.spans[id.index()]
    }
}

/// First and last use of every temporary value that owns memory; uses of a value that shares it count for the owner.
fn lifetimes(tape: &Tape) -> Vec<Lifetime> {
    let mut uses: Vec<Option<(usize, usize)>> = vec![None; tape.values.len()];
    for (at, record) in tape.records.iter().enumerate() {
        let written = record.writes.iter().flatten().map(|(id, _)| id);
        for id in record.reads.iter().chain(written) {
            let slot = &mut uses[tape.root(*id).0.index()];
            *slot = Some(slot.map_or((at, at), |(first, _)| (first, at)));
        }
    }
    tape.values()
        .filter(|(_, v)| v.alias.is_none() && v.role == Role::Temporary)
        .filter_map(|(id, v)| {
            uses[id.index()].map(|(first, last)| Lifetime { id, len: v.shape.len(), first, last })
        })
        .collect()
}

/// Largest first, each at the lowest place that is free during its life. Returns the length of the arena.
fn place(lifetimes: &[Lifetime], base: usize, spans: &mut [Span]) -> usize {
    let mut order: Vec<&Lifetime> = lifetimes.iter().collect();
    order.sort_by_key(|l| (std::cmp::Reverse(l.len), l.first, l.id));
    let mut placed: Vec<&Lifetime> = Vec::with_capacity(order.len());
    let mut end = 0;
    for life in order {
        let len = life.len.next_multiple_of(ALIGN);
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|p| p.first <= life.last && life.first <= p.last)
            .map(|p| (spans[p.id.index()].offset, p.len.next_multiple_of(ALIGN)))
            .collect();
        taken.sort_unstable();
        let mut at = base;
        for (offset, len_taken) in taken {
            if at + len <= offset {
                break;
            }
            at = at.max(offset + len_taken);
        }
        spans[life.id.index()] = Span { offset: at, len: life.len };
        end = end.max(at + len - base);
        placed.push(life);
    }
    end
}
