//! Pairs of calls of which the first does a part of the second's work on a device: which there are on a tape.

use crate::backend::Write;
use crate::ops::{Fusion, FusionCall, FusionCandidate};
use crate::tape::{Record, Role, Tape, ValueId};

/// Two records that are fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FusedPair {
    pub(super) first: usize,
    pub(super) second: usize,
    pub(super) fusion: Fusion,
}

/// Numbers of the values a record reads and writes; names of one and the same memory count as one value.
struct Operands {
    reads: Vec<u32>,
    writes: Vec<Option<Write<u32>>>,
}

impl Operands {
    fn of(tape: &Tape, record: &Record) -> Operands {
        let number = |id: ValueId| whole(tape, id).number();
        Operands {
            reads: record.reads.iter().map(|&id| number(id)).collect(),
            writes: record.writes.iter().map(|w| w.map(|w| w.map(number))).collect(),
        }
    }

    fn writes(&self, value: u32) -> bool {
        self.writes.iter().flatten().any(|write| write.to == value)
    }
}

/// The value whose memory is that of `id`, if it is all of it.
fn whole(tape: &Tape, id: ValueId) -> ValueId {
    let (root, offset) = tape.root(id);
    if offset == 0 && tape.shape(root).len() == tape.shape(id).len() { root } else { id }
}

/// All pairs that the operations of `tape` agree to join. A record is the first of one pair at most, and the second of
/// one.
pub(super) fn pairs(tape: &Tape) -> Vec<FusedPair> {
    let operands: Vec<Operands> = tape.records.iter().map(|r| Operands::of(tape, r)).collect();
    let mut found: Vec<FusedPair> = Vec::new();
    for first in 0..operands.len() {
        let reader = next_reader(&operands, first);
        let follower = (first + 1 < operands.len()).then_some(first + 1);
        let candidates = reader.into_iter().chain(follower.filter(|f| Some(*f) != reader));
        for second in candidates {
            if found.iter().any(|pair| pair.second == second) {
                continue;
            }
            if let Some(fusion) = ask(tape, &operands, first, second) {
                found.push(FusedPair { first, second, fusion });
                break;
            }
        }
    }
    found
}

/// The next record that reads a value which `first` writes, if no other writes that value before.
fn next_reader(operands: &[Operands], first: usize) -> Option<usize> {
    let written: Vec<u32> = operands[first].writes.iter().flatten().map(|write| write.to).collect();
    for (at, record) in operands.iter().enumerate().skip(first + 1) {
        if written.iter().any(|value| record.reads.contains(value)) {
            return Some(at);
        }
        if written.iter().any(|&value| record.writes(value)) {
            return None;
        }
    }
    None
}

fn ask(tape: &Tape, operands: &[Operands], first: usize, second: usize) -> Option<Fusion> {
    let half = |at: usize| FusionCall {
        op: &tape.records[at].op,
        pass: tape.records[at].pass,
        shapes: &tape.records[at].shapes,
        reads: &operands[at].reads,
        writes: &operands[at].writes,
    };
    let sole_reader = |value: u32| {
        let readers = operands.iter().filter(|o| o.reads.contains(&value)).count();
        let owner = &tape.values[value as usize];
        readers == 1 && owner.role == Role::Temporary && owner.alias.is_none()
    };
    let pair = FusionCandidate {
        first: half(first),
        second: half(second),
        adjacent: second == first + 1,
        sole_reader: &sole_reader,
    };
    let fusion = tape.records[first].op.cuda().fuses(&pair)?;
    assert!(
        pair.adjacent || (!fusion.shares_operands && fusion.eliminated.is_none()),
        "{} fuses {} although others run in between",
        tape.records[first].name,
        tape.records[second].name
    );
    Some(fusion)
}

/// What the pairs ask of the plan of memory.
#[derive(Default)]
pub(super) struct Needs {
    pub(super) uses: Vec<(ValueId, usize)>,
    pub(super) eliminated: Vec<ValueId>,
    pub(super) fused_scratch: Vec<(usize, usize, usize)>,
}

impl Needs {
    pub(super) fn of(tape: &Tape, pairs: &[FusedPair]) -> Needs {
        let mut needs = Needs::default();
        for &FusedPair { first, second, fusion } in pairs {
            needs.fused_scratch.push((first, second, fusion.fused_scratch));
            needs.eliminated.extend(fusion.eliminated.map(ValueId));
            if fusion.shares_operands {
                for (at, other) in [(first, second), (second, first)] {
                    let record = &tape.records[other];
                    let written = record.writes.iter().flatten().map(|write| write.to);
                    needs
                        .uses
                        .extend(record.reads.iter().copied().chain(written).map(|id| (id, at)));
                }
            }
        }
        needs
    }
}
