//! `spatialssl probe`: how much anatomy frozen features hold.

use std::path::{Path, PathBuf};

use crate::cli::args::ProbeArgs;
use crate::cli::device;
use crate::cli::device::GpuFlags;
use crate::cli::observe::check_run;
use crate::cli::output::{print, print_line};
use crate::config::{Config, Overrides};
use crate::error::{Error, Result, escape};
use crate::probe::{ProbeOptions, Results};

/// Checks the command, says which device it runs on, and prints what `probe`, given the options and the number of
/// threads, finds. `command`: the command as typed.
pub(super) fn run(
    args: &ProbeArgs,
    command: String,
    probe: impl FnOnce(&ProbeOptions, usize) -> Result<(Results, PathBuf)>,
) -> Result<()> {
    if let Some(run) = &args.run {
        check_run(run, None)?;
    }
    match &args.weights {
        Some(file) if !file.is_file() => {
            return Err(Error::checkpoint(file, "is absent or not a regular file"));
        }
        _ => {}
    }
    let out = out_dir(args);
    if out.is_file() {
        let why = format!("{} is a file\n  give a folder", escape(&out));
        return Err(Error::config("--out", why));
    }
    let flags = Overrides { device: args.device.clone(), steps: None, seed: None };
    let (config, _) = Config::load(None, &[], &flags)?;
    let choice = device::choose(&config.run.device, config.run.threads, GpuFlags::default())?;
    print_line(&choice.line);
    let options = ProbeOptions {
        run: args.run.clone(),
        weights: args.weights.clone(),
        data: args.data.clone(),
        labelled: args.labelled as usize,
        test: args.test as usize,
        seed: args.seed,
        memory: (args.memory * f64::from(1 << 30)) as usize,
        target: choice.target,
        out,
        command,
    };
    let (results, page) = probe(&options, choice.threads)?;
    print(&results.table())?;
    let json = page.with_extension("json");
    print_line(&format!("figures: {}\npage: {}", escape(&json), escape(&page)));
    Ok(())
}

/// `--out`, or `probe` in the run's folder or beside the weights.
fn out_dir(args: &ProbeArgs) -> PathBuf {
    let beside = || args.weights.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let place = || args.run.clone().or_else(beside).unwrap_or_default();
    args.out.clone().unwrap_or_else(|| place().join("probe"))
}
