//! One operation of the table, recorded, planned and bound to poisoned memory.

use spatialssl::ops::{Op, SCALARS, scalar};
use spatialssl::random::philox::{Purpose, SampleKey};
use spatialssl::scalar::Scalar;
use spatialssl::tape::{Init, Step, Tape, ValueId};

use super::cases::Case;

/// An operation with memory of its own. Each of its `times` recordings reads the same inputs and has an output
/// and a gradient of that output.
pub(crate) struct Bound<T> {
    pub(crate) step: Step<T>,
    pub(crate) inputs: Vec<ValueId>,
    /// The first output of each recording, then the further outputs of each.
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) seeds: Vec<ValueId>,
    /// Gradients of the inputs; none where there is none, or none was asked for.
    pub(crate) grads: Vec<Option<ValueId>>,
    forward: usize,
    records: usize,
}

/// Whether the operation is one of those that have no backward pass.
pub(crate) fn is_update(op: &Op) -> bool {
    matches!(op, Op::AdamW(_) | Op::Ema(_) | Op::GradNorm(_))
}

/// An operation on a tape of its own, `times` times with the same inputs, with the gradients of those inputs for which
/// `wanted` says so.
pub(crate) struct Recorded {
    pub(crate) tape: Tape,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) seeds: Vec<ValueId>,
    pub(crate) grads: Vec<Option<ValueId>>,
    /// Number of forward records.
    pub(crate) forward: usize,
}

impl Recorded {
    pub(crate) fn new(case: &Case, times: usize, wanted: impl Fn(usize) -> bool) -> Self {
        let mut tape = Tape::default();
        let update = is_update(&case.op);
        let value = |(i, dims): (usize, &Vec<usize>)| {
            let name = format!("input {i}");
            if wanted(i) && !update {
                tape.param(name, dims, Init::Constant(0.0))
            } else if update {
                tape.input(name, dims)
            } else {
                tape.state(name, dims)
            }
        };
        let inputs: Vec<ValueId> = case.inputs.iter().enumerate().map(value).collect();
        let mut outputs = Vec::new();
        let mut further: Vec<ValueId> = Vec::new();
        for _ in 0..times {
            let made = record(&mut tape, case, &inputs);
            outputs.push(made[0]);
            further.extend(&made[1..]);
        }
        let forward = tape.records().len();
        let (mut seeds, mut grads) = (Vec::new(), vec![None; inputs.len()]);
        if !update {
            for &y in &outputs {
                let dims = tape.shape(y).dims().to_vec();
                seeds.push(tape.input("dy", &dims));
            }
            let losses: Vec<_> = outputs.iter().copied().zip(seeds.iter().copied()).collect();
            grads = tape.backward(&losses, &inputs);
            for &grad in grads.iter().flatten() {
                tape.keep(grad);
            }
        }
        outputs.extend(further);
        Recorded { tape, inputs, outputs, seeds, grads, forward }
    }
}

impl<T: Scalar> Bound<T> {
    /// Records the operation as [`Recorded::new`] does. All memory that the operation has to write first is NaN.
    pub(crate) fn new(case: &Case, times: usize, wanted: impl Fn(usize) -> bool) -> Self {
        let Recorded { tape, inputs, outputs, seeds, grads, forward } =
            Recorded::new(case, times, wanted);
        let mut step = Step::new(&tape);
        let nan = T::from_f64(f64::NAN);
        step.poison(nan);
        if !is_update(&case.op) {
            for &id in outputs.iter().chain(grads.iter().flatten()) {
                step.write(id).fill(nan);
            }
        }
        let records = tape.records().len();
        Bound { step, inputs, outputs, seeds, grads, forward, records }
    }

    /// Runs the forward pass: nothing, for an operation whose output is its input.
    pub(crate) fn forward(&mut self) {
        self.step.run_range(0..self.forward);
    }

    /// Runs the backward pass: nothing, for an update.
    pub(crate) fn backward(&mut self) {
        self.step.run_range(self.forward..self.records);
    }

    /// Writes a value.
    pub(crate) fn set(&mut self, id: ValueId, data: &[f64]) {
        let to = self.step.write(id);
        assert_eq!(to.len(), data.len(), "elements of a value");
        for (to, &from) in to.iter_mut().zip(data) {
            *to = T::from_f64(from);
        }
    }

