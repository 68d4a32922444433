//! `spatialssl inspect`: what a run, a configuration or a weight file holds.

use std::path::Path;

use super::args::InspectArgs;
use super::output::{print, print_warning};
use crate::error::{Error, Result, escape};
use crate::train::{Config, Overrides};

/// Prints a configuration or a run's configuration; other files go to `weights`.
pub(super) fn run(args: &InspectArgs, weights: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let target = &args.target;
    if target.is_dir() {
        let config = target.join("config.toml");
        if !config.is_file() {
            let why = "is a folder without config.toml\n  give the folder that was --out of train";
            return Err(Error::config("inspect", format!("{} {why}", escape(target))));
        }
        return configuration(&config);
    }
    if target.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) {
        return configuration(target);
    }
    weights(target)
}

fn configuration(path: &Path) -> Result<()> {
    let (config, warnings) = Config::load(Some(path), &[], &Overrides::default())?;
    for warning in warnings {
        print_warning(&warning);
    }
    print(&config.to_toml()?)
}
