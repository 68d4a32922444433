//! Every operation at its sizes in the networks, forward and backward: `cargo bench --bench ops -- conv3d`.
//!
//! Convolutions and matrix products are given in elements per second, an element being one multiplication or one
//! addition: Gelem/s are GFLOP/s. Other operations are given in bytes of all inputs and the output.
//!
//! On cuda:0, if there is one, the same as `cuda/<operation>/<case>/<pass>`, convolutions also with each gradient alone
//! (`dgrad` of the input, `wgrad` of filter and bias); bytes are those that are read and written, as the device stores
//! them.

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "gpu/mod.rs"]
mod gpu;

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use common::bound::{Bound, Recorded, data, is_update, normals};
use common::cases::{Case, cases};
use gpu::{Clock, must};
use spatialssl::backend::cuda::Storage;
use spatialssl::driver::{Device, Graph};
use spatialssl::error::Result;
use spatialssl::ops::Op;
use spatialssl::shape::Shape;
use spatialssl::tape::{CudaStep, ValueId};

fn bound(case: &Case) -> Bound<f32> {
    let mut bound = Bound::new(case, 1, |_| true);
    bound.feed(&data(case, 0));
    for i in 0..bound.seeds.len() {
        let len = bound.step.read(bound.outputs[i]).len();
        bound.set(bound.seeds[i], &normals(0, 1000, len));
    }
    // Backward reads what forward leaves; the threads' own memory grows now.
    bound.forward();
    bound.backward();
    bound
}

/// Work of one pass: operations once per gradient written, or bytes.
fn throughput(case: &Case, gradients: u64) -> Throughput {
    let shapes: Vec<Shape> = case.inputs.iter().map(|dims| Shape::new(dims)).collect();
    let rule = case.op.rule();
    match rule.flops(&shapes) {
        0 => {
            let outputs = rule.infer(&shapes).map_or(0, |made| made[0].len());
            let inputs: usize = shapes.iter().map(Shape::len).sum();
            Throughput::Bytes(4 * (inputs + outputs) as u64)
        }
        flops => Throughput::Elements(flops * gradients),
    }
}

/// Operation and case, without blanks.
fn label(case: &Case) -> String {
    format!("{}/{}", case.op.rule().name(), case.name.replace(", ", "_").replace(' ', "_"))
}

fn operations(criterion: &mut Criterion) {
    for case in cases().into_iter().filter(|case| case.real) {
        let mut group = criterion.benchmark_group(label(&case));
        let mut made = None;
        if !matches!(case.op, Op::GradNormTap(_)) {
            group.throughput(throughput(&case, 1));
            group.bench_function("forward", |bencher| {
                let bound = made.get_or_insert_with(|| bound(&case));
                bencher.iter(|| black_box(&mut *bound).forward());
            });
        }
        if !is_update(&case.op) {
            group.throughput(throughput(&case, 2));
            group.bench_function("backward", |bencher| {
                let bound = made.get_or_insert_with(|| bound(&case));
                assert!(bound.grads.iter().any(Option::is_some), "a gradient to compute");
                bencher.iter(|| black_box(&mut *bound).backward());
            });
        }
        group.finish();
    }
}

/// Times a pass is captured one behind the other: gaps between replays then count little.
const REPEATS: u64 = 10;

/// Some records of a step, captured: neither the host's launches nor copies count.
struct Pass {
    graph: Graph,
    step: CudaStep,
}

impl Pass {
    /// Runs the whole step once, so that all that `range` reads is there, then captures `range`.
    fn new(mut step: CudaStep, range: Range<usize>) -> Result<Pass> {
        step.run_range(0..step.len())?;
        let graph = step.queue().device.capture(|| {
            for _ in 0..REPEATS {
                step.launch(range.clone())?;
            }
            Ok(())
        })?;
        Ok(Pass { graph, step })
    }

    /// Time of `count` runs, from that of as many or a few more.
    fn time(&self, count: u64) -> Result<Duration> {
        let device = &self.step.queue().device;
        let replays = count.div_ceil(REPEATS);
        let clock = Clock::start(device)?;
        for _ in 0..replays {
            device.replay(&self.graph)?;
        }
        let all = clock.stop(device)?;
        Ok(all.mul_f64(count as f64 / (replays * REPEATS) as f64).max(Duration::from_nanos(count)))
    }
}

