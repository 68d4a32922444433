//! Evaluation on held-out volumes: fixed views, no augmentation, errors in millimetres beside the trivial guess.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Result;
use crate::image::Volume;
use crate::pretext::{Output, Samples};
use crate::report::{CaseObservation, Draw};
use crate::session::{Model, RunData, load};
use crate::views::geometry::SUB_VIEWS;
use crate::views::{Batch, BatchScratch, SamplePlan, ViewOptions};

/// Volumes of which the first draw is shown on slices.
pub(super) const SHOWN: usize = 3;

/// What is evaluated.
#[derive(Clone, Copy)]
pub(crate) struct Validation<'a> {
    /// The volumes, by their place in the data set.
    pub indices: &'a [usize],
    /// Sets of views of each.
    pub draws: usize,
    /// Seed of the split, on which the views depend.
    pub seed: u64,
}

/// A sample on its way through the forward pass.
struct Waiting {
    case: usize,
    plan: SamplePlan,
    volume: Arc<Volume>,
}

/// Runs the forward pass on `draws` fixed sets of views of each of the volumes `indices`, and returns what the tasks'
/// heads say: one entry per volume, in the order asked for.
///
/// The views depend on the split's seed alone, so every validation of every run of one data set sees the same.
///
/// # Errors
/// [`crate::Error::Data`] if a prepared volume can no longer be read.
pub(crate) fn evaluate(
    model: &mut Model,
    data: &RunData,
    views: &ViewOptions,
    what: &Validation<'_>,
) -> Result<Vec<CaseObservation>> {
    let Validation { indices, draws, seed } = *what;
    let mut collector = Collector::new(data, views, indices);
    let mut waiting: Vec<Waiting> = Vec::with_capacity(views.batch);
    for (case, &index) in indices.iter().enumerate() {
        let volume = load(&data.set, index)?;
        for draw in 0..draws {
            let plan = SamplePlan::validation(seed, index, draw as u32, &volume, views);
            waiting.push(Waiting { case, plan, volume: Arc::clone(&volume) });
            if waiting.len() == views.batch {
                collector.flush(model, &mut waiting)?;
            }
        }
    }
    if !waiting.is_empty() {
        collector.flush(model, &mut waiting)?;
    }
    Ok(collector.cases)
}

struct Collector<'a> {
    views: &'a ViewOptions,
    cases: Vec<CaseObservation>,
    batch: Batch,
    scratch: BatchScratch,
}

impl<'a> Collector<'a> {
    fn new(data: &RunData, views: &'a ViewOptions, indices: &[usize]) -> Self {
        let cases = indices.iter().map(|&i| CaseObservation {
            name: data.set.cases[i].name.clone(),
            spacing_mm: data.set.spacing_mm,
            view_size: views.size,
            sub_size: views.sub_size,
            draws: Vec::new(),
        });
        let (batch, scratch) = (Batch::default(), BatchScratch::default());
        Collector { views, cases: cases.collect(), batch, scratch }
    }

    /// Runs the waiting samples as one batch; an incomplete batch is filled up with its last sample, which is not
    /// counted.
    fn flush(&mut self, model: &mut Model, waiting: &mut Vec<Waiting>) -> Result<()> {
        self.batch.begin(0, self.views);
        for n in 0..self.views.batch {
            let sample = &waiting[n.min(waiting.len() - 1)];
            self.batch.push(sample.plan.clone(), &sample.volume, self.views, &mut self.scratch)?;
        }
        model.feed(&self.batch)?;
        let outputs = model.outputs()?;
        let block = model.program.block;
        for (n, sample) in waiting.iter().enumerate() {
            let case = &mut self.cases[sample.case];
            case.spacing_mm = sample.volume.spacing_mm;
            let is_shown = sample.case < SHOWN && case.draws.is_empty();
            let mut draw = Draw { block, ..draw(sample, self.views, n, &outputs) };
            for task in model.program.observables() {
                task.digest(&mut draw, is_shown);
            }
            case.draws.push(draw);
        }
        waiting.clear();
        Ok(())
    }
}

/// What is observed of sample `n` of a batch.
fn draw(sample: &Waiting, views: &ViewOptions, n: usize, outputs: &[(Output, Vec<f64>)]) -> Draw {
    let (plan, spacing) = (&sample.plan, sample.volume.spacing_mm);
    let of_sample = |(output, values): &(Output, Vec<f64>)| {
        (output.name, part_of(values, output.samples, n, [views.count, views.batch]))
    };
    let start = |corner: [i32; 3]| corner.map(|c| usize::try_from(c).unwrap_or(0));
    let boxes = plan.boxes.iter().map(|boxes: &[[i32; 3]; SUB_VIEWS]| boxes.map(start));
    Draw {
        view_centres: plan.centres.iter().map(|c| c.map(f64::from)).collect(),
        gaps_mm: plan
            .gap_voxels
            .iter()
            .map(|gap| std::array::from_fn(|a| f64::from(gap[a]) * spacing[a]))
            .collect(),
        frame_mm: std::array::from_fn(|a| plan.geometry.frame[a] as f64 * spacing[a]),
        unit_mm: std::array::from_fn(|a| f64::from(views.gap_divisor[a]) * spacing[a]),
        boxes: boxes.collect(),
        view_size: views.size,
        block: [0; 3],
        outputs: outputs.iter().map(of_sample).collect(),
        slices: Vec::new(),
        pictures: BTreeMap::new(),
    }
}

/// The values of sample `n` of a batch; of an output per view or per box, those of all of them.
fn part_of(values: &[f64], samples: Samples, n: usize, [views, batch]: [usize; 2]) -> Vec<f64> {
    let parts = samples.parts(views);
    let len = values.len() / (parts * batch);
    let of_part = |k: usize| &values[(k * batch + n) * len..][..len];
    (0..parts).flat_map(of_part).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_gets_its_own_values() {
        let values: Vec<f64> = (0..12).map(f64::from).collect();
        assert_eq!(part_of(&values, Samples::First, 1, [3, 2]), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
        // [V, N, 2].
        assert_eq!(part_of(&values, Samples::PerView, 1, [3, 2]), [2.0, 3.0, 6.0, 7.0, 10.0, 11.0]);
        // [4, N, 1].
        assert_eq!(part_of(&values[..8], Samples::PerBox, 1, [3, 2]), [1.0, 3.0, 5.0, 7.0]);
    }
}
