//! What is done with a finished or stopped run: observing it on volumes, exporting its weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result, escape};
use crate::evaluate::{About, write_report};
use crate::run::checkpoint;
use crate::run::checkpoint::{KEY_CONFIG, KEY_STEP, Loaded};
use crate::run::folder::CHECKPOINTS;
use crate::run::retention::latest_valid;
use crate::run::rows::ValidationRow;
use crate::session::{Model, RunData, Target, Ui, state};

/// The checkpoint a command works on: the one named, or the run's newest valid one.
fn pick(run: &Path, named: Option<&Path>, ui: &mut dyn Ui) -> Result<(PathBuf, Loaded)> {
    if let Some(path) = named {
        return Ok((path.to_path_buf(), checkpoint::load(path)?));
    }
    let folder = run.join(CHECKPOINTS);
    let latest = latest_valid(&folder)?;
    for (path, why) in &latest.rejected {
        ui.warn(&format!("{} is not valid and is passed over: {why}", escape(path)));
    }
    latest.found.ok_or_else(|| {
        let why =
            "holds no valid checkpoint\n  is this a run folder? `spatialssl train --out` makes one";
        Error::checkpoint(folder, why)
    })
}

/// The configuration a checkpoint was written with.
fn config_of(path: &Path, loaded: &Loaded) -> Result<Config> {
    let text = loaded.config().unwrap_or_default();
    toml::from_str(text).map_err(|e| {
        Error::checkpoint(
            path,
            format!("its configuration cannot be read by this version: {}", e.message()),
        )
    })
}

/// A model with a checkpoint's state, the configuration and the number of finished steps.
fn restored(run: &Path, named: Option<&Path>, ui: &mut dyn Ui) -> Result<(Model, Config, u64)> {
    let (path, loaded) = pick(run, named, ui)?;
    let config = config_of(&path, &loaded)?;
    let mut model = Model::new(&config, Target::Cpu)?;
    state::restore(&model.program, &mut model.step, &path, &loaded)?;
    ui.note(&format!("checkpoint {}", escape(&path)));
    Ok((model, config, loaded.step().unwrap_or(0)))
}

/// What `observe` takes.
#[derive(Clone, Debug)]
pub struct ObserveOptions {
    /// The run folder.
    pub run: PathBuf,
    /// The checkpoint, else the newest valid one.
    pub checkpoint: Option<PathBuf>,
    /// Volumes to look at, all of them.
    pub data: Vec<PathBuf>,
    /// Folder of the report.
    pub out: PathBuf,
    /// Folder of prepared volumes; the run's if empty.
    pub cache_dir: String,
    /// The command as typed, for the report.
    pub command: String,
}

/// Evaluates a run on volumes and writes the report. Returns the page's path and the figures.
///
/// # Errors
/// Any kind of [`Error`] but [`Error::Stopped`].
pub fn observe(options: &ObserveOptions, ui: &mut dyn Ui) -> Result<(PathBuf, ValidationRow)> {
    let (mut model, mut config, steps) = restored(&options.run, options.checkpoint.as_deref(), ui)?;
    if !options.cache_dir.is_empty() {
        config.data.cache_dir.clone_from(&options.cache_dir);
    }
    config.data.validation_fraction = 0.0;
    let data = RunData::open(&config, &options.data, ui)?;
    let data = RunData { validation: data.train, train: Vec::new(), ..data };
    let about = About { run: &options.run, config: &config, command: &options.command, steps };
    write_report(&mut model, &data, &data.validation, &about, &options.out)
}

/// Writes the encoder-decoder's weights of a run as safetensors under nnU-Net's names. Returns the number of bytes.
///
/// # Errors
/// [`Error::Checkpoint`] if there is no valid checkpoint, [`Error::Output`] if the file cannot be written.
pub fn export(run: &Path, checkpoint: Option<&Path>, out: &Path, ui: &mut dyn Ui) -> Result<u64> {
    let (model, config, steps) = restored(run, checkpoint, ui)?;
    let metadata = BTreeMap::from([
        (KEY_STEP.to_string(), steps.to_string()),
        (KEY_CONFIG.to_string(), config.to_toml()?),
    ]);
    Ok(state::save_weights(&model.program, &model.step, out, &metadata)?.bytes)
}
