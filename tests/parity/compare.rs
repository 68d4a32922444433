//! One case on both backends, and how far they may be apart.
//!
//! The reference is f64 on the numbers the device sees: activations and filters rounded to bf16. A sum of K terms in
//! f32 is off by at most about `4 sqrt(K) u sum |terms|` (u = 2^-24), a bf16 store by half a unit in the last place, up
//! to `2^-8` of the value. Where every term is a product of an element of each input, `sum |terms|` is the same
//! operation on absolute values; elsewhere the largest magnitude of the whole array stands for it. Whole numbers are
//! exact in any order: only the one rounding of the store is left.

use std::io::Write;

use half::bf16;
use spatialssl::backend::cuda::Storage;
use spatialssl::driver::Device;
use spatialssl::ops::Op;
use spatialssl::scalar::Scalar;
use spatialssl::tape::{Arrangement, CudaStep, Step, ValueId};

use crate::common::bound::{Recorded, data, is_update, normals};
use crate::common::cases::Case;
use crate::common::emulator::{Order, emulator};

/// What the inputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Small whole numbers.
    Whole,
    /// Normal numbers, of the draw given.
    Normal(u32),
}

/// Unit of f32 and of bf16 rounding.
const U32: f64 = 1.0 / (1u64 << 24) as f64;
const U16: f64 = 1.0 / 256.0;
/// What the f64 reference leaves where terms of about 1 cancel exactly.
const ZERO: f64 = 1e-14;

/// A value that is compared.
struct Output {
    what: String,
    id: ValueId,
    storage: Storage,
}

/// Operations whose results on whole numbers are whole or exact fractions: the device must give the rounded exact
/// result.
fn is_exact(case: &Case) -> bool {
    match &case.op {
        Op::AvgPool(op) => op.window.iter().product::<usize>().is_power_of_two(),
        Op::GlobalPool(_) => case.inputs[0][1..4].iter().product::<usize>().is_power_of_two(),
        op => matches!(
            op,
            Op::Conv3d(_)
                | Op::ConvTranspose3d(_)
                | Op::Concat(_)
                | Op::HideBlocks(_)
                | Op::Linear(_)
                | Op::Pairwise(_)
                | Op::ResidualAdd(_)
                | Op::SubView(_)
        ),
    }
}

/// Operations that are linear in each input: their error is bounded by the same operation on absolute values.
fn is_multilinear(op: &Op) -> bool {
    matches!(op, Op::Conv3d(_) | Op::ConvTranspose3d(_) | Op::Linear(_))
}

/// A norm with an activation: at whole numbers its pre-activation is often exactly 0, where the derivative jumps and
/// either side is right.
fn has_kink_at_whole_numbers(op: &Op) -> bool {
    matches!(op, Op::InstanceNorm(norm) if norm.slope.is_some())
}

/// Losses of differences: an error of u in a number of size m makes one of `m sqrt(loss)` u in the square of a
/// difference.
fn is_loss(op: &Op) -> bool {
    matches!(
        op,
        Op::GapAxisLoss(_)
            | Op::GapNormLoss(_)
            | Op::VectorLoss(_)
            | Op::RouteLoss(_)
            | Op::MaskedMse(_)
    )
}

/// Largest of the two terms whose difference is a cosine's gradient: the seed over the length of the vector.
fn cosine_terms(case: &Case, x: &[f64], seeds: &[Vec<f64>]) -> f64 {
    let channels = case.inputs[0][4];
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let shortest = x.chunks(channels).map(length).fold(f64::INFINITY, f64::min);
    seeds.iter().flatten().fold(0.0f64, |m, s| m.max(s.abs())) / shortest.max(1e-8)
}

fn round(values: &mut [f64], storage: Storage) {
    if storage == Storage::Full {
        values.iter_mut().for_each(|x| *x = f64::from(*x as f32));
    } else {
        values.iter_mut().for_each(|x| *x = f64::from(bf16::from_f64(*x).to_f32()));
    }
}

/// Inputs and output gradients as the device holds them.
fn inputs(case: &Case, recorded: &Recorded, numbers: Numbers) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let rule = case.op.rule();
    let draw = match numbers {
        Numbers::Whole => 0,
        Numbers::Normal(draw) => draw,
    };
    let seeds = recorded
        .seeds
        .iter()
        .enumerate()
        .map(|(k, &seed)| normals(draw, 1000 + k as u32, recorded.tape.shape(seed).len()));
    let (mut data, mut seeds) = (data(case, draw), seeds.collect::<Vec<_>>());
    let keep = usize::from(matches!(case.op, Op::SubView(_) | Op::AdamW(_) | Op::Ema(_)));
    if numbers == Numbers::Whole {
        let all = data.iter_mut().skip(keep).chain(&mut seeds);
        all.flatten().for_each(|x| *x = (*x * 1.5).round().clamp(-4.0, 4.0));
    }
    for (i, values) in data.iter_mut().enumerate() {
        round(values, rule.storage(i));
    }
    let storage = rule.output_storage(0).of_gradient();
    seeds.iter_mut().for_each(|seed| round(seed, storage));
    (data, seeds)
}

