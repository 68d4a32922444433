//! Whole residual-encoder U-Nets.

use spatialssl::model::{ResEncUNet, Stage, Weights};
use spatialssl::ops::{Op, Pass};
use spatialssl::tape::{Step, Tape, ValueId};

use crate::engine::{self, gradient, is_on_device, machine, read, representation, write};
use crate::format::{Case, Expected, channels_first, channels_last};

pub(crate) fn net(case: &Case) -> ResEncUNet {
    let list = |key: &str| case.attrs[key].as_array().unwrap().clone();
    let triple = |v: &serde_json::Value| -> [usize; 3] {
        std::array::from_fn(|a| v.as_array().unwrap()[a].as_u64().unwrap() as usize)
    };
    let stages =
        list("features").into_iter().zip(list("blocks")).zip(list("kernels")).zip(list("strides"));
    ResEncUNet {
        in_channels: case.number("in_channels") as usize,
        stem_channels: case.number("stem_channels") as usize,
        stages: stages
            .map(|(((f, b), k), s)| Stage {
                features: f.as_u64().unwrap() as usize,
                blocks: b.as_u64().unwrap() as usize,
                kernel: triple(&k),
                stride: triple(&s),
            })
            .collect(),
        decoder_convs: case.number("decoder_convs") as usize,
        conv_bias: case.attrs["conv_bias"].as_bool().unwrap(),
    }
}

/// The encoder on a tape, with all gradients of its parameters.
struct Recorded {
    tape: Tape,
    weights: Weights,
    input: ValueId,
    cotangent: ValueId,
    dense: ValueId,
    grads: Vec<Option<ValueId>>,
}

impl Recorded {
    fn new(case: &Case) -> Recorded {
        let extents = |name: &str| channels_last(&case.inputs[name], 1).shape;
        let (mut tape, mut weights) = (Tape::default(), Weights::trained());
        let input = tape.input("x", &extents("input"));
        let dense = net(case).record(&mut tape, &mut weights, input).unwrap();
        tape.keep(dense);
        let cotangent = tape.input("cotangent", &extents("cotangent"));
        let grads = tape.backward(&[(dense, cotangent)], weights.ids());
        for grad in grads.iter().flatten() {
            tape.keep(*grad);
        }
        let given = case.inputs.len() - 2;
        assert_eq!(weights.names().len(), given, "{}: number of tensors", case.label);
        Recorded { tape, weights, input, cotangent, dense, grads }
    }

    /// Every value that is given, with its elements in our layout.
    fn given(&self, case: &Case) -> Vec<(ValueId, Vec<f64>)> {
        let mut all: Vec<(ValueId, Vec<f64>)> =
            [("input", self.input), ("cotangent", self.cotangent)]
                .map(|(name, id)| (id, channels_last(&case.inputs[name], 1).data))
                .into();
        for (name, &id) in self.weights.names().iter().zip(self.weights.ids()) {
            let t = &case.inputs[name];
            let data = if t.shape.len() == 5 { channels_last(t, 1).data } else { t.data.clone() };
            all.push((id, data));
        }
        all
    }

    /// Compares what `read` gives with the fixture; `judge` gets each gradient with what it should be.
    fn compare(
        &self,
        case: &Case,
        read: impl Fn(ValueId) -> Vec<f64>,
        tolerance: f64,
        mut judge: impl FnMut(&str, &Expected, &[f64]),
    ) {
        let want = &case.outputs["nir"];
        let dense = channels_first(&read(self.dense), want.shape[0], want.shape[1]);
        want.check(&format!("{} nir", case.label), &dense, tolerance);
        for (name, grad) in self.weights.names().iter().zip(&self.grads) {
            let want = &case.outputs[&format!("grad/{name}")];
            // No gradient is recorded where it is exactly 0.
            let got = grad.map_or_else(|| vec![0.0; want.shape.iter().product()], &read);
            let is_filter = want.shape.len() == 5;
            let got =
                if is_filter { channels_first(&got, want.shape[0], want.shape[1]) } else { got };
            judge(&format!("{} d {name}", case.label), want, &got);
        }
    }
}

pub(crate) fn check(case: &Case) {
    let recorded = Recorded::new(case);
    let mut step = machine(&recorded.tape);
    for (id, data) in recorded.given(case) {
        write(&mut step, id, &data);
    }
    engine::run(&mut step, &recorded.tape);
    let mut cosines = Vec::new();
    // A pre-activation this close to 0 may change sides in f32, and the gradient of everything before it with it.
    let kinks = if is_on_device() { f64::INFINITY } else { Exact::run(case, |_, _| {}).kinks };
    recorded.compare(
        case,
        |id| read(&step, id),
        representation(),
        |name, want, got| {
            if is_on_device() {
                cosines.extend(want.cosine(got));
            } else {
                let bound = if kinks < NEAR_KINK { AT_KINK } else { gradient() };
                want.check(name, got, bound);
            }
        },
    );
    if is_on_device() {
        // In bf16 some inputs of every leaky ReLU change sides: the direction remains.
        cosines.sort_by(f64::total_cmp);
        let median = cosines[cosines.len() / 2];
        assert!(median >= 0.9, "{}: median cosine of gradients {median}", case.label);
    }
}

