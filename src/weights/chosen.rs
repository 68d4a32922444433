//! The checkpoint that a command works on, and the configuration in it.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result, escape};
use crate::run::checkpoint::Loaded;
use crate::run::folder::CHECKPOINTS;
use crate::run::retention::latest_valid;
use crate::run::{Ui, checkpoint};

/// The checkpoint a command works on: the one named, or the run's newest valid one.
pub(crate) fn pick(run: &Path, named: Option<&Path>, ui: &mut dyn Ui) -> Result<(PathBuf, Loaded)> {
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
pub(crate) fn config_of(path: &Path, loaded: &Loaded) -> Result<Config> {
    let text = loaded.config().unwrap_or_default();
    Config::of_run(text).map_err(|why| {
        Error::checkpoint(path, format!("its configuration cannot be read by this version: {why}"))
    })
}