/// Runs the case on the CPU; the outputs' elements.
fn cpu<T: Scalar>(
    recorded: &Recorded,
    data: &[Vec<f64>],
    seeds: &[Vec<f64>],
    outputs: &[Output],
    before: &[f64],
) -> Vec<Vec<f64>> {
    let mut step = Step::<T>::new(&recorded.tape);
    let mut set = |id: ValueId, values: &[f64]| {
        for (to, &from) in step.write(id).iter_mut().zip(values) {
            *to = T::from_f64(from);
        }
    };
    if !before.is_empty() {
        set(recorded.outputs[0], before);
    }
    let all = recorded.inputs.iter().zip(data).chain(recorded.seeds.iter().zip(seeds));
    all.for_each(|(&id, values)| set(id, values));
    step.run();
    let read = |o: &Output| step.read(o.id).iter().map(|x| x.to_f64()).collect();
    outputs.iter().map(read).collect()
}

/// Runs the case on the device, everything it has to write being NaN before.
fn cuda(
    case: &Case,
    recorded: &Recorded,
    data: &[Vec<f64>],
    seeds: &[Vec<f64>],
    outputs: &[Output],
    before: &[f64],
) -> Vec<Vec<f64>> {
    let fail = |e: spatialssl::Error| -> ! {
        panic!("{} {}: {e}\n{}", case.op.rule().name(), case.name, emulator().last_report())
    };
    let device = Device::open(0, false).unwrap_or_else(|e| fail(e));
    // Each value ends at a guard page: an access behind it is a fault instead of one in the next value or in padding.
    let apart = Arrangement::Separate;
    let mut step =
        CudaStep::arranged(&recorded.tape, device, false, apart).unwrap_or_else(|e| fail(e));
    let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
    for output in outputs {
        let nan = vec![f32::NAN; recorded.tape.shape(output.id).len()];
        step.write(output.id, &nan).unwrap_or_else(|e| fail(e));
    }
    if !before.is_empty() {
        step.write(recorded.outputs[0], &narrow(before)).unwrap_or_else(|e| fail(e));
        for output in &outputs[1..] {
            let zeros = vec![0.0; recorded.tape.shape(output.id).len()];
            step.write(output.id, &zeros).unwrap_or_else(|e| fail(e));
        }
    }
    let all = recorded.inputs.iter().zip(data).chain(recorded.seeds.iter().zip(seeds));
    for (&id, values) in all {
        step.write(id, &narrow(values)).unwrap_or_else(|e| fail(e));
    }
    step.run_range(0..step.len()).unwrap_or_else(|e| fail(e));
    let read = |o: &Output| {
        let values = step.read(o.id).unwrap_or_else(|e| fail(e));
        values.into_iter().map(f64::from).collect()
    };
    outputs.iter().map(read).collect()
}

/// Everything a case writes: outputs of the first recording, or of an update all its state, then gradients.
fn outputs(case: &Case, recorded: &Recorded) -> Vec<Output> {
    let rule = case.op.rule();
    let mut all: Vec<Output> = Vec::new();
    let first = &recorded.tape.records().first();
    let written = first.map_or(&[][..], |r| &r.writes[..]);
    for (i, write) in written.iter().flatten().enumerate() {
        let id = write.to;
        let kept = recorded.outputs.contains(&id) || is_update(&case.op);
        if kept && !matches!(case.op, Op::GradNormTap(_)) {
            all.push(Output { what: format!("output {i}"), id, storage: rule.output_storage(i) });
        }
    }
    for (i, grad) in recorded.grads.iter().enumerate() {
        if let Some(id) = *grad {
            let storage = rule.storage(i).of_gradient();
            all.push(Output { what: format!("gradient {i}"), id, storage });
        }
    }
    all
}

/// Longest sum of the case, generously: all elements of its largest input.
fn terms(case: &Case) -> f64 {
    case.inputs.iter().map(|dims| dims.iter().product::<usize>()).max().unwrap_or(1) as f64
}

/// Whether a case is asked for: `SPATIALSSL_CASES` may hold beginnings of "<operation> <case>", separated by
/// semicolons, for runs that have time for a few only (mutated PTX, compute-sanitizer). What is run is then said.
fn is_wanted(case: &Case) -> bool {
    let Some(wanted) = std::env::var_os("SPATIALSSL_CASES") else { return true };
    let name = format!("{} {}", case.op.rule().name(), case.name);
    let found = wanted.to_string_lossy().split(';').any(|w| name.starts_with(w.trim()));
    if found {
        // Not by a macro: those print only where a test fails.
        let _ = writeln!(std::io::stderr(), "case: {name}");
    }
    found
}

