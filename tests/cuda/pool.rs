//! The pool of volumes: whatever comes and goes, and when, views have the CPU's bits, and the host does not wait.
//!
//! The emulated driver runs work only when something waits for it, in an order of the test's choice: ascending, copies
//! beside the steps happen when a step waits for them and not before; descending, as soon as they may.

use std::sync::Arc;

use half::bf16;
use spatialssl::backend::cuda::Queue;
use spatialssl::config::GradientViews;
use spatialssl::driver::Device;
use spatialssl::image::Volume;
use spatialssl::random::philox::{Purpose, SampleKey};
use spatialssl::session::ProgramOptions;
use spatialssl::views::{
    AugmentOptions, Batch, BatchScratch, PoolOptions, SamplePlan, Upcoming, ViewMaker, ViewOptions,
};

use super::steps::{narrow, open, small};
use super::views::{each_exact, options, volume};
use crate::common::emulator::{Order, alone, emulator, left_out};
use crate::common::program::inputs;

/// A ring that holds all that is in flight, and one that a volume does not fit into.
const LARGE_RING: PoolOptions = PoolOptions { budget: usize::MAX, chunk_len: 1 << 16, chunks: 8 };
const SMALL_RING: PoolOptions = PoolOptions { budget: usize::MAX, chunk_len: 512, chunks: 3 };

/// Five volumes of different sizes.
fn scans() -> Vec<Arc<Volume>> {
    (0..5).map(|k| Arc::new(volume([9, 8 + 2 * k, 11], k as u64))).collect()
}

fn extents(scans: &[Arc<Volume>]) -> Vec<[usize; 3]> {
    scans.iter().map(|scan| scan.extent).collect()
}

/// Bytes a volume takes.
fn len(scan: &Volume) -> usize {
    (2 * scan.voxels.len()).next_multiple_of(256)
}

/// Volumes of each of `count` batches of two.
fn draw(seed: u64, count: usize) -> Vec<[usize; 2]> {
    let mut stream = SampleKey { seed, step: 0, sample: 0 }.shared(Purpose::VolumeOrder);
    (0..count).map(|_| [stream.below(5), stream.below(5)]).collect()
}

/// All changes whose bits are the CPU's.
fn augment() -> AugmentOptions {
    each_exact().pop().unwrap().1
}

fn plan(options: &ViewOptions, scan: &Volume, number: usize, at: (u64, usize)) -> SamplePlan {
    let key = SampleKey { seed: 9, step: at.0, sample: at.1 as u32 };
    SamplePlan::training(key, number, scan, options, &augment())
}

/// Plans of the batch of a step, and its volumes.
fn planned(options: &ViewOptions, scans: &[Arc<Volume>], step: u64, numbers: &[usize]) -> Batch {
    let mut batch = Batch::default();
    batch.begin(step, options);
    for (n, &number) in numbers.iter().enumerate() {
        let plan = plan(options, &scans[number], number, (step, n));
        batch.push_plan(plan, Arc::clone(&scans[number]), options).unwrap();
    }
    batch
}

/// The views of the same batch, cut on the CPU.
fn cut(options: &ViewOptions, scans: &[Arc<Volume>], step: u64, numbers: &[usize]) -> Vec<f32> {
    let mut batch = Batch::default();
    batch.begin(step, options);
    for (n, &number) in numbers.iter().enumerate() {
        let plan = plan(options, &scans[number], number, (step, n));
        batch.push(plan, &scans[number], options, &mut BatchScratch::default()).unwrap();
    }
    batch.views
}

/// Volumes of the batches behind `step`, `ahead` of them.
fn upcoming(
    scans: &[Arc<Volume>],
    batches: &[Vec<usize>],
    step: usize,
    ahead: usize,
) -> Vec<Upcoming> {
    let next = batches.iter().enumerate().skip(step + 1).take(ahead);
    let one = |step: usize, number: usize| Upcoming {
        step: step as u64,
        number,
        volume: Arc::clone(&scans[number]),
    };
    next.flat_map(|(step, numbers)| numbers.iter().map(move |&n| one(step, n))).collect()
}