/// A pass on the device: its name, and of which inputs it computes gradients.
type DevicePass = (&'static str, fn(usize) -> bool);

fn device_passes(op: &Op) -> Vec<DevicePass> {
    let mut passes: Vec<DevicePass> = Vec::new();
    if !matches!(op, Op::GradNormTap(_)) {
        passes.push(("forward", |_| true));
    }
    if !is_update(op) {
        passes.push(("backward", |_| true));
    }
    if matches!(op, Op::Conv3d(_) | Op::ConvTranspose3d(_)) {
        passes.push(("dgrad", |i| i == 0));
        passes.push(("wgrad", |i| i > 0));
    }
    passes
}

/// The records of a pass.
fn range(recorded: &Recorded, pass: &str) -> Range<usize> {
    if pass == "forward" {
        0..recorded.forward
    } else {
        recorded.forward..recorded.tape.records().len()
    }
}

/// How a value of a recorded case is stored on the device.
fn storage(case: &Case, recorded: &Recorded, id: ValueId) -> Storage {
    let rule = case.op.rule();
    let is_it = |other: &ValueId| *other == id;
    if let Some(i) = recorded.inputs.iter().position(is_it) {
        return rule.storage(i);
    }
    if let Some(i) = recorded.grads.iter().position(|grad| *grad == Some(id)) {
        return rule.storage(i).of_gradient();
    }
    if recorded.seeds.contains(&id) {
        return rule.output_storage(0).of_gradient();
    }
    let made = recorded.tape.records()[0].writes.iter();
    let at = made.flatten().position(|write| write.to == id);
    at.map_or(Storage::Full, |i| rule.output_storage(i))
}

/// Work of a pass on the device: operations once per gradient that takes any, or the bytes that are read and written.
fn device_throughput(case: &Case, recorded: &Recorded, pass: &str) -> Throughput {
    let shapes: Vec<Shape> = case.inputs.iter().map(|dims| Shape::new(dims)).collect();
    let flops = case.op.rule().flops(&shapes);
    if flops > 0 {
        return Throughput::Elements(flops * if pass == "backward" { 2 } else { 1 });
    }
    let bytes =
        |id: ValueId| recorded.tape.shape(id).len() * storage(case, recorded, id).element_len();
    let mut all = 0;
    for record in &recorded.tape.records()[range(recorded, pass)] {
        all += record.reads.iter().map(|&id| bytes(id)).sum::<usize>();
        for &spatialssl::backend::Write { to: id, add } in record.writes.iter().flatten() {
            // State is read before it is written.
            all += bytes(id) * if add || is_update(&case.op) { 2 } else { 1 };
        }
    }
    Throughput::Bytes(all as u64)
}

/// A case in device memory, with normal numbers for inputs and output gradients, one pass of it captured.
fn device_pass(case: &Case, recorded: &Recorded, pass: &str) -> Result<Pass> {
    let mut step = CudaStep::new(&recorded.tape, Device::open(0, false)?, false)?;
    let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
    for (&id, values) in recorded.inputs.iter().zip(data(case, 0)) {
        step.write(id, &narrow(&values))?;
    }
    for &seed in &recorded.seeds {
        step.write(seed, &narrow(&normals(0, 1000, recorded.tape.shape(seed).len())))?;
    }
    Pass::new(step, range(recorded, pass))
}

fn operations_on_device(criterion: &mut Criterion) {
    let Some(_kept) = gpu::open() else { return };
    for case in cases().into_iter().filter(|case| case.real) {
        let mut group = criterion.benchmark_group(format!("cuda/{}", label(&case)));
        for (pass, wanted) in device_passes(&case.op) {
            let recorded = Recorded::new(&case, 1, wanted);
            group.throughput(device_throughput(&case, &recorded, pass));
            let mut made = None;
            group.bench_function(pass, |bencher| {
                let made = made
                    .get_or_insert_with(|| must(&case.name, device_pass(&case, &recorded, pass)));
                bencher.iter_custom(|count| must(&case.name, made.time(count)));
            });
        }
        group.finish();
    }
}

/// Settings that the command line may override; those of a group would win.
fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = benches;
    config = settings();
    targets = operations_on_device, operations
}
criterion_main!(benches);
