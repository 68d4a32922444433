//! From a model and its rows to the report a person looks at.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::Result;
use crate::evaluate::validation::{SHOWN, Validation, evaluate};
use crate::files::utc_now;
use crate::image::Volume;
use crate::report;
use crate::report::{
    CaseObservation, FileSummary, Observable, ReportData, RunInfo, Scene, Source, summarise,
    unlearnt, volume_slices,
};
use crate::run::rows::{Row, read_rows};
use crate::run::{METRICS, PROBES, VALIDATION};
use crate::session::{Model, RunData, load, view_options};
use crate::views::SamplePlan;

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
) -> Result<(PathBuf, Row)> {
    let views = view_options(about.config, data.set.spacing_mm);
    let (draws, seed) = (about.config.run.validation_draws, about.config.data.split_seed);
    let mut cases = evaluate(model, data, &views, &Validation { indices, draws, seed })?;
    let tasks = model.program.observables();
    let row = summarise(&tasks, &cases, about.steps).row;
    for (case, &index) in cases.iter_mut().zip(indices).take(SHOWN) {
        let volume = load(&data.set, index)?;
        let plan = SamplePlan::validation(seed, index, 0, &volume, &views);
        draw_slices(&tasks, case, &plan, &volume);
    }
    let path = report::write(&report_data(model, data, cases, about, indices)?, &tasks, out)?;
    Ok((path, row))
}

fn report_data(
    model: &Model,
    data: &RunData,
    cases: Vec<CaseObservation>,
    about: &About<'_>,
    indices: &[usize],
) -> Result<ReportData> {
    let rows = |name: &str| about.run.join(name);
    let mut steps = read_rows(&rows(METRICS)).unwrap_or_default();
    let mut validations = read_rows(&rows(VALIDATION)).unwrap_or_default();
    let mut probes = read_rows(&rows(PROBES)).unwrap_or_default();
    let ms = |row: &Row| row.get("step_ms") + row.get("data_ms");
    let seconds = steps.iter().map(ms).filter(|ms| ms.is_finite()).sum::<f64>() / 1e3;
    // A run that was resumed from an older checkpoint has rows of steps that are not in the model.
    steps.retain(|row| row.step <= about.steps);
    validations.retain(|row| row.step <= about.steps);
    probes.retain(|row| row.step <= about.steps);
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
            warnings: data.set.warnings.clone(),
        },
        steps,
        validations,
        probes,
        cases,
    })
}

/// What the tasks have not learnt, by the figures in `row`, in one sentence; none if there is nothing.
pub(crate) fn not_learnt(model: &Model, row: &Row) -> Option<String> {
    let missing = unlearnt(&model.program.observables(), row);
    (!missing.is_empty()).then(|| format!("not learnt: {}", missing.join("; ")))
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

/// Cuts the slices of the first draw of a case: its views on the volume, and what the tasks show on its views.
fn draw_slices(
    tasks: &[&dyn Observable],
    case: &mut CaseObservation,
    plan: &SamplePlan,
    volume: &Volume,
) {
    let window = volume.grey_window();
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
    let (view_size, sub_size, spacing_mm) = (case.view_size, case.sub_size, volume.spacing_mm);
    let Some(draw) = case.draws.first_mut() else { return };
    let whole = Source { extent: frame, spacing_mm, window, voxel: &at };
    draw.slices = volume_slices(&whole, &plan.starts, view_size);
    let voxel =
        |view: usize, p: [usize; 3]| at(std::array::from_fn(|a| plan.starts[view][a] + p[a]));
    let scene = Scene { view_size, sub_size, spacing_mm, window, voxel: &voxel };
    for task in tasks {
        let pictures = task.pictures(draw, &scene);
        draw.pictures.insert(task.name(), pictures);
    }
}
