//! Every operation at its sizes in the networks, forward and backward: `cargo bench --bench ops -- conv3d`.
//!
//! Convolutions and matrix products are given in elements per second, an element being one multiplication or one
//! addition: Gelem/s are GFLOP/s. Other operations are given in bytes of all inputs and the output.

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use common::bound::{Bound, data, is_update, normals};
use common::cases::{Case, cases};
use spatialssl::ops::Op;
use spatialssl::shape::Shape;

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

fn operations(criterion: &mut Criterion) {
    for case in cases().into_iter().filter(|case| case.real) {
        let name = case.name.replace(", ", "_").replace(' ', "_");
        let mut group = criterion.benchmark_group(format!("{}/{name}", case.op.rule().name()));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1));
        let mut made = None;
        if !matches!(case.op, Op::Probe(_)) {
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

criterion_group!(benches, operations);
criterion_main!(benches);
