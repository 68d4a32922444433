//! A planned tape with its memory: what runs.

use crate::backend::{Memory, Span, Write};
use crate::ops::{Op, Pass};
use crate::scalar::Scalar;
use crate::shape::Shape;
use crate::tape::{Plan, Tape, ValueId};

/// A record with its operands' places bound.
struct Call {
    op: Op,
    pass: Pass,
    shapes: Vec<Shape>,
    reads: Vec<Span>,
    writes: Vec<Option<Write<Span>>>,
    workspace: Span,
}

/// All memory and all calls of a tape. Running allocates nothing.
pub struct Step<T> {
    calls: Vec<Call>,
    memory: Memory<T>,
    plan: Plan,
}

impl<T: Scalar> Step<T> {
    /// Plans `tape` and allocates its memory, all zeros.
    pub fn new(tape: &Tape) -> Self {
        let plan = Plan::new(tape);
        let calls = tape
            .records()
            .iter()
            .map(|r| Call {
                op: r.op.clone(),
                pass: r.pass,
                shapes: r.shapes.clone(),
                reads: r.reads.iter().map(|&id| plan.span(id)).collect(),
                writes: r.writes.iter().map(|w| w.map(|w| w.map(|id| plan.span(id)))).collect(),
                workspace: Span { len: r.op.rule().workspace(r.pass, &r.shapes), ..plan.workspace },
            })
            .collect();
        Step { calls, memory: Memory::new(plan.len), plan }
    }

    /// The plan it runs by.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs all records.
    pub fn run(&mut self) {
        self.run_range(0..self.calls.len());
    }

    /// Runs the records of a range, for example only those of the forward pass.
    pub fn run_range(&mut self, range: std::ops::Range<usize>) {
        for call in &self.calls[range] {
            let mut io = self.memory.bind(&call.shapes, &call.reads, &call.writes, call.workspace);
            match call.pass {
                Pass::Forward => call.op.cpu::<T>().forward(&mut io),
                Pass::Backward => call.op.cpu::<T>().backward(&mut io),
            }
        }
    }

    /// Elements of a value: an input, parameter, state or result (a temporary value holds what the last record that
    /// used its place left there).
    pub fn read(&self, id: ValueId) -> &[T] {
        self.memory.get(self.plan.span(id))
    }

    /// Elements of a value, to write.
    pub fn write(&mut self, id: ValueId) -> &mut [T] {
        self.memory.get_mut(self.plan.span(id))
    }

    /// Overwrites the arena and the scratch with `value`: a test that poisons them with NaN sees any read of
    /// something nobody wrote.
    pub fn poison(&mut self, value: T) {
        let len = self.plan.len - self.plan.persistent_len;
        self.memory.get_mut(Span { offset: self.plan.persistent_len, len }).fill(value);
    }
}
