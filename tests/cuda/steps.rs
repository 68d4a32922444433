//! Whole training steps on the device: captured and eager, twice, in any order of blocks and threads, beside the CPU.

use half::bf16;
use spatialssl::backend::cuda::Storage;
use spatialssl::config::GradientViews;
use spatialssl::driver::Device;
use spatialssl::model::initial_values;
use spatialssl::ops::Op;
use spatialssl::scalar::Scalar;
use spatialssl::session::{Program, ProgramOptions};
use spatialssl::tape::{Arrangement, CudaStep, Step};

use crate::common::emulator::{Order, alone, emulator, left_out};
use crate::common::program::{inputs, options, with_masked};

/// Small, for the emulated driver: channels of both convolution paths, sizes of which none is a tile's.
pub(super) fn small(gradient_views: GradientViews) -> ProgramOptions {
    ProgramOptions { gradient_views, ..options(&[8, 16], &[1, 1], [16, 16, 18], 1) }
}

pub(super) struct Trained {
    program: Program,
    pub(super) step: CudaStep,
    /// The losses of each step.
    pub(super) losses: Vec<Vec<f64>>,
    /// Bits of everything kept, after the last step.
    pub(super) bits: Vec<u32>,
}

/// The program on the device with its initial values.
pub(super) fn open(options: &ProgramOptions, graph: bool) -> (Program, CudaStep) {
    open_arranged(options, graph, Arrangement::Planned)
}

fn open_arranged(
    options: &ProgramOptions,
    graph: bool,
    arrangement: Arrangement,
) -> (Program, CudaStep) {
    let program = Program::new(options).unwrap();
    let device = Device::open(0, false).unwrap();
    let mut step = CudaStep::arranged(&program.tape, device, graph, arrangement).unwrap();
    for (id, values) in initial_values(&program.tape, 7) {
        step.write(id, &values).unwrap();
    }
    let encoder = step.read(program.groups[0].packed).unwrap();
    step.write(program.average, &encoder).unwrap();
    for (input, weight) in program.weights().into_iter().zip(options.weights()) {
        step.write(input, &[weight as f32]).unwrap();
    }
    (program, step)
}

pub(super) fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

fn train(options: &ProgramOptions, steps: u32, graph: bool) -> Trained {
    train_arranged(options, steps, graph, Arrangement::Planned)
}

pub(super) fn train_arranged(
    options: &ProgramOptions,
    steps: u32,
    graph: bool,
    arrangement: Arrangement,
) -> Trained {
    let (program, mut step) = open_arranged(options, graph, arrangement);
    let mut losses = Vec::new();
    for t in 0..steps {
        for (id, values) in inputs(options, &program, t, 1e-3) {
            step.write(id, &narrow(&values)).unwrap();
        }
        if let Err(error) = step.submit().and_then(|()| step.collect()) {
            panic!("step {t}: {error}\n{}", emulator().last_report());
        }
        losses.push(program.losses().into_iter().map(|id| f64::from(step.result(id)[0])).collect());
    }
    let kept = program.groups.iter().flat_map(|b| [b.packed, b.m, b.v]).chain([program.average]);
    let read = |id| step.read(id).unwrap().into_iter().map(f32::to_bits);
    let bits = kept.flat_map(read).collect();
    Trained { program, step, losses, bits }
}

fn train_cpu<T: Scalar>(options: &ProgramOptions, steps: u32) -> Vec<Vec<f64>> {
    let program = Program::new(options).unwrap();
    let mut step = Step::<T>::new(&program.tape);
    spatialssl::model::initialise(&program.tape, &mut step, 7);
    let encoder = step.read(program.groups[0].packed).to_vec();
    step.write(program.average).copy_from_slice(&encoder);
    for (input, weight) in program.weights().into_iter().zip(options.weights()) {
        step.write(input)[0] = T::from_f64(weight);
    }
    let mut losses = Vec::new();
    for t in 0..steps {
        for (id, values) in inputs(options, &program, t, 1e-3) {
            for (to, value) in step.write(id).iter_mut().zip(values) {
                *to = T::from_f64(value);
            }
        }
        step.run();
        losses.push(program.losses().into_iter().map(|id| step.read(id)[0].to_f64()).collect());
    }
    losses
}

#[test]
fn a_replayed_graph_gives_the_bits_of_eager_launches() {
    let _alone = alone();
    let (first, all) = (small(GradientViews::First), small(GradientViews::All));
    let mut masked = with_masked(small(GradientViews::First), false);
    masked.tasks.drain(..masked.tasks.len() - 1);
    for options in [with_masked(first, true), all, masked] {
        let (eager, replayed) = (train(&options, 3, false), train(&options, 3, true));
        assert_eq!(eager.step.graph_nodes(), None);
        assert!(replayed.step.graph_nodes().unwrap() > replayed.program.tape.records().len() / 2);
        assert_eq!(eager.losses, replayed.losses);
        assert!(eager.bits == replayed.bits, "what is kept differs");
    }
}