struct Ran {
    /// Copied, and awaited by their step.
    copied: (u64, u64),
    pool_len: usize,
    /// Waits and allocations of the steps behind the first, if the driver counts them.
    counted: Option<[u64; 2]>,
}

/// Cuts the views of all batches as training does, two batches in flight, and compares them with the CPU's.
fn run(what: &str, numbers: &[[usize; 2]], pool: &PoolOptions, ahead: usize, graph: bool) -> Ran {
    let (options, scans) = (options([5, 7, 9]), scans());
    let batches: Vec<Vec<usize>> = numbers.iter().map(|two| two.to_vec()).collect();
    let queue = Queue::new(Device::open(0, false).unwrap());
    let device = &queue.device;
    let mut maker = ViewMaker::with(device, &options, &extents(&scans), pool).unwrap();
    let out_len = 2 * 6 * options.view_len();
    let out = device.alloc(out_len).unwrap();
    let places = [(out.ptr(), 6)];
    let mut in_flight: Vec<_> =
        (0..2).map(|_| (device.pinned(out_len).unwrap(), device.event(false).unwrap())).collect();
    let check = |step: usize, got: &[u8]| {
        let want = cut(&options, &scans, step as u64, &batches[step]);
        for (i, (g, w)) in got.as_chunks::<2>().0.iter().zip(&want).enumerate() {
            let (got, want) = (bf16::from_le_bytes(*g), bf16::from_f32(*w));
            assert_eq!(got.to_bits(), want.to_bits(), "{what}, step {step}, voxel {i}: {got}");
        }
    };
    let mut captured = None;
    let mut before = None;
    let counts = || {
        let count = |name| emulator().counter(name);
        emulator().is_loaded().then(|| ["waits", "allocations"].map(count))
    };
    for (step, numbers) in batches.iter().enumerate() {
        if step == 2 {
            before = counts();
        }
        maker.plan(device, &planned(&options, &scans, step as u64, numbers)).unwrap();
        maker.send(device).unwrap();
        if graph && step > 0 {
            let make = || device.capture(|| maker.launch(&queue, &places)).unwrap();
            device.replay(captured.get_or_insert_with(make)).unwrap();
        } else {
            maker.launch(&queue, &places).unwrap();
        }
        let (bytes, done) = &mut in_flight[step % 2];
        device.download_later(bytes, 0..out_len, &out, 0).unwrap();
        device.record(done).unwrap();
        maker.record_use(device).unwrap();
        maker.look_ahead(device, &upcoming(&scans, &batches, step, ahead)).unwrap();
        if let Some(last) = step.checked_sub(1) {
            let (bytes, done) = &in_flight[last % 2];
            done.wait().unwrap_or_else(|e| panic!("{what}: {e}\n{}", emulator().last_report()));
            check(last, bytes.bytes());
        }
    }
    let after = counts();
    let last = batches.len() - 1;
    in_flight[last % 2].1.wait().unwrap();
    check(last, in_flight[last % 2].0.bytes());
    let counted = before.zip(after).map(|(old, new)| std::array::from_fn(|i| new[i] - old[i]));
    Ran { copied: maker.copied(), pool_len: maker.pool_len(), counted }
}

#[test]
fn volumes_come_and_go_and_views_keep_their_bits() {
    let _alone = alone();
    let scans = scans();
    let least = len(&scans[3]) + len(&scans[4]);
    let mut most_copied = 0;
    for seed in 0..3 {
        let numbers = draw(seed, 10);
        for (i, budget) in [0, least + len(&scans[2]), usize::MAX].into_iter().enumerate() {
            let ring = if (seed as usize + i).is_multiple_of(2) { SMALL_RING } else { LARGE_RING };
            for (ahead, graph) in [(0, true), (1, false), (3, true), (3, false)] {
                for order in [Order::Ascending, Order::Descending, Order::Random(seed)] {
                    emulator().set_order(order);
                    let what =
                        format!("seed {seed}, budget {budget}, {ahead} ahead, {graph}, {order:?}");
                    let pool = PoolOptions { budget, ..ring };
                    let ran = run(&what, &numbers, &pool, ahead, graph);
                    let all: usize = scans.iter().map(|scan| len(scan)).sum();
                    assert_eq!(ran.pool_len, budget.clamp(least, all), "{what}");
                    assert!(ran.counted.is_none_or(|[_, n]| n == 0), "{what}: {:?}", ran.counted);
                    if budget == usize::MAX {
                        assert!(ran.copied.0 <= 5, "{what}: a volume came twice");
                    }
                    most_copied = most_copied.max(ran.copied.0);
                }
            }
        }
    }
    emulator().set_order(Order::Ascending);
    assert!(most_copied > 10, "{most_copied} copies: volumes hardly came and went");
}

