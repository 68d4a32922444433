//! Time of the passes of the convolutions that a training step is made of.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spatialssl::backend::cpu::conv::*;
use spatialssl::backend::{ConvGeometry, ConvPass};
use std::hint::black_box;

/// Name, batch, side, channels in and out, filter, stride, padding; all cubes.
type Layer = (&'static str, usize, usize, [usize; 2], [usize; 3]);

const LAYERS: [Layer; 12] = [
    ("1->32 k3 @64", 1, 64, [1, 32], [3, 1, 1]),
    ("32->32 k3 @64", 1, 64, [32, 32], [3, 1, 1]),
    ("64->32 k3 @64", 1, 64, [64, 32], [3, 1, 1]),
    ("32->64 k3 s2 @64", 1, 64, [32, 64], [3, 2, 1]),
    ("64->64 k3 @32", 1, 32, [64, 64], [3, 1, 1]),
    ("128->128 k3 @16", 1, 16, [128, 128], [3, 1, 1]),
    ("256->256 k3 @8", 1, 8, [256, 256], [3, 1, 1]),
    ("256->256 k3 @8, 2 images", 2, 8, [256, 256], [3, 1, 1]),
    ("128->64 k2 s2 transposed @16", 1, 32, [64, 128], [2, 2, 0]),
    ("32->16 k3 s2 @64, 2 images", 2, 64, [32, 16], [3, 2, 1]),
    ("16->16 k3 @32, 2 images", 2, 32, [16, 16], [3, 1, 1]),
    ("256->512 k4 s2 @2, 12 images", 12, 2, [256, 512], [4, 2, 1]),
];

fn passes(criterion: &mut Criterion) {
    for (name, batch, side, channels, [filter, stride, padding]) in LAYERS {
        let g = ConvGeometry {
            batch,
            input: [side; 3],
            in_channels: channels[0],
            out_channels: channels[1],
            filter: [filter; 3],
            stride: [stride; 3],
            padding: [padding; 3],
        };
        let values = |n: usize| (0..n).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect::<Vec<f32>>();
        let x = values(g.input_len());
        let w = values(g.filter_len());
        let dy = values(g.output_len());
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        let mut db = vec![0.0; g.out_channels];
        let space = |pass| vec![0f32; workspace_len(&g, pass)];
        let mut group = criterion.benchmark_group("conv3d");
        let products = g.output_len() * g.filter_len() / g.out_channels;
        group.throughput(Throughput::Elements(2 * products as u64)).sample_size(10);
        let mut ws = space(ConvPass::Fprop);
        group.bench_function(BenchmarkId::new("fprop", name), |b| {
            b.iter(|| fprop(&g, black_box(&x), &w, None, &mut y, &mut ws));
        });
        let mut ws = space(ConvPass::Dgrad);
        group.bench_function(BenchmarkId::new("dgrad", name), |b| {
            b.iter(|| dgrad(&g, black_box(&dy), &w, None, &mut dx, false, &mut ws));
        });
        let mut ws = space(ConvPass::Wgrad);
        group.bench_function(BenchmarkId::new("wgrad", name), |b| {
            b.iter(|| wgrad(&g, black_box(&x), &dy, &mut dw, false, &mut ws));
        });
        group.bench_function(BenchmarkId::new("bias_grad", name), |b| {
            b.iter(|| bias_grad(black_box(&dy), g.out_channels, &mut db, false));
        });
        group.finish();
    }
}

criterion_group!(benches, passes);
criterion_main!(benches);