#[test]
fn two_runs_and_any_order_give_the_same_bits() {
    let _alone = alone();
    let options = small(GradientViews::First);
    emulator().set_order(Order::Ascending);
    let first = train(&options, 3, true);
    for order in [Order::Ascending, Order::Random(3)] {
        emulator().set_order(order);
        let again = train(&options, 3, true);
        assert_eq!(first.losses, again.losses, "{order:?}");
        assert!(first.bits == again.bits, "{order:?}: what is kept differs");
    }
    emulator().set_order(Order::Ascending);
}

#[test]
fn a_captured_step_allocates_nothing_and_copies_inputs_and_results_only() {
    if left_out("a_captured_step_allocates_nothing_and_copies_inputs_and_results_only") {
        return;
    }
    let _alone = alone();
    let options = small(GradientViews::First);
    let (program, mut step) = open(&options, true);
    let mut run = |t: u32| {
        for (id, values) in inputs(&options, &program, t, 1e-3) {
            step.write(id, &narrow(&values)).unwrap();
        }
        step.submit().unwrap();
        step.collect().unwrap();
    };
    (0..3).for_each(&mut run);
    let names = ["allocations", "copies", "launches", "graph_launches"];
    let before = names.map(|name| emulator().counter(name));
    (3..6).for_each(&mut run);
    let after = names.map(|name| emulator().counter(name));
    let [allocations, copies, launches, graphs] =
        std::array::from_fn(|i: usize| after[i] - before[i]);
    assert_eq!((allocations, copies, graphs), (0, 6, 3));
    // Kernels of a graph count as launches; nothing else launches any.
    assert_eq!(launches % 3, 0, "{launches} kernels in three equal steps");
}

#[test]
fn training_follows_the_cpu() {
    let _alone = alone();
    let options = with_masked(small(GradientViews::First), true);
    let device = train(&options, 20, true);
    let cpu = train_cpu::<f32>(&options, 20);
    // The losses themselves come from representations rounded to bf16, which the fixtures' authors find to be off by up
    // to 3e-2 (relative) in a whole encoder; losses of gaps and vectors are squares, twice that, and a cosine is off by
    // twice that of the vectors' length, however small it is. The weights drift apart at most by the learning rate a
    // step: on the CPU alone, weights that start rounded to bf16 change cosines by up to 0.036 in these steps.
    let terms: Vec<&str> =
        options.tasks.iter().flat_map(|(t, _)| t.terms()).map(|t| t.name).collect();
    for (t, (device, cpu)) in device.losses.iter().zip(&cpu).enumerate() {
        for ((name, d), c) in terms.iter().zip(device).zip(cpu) {
            let size = if name.starts_with("sim_") { 1.0 } else { c.abs() };
            let band = 0.06 * size + 0.02;
            let off = (d - c).abs();
            assert!(off <= band, "step {t}, {name}: {d}, on the CPU {c} (band {band:.3})");
        }
        // Similarity that has collapsed agrees whatever is wrong with it.
        assert!(cpu[2] > -0.995, "step {t}: cosine of adjacent boxes {}", -cpu[2]);
    }
}

#[test]
fn the_copy_of_every_filter_is_its_rounded_value() {
    let _alone = alone();
    let Trained { program, step, .. } = train(&small(GradientViews::First), 3, true);
    let mut filters = 0;
    for (id, value) in program.tape.values() {
        let is_filter = |r: &spatialssl::tape::Record| {
            let rule = r.op.rule();
            let half_copy = |i: usize| rule.storage(i) == Storage::FullAndHalf;
            !matches!(r.op, Op::AdamW(_))
                && r.reads
                    .iter()
                    .enumerate()
                    .any(|(i, &x)| x == id && i < r.shapes.len() && half_copy(i))
        };
        if !program.tape.records().iter().any(is_filter) {
            continue;
        }
        let Some(half_copy) = step.read_half_copy(id).unwrap() else { continue };
        let master = step.read(id).unwrap();
        for (k, (m, t)) in master.iter().zip(&half_copy).enumerate() {
            assert_eq!(bf16::from_f32(*m).to_f32(), *t, "{} element {k}", value.name);
        }
        filters += 1;
    }
    assert!(filters > 20, "{filters} filters");
}

#[test]
fn a_step_without_a_finite_gradient_changes_nothing() {
    let _alone = alone();
    let options = small(GradientViews::First);
    let (program, mut step) = open(&options, false);
    let kept = |step: &CudaStep| {
        let ids = program.groups.iter().flat_map(|b| [b.packed, b.m, b.v]);
        ids.flat_map(|id| step.read(id).unwrap().into_iter().map(f32::to_bits)).collect::<Vec<_>>()
    };
    let before = kept(&step);
    for (id, mut values) in inputs(&options, &program, 0, 1e-3) {
        if id == program.images[0] {
            values[17] = f64::NAN;
        }
        step.write(id, &narrow(&values)).unwrap();
    }
    step.submit().unwrap();
    step.collect().unwrap();
    assert!(!step.result(program.update.norm)[0].is_finite());
    assert!(kept(&step) == before, "weights or moments changed");
}