/// With budget for the volumes of the step at hand and of those looked ahead to, only the first batch's are awaited,
/// and the host waits for nothing but the results of steps.
#[test]
fn with_a_look_ahead_no_step_waits_for_volumes() {
    let name = "with_a_look_ahead_no_step_waits_for_volumes";
    if left_out(name) {
        return;
    }
    let _alone = alone();
    let scans = scans();
    // Never a volume that is there already.
    let numbers: Vec<[usize; 2]> = (0..12).map(|k| [2 * k % 5, (2 * k + 1) % 5]).collect();
    let budget = len(&scans[4]) + len(&scans[3]) + len(&scans[2]) + len(&scans[1]);
    let pool = PoolOptions { budget, ..LARGE_RING };
    for order in [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2)] {
        emulator().set_order(order);
        for graph in [false, true] {
            let ran = run(name, &numbers, &pool, 1, graph);
            let (copied, awaited) = ran.copied;
            assert!(copied > 12, "{copied} copies");
            assert_eq!((awaited, ran.counted), (2, Some([10, 0])), "{order:?}");
            let blind = run(name, &numbers, &pool, 0, graph).copied;
            assert_eq!(blind.0, blind.1, "all are awaited without a look ahead");
        }
    }
    emulator().set_order(Order::Ascending);
}

/// What is free is enough, but in two pieces: everything is laid anew.
#[test]
fn a_pool_in_pieces_is_laid_anew() {
    let _alone = alone();
    let pool = PoolOptions { budget: 0, ..LARGE_RING };
    let ran = run("in pieces", &[[0, 4], [4, 3], [3, 4], [1, 2]], &pool, 0, false);
    assert_eq!(ran.copied, (2 + 2 + 2, 6));
}

