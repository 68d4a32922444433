//! Views cut and augmented on the device against the CPU's, in f32, and their rounding to bf16.
//!
//! Where no statistic of a view is in play all bits agree. Contrast and gamma use a mean and a deviation of sums in
//! another order, which after rounding to f32 (u = 2^-24) may be one unit, 2 u of the largest magnitude m, apart.
//! Contrast passes that on at most 1.25 times and rounds thrice: 16 u m. Gamma raises an error of e of the range to the
//! power of the exponent, 0.7 or more, near the bottom of the range, twice if both are drawn; its own mean and scale
//! add no more than contrast's.

use half::{bf16, f16};
use spatialssl::backend::cuda::Queue;
use spatialssl::driver::{Device, DeviceBuffer};
use spatialssl::image::Volume;
use spatialssl::random::philox::{Purpose, SampleKey};
use spatialssl::views::geometry::OffsetRule;
use spatialssl::views::{
    AugmentOptions, Axis, Batch, BatchScratch, DeviceViews, DeviceVolume, SamplePlan, ViewOptions,
};

use crate::common::emulator::{Order, alone, emulator};

pub(super) fn options(size: [usize; 3]) -> ViewOptions {
    ViewOptions {
        count: 3,
        size,
        sub_size: [2; 3],
        batch: 2,
        offset_rule: OffsetRule::Ray,
        gap_divisor: [16.0; 3],
    }
}

pub(super) fn volume(extent: [usize; 3], seed: u64) -> Volume {
    let stream = SampleKey { seed, step: 0, sample: 0 }.shared(Purpose::Weights);
    let voxels = (0..extent.iter().product::<usize>())
        .map(|i| f16::from_f32(0.3 * stream.normal_at(i as u32) + (i as f32 * 0.01).sin()));
    Volume { extent, spacing_mm: [2.0, 1.0, 0.7], fill: -2.5, voxels: voxels.collect() }
}

/// No change at all; tests switch on what they look at.
pub(super) fn none() -> AugmentOptions {
    AugmentOptions {
        rotation_p: 0.0,
        scaling_p: 0.0,
        noise_p: 0.0,
        blur_p: 0.0,
        brightness_p: 0.0,
        contrast_p: 0.0,
        low_resolution_p: 0.0,
        gamma_inverted_p: 0.0,
        gamma_p: 0.0,
        ..AugmentOptions::default()
    }
}

/// A volume in an allocation of its own.
fn there(device: &Device, volume: &Volume) -> (DeviceBuffer, DeviceVolume) {
    let bytes = bytemuck::cast_slice(&volume.voxels);
    let block = device.alloc(bytes.len()).unwrap();
    device.upload(&block, 0, bytes).unwrap();
    let voxels = block.ptr();
    (block, DeviceVolume { voxels, extent: volume.extent, fill: volume.fill })
}

/// Views of one batch: on the CPU, and on the device.
fn both(options: &ViewOptions, augment: &AugmentOptions, step: u64) -> (Vec<f32>, Vec<f32>) {
    emulator();
    let volumes = [volume([11, 13, 9], 1), volume([6, 19, 21], 2)];
    let queue = Queue::new(Device::open(0, false).unwrap());
    let mut views = DeviceViews::new(&queue.device, 6, options.size).unwrap();
    let mut batch = Batch::default();
    batch.begin(step, options);
    let mut resident = Vec::new();
    for (n, scan) in volumes.iter().enumerate() {
        let key = SampleKey { seed: 9, step, sample: n as u32 };
        let plan = SamplePlan::training(key, n, scan, options, augment);
        let (block, volume) = there(&queue.device, scan);
        views.plan(n, 2, &plan, &volume);
        resident.push(block);
        batch.push(plan, scan, options, &mut BatchScratch::default()).unwrap();
    }
    let len = 2 * batch.views.len();
    let out = queue.device.alloc(len).unwrap();
    queue.device.upload(&out, 0, &vec![0xff; len]).unwrap();
    // Two places, as a network with a gradient through the first view has.
    let rest = out.ptr().offset(2 * 2 * options.view_len());
    views.send(&queue.device).unwrap();
    views.launch(&queue, &[(out.ptr(), 2), (rest, 4)]).unwrap();
    let mut bytes = vec![0u8; len];
    let read = queue.device.download(&out, 0, &mut bytes);
    read.unwrap_or_else(|e| panic!("{e}\n{}", emulator().last_report()));
    let mut voxels = Vec::new();
    for view in 0..6 {
        voxels.extend(views.download(&queue.device, view).unwrap());
    }
    for (i, (&v, b)) in voxels.iter().zip(bytes.as_chunks::<2>().0).enumerate() {
        let (got, want) = (bf16::from_le_bytes(*b), bf16::from_f32(v));
        assert_eq!(got.to_bits(), want.to_bits(), "voxel {i}: {v} became {got}");
    }
    (batch.views, voxels)
}

/// Fails where a bit differs.
fn exact(what: &str, options: &ViewOptions, augment: &AugmentOptions) {
    for step in 0..4 {
        let (want, got) = both(options, augment, step);
        for (i, (w, g)) in want.iter().zip(got).enumerate() {
            assert_eq!(w.to_bits(), g.to_bits(), "{what}, step {step}, voxel {i}: {g}, not {w}");
        }
    }
}

