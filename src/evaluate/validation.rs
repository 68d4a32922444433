//! Evaluation on held-out volumes: fixed views, no augmentation, errors in millimetres beside the trivial guess.

use std::sync::Arc;

use crate::error::Result;
use crate::image::Volume;
use crate::report::{CaseObservation, Draw, PairGap, PairSimilarity, collapse, norm, summarise};
use crate::run::rows::ValidationRow;
use crate::session::{Model, RunData, load};
use crate::tape::ValueId;
use crate::views::geometry::{pairs, routes};
use crate::views::{Batch, BatchScratch, SamplePlan, ViewOptions};

/// Everything a set of observations is summed up from.
pub(crate) struct Evaluation {
    /// One entry per volume, in the order asked for.
    pub cases: Vec<CaseObservation>,
    /// Standard deviation of each feature of the gap head over all views, mean over features.
    pub feature_std: f64,
}

/// A sample on its way through the forward pass.
struct Waiting {
    case: usize,
    plan: SamplePlan,
    volume: Arc<Volume>,
}

/// Runs the forward pass on `draws` fixed sets of views of each of the volumes `indices`.
///
/// The views depend on the split's seed alone, so every validation of every run of one data set sees the same.
/// `look` receives each volume with its finished observations, for whoever wants to draw them.
///
/// # Errors
/// [`crate::Error::Data`] if a prepared volume can no longer be read.
pub(crate) fn evaluate(
    model: &mut Model,
    data: &RunData,
    views: &ViewOptions,
    (indices, draws, seed): (&[usize], usize, u64),
) -> Result<Evaluation> {
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
    Ok(collector.finish())
}

struct Collector<'a> {
    views: &'a ViewOptions,
    cases: Vec<CaseObservation>,
    batch: Batch,
    scratch: BatchScratch,
    /// Features of the gap head of every view seen.
    features: Vec<Vec<f64>>,
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
        Collector { views, cases: cases.collect(), batch, scratch, features: Vec::new() }
    }

    /// Runs the waiting samples as one batch; an incomplete batch is filled up with its last sample, which is not counted.
    fn flush(&mut self, model: &mut Model, waiting: &mut Vec<Waiting>) -> Result<()> {
        self.batch.begin(0, self.views);
        for n in 0..self.views.batch {
            let sample = &waiting[n.min(waiting.len() - 1)];
            self.batch.push(sample.plan.clone(), &sample.volume, self.views, &mut self.scratch)?;
        }
        model.feed(&self.batch)?;
        model.step.run_range(0..model.program.forward_len)?;
        let read = |id: ValueId| -> Result<Vec<f64>> {
            Ok(model.step.read(id)?.iter().map(|&x| f64::from(x)).collect())
        };
        let outputs = Outputs {
            gap: read(model.program.gap.prediction)?,
            vector: read(model.program.vector.prediction)?,
            adjacent: read(model.program.similarity.adjacent_cosines)?,
            distant: read(model.program.similarity.distant_cosines)?,
        };
        let features = read(model.program.gap.features)?;
        let width = features.len() / (self.views.count * self.views.batch);
        for (n, sample) in waiting.iter().enumerate() {
            let case = &mut self.cases[sample.case];
            case.spacing_mm = sample.volume.spacing_mm;
            case.draws.push(outputs.draw(n, sample, self.views));
            let rows = (0..self.views.count).map(|v| (v * self.views.batch + n) * width);
            self.features.extend(rows.map(|at| features[at..at + width].to_vec()));
        }
        waiting.clear();
        Ok(())
    }

    fn finish(self) -> Evaluation {
        let (count, width) =
            (self.features.len() as f64, self.features.first().map_or(0, Vec::len));
        let std = |k: usize| {
            let mean = self.features.iter().map(|f| f[k]).sum::<f64>() / count;
            (self.features.iter().map(|f| (f[k] - mean).powi(2)).sum::<f64>() / count).sqrt()
        };
        let feature_std = (0..width).map(std).sum::<f64>() / width as f64;
        Evaluation { cases: self.cases, feature_std }
    }
}

/// What the heads say of a batch.
struct Outputs {
    gap: Vec<f64>,
    vector: Vec<f64>,
    adjacent: Vec<f64>,
    distant: Vec<f64>,
}

impl Outputs {
    /// The observation of sample `n`, lengths in mm.
    fn draw(&self, n: usize, sample: &Waiting, views: &ViewOptions) -> Draw {
        let count = views.count;
        let spacing = sample.volume.spacing_mm;
        let scale: [f64; 3] = std::array::from_fn(|a| f64::from(views.gap_divisor[a]) * spacing[a]);
        let mm = |values: &[f64], i: usize, j: usize| -> [f64; 3] {
            std::array::from_fn(|a| values[((n * count + i) * count + j) * 3 + a] * scale[a])
        };
        let ordered = (0..count).flat_map(|i| (0..count).map(move |j| (i, j)));
        let gaps = ordered.map(|(i, j)| PairGap {
            i,
            j,
            truth_mm: std::array::from_fn(|a| {
                f64::from(sample.plan.gap_voxels[i * count + j][a]) * spacing[a]
            }),
            gap_mm: mm(&self.gap, i, j),
            vector_mm: mm(&self.vector, i, j),
        });
        let gaps: Vec<PairGap> = gaps.collect();
        let start = |corner: [i32; 3]| corner.map(|c| usize::try_from(c).unwrap_or(0));
        let similarities = pairs(count).enumerate().map(|(p, [i, j])| {
            let boxes = &sample.plan.boxes[p];
            let at = n * views.pairs() + p;
            PairSimilarity {
                i,
                j,
                adjacent_start: [start(boxes[0]), start(boxes[1])],
                distant_start: [start(boxes[2]), start(boxes[3])],
                adjacent_cosine: self.adjacent[at],
                distant_cosine: self.distant[at],
                slices: None,
            }
        });
        Draw {
            view_centres: sample.plan.centres.iter().map(|c| c.map(f64::from)).collect(),
            route_closure_mm: closure(&gaps, count),
            similarities: similarities.collect(),
            gaps,
            slices: Vec::new(),
        }
    }
}