#[test]
fn a_batch_larger_than_the_device_is_refused_before_training() {
    let _alone = alone();
    let device = Device::open(0, false).unwrap();
    let extents = [[4096; 3], [8, 8, 8], [4096; 3]];
    let made = ViewMaker::new(&device, &options([5, 7, 9]), &extents);
    let error = made.map(|_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    let text = error.to_string();
    for part in ["262144 MiB needed", "views.batch", "data.views_on_device=false"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Losses of each step and the bits of what is kept, and counts of the driver over the steps behind the third.
struct Trained {
    losses: Vec<Vec<f64>>,
    bits: Vec<u32>,
    counts: [u64; 5],
    /// Bytes of all inputs, of those made on the device, of results.
    lens: [usize; 3],
}

const STEPS: usize = 5;
const COUNTED: [&str; 5] = ["copies", "host_bytes", "graph_launches", "waits", "allocations"];

/// Trains with views cut by the CPU, or on the device from a pool.
fn train(options: &ProgramOptions, pool: Option<&PoolOptions>, graph: bool) -> Trained {
    let scans: Vec<_> = (0..3).map(|k| Arc::new(volume([20, 18 + k, 21], k as u64))).collect();
    let views = ViewOptions { batch: options.batch, ..super::views::options(options.view_size) };
    let batches: Vec<Vec<usize>> = (0..STEPS).map(|step| vec![step % 3]).collect();
    let (program, mut step) = open(options, graph);
    let mut maker = pool.map(|pool| {
        let made = ViewMaker::with(&step.queue().device, &views, &extents(&scans), pool).unwrap();
        step.make_on_device(&program.images);
        made
    });
    let place = |&id| (step.half_address(id), program.tape.shape(id).dims()[0]);
    let places: Vec<_> = program.images.iter().map(place).collect();
    // Asserted only where the driver counts.
    let counts = || match emulator().is_loaded() {
        true => COUNTED.map(|name| emulator().counter(name)),
        false => [0; 5],
    };
    let (mut losses, mut before) = (Vec::new(), [0; 5]);
    for (t, numbers) in batches.iter().enumerate() {
        if t == 3 {
            before = counts();
        }
        for (id, values) in inputs(options, &program, t as u32, 1e-3) {
            if !program.images.contains(&id) {
                step.write(id, &narrow(&values)).unwrap();
            }
        }
        if let Some(maker) = &mut maker {
            maker.plan(&step.queue().device, &planned(&views, &scans, t as u64, numbers)).unwrap();
            maker.send(&step.queue().device).unwrap();
            step.submit_making(|queue| maker.launch(queue, &places)).unwrap();
            maker.record_use(&step.queue().device).unwrap();
            let next = upcoming(&scans, &batches, t, 1);
            maker.look_ahead(&step.queue().device, &next).unwrap();
        } else {
            let voxels = cut(&views, &scans, t as u64, numbers);
            let mut rest = &voxels[..];
            for &id in &program.images {
                let (image, others) = rest.split_at(program.tape.shape(id).len());
                step.write(id, image).unwrap();
                rest = others;
            }
            step.submit().unwrap();
        }
        if let Err(error) = step.collect() {
            panic!("step {t}: {error}\n{}", emulator().last_report());
        }
        losses.push(program.losses().into_iter().map(|id| f64::from(step.result(id)[0])).collect());
    }
    let after = counts();
    let kept = program.groups.iter().flat_map(|b| [b.packed, b.m, b.v]).chain([program.average]);
    let read = |id| step.read(id).unwrap().into_iter().map(f32::to_bits);
    let made =
        program.images.iter().map(|&id| step.plan().span(id).len.next_multiple_of(256)).sum();
    Trained {
        losses,
        bits: kept.flat_map(read).collect(),
        counts: std::array::from_fn(|i| after[i] - before[i]),
        lens: [step.plan().inputs.len, made, step.plan().results.len],
    }
}

/// Captured with the step or launched one by one, from a pool where every step's volume displaces the last one's or
/// from one that keeps all: the bits of a training whose views come from the CPU.
#[test]
fn steps_that_cut_their_views_have_the_bits_of_steps_given_them() {
    let _alone = alone();
    let options = small(GradientViews::First);
    let want = train(&options, None, true);
    let tiny = PoolOptions { budget: 0, ..SMALL_RING };
    for (pool, graph, order) in [
        (tiny, true, Order::Descending),
        (tiny, false, Order::Random(5)),
        (LARGE_RING, true, Order::Ascending),
    ] {
        emulator().set_order(order);
        let got = train(&options, Some(&pool), graph);
        assert_eq!(got.losses, want.losses, "{graph}, {order:?}");
        assert!(got.bits == want.bits, "{graph}, {order:?}: what is kept differs");
    }
    emulator().set_order(Order::Ascending);
}

/// All volumes there, a step is: a copy of the plans, one of the inputs that come from the host, one graph, a copy of
/// results.
#[test]
fn a_step_that_cuts_its_views_copies_no_views() {
    if left_out("a_step_that_cuts_its_views_copies_no_views") {
        return;
    }
    let _alone = alone();
    let options = small(GradientViews::All);
    let Trained { counts, lens: [inputs, made, results], losses, .. } =
        train(&options, Some(&LARGE_RING), true);
    let counted = STEPS as u64 - 3;
    let [copies, bytes, graphs, waits, allocations] = counts;
    assert_eq!([copies, graphs, waits, allocations], [3, 1, 1, 0].map(|n| n * counted));
    // A plan per view: 184 bytes.
    let plans = 3 * 184;
    assert_eq!(bytes, counted * (inputs - made + results + plans) as u64);
    assert!(made > 3 * 2 * 16 * 16 * 18 - 1 && inputs - made < made, "{made} of {inputs} bytes");
    assert!(losses.iter().flatten().all(|loss| loss.is_finite()));
}
