//! From a model and its rows to the report a person looks at.

use std::path::{Path, PathBuf};

use half::f16;

use crate::config::Config;
use crate::error::Result;
use crate::evaluate::validation::{Evaluation, evaluate};
use crate::files::utc_now;
use crate::image::Volume;
use crate::report;
use crate::report::{
    FileSummary, ReportData, RunInfo, Slice, Source, StepPoint, ValidationPoint, pair_slices,
    volume_slices,
};
use crate::run::rows::{StepRow, ValidationRow, read_rows};
use crate::run::{METRICS, VALIDATION};
use crate::session::{Model, RunData, load, view_options};
use crate::views::{SamplePlan, ViewOptions};

/// Volumes of which the first draw is shown on slices.
const SHOWN: usize = 3;

/// What the report says of the run beside its numbers.
pub(crate) struct About<'a> {
    /// The run folder, whose rows are shown.
    pub run: &'a Path,
    /// The resolved configuration.
    pub config: &'a Config,
    /// The command that was run.
    pub command: &'a str,
    /// Finished steps.
    pub steps: u64,
}

/// Evaluates the volumes `indices` and writes the report into `out`. Returns the page's path and the figures.
///
/// # Errors
/// [`crate::Error::Output`] if it cannot be written, [`crate::Error::Data`] if a volume can no longer be read.
pub(crate) fn write_report(
    model: &mut Model,
    data: &RunData,
    indices: &[usize],
    about: &About<'_>,
    out: &Path,
) -> Result<(PathBuf, ValidationRow)> {
    let views = view_options(about.config, data.set.spacing_mm);
    let (draws, seed) = (about.config.run.validation_draws, about.config.data.split_seed);
    let mut evaluation = evaluate(model, data, &views, (indices, draws, seed))?;
    let row = evaluation.row(about.steps);
    for (case, &index) in indices.iter().enumerate().take(SHOWN) {
        let volume = load(&data.set, index)?;
        let plan = SamplePlan::validation(seed, index, 0, &volume, &views);
        draw_slices(&mut evaluation, case, &plan, &volume, &views);
    }
    let path = report::write(&report_data(model, data, evaluation, about, indices)?, out)?;
    Ok((path, row))
}

fn report_data(
    model: &Model,
    data: &RunData,
    evaluation: Evaluation,
    about: &About<'_>,
    indices: &[usize],
) -> Result<ReportData> {
    let rows = |name: &str| about.run.join(name);
    let steps: Vec<StepRow> = read_rows(&rows(METRICS)).unwrap_or_default();
    let validations: Vec<ValidationRow> = read_rows(&rows(VALIDATION)).unwrap_or_default();
    let seconds =
        steps.iter().map(|r| r.step_ms + r.data_ms).filter(|ms| ms.is_finite()).sum::<f64>() / 1e3;
    let files = |of: &[usize]| of.iter().map(|&i| summary(data, i)).collect();
    Ok(ReportData {
        run: RunInfo {
            title: about
                .run
                .file_name()
                .map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned()),
            created: utc_now(),
            config_toml: about.config.to_toml()?,
            command: about.command.to_string(),
            model_preset: preset(about.config),
            parameters: model.parameters(),
            train_files: files(&data.train),
            validation_files: files(indices),
            seconds_trained: seconds,
            steps: about.steps,
            trains_similarity: about.config.tasks.trains_similarity(),
            warnings: data.set.warnings.clone(),
        },
        steps: steps.iter().filter(|r| r.step <= about.steps).map(step_point).collect(),
        validations: validations
            .iter()
            .filter(|r| r.step <= about.steps)
            .map(validation_point)
            .collect(),
        feature_std: Some(evaluation.feature_std),
        cases: evaluation.cases,
    })
}

/// The preset's name as the configuration spells it.
fn preset(config: &Config) -> String {
    let text = toml::Value::try_from(config.model.preset).ok();
    text.and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
}

