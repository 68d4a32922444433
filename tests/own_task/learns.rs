//! Trains a task alone on a few views of one volume, and looks at what it learns.

use std::collections::BTreeMap;
use std::sync::Arc;

use spatialssl::image::Volume;
use spatialssl::pretext::Task;
use spatialssl::report::{CaseObservation, Draw, Observable, ReportData, summarise};
use spatialssl::session::ProgramOptions;
use spatialssl::views::geometry::OffsetRule;
use spatialssl::views::{Batch, BatchScratch, SamplePlan, ViewOptions};

use crate::common::program::{Run, options};

const COUNT: usize = 2;

fn views(options: &ProgramOptions) -> ViewOptions {
    ViewOptions {
        count: options.views,
        size: options.view_size,
        sub_size: options.sub_size,
        batch: COUNT,
        offset_rule: OffsetRule::Ray,
        gap_divisor: [16.0; 3],
    }
}

/// A volume that is another at every place: along each axis waves that become shorter. Brightness alone would not do,
/// for norms take it out.
fn volume() -> Volume {
    let extent = [40, 36, 44];
    let wave = |at: usize, rate: f32| ((at * at) as f32 * rate).sin();
    let value =
        |i: usize| wave(i / (36 * 44), 0.012) + wave(i / 44 % 36, 0.016) + wave(i % 44, 0.014);
    let voxels = (0..40 * 36 * 44).map(|i| half::f16::from_f32(value(i))).collect();
    Volume { extent, spacing_mm: [2.0, 1.0, 1.5], fill: -1.0, voxels }
}

/// Writes the views and targets of the samples.
fn feed(run: &mut Run<f32>, views: &ViewOptions, volume: &Volume, plans: &[SamplePlan]) {
    let (mut batch, mut scratch) = (Batch::default(), BatchScratch::default());
    batch.begin(0, views);
    for plan in plans {
        batch.push(plan.clone(), volume, views, &mut scratch).unwrap();
    }
    let mut rest = &batch.views[..];
    for &id in &run.program.images {
        let to = run.step.write(id);
        let (first, others) = rest.split_at(to.len());
        to.copy_from_slice(first);
        rest = others;
    }
    for (target, id) in &run.program.targets {
        let mut values = Vec::new();
        target.fill(plans, &mut values);
        run.step.write(*id).copy_from_slice(&values);
    }
}

/// What `task` says of the samples: the outputs that it declares, sample by sample.
fn observe(
    run: &Run<f32>,
    task: &dyn Task,
    volume: &Volume,
    plans: &[SamplePlan],
) -> CaseObservation {
    let recorded = run.program.tasks.iter().find(|t| t.task.name() == task.name()).unwrap();
    let draws = plans.iter().enumerate().map(|(n, plan)| {
        let outputs = recorded.outputs.iter().map(|output| {
            let values = run.step.read(output.id);
            let len = values.len() / plans.len();
            (output.name, values[n * len..][..len].iter().map(|&v| f64::from(v)).collect())
        });
        Draw {
            view_centres: plan.centres.iter().map(|c| c.map(f64::from)).collect(),
            frame_mm: std::array::from_fn(|a| plan.geometry.frame[a] as f64 * volume.spacing_mm[a]),
            outputs: outputs.collect::<BTreeMap<_, _>>(),
            ..Draw::default()
        }
    });
    let (spacing_mm, draws) = (volume.spacing_mm, draws.collect());
    CaseObservation { name: "waves".into(), spacing_mm, draws, ..CaseObservation::default() }
}

/// Trains the task alone on a few views of one volume, and checks that its head learns, is observed and reported.
pub(crate) fn check(task: Arc<dyn Task>, figure: &str, steps: u32) {
    let mut o = options(&[24, 24], &[1, 1], [16; 3], COUNT);
    o.tasks = vec![(Arc::clone(&task), vec![1.0; task.terms().len()])];
    let (views, volume) = (views(&o), volume());
    let mut run = Run::<f32>::new(o);
    // The same views again and again: that a head and its gradient are right shows in few steps.
    let plans: Vec<SamplePlan> =
        (0..COUNT as u32).map(|n| SamplePlan::validation(5, 0, n, &volume, &views)).collect();
    let mut figures = Vec::new();
    let seen: Vec<&dyn Observable> = vec![task.as_ref()];
    let mut page = String::new();
    for until in [1, steps] {
        for t in figures.len() as u32..until {
            run.feed(t, 3e-3);
            feed(&mut run, &views, &volume, &plans);
            run.step.run();
        }
        feed(&mut run, &views, &volume, &plans);
        run.step.run_range(0..run.program.forward_len);
        let cases = [observe(&run, task.as_ref(), &volume, &plans)];
        let summary = summarise(&seen, &cases, u64::from(until));
        assert_eq!((summary.counted > 0, summary.broken), (true, 0));
        figures.push(summary.row.get(figure));
        let data = ReportData { cases: cases.to_vec(), ..ReportData::default() };
        page = spatialssl::report::html(&data, &seen);
    }
    println!("{figure} after 1 and {steps} steps: {figures:?}");
    assert!(figures[1] < 0.6 * figures[0], "{figure} after 1 and {steps} steps: {figures:?}");
    assert!(page.contains(task.description().heading) && page.contains("<svg"), "{page}");
    for figure in task.figures().iter().filter(|f| !f.label.is_empty()) {
        assert!(page.contains(figure.label), "{}: {page}", figure.label);
    }
}
