//! The tape as text: records, shapes, places, the memory plan.

use std::fmt::Write;

use crate::ops::Pass;
use crate::tape::{Plan, Record, Role, Tape, ValueId};

/// A table of all records with the shape, place and size of what each writes, and the memory plan in total. `element`
/// is the size of a number in bytes.
pub fn describe(tape: &Tape, plan: &Plan, element: usize) -> String {
    let mut text = String::new();
    let mib = |len: usize| (len * element) as f64 / (1 << 20) as f64;
    let _ = writeln!(
        text,
        "{:>4} {:8} {:17} {:44} {:>22} {:>10} {:>9}",
        "#", "pass", "operation", "value", "shape", "offset", "MiB"
    );
    for (at, record) in tape.records().iter().enumerate() {
        let pass = if record.pass == Pass::Forward { "forward" } else { "backward" };
        for (i, write) in record.writes.iter().flatten().enumerate() {
            let (id, add) = (&write.to, &write.add);
            let value = tape.get(*id);
            let number = if i == 0 { at.to_string() } else { String::new() };
            let (pass, op) = if i == 0 { (pass, record.op.rule().name()) } else { ("", "") };
            let name = format!("{}{}", if *add { "+ " } else { "" }, value.name);
            let span = plan.span(*id);
            let shape = value.shape.to_string();
            let _ = writeln!(
                text,
                "{number:>4} {pass:8} {op:17} {name:44} {shape:>22} {:>10} {:>9.3}",
                span.offset,
                mib(span.len)
            );
        }
    }
    let params: usize = tape.params().iter().map(|&p| tape.shape(p).len()).sum();
    let flops: u64 = tape.records().iter().map(Record::flops).sum();
    let inputs = len_of(tape, |r| r == Role::Input);
    let _ = writeln!(
        text,
        "\n{} records, {:.2} GFLOP in convolutions and matrix products",
        tape.records().len(),
        flops as f64 / 1e9
    );
    let _ = writeln!(text, "trained parameters {params} ({:.2} MiB)", mib(params));
    let _ = writeln!(text, "inputs {:.2} MiB", mib(inputs));
    let _ = writeln!(
        text,
        "kept (parameters, gradients, moments, averages, inputs, results) {:.2} MiB",
        mib(plan.persistent_len)
    );
    let _ = writeln!(
        text,
        "arena {:.2} MiB planned, {:.2} MiB without sharing",
        mib(plan.arena_len),
        mib(plan.unshared_len)
    );
    let _ = writeln!(text, "workspace {:.2} MiB", mib(plan.workspace.len));
    let _ = writeln!(text, "total {:.2} MiB", mib(plan.len));
    text
}

fn len_of(tape: &Tape, wanted: impl Fn(Role) -> bool) -> usize {
    tape.values()
        .filter(|(_, v)| v.alias.is_none() && wanted(v.role))
        .map(|(_, v)| v.shape.len())
        .sum()
}

impl Record {
    /// Multiply-adds of a record, times two: the backward pass costs the forward pass once for each gradient it writes.
    pub fn flops(&self) -> u64 {
        let once = self.op.rule().flops(&self.shapes);
        match self.pass {
            Pass::Forward => once,
            Pass::Backward => once * self.writes.iter().take(2).flatten().count() as u64,
        }
    }
}

impl ValueId {
    /// Position in the tape's list of values.
    pub fn number(self) -> u32 {
        self.0
    }
}
