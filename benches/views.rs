//! Cutting and augmenting the views of a batch: three of 96^3 from each of two volumes, with the default chances of
//! every change. In voxels per second. On cuda:0, if there is one, as `cuda/views/...`: the launches of a step, without
//! the copies of plans and volumes.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use spatialssl::backend::cuda::Queue;
use spatialssl::driver::{Device, DeviceBuffer};
use spatialssl::error::Result;
use spatialssl::image::Volume;
use spatialssl::random::philox::SampleKey;
use spatialssl::views::geometry::OffsetRule;
use spatialssl::views::{
    AugmentOptions, Batch, BatchScratch, DeviceViews, DeviceVolume, SamplePlan, ViewOptions,
};

#[path = "gpu/mod.rs"]
mod gpu;

use gpu::{Clock, must};

const NAME: &str = "96 batch 2";
const BATCH: usize = 2;
/// Batches drawn: each has other changes, and the mean over them counts.
const DRAWN: u64 = 8;

fn options() -> ViewOptions {
    ViewOptions {
        count: 3,
        size: [96; 3],
        sub_size: [32; 3],
        batch: BATCH,
        offset_rule: OffsetRule::Ray,
        gap_divisor: [96.0; 3],
    }
}

/// A head's size and smoothness.
fn volume() -> Volume {
    let extent = [150, 256, 256];
    let voxels =
        (0..extent.iter().product::<usize>()).map(|i| f16::from_f32((i as f32 * 0.01).sin()));
    Volume { extent, spacing_mm: [1.2, 0.9, 0.9], fill: -1.0, voxels: voxels.collect() }
}

fn plan(step: u64, sample: usize, volume: &Volume) -> SamplePlan {
    let key = SampleKey { seed: 1, step, sample: sample as u32 };
    SamplePlan::training(key, sample, volume, &options(), &AugmentOptions::default())
}

fn voxels() -> Throughput {
    let options = options();
    Throughput::Elements((BATCH * options.count * options.view_len()) as u64)
}

fn on_cpu(criterion: &mut Criterion) {
    let (options, volume) = (options(), volume());
    let (mut batch, mut scratch, mut step) = (Batch::default(), BatchScratch::default(), 0);
    let mut group = criterion.benchmark_group("views");
    group.sample_size(10).throughput(voxels());
    group.bench_function(NAME, |bencher| {
        bencher.iter(|| {
            batch.begin(step % DRAWN, &options);
            for sample in 0..BATCH {
                let plan = plan(step % DRAWN, sample, &volume);
                must("views", batch.push(plan, &volume, &options, &mut scratch));
            }
            step += 1;
            black_box(batch.views[0])
        });
    });
    group.finish();
}

/// What makes views on the device, and where they go.
struct Made {
    queue: Queue,
    views: DeviceViews,
    volume: DeviceVolume,
    out: DeviceBuffer,
    _voxels: DeviceBuffer,
    host: Volume,
}

impl Made {
    fn new() -> Result<Made> {
        let (device, host, options) = (Device::open(0, false)?, volume(), options());
        let count = BATCH * options.count;
        let bytes = bytemuck::cast_slice(&host.voxels);
        let voxels = device.alloc(bytes.len())?;
        device.upload(&voxels, 0, bytes)?;
        let volume = DeviceVolume { voxels: voxels.ptr(), extent: host.extent, fill: host.fill };
        let views = DeviceViews::new(&device, count, options.size)?;
        let out = device.alloc(2 * count * options.view_len())?;
        Ok(Made { queue: Queue::new(device), views, volume, out, _voxels: voxels, host })
    }

    /// Time of `count` batches, the drawn ones by turns.
    fn time(&mut self, count: u64) -> Result<Duration> {
        let mut all = Duration::ZERO;
        for step in 0..count {
            for sample in 0..BATCH {
                let plan = plan(step % DRAWN, sample, &self.host);
                self.views.plan(sample, BATCH, &plan, &self.volume);
            }
            self.views.send(&self.queue.device)?;
            let clock = Clock::start(&self.queue.device)?;
            self.views.launch(&self.queue, &[(self.out.ptr(), BATCH * options().count)])?;
            all += clock.stop(&self.queue.device)?;
        }
        Ok(all)
    }
}

fn on_device(criterion: &mut Criterion) {
    let Some(_kept) = gpu::open() else { return };
    let mut group = criterion.benchmark_group("cuda/views");
    group.throughput(voxels());
    let mut made = None;
    group.bench_function(NAME, |bencher| {
        let made = made.get_or_insert_with(|| must("views", Made::new()));
        bencher.iter_custom(|count| must("views", made.time(count)));
    });
    group.finish();
}

criterion_group!(benches, on_device, on_cpu);
criterion_main!(benches);