    /// Writes all inputs.
    pub(crate) fn feed(&mut self, data: &[Vec<f64>]) {
        for (i, data) in data.iter().enumerate() {
            self.set(self.inputs[i], data);
        }
    }
}

/// Records the operation once; returns its outputs, which stay readable.
fn record(tape: &mut Tape, case: &Case, inputs: &[ValueId]) -> Vec<ValueId> {
    match &case.op {
        Op::GradNormTap(_) => {
            let (y, norm) = tape.tap("y", inputs[0]).unwrap();
            vec![y, norm]
        }
        Op::AdamW(_) | Op::Ema(_) => {
            let dims = case.inputs.last().unwrap();
            let count = if matches!(case.op, Op::Ema(_)) { 1 } else { 3 };
            let written: Vec<ValueId> =
                (0..count).map(|i| tape.state(format!("state {i}"), dims)).collect();
            tape.update("update", case.op.clone(), inputs, &written).unwrap();
            written
        }
        _ => {
            let made = tape.record_all("y", case.op.clone(), inputs).unwrap();
            for &y in &made {
                tape.keep(y);
            }
            made
        }
    }
}

/// Inputs of a case: normal numbers, except scales around 1, boxes that fit, the scalars of an update, and values
/// held away from where a derivative jumps. `draw` numbers the attempts.
pub(crate) fn data(case: &Case, draw: u32) -> Vec<Vec<f64>> {
    case.inputs
        .iter()
        .enumerate()
        .map(|(i, dims)| {
            let len = dims.iter().product();
            let normal = normals(draw, i as u32, len);
            match (&case.op, i) {
                (Op::AdamW(_) | Op::Ema(_), 0) => {
                    let mut scalars = vec![0.0; SCALARS];
                    scalars[scalar::LR] = 1e-3;
                    scalars[scalar::BIAS1] = 0.1;
                    scalars[scalar::BIAS2] = 1e-3;
                    scalars[scalar::EMA] = 0.25;
                    scalars
                }
                (Op::AdamW(_), 1) => vec![2.0, 0.5],
                (Op::InstanceNorm(_), 1) => normal.iter().map(|x| 1.0 + 0.25 * x).collect(),
                (Op::LeakyRelu(_), 0) => normal.iter().map(|x| x + 0.01 * x.signum()).collect(),
                (Op::SubView(op), 0) => {
                    let view = &case.inputs[1][1..4];
                    let room = |k: usize| (view[k % 3] - op.size[k % 3] + 1) as f64;
                    let mut stream = key(draw, 0).shared(Purpose::Start);
                    (0..len).map(|k| (stream.uniform_f64() * room(k)).floor()).collect()
                }
                // Blocks that count and blocks that do not, at least one that does.
                (Op::MaskedMse(_), 2) | (Op::HideBlocks(_), 1) => {
                    (0..len).map(|k| f64::from(u8::from(k == 0 || normal[k] > 0.0))).collect()
                }
                // Rows as a whole far from 0, where an exponential overflows unless the largest is taken off.
                (Op::CrossEntropy(_), 0) => {
                    let classes = case.inputs[2][0];
                    let shifts = normals(draw, 100, len / classes);
                    normal.iter().enumerate().map(|(k, x)| x + 60.0 * shifts[k / classes]).collect()
                }
                // Classes, and now and then a number on either side that is none; the first row has one.
                (Op::CrossEntropy(_), 1) => {
                    let classes = case.inputs[2][0];
                    let mut stream = key(draw, 1).shared(Purpose::Start);
                    let first = stream.below(classes) as f64;
                    let class = |_| stream.below(classes + 2) as f64 - 1.0;
                    std::iter::once(first).chain((1..len).map(class)).collect()
                }
                (Op::CrossEntropy(_), 2) => normal.iter().map(|x| 0.5 + x.abs()).collect(),
                _ => normal,
            }
        })
        .collect()
}

fn key(draw: u32, tensor: u32) -> SampleKey {
    SampleKey { seed: 20_260_101, step: u64::from(draw), sample: tensor }
}

/// Independent normal numbers of tensor `tensor`.
pub(crate) fn normals(draw: u32, tensor: u32, len: usize) -> Vec<f64> {
    let stream = key(draw, tensor).shared(Purpose::Weights);
    (0..len).map(|i| f64::from(stream.normal_at(i as u32))).collect()
}