/// Distance from a kink that f32 cannot tell from 0: some ten roundings of numbers of about 1.
const NEAR_KINK: f64 = 1e-6;
/// Relative error of a gradient in f32 where a pre-activation changes sides: one voxel of a small map (2.6e-2 was
/// seen).
const AT_KINK: f64 = 5e-2;
/// Relative error in f64 against values that are stored in f32.
const EXACT: f64 = 1e-6;

/// A run of the encoder in f64.
struct Exact {
    recorded: Recorded,
    step: Step<f64>,
    /// How near the nearest pre-activation is to 0.
    kinks: f64,
}

impl Exact {
    /// Runs the encoder on the case's values, after `change` had a chance to change them.
    fn run(case: &Case, change: impl FnOnce(&Recorded, &mut [(ValueId, Vec<f64>)])) -> Exact {
        let mut recorded = Recorded::new(case);
        let norms: Vec<_> = recorded
            .tape
            .records()
            .iter()
            .filter(|r| r.pass == Pass::Forward && matches!(r.op, Op::InstanceNorm(_)))
            .map(|r| (r.op.clone(), r.writes[0].unwrap().to))
            .collect();
        norms.iter().for_each(|(_, y)| recorded.tape.keep(*y));
        let mut given = recorded.given(case);
        change(&recorded, &mut given);
        let mut step = Step::<f64>::new(&recorded.tape);
        step.poison(f64::NAN);
        for (id, data) in given {
            step.write(id).copy_from_slice(&data);
        }
        step.run();
        let nearest = |(op, y): &(Op, ValueId)| op.rule().kink_distance(&[], &[], step.read(*y));
        let kinks = norms.iter().map(nearest).fold(f64::INFINITY, f64::min);
        Exact { recorded, step, kinks }
    }
}

/// The same fixtures on the f64 engine, a thousand times as close: what f32 misses is then rounding.
pub(crate) fn check_exactly(case: &Case) {
    let Exact { recorded, step, .. } = Exact::run(case, |_, _| {});
    recorded.compare(
        case,
        |id| step.read(id).to_vec(),
        EXACT,
        |name, want, got| {
            want.check(name, got, EXACT);
        },
    );
}

/// Moves single pre-activations, one at a time, to 1e-9 above 0, by the shift of the first norm with a leaky ReLU. The
/// distance must be found; where f32 takes the other side, its gradient is off by more than rounding, and by no more
/// than is allowed at a kink.
pub(crate) fn check_a_kink(case: &Case) {
    let plain = Exact::run(case, |_, _| {});
    assert!(plain.kinks > NEAR_KINK, "{}: the fixture itself is near a kink", case.label);
    let is_activated = |op: &Op| matches!(op, Op::InstanceNorm(norm) if norm.slope.is_some());
    let norm = plain.recorded.tape.records().iter().find(|r| is_activated(&r.op)).unwrap();
    let (y, beta) = (norm.writes[0].unwrap().to, norm.reads[2]);
    let channels = plain.step.read(beta).len();
    let outputs = plain.step.read(y).iter().enumerate();
    let mut worst = 0.0f64;
    for (at, above) in outputs.filter(|(_, v)| **v > 0.1).take(12) {
        let change = |_: &Recorded, given: &mut [(ValueId, Vec<f64>)]| {
            let (_, values) = given.iter_mut().find(|(id, _)| *id == beta).unwrap();
            values[at % channels] -= above - 1e-9;
        };
        let exact = Exact::run(case, change);
        assert!(exact.kinks < NEAR_KINK, "{}: not found: {}", case.label, exact.kinks);
        worst = worst.max(error_in_f32(case, &exact, change));
    }
    println!("worst gradient of f32 beside a kink: {worst:.1e}");
    assert!(worst <= AT_KINK, "{}: error {worst}", case.label);
    assert!(worst > 1e-5, "{}: f32 changed sides nowhere: {worst}", case.label);
}

/// Largest relative error of a gradient in f32.
fn error_in_f32(
    case: &Case,
    exact: &Exact,
    change: impl Fn(&Recorded, &mut [(ValueId, Vec<f64>)]),
) -> f64 {
    let mut given = exact.recorded.given(case);
    change(&exact.recorded, &mut given);
    let mut single = Step::<f32>::new(&exact.recorded.tape);
    for (id, data) in given {
        for (to, from) in single.write(id).iter_mut().zip(data) {
            *to = from as f32;
        }
    }
    single.run();
    let error = |&grad: &ValueId| {
        let (want, got) = (exact.step.read(grad), single.read(grad));
        let size = want.iter().map(|w| w * w).sum::<f64>().sqrt();
        let error = want.iter().zip(got).map(|(w, &g)| (w - f64::from(g)).powi(2)).sum::<f64>();
        error.sqrt() / size
    };
    exact.recorded.grads.iter().flatten().map(error).fold(0.0, f64::max)
}
