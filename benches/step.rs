//! The whole training step: forward of all views, backward, update. In views per second.

#[cfg(test)]
#[path = "../tests/common/program.rs"]
mod program;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use program::{Run, options};
use spatialssl::train::{GradientViews, ProgramOptions};

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    let small = options(&[16, 32, 64, 128], &[1, 2, 2, 2], [32; 3], 2);
    let medium = options(&[32, 64, 128, 256], &[1, 3, 4, 6], [64; 3], 1);
    for (name, base) in [("resenc-s_32_batch_2", small), ("32-to-256_64", medium)] {
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

criterion_group!(benches, steps);
criterion_main!(benches);
