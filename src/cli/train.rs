//! `spatialssl train`: everything that can be refused before the data are read.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cli::args::TrainArgs;
use crate::cli::device;
use crate::cli::device::GpuFlags;
use crate::cli::output::{print_line, print_warning};
use crate::config::{Config, Overrides};
use crate::dataset::SplitFile;
use crate::error::{Error, Result, escape};
use crate::run::folder::check_place;
use crate::session::Target;

/// A checked training command, ready for the library.
#[derive(Clone, Debug)]
pub struct TrainJob {
    /// The merged configuration; `data.cache_dir` is filled in.
    pub config: Config,
    /// `--data`, as given.
    pub data: Vec<PathBuf>,
    /// `--split` and `--fold`, read.
    pub split: Option<SplitFile>,
    /// `--out`, as given.
    pub out: PathBuf,
    /// Whether to go on from the newest valid checkpoint.
    pub resume: bool,
    /// Weights to start from.
    pub init: Option<PathBuf>,
    /// CPU threads, at least 1.
    pub threads: usize,
    /// Where to compute.
    pub target: Target,
    /// Steps a profiler records.
    pub profile_steps: Option<(u64, u64)>,
}

/// Checks the command, says which device it runs on, and hands it to `start`.
pub(super) fn run(args: &TrainArgs, start: impl FnOnce(&TrainJob) -> Result<()>) -> Result<()> {
    let environment = Environment::read();
    let (job, device, warnings) = prepare(args, &environment)?;
    for warning in warnings {
        print_warning(&warning);
    }
    print_line(&device);
    start(&job)
}

/// What of the process's environment matters here.
#[derive(Default)]
pub(super) struct Environment {
    cache_home: Option<OsString>,
    home: Option<OsString>,
}

impl Environment {
    pub(super) fn read() -> Self {
        Environment {
            cache_home: std::env::var_os("XDG_CACHE_HOME"),
            home: std::env::var_os("HOME"),
        }
    }

    /// `$XDG_CACHE_HOME/spatialssl`, or `~/.cache/spatialssl`; none if neither is an absolute path of UTF-8.
    pub(super) fn cache_dir(&self) -> Option<PathBuf> {
        let absolute = |value: &Option<OsString>| {
            value.as_ref().map(PathBuf::from).filter(|p| p.is_absolute() && p.to_str().is_some())
        };
        absolute(&self.cache_home)
            .or_else(|| absolute(&self.home).map(|home| home.join(".cache")))
            .map(|dir| dir.join("spatialssl"))
    }
}

fn prepare(args: &TrainArgs, environment: &Environment) -> Result<(TrainJob, String, Vec<String>)> {
    if args.resume && args.init.is_some() {
        return Err(Error::config(
            "--resume and --init",
            "cannot be used together\n  \
             use --resume to go on with the run in --out, with its optimiser and its step\n  \
             use --init to start a new run, at step 0, from weights alone",
        ));
    }
    let flags = Overrides { device: args.device.clone(), steps: args.steps, seed: args.seed };
    let (mut config, warnings) = Config::load(args.config.as_deref(), &args.set, &flags)?;
    check_place(&args.out, &args.data)?;
    let fold = args.fold.and_then(|fold| usize::try_from(fold).ok()).unwrap_or(0);
    let split = args.split.as_deref().map(|path| SplitFile::read(path, fold)).transpose()?;
    let gpu = GpuFlags {
        no_graph: args.no_graph,
        sync_each: args.sync_each,
        separate_values: args.separate_values,
    };
    let choice = device::choose(&config.run.device, config.run.threads, gpu)?;
    if config.data.cache_dir.is_empty() {
        config.data.cache_dir = cache_dir(environment, &args.out)?;
    }
    let job = TrainJob {
        config,
        data: args.data.clone(),
        split,
        out: args.out.clone(),
        resume: args.resume,
        init: args.init.clone(),
        threads: choice.threads,
        target: choice.target,
        profile_steps: args.profile_steps,
    };
    Ok((job, choice.line, warnings))
}

fn cache_dir(environment: &Environment, out: &Path) -> Result<String> {
    let dir = environment.cache_dir().unwrap_or_else(|| out.join("cache"));
    match dir.to_str() {
        Some(text) => Ok(text.to_string()),
        None => Err(Error::config(
            "data.cache_dir",
            format!(
                "{} is not UTF-8, which a configuration cannot hold\n  \
                 give a folder with --set data.cache_dir=PATH",
                escape(&dir)
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Arguments, Command};
    use clap::Parser;

    fn args(line: &str) -> TrainArgs {
        let line = format!("spatialssl train {line}");
        match Arguments::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Train(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn environment(cache_home: &str, home: &str) -> Environment {
        let some = |text: &str| (!text.is_empty()).then(|| OsString::from(text));
        Environment { cache_home: some(cache_home), home: some(home) }
    }

    #[test]
    fn a_good_command_reaches_the_library_with_its_values() {
        let args = args("--data d --out r/x --set views.batch=4 --steps 300 --device cpu --resume");
        let (job, line, warnings) = prepare(&args, &environment("/c", "/h")).unwrap();
        assert_eq!((job.config.views.batch, job.config.run.steps), (4, 300));
        assert_eq!(job.config.data.cache_dir, "/c/spatialssl");
        assert!(job.resume && job.init.is_none() && job.threads >= 1);
        assert!(line.starts_with("device: CPU ("), "{line}");
        assert!(warnings.is_empty(), "{warnings:?}");
        let mut called = 0;
        run(&args, |job| {
            called += 1;
            assert_eq!(job.out, Path::new("r/x"));
            Ok(())
        })
        .unwrap();
        assert_eq!(called, 1);
    }

    #[test]
    fn a_bad_command_never_reaches_the_library() {
        for line in [
            "--data d --out r --resume --init w",
            "--data d --out / ",
            "--data d --out r --device cuda:99",
            "--data d --out r --set optim.lr=-1",
        ] {
            let result = run(&args(line), |_| panic!("{line} was accepted"));
            assert!(result.is_err(), "{line}");
        }
    }

    #[test]
    fn the_cache_folder_follows_the_environment() {
        let out = Path::new("r");
        let dir = |cache: &str, home: &str| cache_dir(&environment(cache, home), out).unwrap();
        assert_eq!(dir("/c", "/h"), "/c/spatialssl");
        assert_eq!(dir("", "/h"), "/h/.cache/spatialssl");
        assert_eq!(dir("relative", "/h"), "/h/.cache/spatialssl");
        assert_eq!(dir("", ""), "r/cache");
        let args = args("--data d --out r --set data.cache_dir=mine");
        let (job, ..) = prepare(&args, &environment("/c", "/h")).unwrap();
        assert_eq!(job.config.data.cache_dir, "mine");
    }
}
