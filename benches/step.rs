//! The whole training step: forward of all views, backward, update. In views per second. On cuda:0, if there is one, as
//! training runs it, replayed from a graph, as `cuda/step/<network and views>/<views with gradients>`.

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "gpu/mod.rs"]
mod gpu;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use common::program::{Run, inputs, options};
use gpu::{Clock, must};
use spatialssl::config::GradientViews;
use spatialssl::driver::Device;
use spatialssl::error::Result;
use spatialssl::model::initial_values;
use spatialssl::session::{Program, ProgramOptions};
use spatialssl::tape::CudaStep;

/// Name, and the program of it, of the steps on both processors.
fn steps_of_both() -> Vec<(&'static str, ProgramOptions)> {
    vec![
        ("resenc-s_32_batch_2", options(&[16, 32, 64, 128], &[1, 2, 2, 2], [32; 3], 2)),
        ("32-to-256_64", options(&[32, 64, 128, 256], &[1, 3, 4, 6], [64; 3], 1)),
    ]
}

/// Steps that are too long for a CPU.
fn steps_of_device() -> Vec<(&'static str, ProgramOptions)> {
    let large = |edge| options(&[32, 64, 128, 256], &[1, 3, 4, 6], [edge; 3], 2);
    vec![("32-to-256_96_batch_2", large(96)), ("32-to-256_128_batch_2", large(128))]
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    for (name, base) in steps_of_both() {
        for gradient_views in [GradientViews::First, GradientViews::All] {
            let options = ProgramOptions { gradient_views, ..base.clone() };
            group.throughput(Throughput::Elements((options.views * options.batch) as u64));
            let mut made = None;
            group.bench_function(format!("{name}/{gradient_views:?}"), |bencher| {
                let run = made.get_or_insert_with(|| {
                    let mut run = Run::<f32>::new(options.clone());
                    run.feed(0, 1e-5);
                    run
                });
                bencher.iter(|| run.step.run());
            });
        }
    }
    group.finish();
}

/// Time of `count` steps as training queues them: inputs copied, launches replayed from a graph, results copied back,
/// the host one step ahead.
fn time_steps(step: &mut CudaStep, count: u64) -> Result<Duration> {
    let clock = Clock::start(&step.queue().device)?;
    for _ in 0..count {
        if !step.can_submit() {
            step.collect()?;
        }
        step.submit()?;
    }
    let all = clock.stop(&step.queue().device)?;
    while step.collect()? {}
    Ok(all)
}

/// The program on the device with initial values and inputs, after the steps that end in a captured graph.
fn device_step(options: &ProgramOptions) -> Result<CudaStep> {
    let program = Program::new(options)?;
    let mut step = CudaStep::new(&program.tape, Device::open(0, false)?, true)?;
    for (id, values) in initial_values(&program.tape, 7) {
        step.write(id, &values)?;
    }
    let encoder = step.read(program.groups[0].packed)?;
    step.write(program.average, &encoder)?;
    for (seed, weight) in program.weights().into_iter().zip(options.weights()) {
        step.write(seed, &[weight as f32])?;
    }
    for (id, values) in inputs(options, &program, 0, 1e-5) {
        step.write(id, &values.into_iter().map(|x| x as f32).collect::<Vec<_>>())?;
    }
    time_steps(&mut step, 3)?;
    Ok(step)
}

fn steps_on_device(criterion: &mut Criterion) {
    let Some(_kept) = gpu::open() else { return };
    let mut group = criterion.benchmark_group("cuda/step");
    for (name, base) in steps_of_both().into_iter().chain(steps_of_device()) {
        for gradient_views in [GradientViews::First, GradientViews::All] {
            let options = ProgramOptions { gradient_views, ..base.clone() };
            group.throughput(Throughput::Elements((options.views * options.batch) as u64));
            let mut made = None;
            group.bench_function(format!("{name}/{gradient_views:?}"), |bencher| {
                let step = made.get_or_insert_with(|| must(name, device_step(&options)));
                bencher.iter_custom(|count| must(name, time_steps(step, count)));
            });
        }
    }
    group.finish();
}

/// Settings that the command line may override; those of a group would win.
fn settings(warm_up: u64, measurement: u64) -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(warm_up))
        .measurement_time(Duration::from_secs(measurement))
}

criterion_group! {
    name = on_device;
    config = settings(3, 3);
    targets = steps_on_device
}
criterion_group! {
    name = on_cpu;
    config = settings(1, 5);
    targets = steps
}
criterion_main!(on_device, on_cpu);
