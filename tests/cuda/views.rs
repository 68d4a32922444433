//! Views cut and augmented on the device against the CPU's.
//!
//! Both are compared after rounding to bf16, the device's output. Where no statistic of the view is in play, all bits agree.
//! Contrast and gamma use a mean and a deviation that may be off by one f32 rounding (u = 2^-24), and gamma raises an error e of
//! a value near the bottom of the range to the power of the exponent, at least 0.7: below 2 (8 u)^0.7 = 6e-5 of the range. Where that
//! falls onto a rounding boundary of bf16, neighbours are told apart: at most one value in a hundred.

use half::{bf16, f16};
use spatialssl::backend::cuda::Queue;
use spatialssl::data::philox::{Purpose, SampleKey};
use spatialssl::data::{
    AugmentOptions, Axis, Batch, BatchScratch, SamplePlan, ViewOptions, Volume,
};
use spatialssl::driver::Device;
use spatialssl::task::geometry::OffsetRule;
use spatialssl::train::{DeviceViews, DeviceVolume};

use crate::emulator::{Order, emulator};

fn options(size: [usize; 3]) -> ViewOptions {
    ViewOptions {
        count: 3,
        size,
        sub_size: [2; 3],
        batch: 2,
        offset_rule: OffsetRule::Ray,
        gap_divisor: [16.0; 3],
    }
}

fn volume(extent: [usize; 3], seed: u64) -> Volume {
    let stream = SampleKey { seed, step: 0, sample: 0 }.shared(Purpose::Weights);
    let voxels = (0..extent.iter().product::<usize>())
        .map(|i| f16::from_f32(0.3 * stream.normal_at(i as u32) + (i as f32 * 0.01).sin()));
    Volume { extent, spacing_mm: [2.0, 1.0, 0.7], fill: -2.5, voxels: voxels.collect() }
}

/// No change at all; tests switch on what they look at.
fn none() -> AugmentOptions {
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

/// Views of one batch on the CPU, and on the device in bf16, from memory that held NaN.
fn both(options: &ViewOptions, augment: &AugmentOptions, step: u64) -> (Vec<f32>, Vec<bf16>) {
    emulator();
    let volumes = [volume([11, 13, 9], 1), volume([6, 19, 21], 2)];
    let queue = Queue::new(Device::open(0, false).unwrap());
    let mut views = DeviceViews::new(&queue.device, options).unwrap();
    let mut batch = Batch::default();
    batch.begin(step, options);
    let mut resident = Vec::new();
    for (n, scan) in volumes.iter().enumerate() {
        let key = SampleKey { seed: 9, step, sample: n as u32 };
        let plan = SamplePlan::training(key, n, scan, options, augment);
        let there = DeviceVolume::new(&queue.device, scan).unwrap();
        views.plan(n, 2, &plan, &there);
        resident.push(there);
        batch.push(plan, scan, options, &mut BatchScratch::default()).unwrap();
    }
    let len = 2 * batch.views.len();
    let out = queue.device.alloc(len).unwrap();
    queue.device.upload(&out, 0, &vec![0xff; len]).unwrap();
    views.queue(&queue, out.ptr()).unwrap();
    let mut bytes = vec![0u8; len];
    queue
        .device
        .download(&out, 0, &mut bytes)
        .unwrap_or_else(|e| panic!("{e}\n{}", emulator().last_report()));
    let got = bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect();
    (batch.views, got)
}

/// Fails where a bit differs.
fn exact(what: &str, options: &ViewOptions, augment: &AugmentOptions) {
    for step in 0..4 {
        let (want, got) = both(options, augment, step);
        for (i, (w, g)) in want.iter().zip(got).enumerate() {
            let w = bf16::from_f32(*w);
            assert_eq!(w.to_bits(), g.to_bits(), "{what}, step {step}, voxel {i}: {g}, not {w}");
        }
    }
}

/// Fails where views differ by more than sums in another order explain.
fn close(what: &str, options: &ViewOptions, augment: &AugmentOptions) {
    for step in 0..4 {
        let (want, got) = both(options, augment, step);
        let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let mut apart = 0;
        for (i, (&w, g)) in want.iter().zip(got).enumerate() {
            let bound = w.abs() / 256.0 + 6e-5 * 2.0 * largest;
            let error = (g.to_f32() - w).abs();
            assert!(error <= bound, "{what}, step {step}, voxel {i}: {g}, not {w}");
            apart += usize::from(bf16::from_f32(w) != g);
        }
        assert!(apart * 100 <= want.len(), "{what}: {apart} of {} voxels differ", want.len());
    }
}

fn each_exact() -> Vec<(&'static str, AugmentOptions)> {
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
    for size in [[4, 6, 8], [5, 7, 9], [12, 20, 22]] {
        for (what, augment) in each_exact() {
            exact(what, &options(size), &augment);
        }
    }
}

#[test]
fn contrast_and_gamma_are_the_cpus_within_rounding() {
    let everything = AugmentOptions {
        contrast_p: 1.0,
        gamma_inverted_p: 1.0,
        gamma_p: 1.0,
        ..each_exact().pop().unwrap().1
    };
    for size in [[5, 7, 9], [12, 20, 22]] {
        let options = options(size);
        close("contrast", &options, &AugmentOptions { contrast_p: 1.0, ..none() });
        close("gamma", &options, &AugmentOptions { gamma_p: 1.0, ..none() });
        close("inverted gamma", &options, &AugmentOptions { gamma_inverted_p: 1.0, ..none() });
        close("everything", &options, &everything);
        close("defaults", &options, &AugmentOptions::default());
    }
}

#[test]
fn the_order_of_blocks_does_not_matter() {
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
