//! Appends the backward records.

use crate::backend::Write;
use crate::ops::{GradNormTap, Op, Pass};
use crate::shape::Shape;
use crate::tape::{Record, Role, Tape, ValueId};

impl Tape {
    /// Appends records that compute the gradient of `sum_i seed_i loss_i` with respect to every value that requires
    /// one, last record first. `losses` pairs each loss with the value, of its shape, that holds its weight. Returns
    /// the gradient of each value in `wanted` (none: no loss depends on it).
    ///
    /// The first record to write a gradient sets it, later ones add: nothing is cleared.
    pub fn backward(
        &mut self,
        losses: &[(ValueId, ValueId)],
        wanted: &[ValueId],
    ) -> Vec<Option<ValueId>> {
        let mut grads: Vec<Option<ValueId>> = vec![None; self.values.len()];
        for &(loss, seed) in losses {
            assert_eq!(self.shape(loss), self.shape(seed), "a seed is shaped as its loss");
            grads[loss.index()] = Some(seed);
        }
        for (record, inputs, outputs) in std::mem::take(&mut self.forward).into_iter().rev() {
            let Some(dy) = grads[outputs[0].index()] else { continue };
            let tap =
                self.taps.iter().find(|(output, _)| *output == outputs[0]).map(|(_, norm)| *norm);
            let op =
                if tap.is_some() { Op::from(GradNormTap) } else { self.records[record].op.clone() };
            let mut writes = Vec::with_capacity(inputs.len());
            for (i, &input) in inputs.iter().enumerate() {
                let wants = op.rule().differentiable(i) && self.values[input.index()].requires_grad;
                writes.push(wants.then(|| self.gradient_of(input, &mut grads)));
            }
            writes.extend(tap.map(|norm| Some(Write { to: norm, add: false })));
            if writes.iter().all(Option::is_none) {
                continue;
            }
            let saved = op.rule().saved();
            let mut reads: Vec<ValueId> = saved.inputs.iter().map(|&i| inputs[i]).collect();
            reads.extend(saved.outputs.iter().map(|&o| outputs[o]));
            reads.push(dy);
            let shapes: Vec<Shape> = inputs.iter().map(|&i| self.shape(i)).collect();
            let name = self.values[outputs[0].index()].name.clone();
            let pass = Pass::Backward;
            self.records.push(Record { name, op, pass, shapes, reads, writes, forward: record });
        }
        wanted.iter().map(|w| grads[w.index()]).collect()
    }

    /// The gradient of `value`, made at its first use, and whether to add to it.
    fn gradient_of(&mut self, value: ValueId, grads: &mut [Option<ValueId>]) -> Write<ValueId> {
        if let Some(grad) = grads[value.index()] {
            return Write { to: grad, add: true };
        }
        let name = format!("d {}", self.values[value.index()].name);
        let shape = self.shape(value);
        let grad = self.value(name, shape, Role::Temporary);
        grads[value.index()] = Some(grad);
        Write { to: grad, add: false }
    }
}