/// Compares the backends on a case whose operation is recorded `times` times; gradients then add up. The device runs it
/// in each of `orders`.
pub(crate) fn check(case: &Case, numbers: Numbers, times: usize, orders: &[Order]) {
    if !is_wanted(case) {
        return;
    }
    if numbers == Numbers::Whole && has_kink_at_whole_numbers(&case.op) {
        return;
    }
    let recorded = Recorded::new(case, if is_update(&case.op) { 1 } else { times }, |_| true);
    let outputs = outputs(case, &recorded);
    let (data, seeds) = inputs(case, &recorded, numbers);
    let before = match case.op {
        Op::AdamW(_) | Op::Ema(_) => {
            let mut values = normals(0, 2000, recorded.tape.shape(recorded.outputs[0]).len());
            round(&mut values, Storage::Full);
            values
        }
        _ => Vec::new(),
    };
    let exact = numbers == Numbers::Whole && times == 1 && is_exact(case);
    let bounds = Bounds::new(case, numbers, times, &recorded, &outputs, (&data, &seeds, &before));
    for &order in orders {
        emulator().set_order(order);
        let got = cuda(case, &recorded, &data, &seeds, &outputs, &before);
        let reports = emulator().reports();
        let name = format!("{} {}", case.op.rule().name(), case.name);
        assert!(reports.is_empty(), "{name}: {reports}");
        for (o, output) in outputs.iter().enumerate() {
            for (k, &g) in got[o].iter().enumerate() {
                let (w, bound) = bounds.of(o, k, output.storage);
                let (w, bound) = if exact { (stored(w, output.storage), 0.0) } else { (w, bound) };
                assert!(
                    (g - w).abs() <= bound,
                    "{name} ({numbers:?}, {order:?}, {times} x), {} element {k} of {}: {g}, not {w} (may be off by {bound:.3e}, is by {:.3e})",
                    output.what,
                    got[o].len(),
                    (g - w).abs()
                );
            }
        }
    }
}

/// The reference, and how far the device may be from it.
struct Bounds {
    want: Vec<Vec<f64>>,
    /// Of each output the size of its terms, or of each element where it is known.
    largest: Vec<f64>,
    sizes: Option<Vec<Vec<f64>>>,
    /// Relative error of the sums.
    sums: f64,
    times: usize,
}

impl Bounds {
    fn new(
        case: &Case,
        numbers: Numbers,
        times: usize,
        recorded: &Recorded,
        outputs: &[Output],
        (data, seeds, before): (&[Vec<f64>], &[Vec<f64>], &[f64]),
    ) -> Bounds {
        let exact = numbers == Numbers::Whole && times == 1 && is_exact(case);
        let largest_input = data.iter().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
        let sizes = is_multilinear(&case.op).then(|| {
            let absolute = |all: &[Vec<f64>]| -> Vec<Vec<f64>> {
                all.iter().map(|v| v.iter().map(|x| x.abs()).collect()).collect()
            };
            cpu::<f32>(recorded, &absolute(data), &absolute(seeds), outputs, before)
        });
        // Where no sum of absolute values reaches 2^24, f32 adds whole numbers without rounding, and much faster.
        let is_small = |all: &Vec<Vec<f64>>| all.iter().flatten().all(|&x| x < 1.0 / U32);
        let want = if exact && sizes.as_ref().is_some_and(is_small) {
            cpu::<f32>(recorded, data, seeds, outputs, before)
        } else {
            cpu::<f64>(recorded, data, seeds, outputs, before)
        };
        let largest = |values: &Vec<f64>| {
            let mut largest = values.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            if is_loss(&case.op) {
                largest += largest.sqrt() * largest_input;
            }
            if matches!(case.op, Op::CosineLoss(_) | Op::SpreadLoss(_)) {
                largest += cosine_terms(case, &data[0], seeds);
            }
            largest
        };
        let largest = want.iter().map(largest).collect();
        Bounds { want, largest, sizes, sums: 4.0 * terms(case).sqrt() * U32, times }
    }

    /// What element `k` of output `o` should be, and how far it may be off.
    fn of(&self, o: usize, k: usize, storage: Storage) -> (f64, f64) {
        let (w, largest) = (self.want[o][k], self.largest[o]);
        let store = if storage == Storage::Half { U16 } else { U32 };
        // Sizes are sums in f32, a little off themselves.
        let size = self.sizes.as_ref().map_or(8.0 * largest, |s| 1.001 * s[o][k]);
        let mut bound = store * w.abs() * 1.001 + self.sums * size + ZERO;
        // A second recording adds to what the first has stored.
        bound += if self.times > 1 { store * (largest + w.abs()) } else { 0.0 };
        (w, bound)
    }
}

/// An exact result as it is stored.
fn stored(x: f64, storage: Storage) -> f64 {
    if storage == Storage::Half {
        f64::from(bf16::from_f64(x).to_f32())
    } else {
        f64::from(x as f32)
    }
}
