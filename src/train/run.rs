//! A training run: data, initial state, then the loop of `trainer.rs`.

use std::path::Path;

use crate::config::Config;
use crate::error::{Error, Result, escape};
use crate::files::atomic;
use crate::image::Spacing;
use crate::probe::RunProbe;
use crate::run::Ui;
use crate::run::checkpoint::Loaded;
use crate::run::folder::{CHECKPOINTS, RunDir, prepare_run_dir};
use crate::run::retention::latest_valid;
use crate::session::{Model, RunData, spacing_text, state};
use crate::train::options::{KEY_FILES, RunOptions, SPLITS};
use crate::train::probing::Probing;
use crate::train::signals::StopFlag;
use crate::train::trainer::Trainer;

/// Trains, and writes everything a run folder holds.
///
/// # Errors
/// Any kind of [`Error`]; [`Error::Stopped`] if a signal ended the run after its state was saved.
pub fn run(config: &Config, options: &RunOptions, ui: &mut dyn Ui) -> Result<()> {
    let labelled = RunProbe::find(config)?;
    let dir = prepare_run_dir(&options.out, options.resume, &options.data)?;
    let stop = StopFlag::install()?;
    let mut config = config.clone();
    let data = open_data(&mut config, options, &dir, ui)?;
    let probing = labelled.map(|set| Probing::new(&set, &config, options, ui)).transpose()?;
    let mut model = Model::new(&config, options.target)?;
    describe(&config, &data, &model, ui);
    let done = begin(&config, options, &data, &mut model, ui)?;
    write_text(&options.out.join("config.toml"), &config.to_toml()?)?;
    write_text(&options.out.join(SPLITS), &data.splits_final())?;
    let trainer = Trainer::new(&config, options, &data, model, done, probing, ui)?;
    trainer.train(&stop)
}

fn open_data(
    config: &mut Config,
    options: &RunOptions,
    dir: &RunDir,
    ui: &mut dyn Ui,
) -> Result<RunData> {
    for temp in &dir.removed_temps {
        ui.note(&format!("removed {}, left behind by a run that was killed", escape(temp)));
    }
    if !dir.lock.is_supported() {
        ui.warn("this file system has no locks: make sure that no second run writes into the same folder");
    }
    let data = RunData::open(config, &options.data, options.split.as_ref(), ui)?;
    // What depends on the data is written back, so that other volumes are later prepared and measured alike.
    if config.data.spacing == Spacing::Median {
        config.data.spacing = Spacing::Mm(data.set.spacing_mm);
    }
    if config.views.gap_unit_mm == 0.0 {
        config.views.gap_unit_mm = data.default_gap_unit_mm();
    }
    Ok(data)
}

fn describe(config: &Config, data: &RunData, model: &Model, ui: &mut dyn Ui) {
    let (plan, unit) = model.step.plan();
    let mib = |len: usize| (len * unit) as f64 / f64::from(1 << 20);
    ui.note(&format!(
        "{} volumes to train on, {} held out, {}; gaps in units of {} mm",
        data.train.len(),
        data.validation.len(),
        spacing_text(config, &data.set),
        config.views.gap_unit_mm
    ));
    ui.note(&format!(
        "{} trained parameters; memory: {:.0} MiB kept (parameters, gradients, moments, averages, inputs), \
         {:.0} MiB arena, {:.0} MiB workspace",
        model.parameters(),
        mib(plan.persistent_len),
        mib(plan.arena_len),
        mib(plan.workspace.len)
    ));
}

/// Puts the initial state into the model: from a checkpoint, from weights, or as it is. Returns the number of finished
/// steps.
fn begin(
    config: &Config,
    options: &RunOptions,
    data: &RunData,
    model: &mut Model,
    ui: &mut dyn Ui,
) -> Result<u64> {
    if let Some(path) = &options.init {
        let count = state::load_weights(&model.program, &mut model.step, path)?;
        ui.note(&format!("{count} tensors of the encoder-decoder taken from {}", escape(path)));
    }
    if !options.resume {
        return Ok(0);
    }
    let latest = latest_valid(&options.out.join(CHECKPOINTS))?;
    for (path, why) in &latest.rejected {
        ui.warn(&format!("{} is not valid and is passed over: {why}", escape(path)));
    }
    let Some((path, loaded)) = latest.found else {
        if latest.rejected.is_empty() {
            ui.note("there is no checkpoint to resume from: training starts at step 0");
            return Ok(0);
        }
        let why = format!(
            "none of {} checkpoints is valid\n  start a new run in another folder",
            latest.rejected.len()
        );
        return Err(Error::checkpoint(options.out.join(CHECKPOINTS), why));
    };
    check_same(&path, loaded.config().unwrap_or_default(), config)?;
    check_files(&path, &loaded, data, &options.out.join(SPLITS))?;
    state::restore(&model.program, &mut model.step, &path, &loaded)?;
    let done = loaded.step().unwrap_or(0);
    ui.note(&format!("resumed from {} after step {done}", escape(&path)));
    Ok(done)
}

/// Checks that a resumed run computes what the checkpoint's run computed.
fn check_same(path: &Path, old: &str, config: &Config) -> Result<()> {
    let differences = config.differences(old)?;
    if differences.is_empty() {
        return Ok(());
    }
    let why = format!(
        "the run was started with other settings:\n  {}\n  \
         resume with the run's own config.toml, or start a new run in another folder",
        differences.join("\n  ")
    );
    Err(Error::checkpoint(path, why))
}

/// Checks that a resumed run has the volumes of the checkpoint's run, each on the side it was on; `splits` is where the
/// run wrote its sides down.
fn check_files(path: &Path, loaded: &Loaded, data: &RunData, splits: &Path) -> Result<()> {
    let (Some(old), new) = (loaded.metadata.get(KEY_FILES), data.file_list()) else {
        return Ok(());
    };
    if *old == new {
        return Ok(());
    }
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
    let (old, new) = (parse(old), parse(&new));
    let list = |v: &serde_json::Value, kind: &str| -> Vec<String> {
        let names = v[kind].as_array().into_iter().flatten();
        names.map(|n| n.as_str().unwrap_or_default().to_string()).collect()
    };
    let mut lines = Vec::new();
    for kind in ["train", "validation"] {
        let (old, new) = (list(&old, kind), list(&new, kind));
        let missing =
            old.iter().filter(|n| !new.contains(n)).map(|n| format!("{kind}: {n:?} is gone"));
        let added =
            new.iter().filter(|n| !old.contains(n)).map(|n| format!("{kind}: {n:?} is new"));
        lines.extend(missing.chain(added));
    }
    lines.truncate(20);
    let all = |v: &serde_json::Value| {
        let mut names = [list(v, "train"), list(v, "validation")].concat();
        names.sort();
        names
    };
    let split = if splits.is_file() {
        format!("--split {}", escape(splits))
    } else {
        "the --split it was started with".to_string()
    };
    let (what, remedy) = if all(&old) == all(&new) {
        ("with the same volumes, but others of them held out", split)
    } else {
        (
            "with other volumes",
            format!("the same --data and, if its volumes were split otherwise, {split}"),
        )
    };
    let why = format!(
        "the run was started {what}:\n  {}\n  give {remedy} to resume, or start a new run in another folder",
        lines.join("\n  ")
    );
    Err(Error::checkpoint(path, why))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    atomic::write_atomic(path, |file| file.write_all(text.as_bytes()))
}
