//! A second opinion on the memory plan, from nothing but records and places.

use std::collections::BTreeMap;
use std::ops::Range;

use spatialssl::tape::{Role, ValueId};

use crate::common::program::Run;

/// Where a value lives and between which records it must survive.
struct Life {
    id: ValueId,
    place: Range<usize>,
    records: Range<usize>,
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

pub(crate) fn check(run: &Run<f32>) {
    let lives = lives(run);
    let plan = run.step.plan();
    let work = plan.workspace.offset..plan.workspace.offset + plan.workspace.len;
    assert_eq!(plan.len, work.end, "the workspace comes last");
    for (i, a) in lives.iter().enumerate() {
        let name = &run.program.tape.get(a.id).name;
        assert!(a.place.end <= plan.persistent_len + plan.arena_len, "{name} leaves the arena");
        assert!(a.place.start >= plan.persistent_len, "{name} lies among what is kept");
        assert!(!overlap(&a.place, &work), "{name} lies in the workspace");
        for b in &lives[i + 1..] {
            let clash = overlap(&a.place, &b.place) && overlap(&a.records, &b.records);
            assert!(!clash, "{name} and {} share memory", run.program.tape.get(b.id).name);
        }
    }
    let alive = |at: usize| -> usize {
        lives.iter().filter(|l| l.records.contains(&at)).map(|l| l.place.len()).sum()
    };
    let peak = (0..run.program.tape.records().len()).map(alive).max().unwrap();
    println!("arena {} elements, most alive at once {peak}", plan.arena_len);
    assert!(plan.arena_len >= peak, "an arena smaller than what it must hold at once");
    assert!(plan.arena_len * 10 <= peak * 13, "{} for a peak of {peak}", plan.arena_len);
    check_kept(run);
    check_reads(run);
}

/// The value whose memory `id` names: taps are second names of the first dense representation.
fn owner(run: &Run<f32>, id: ValueId) -> ValueId {
    let is_probe = run.program.tape.get(id).name.starts_with("dense.");
    if is_probe { run.program.dense.values[0] } else { id }
}

/// Temporary values outside the packed blocks, each from the first record that names it to the last.
fn lives(run: &Run<f32>) -> Vec<Life> {
    let (tape, plan) = (&run.program.tape, run.step.plan());
    let mut all: BTreeMap<ValueId, Range<usize>> = BTreeMap::new();
    for (at, record) in tape.records().iter().enumerate() {
        let written = record.writes.iter().flatten().map(|write| write.to);
        for id in record.reads.iter().copied().chain(written) {
            all.entry(owner(run, id)).or_insert(at..at + 1).end = at + 1;
        }
    }
    let packed = |id: &ValueId| run.program.groups.iter().any(|b| b.param_grads.contains(id));
    all.into_iter()
        .filter(|(id, _)| tape.get(*id).role == Role::Temporary && !packed(id))
        .map(|(id, records)| {
            let span = plan.span(id);
            Life { id, place: span.offset..span.offset + span.len, records }
        })
        .collect()
}

/// What is kept lies apart, unless one lies within the other: a member of a packed block.
fn check_kept(run: &Run<f32>) {
    let (tape, plan) = (&run.program.tape, run.step.plan());
    let kept: Vec<(ValueId, Range<usize>)> = tape
        .values()
        .filter(|(_, v)| v.role != Role::Temporary)
        .map(|(id, _)| (id, plan.span(id).offset..plan.span(id).offset + plan.span(id).len))
        .collect();
    let packed: Vec<ValueId> = run
        .program
        .groups
        .iter()
        .flat_map(|b| [b.packed, b.grads, b.m, b.v])
        .chain([run.program.average])
        .collect();
    for (i, (a, place)) in kept.iter().enumerate() {
        assert!(place.end <= plan.persistent_len, "{} is kept", tape.get(*a).name);
        for (b, other) in &kept[i + 1..] {
            let member = packed.contains(a) != packed.contains(b);
            let within = (place.start <= other.start && other.end <= place.end)
                || (other.start <= place.start && place.end <= other.end);
            let fine = !overlap(place, other) || (member && within);
            assert!(fine, "{} and {} share memory", tape.get(*a).name, tape.get(*b).name);
        }
    }
}

/// Replays all records on a map of who wrote what last: a temporary value must be read, and added to, where it was
/// the last to be written.
fn check_reads(run: &Run<f32>) {
    let (tape, plan) = (&run.program.tape, run.step.plan());
    // From the start of each range to its end and its writer; ranges do not overlap.
    let mut memory: BTreeMap<usize, (usize, ValueId)> = BTreeMap::new();
    for record in tape.records() {
        let added = record.writes.iter().flatten().filter(|w| w.add).map(|w| w.to);
        for id in record.reads.iter().copied().chain(added) {
            let id = owner(run, id);
            if tape.get(id).role == Role::Temporary {
                let span = plan.span(id);
                let holds = memory.get(&span.offset) == Some(&(span.offset + span.len, id));
                assert!(holds, "{} reads {} overwritten", record.name, tape.get(id).name);
            }
        }
        for spatialssl::backend::Write { to: id, .. } in record.writes.iter().flatten() {
            let span = plan.span(*id);
            let place = span.offset..span.offset + span.len;
            memory.retain(|&start, (end, _)| !overlap(&(start..*end), &place));
            memory.insert(place.start, (place.end, owner(run, *id)));
        }
    }
}