/// Mean length of the sum of predicted vectors along every route and back to its start.
fn closure(gaps: &[PairGap], views: usize) -> f64 {
    let all = routes(views);
    let length = |route: &Vec<usize>| {
        let back = route.iter().cycle().skip(1);
        let mut sum = [0.0; 3];
        for (&from, &to) in route.iter().zip(back) {
            for (sum, d) in sum.iter_mut().zip(gaps[from * views + to].vector_mm) {
                *sum += d;
            }
        }
        norm(sum)
    };
    all.iter().map(length).sum::<f64>() / all.len() as f64
}

impl Evaluation {
    /// The figures of `validation.jsonl`, which are those of the report. A pair of a view with itself counts nowhere.
    pub(crate) fn row(&self, step: u64) -> ValidationRow {
        let figures = summarise(&self.cases);
        let mut row = ValidationRow::new(step);
        row.gap_mae_mm = figures.gap_mae_mm;
        row.gap_baseline_mm = figures.gap_baseline_mm;
        row.gap_r2 = figures.gap_r2;
        row.direction_error_deg = figures.direction_error_deg;
        row.vector_mae_mm = figures.vector_mae_mm;
        row.route_closure_mm = figures.route_closure_mm;
        row.similarity_accuracy = figures.similarity_accuracy;
        row.adjacent_cosine = figures.adjacent_cosine;
        row.distant_cosine = figures.distant_cosine;
        row.feature_std = self.feature_std;
        row
    }

    /// A sentence if the model has collapsed, see [`collapse`].
    pub(crate) fn alarm(&self, trains_similarity: bool) -> Option<String> {
        collapse(&summarise(&self.cases), self.feature_std, trains_similarity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(i: usize, j: usize, truth: [f64; 3], predicted: [f64; 3]) -> PairGap {
        PairGap { i, j, truth_mm: truth, gap_mm: predicted, vector_mm: predicted }
    }

    fn evaluation(scale: f64) -> Evaluation {
        let truth = [3.0, -4.0, 0.0];
        let draw = Draw {
            gaps: vec![
                pair(0, 0, [0.0; 3], [100.0; 3]),
                pair(0, 1, truth, truth.map(|x| x * scale)),
                pair(1, 0, truth.map(|x| -x), truth.map(|x| -x * scale)),
                pair(1, 1, [0.0; 3], [100.0; 3]),
            ],
            ..Draw::default()
        };
        let case = CaseObservation { draws: vec![draw], ..CaseObservation::default() };
        Evaluation { cases: vec![case], feature_std: 1.0 }
    }

    #[test]
    fn figures_of_known_predictions() {
        let row = evaluation(0.5).row(7);
        assert_eq!(row.step, 7);
        assert!((row.gap_baseline_mm - 7.0 / 3.0).abs() < 1e-12);
        assert!((row.gap_mae_mm - 3.5 / 3.0).abs() < 1e-12);
        assert!((row.gap_r2 - 0.75).abs() < 1e-12);
        assert!(row.direction_error_deg < 1e-5);
        assert!((evaluation(-1.0).row(0).direction_error_deg - 180.0).abs() < 1e-5);
        assert!((evaluation(0.0).row(0).direction_error_deg - 90.0).abs() < 1e-9);
    }

    #[test]
    fn constant_predictions_raise_the_alarm() {
        assert!(evaluation(0.5).alarm(true).is_none());
        assert!(evaluation(0.001).alarm(true).is_some());
        let flat = Evaluation { feature_std: 0.0, ..evaluation(1.0) };
        assert!(flat.alarm(true).is_some());
        let mut alike = evaluation(1.0);
        let pair = |near, far| PairSimilarity {
            adjacent_cosine: near,
            distant_cosine: far,
            ..PairSimilarity::default()
        };
        alike.cases[0].draws[0].similarities = vec![pair(0.99, 0.99)];
        assert!(alike.alarm(true).is_some() && alike.alarm(false).is_none());
        alike.cases[0].draws[0].similarities = vec![pair(0.99, 0.9)];
        assert!(alike.alarm(true).is_none());
    }

    #[test]
    fn antisymmetric_vectors_close_every_route() {
        let at = [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [4.0, -1.0, 0.5]];
        let mut gaps = Vec::new();
        for i in 0..3 {
            for j in 0..3 {
                gaps.push(pair(i, j, [0.0; 3], std::array::from_fn(|a| at[j][a] - at[i][a])));
            }
        }
        assert!(closure(&gaps, 3) < 1e-12);
        gaps[1].vector_mm[0] += 3.0;
        // Three of the six routes pass from 0 to 1, and only those are open.
        assert!((closure(&gaps, 3) - 1.5).abs() < 1e-12);
    }
}
