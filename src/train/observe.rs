//! Looking at a finished or stopped run: what it predicts on volumes.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Result, escape};
use crate::evaluate::{About, not_learnt, write_report};
use crate::report::in_words;
use crate::run::Ui;
use crate::session::{Model, RunData, Target, state};
use crate::weights::{config_of, pick};

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

/// Evaluates a run on volumes and writes the report. Returns the page's path and the figures in words.
///
/// # Errors
/// Any kind of [`crate::Error`] but [`crate::Error::Stopped`].
pub fn observe(options: &ObserveOptions, ui: &mut dyn Ui) -> Result<(PathBuf, String)> {
    let (mut model, mut config, steps) = restored(&options.run, options.checkpoint.as_deref(), ui)?;
    if !options.cache_dir.is_empty() {
        config.data.cache_dir.clone_from(&options.cache_dir);
    }
    config.data.validation_fraction = 0.0;
    let data = RunData::open(&config, &options.data, None, ui)?;
    let data = RunData { validation: data.train, train: Vec::new(), ..data };
    let about = About { run: &options.run, config: &config, command: &options.command, steps };
    let (page, row) = write_report(&mut model, &data, &data.validation, &about, &options.out)?;
    if let Some(what) = not_learnt(&model, &row) {
        ui.warn(&what);
    }
    Ok((page, in_words(&model.program.observables(), &row).join(", ")))
}