/// Fails where views differ by more than `units` of f32 rounding of the largest value explain, of which gamma makes
/// that to the power of its least exponent, `gammas` times.
fn close(what: &str, options: &ViewOptions, augment: &AugmentOptions, gammas: i32) {
    let unit = 16.0 * 2.0f64.powi(-24);
    let relative = unit.powf(0.7f64.powi(gammas)) + unit;
    let mut worst = 0.0f64;
    for step in 0..4 {
        let (want, got) = both(options, augment, step);
        for (w, g) in want.chunks(options.view_len()).zip(got.chunks(options.view_len())) {
            let largest = w.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let bound = relative * f64::from(largest);
            for (i, (&w, &g)) in w.iter().zip(g).enumerate() {
                let error = f64::from((g - w).abs());
                assert!(error <= bound, "{what}, step {step}, voxel {i}: {g}, not {w}");
                worst = worst.max(error / bound);
            }
        }
    }
    println!("{what}: worst error {worst:.3} of the bound");
}

pub(super) fn each_exact() -> Vec<(&'static str, AugmentOptions)> {
    let turned = AugmentOptions { rotation_p: 1.0, ..none() };
    let all = AugmentOptions {
        scaling_p: 1.0,
        mirror_axes: vec![Axis::X, Axis::Z],
        noise_p: 1.0,
        blur_p: 1.0,
        brightness_p: 1.0,
        low_resolution_p: 1.0,
        ..turned.clone()
    };
    vec![
        ("a cut", none()),
        ("a rotation", turned),
        (
            "a mirrored scaling",
            AugmentOptions { scaling_p: 1.0, mirror_axes: vec![Axis::Y], ..none() },
        ),
        ("noise", AugmentOptions { noise_p: 1.0, ..none() }),
        ("blur", AugmentOptions { blur_p: 1.0, blur_sigma: [0.0, 4.0], ..none() }),
        ("brightness", AugmentOptions { brightness_p: 1.0, ..none() }),
        ("lower resolution", AugmentOptions { low_resolution_p: 1.0, ..none() }),
        (
            "some of all",
            AugmentOptions { noise_p: 0.5, blur_p: 0.5, low_resolution_p: 0.5, ..all.clone() },
        ),
        ("all of these", all),
    ]
}

#[test]
fn views_have_the_bits_of_the_cpu() {
    let _alone = alone();
    for size in [[4, 6, 8], [5, 7, 9], [12, 20, 22]] {
        for (what, augment) in each_exact() {
            exact(what, &options(size), &augment);
        }
    }
}

#[test]
fn contrast_and_gamma_are_the_cpus_within_rounding() {
    let _alone = alone();
    let everything = AugmentOptions {
        contrast_p: 1.0,
        gamma_inverted_p: 1.0,
        gamma_p: 1.0,
        ..each_exact().pop().unwrap().1
    };
    for size in [[5, 7, 9], [12, 20, 22]] {
        let options = options(size);
        close("contrast", &options, &AugmentOptions { contrast_p: 1.0, ..none() }, 0);
        close("gamma", &options, &AugmentOptions { gamma_p: 1.0, ..none() }, 1);
        close("inverted gamma", &options, &AugmentOptions { gamma_inverted_p: 1.0, ..none() }, 1);
        close("everything", &options, &everything, 2);
        close("defaults", &options, &AugmentOptions::default(), 2);
    }
}

#[test]
fn the_order_of_blocks_does_not_matter() {
    let _alone = alone();
    let options = options([5, 20, 22]);
    let augment = AugmentOptions { contrast_p: 1.0, gamma_p: 1.0, ..each_exact().pop().unwrap().1 };
    emulator().set_order(Order::Ascending);
    let first = both(&options, &augment, 1).1;
    for order in [Order::Descending, Order::Random(3), Order::Random(4)] {
        emulator().set_order(order);
        assert_eq!(both(&options, &augment, 1).1, first, "{order:?}");
    }
    emulator().set_order(Order::Ascending);
}

/// Replayed from a graph, other plans give other views: nothing of a plan is in the launches.
#[test]
fn a_captured_batch_serves_other_plans() {
    let _alone = alone();
    let options = options([5, 7, 9]);
    let augment = AugmentOptions { contrast_p: 1.0, gamma_p: 1.0, ..each_exact().pop().unwrap().1 };
    let scan = volume([11, 13, 9], 1);
    let queue = Queue::new(Device::open(0, false).unwrap());
    let (_block, there) = there(&queue.device, &scan);
    let mut views = DeviceViews::new(&queue.device, 6, options.size).unwrap();
    let len = 2 * 6 * options.view_len();
    let out = queue.device.alloc(len).unwrap();
    let plan = |views: &mut DeviceViews, step: u64| {
        for n in 0..2 {
            let key = SampleKey { seed: 9, step, sample: n as u32 };
            views.plan(n, 2, &SamplePlan::training(key, 0, &scan, &options, &augment), &there);
        }
    };
    let bytes = || {
        let mut bytes = vec![0u8; len];
        queue.device.download(&out, 0, &mut bytes).unwrap();
        bytes
    };
    let outs = [(out.ptr(), 6)];
    let mut eager = Vec::new();
    for step in 0..3 {
        plan(&mut views, step);
        views.send(&queue.device).unwrap();
        views.launch(&queue, &outs).unwrap();
        eager.push(bytes());
    }
    assert!(eager[0] != eager[1] && eager[1] != eager[2]);
    let graph = queue.device.capture(|| views.launch(&queue, &outs)).unwrap();
    for (step, want) in eager.iter().enumerate() {
        plan(&mut views, step as u64);
        queue.device.upload(&out, 0, &vec![0xff; len]).unwrap();
        views.send(&queue.device).unwrap();
        queue.device.replay(&graph).unwrap();
        assert_eq!(&bytes(), want, "step {step}");
    }
}