fn summary(data: &RunData, index: usize) -> FileSummary {
    let case = &data.set.cases[index];
    FileSummary { name: case.name.clone(), spacing_mm: data.set.spacing_mm, extent: case.extent }
}

fn step_point(r: &StepRow) -> StepPoint {
    let norms = [r.grad_gap, r.grad_similarity, r.grad_vector];
    StepPoint {
        step: r.step,
        loss: r.loss,
        gap_axis: r.gap_axis,
        gap_norm: r.gap_norm,
        sim_adjacent: r.sim_adjacent,
        sim_distant: r.sim_distant,
        vector: r.vector,
        route: r.route,
        lr: r.lr,
        grad_norm: r.grad_norm,
        step_ms: r.step_ms,
        data_ms: r.data_ms,
        task_grad_norms: norms.iter().all(|n| n.is_finite()).then_some(norms),
    }
}

fn validation_point(r: &ValidationRow) -> ValidationPoint {
    ValidationPoint {
        step: r.step,
        gap_mae_mm: r.gap_mae_mm,
        gap_baseline_mm: r.gap_baseline_mm,
        gap_r2: r.gap_r2,
        direction_error_deg: r.direction_error_deg,
        vector_mae_mm: r.vector_mae_mm,
        route_closure_mm: r.route_closure_mm,
        similarity_accuracy: r.similarity_accuracy,
        adjacent_cosine: r.adjacent_cosine,
        distant_cosine: r.distant_cosine,
        feature_std: r.feature_std,
    }
}

/// Cuts the slices of the first draw of a case: its views on the volume, its boxes on the views.
fn draw_slices(
    evaluation: &mut Evaluation,
    case: usize,
    plan: &SamplePlan,
    volume: &Volume,
    views: &ViewOptions,
) {
    let window = window(volume);
    let frame = plan.geometry.frame;
    // A volume smaller than a view stands in the middle of its frame, padded.
    let pad: [usize; 3] = std::array::from_fn(|a| (frame[a] - volume.extent[a]) / 2);
    let at = |p: [usize; 3]| -> f32 {
        let inside = (0..3).all(|a| p[a] >= pad[a] && p[a] - pad[a] < volume.extent[a]);
        if !inside {
            return volume.fill;
        }
        let [z, y, x] = std::array::from_fn(|a| p[a] - pad[a]);
        volume.voxels[(z * volume.extent[1] + y) * volume.extent[2] + x].to_f32()
    };
    let Some(draw) = evaluation.cases[case].draws.first_mut() else { return };
    let whole = Source { extent: frame, spacing_mm: volume.spacing_mm, window, voxel: &at };
    let slices: Vec<Slice> = volume_slices(&whole, &plan.starts, views.size);
    draw.slices = slices;
    for pair in &mut draw.similarities {
        let in_view = |v: usize| {
            let start = plan.starts[v];
            move |p: [usize; 3]| at(std::array::from_fn(|a| start[a] + p[a]))
        };
        let (first, second) = (in_view(pair.i), in_view(pair.j));
        let source =
            |voxel| Source { extent: views.size, spacing_mm: volume.spacing_mm, window, voxel };
        let sources: [&Source<'_>; 2] = [&source(&first), &source(&second)];
        let cut = pair_slices(sources, pair.adjacent_start, pair.distant_start, views.sub_size);
        pair.slices = Some(Box::new(cut));
    }
}

/// Grey window of a volume: from its 1st to its 99.5th percentile, of every 31st voxel.
fn window(volume: &Volume) -> [f32; 2] {
    let mut sample: Vec<f32> = volume.voxels.iter().step_by(31).copied().map(f16::to_f32).collect();
    sample.sort_unstable_by(f32::total_cmp);
    let at = |share: f64| sample[((sample.len() - 1) as f64 * share) as usize];
    [at(0.01), at(0.995)]
}
