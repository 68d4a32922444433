//! Measuring a step changes nothing in it, and what cannot be measured stops nothing.

use std::sync::OnceLock;

use spatialssl::backend::cuda::{Repeats, Timed};
use spatialssl::config::{Config, GradientViews, Overrides};
use spatialssl::driver::Device;
use spatialssl::profile::{Effort, measure_roofs, profile, wgmma_roof};
use spatialssl::session::{Program, Target};
use spatialssl::tape::{Arrangement, CudaStep};

use crate::common::emulator::{alone, emulator, left_out};
use crate::common::program::inputs;
use crate::steps::{narrow, open, small};

/// Bits of everything kept and of the losses after one step from the initial values, and its launches, timed or not.
fn one_step(repeats: Option<Repeats>) -> (Vec<u32>, Vec<Timed>) {
    let options = small(GradientViews::First);
    let (program, mut step) = open(&options, false);
    for (id, values) in inputs(&options, &program, 0, 1e-3) {
        step.write(id, &narrow(&values)).unwrap();
    }
    if repeats.is_some() {
        step.queue().begin_timing(repeats);
    }
    let all = 0..step.len();
    if let Err(error) = step.run_range(all) {
        panic!("{error}\n{}", emulator().last_report());
    }
    let timed = step.queue().end_timing();
    (kept(&program, &step), timed)
}

/// The same step with nobody measuring.
fn plain() -> &'static [u32] {
    static PLAIN: OnceLock<Vec<u32>> = OnceLock::new();
    PLAIN.get_or_init(|| one_step(None).0)
}

fn kept(program: &Program, step: &CudaStep) -> Vec<u32> {
    let ids = program.groups.iter().flat_map(|b| [b.packed, b.m, b.v]);
    let ids = ids.chain([program.average]).chain(program.losses());
    let mut bits: Vec<u32> =
        ids.flat_map(|id| step.read(id).unwrap().into_iter().map(f32::to_bits)).collect();
    for id in program.groups.iter().map(|b| b.packed).chain([program.average]) {
        bits.extend(step.read_half_copy(id).unwrap().into_iter().flatten().map(f32::to_bits));
    }
    bits
}

#[test]
fn repeated_launches_leave_a_step_as_it_was() {
    let _alone = alone();
    // No graph lasts so long: each launch runs in graphs of one and of two, and behind an overwritten cache.
    let repeats = Repeats { least_ms: 1e9, most: 2, samples: 1, flush: 4096 };
    let (measured, timed) = one_step(Some(repeats));
    assert!(plain() == measured, "what is kept differs");
    assert!(timed.len() > 20, "{} launches", timed.len());
    for one in &timed {
        let time = one.time.as_ref().unwrap();
        assert_eq!(time.repeats, 2, "{}", one.launch.kernel.name);
        assert!(time.ms > 0.0 && time.cold_ms.is_some_and(|ms| ms > 0.0), "{time:?}");
    }
}

#[test]
fn launches_that_cannot_be_timed_are_run_all_the_same() {
    if left_out("launches_that_cannot_be_timed_are_run_all_the_same") {
        return;
    }
    let _alone = alone();
    let (measured, timed) =
        one_step(Some(Repeats { least_ms: 0.0, most: 1, samples: 1, flush: 1 << 50 }));
    assert!(plain() == measured && timed.len() > 20, "what is kept differs");
    for one in timed {
        let why = one.time.unwrap_err().to_string();
        assert!(why.contains("cuMemAlloc"), "{why}");
    }
}

/// Counts are those of one step, however often its launches might be repeated on a driver that does not count.
#[test]
fn counts_are_those_of_one_step() {
    if left_out("counts_are_those_of_one_step") {
        return;
    }
    let _alone = alone();
    let settings = [
        "model.preset=custom",
        "model.features=[8,16]",
        "model.blocks=[1,1]",
        "views.size=[16,16,16]",
        "views.sub_size=[16,16,16]",
        "views.batch=1",
    ];
    let settings = settings.map(String::from);
    let (config, _) = Config::load(None, &settings, &Overrides::default()).unwrap();
    let target = Target::Cuda {
        ordinal: 0,
        graph: true,
        sync_each: false,
        arrangement: Arrangement::default(),
    };
    let found = profile(&config, target, 2).unwrap();
    let calls: f64 = found.rows.iter().map(|row| row.calls).sum();
    assert_eq!(Some(calls as usize), found.graph_nodes, "launches of a step");
    for row in &found.rows {
        let counts = row.counts.unwrap();
        assert_eq!(counts.calls as f64, row.calls, "{}", row.name);
        assert!(counts.blocks > 0 && row.repeats == Some(1) && row.lost.is_none(), "{row:?}");
    }
    assert!(found.roofs.is_none() && found.notes.is_empty(), "{:?}", found.notes);
}

#[test]
fn roofs_are_measured_and_a_missing_one_is_stated() {
    if left_out("roofs_are_measured_and_a_missing_one_is_stated") {
        return;
    }
    let _alone = alone();
    let mut device = Device::open(0, false).unwrap();
    let effort = Effort { bytes: 1 << 20, blocks: 1, turns: 2 };
    let roofs = measure_roofs(&device, effort).unwrap();
    assert!(roofs.mma > 0.0 && roofs.mma.is_finite(), "{roofs:?}");
    assert!(roofs.bytes > 0.0 && roofs.bytes.is_finite(), "{roofs:?}");
    assert!(wgmma_roof(&device, effort).is_none(), "capability {:?}", device.capability);
    // As a Hopper would be whose device code lacks the kernel: 4 multiprocessors at 1 GHz.
    device.capability = (9, 0);
    let wgmma = wgmma_roof(&device, effort).unwrap();
    let how = wgmma.stated.unwrap();
    assert!(how.contains("not measured") && how.contains("roofline_wgmma_bf16"), "{how}");
    assert!((wgmma.flops / (4.0 * 1e9 * 4096.0) - 1.0).abs() < 1e-12, "{}", wgmma.flops);
    device.sync().unwrap();
}
