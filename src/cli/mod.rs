//! The command line: parses, checks, calls the library, prints, and chooses the exit code.
//!
//! The only layer that prints or reads the environment. The work itself is in [`crate::train`].

mod args;
mod device;
mod doctor;
mod export;
mod inspect;
mod observe;
mod output;
mod probe;
mod profile;
mod progress;
mod train;
mod ui;
mod volumes;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config::Config;
use crate::error::{Error, Result, escape};
use crate::train::{ObserveOptions, RunOptions};
use args::{Arguments, Command, ExportArgs, ObserveArgs};
use train::Environment;
use ui::Watch;

pub use train::TrainJob;

/// Runs the command that `arguments` ask for (the first is the program's name), and returns its exit code.
///
/// Prints to stdout and stderr, and installs a panic hook; for `main` alone.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(output::report_panic));
    crate::driver::watch_ranges(std::env::var_os("NVTX_INJECTION64_PATH").as_deref());
    #[cfg(feature = "emulator")]
    if let Ok(version) = std::env::var("SPATIALSSL_CUDA_TOOLKIT") {
        crate::driver::pretend_toolkit(&version);
    }
    let result = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => dispatch(&arguments.command),
        Err(error) => return usage(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: &Command) -> Result<()> {
    match command {
        Command::Train(args) => train::run(args, train_job),
        Command::Observe(args) => observe::run(args, observe_job),
        Command::Probe(args) => probe::run(args, command_line(), |options, threads| {
            with_threads(threads, || crate::probe::probe(options, &mut Watch::new()))
        }),
        Command::Export(args) => export::run(args, export_job),
        Command::Inspect(args) => inspect::run(args),
        Command::Profile(args) => profile::run(args, |config, choice| {
            let steps = args.steps as usize;
            with_threads(choice.threads, || crate::profile::profile(config, choice.target, steps))
        }),
        Command::Doctor(args) => doctor::run(args, |paths| volumes::run(paths, args.json)),
    }
}

fn train_job(job: &TrainJob) -> Result<()> {
    let options = RunOptions {
        data: job.data.clone(),
        split: job.split.clone(),
        out: job.out.clone(),
        resume: job.resume,
        init: job.init.clone(),
        command: command_line(),
        target: job.target,
        profile_steps: job.profile_steps,
    };
    with_threads(job.threads, || crate::train::run(&job.config, &options, &mut Watch::new()))
}

fn observe_job(args: &ObserveArgs) -> Result<()> {
    let cache = Environment::read().cache_dir();
    let options = ObserveOptions {
        run: args.run.clone(),
        checkpoint: args.checkpoint.clone(),
        data: args.data.clone(),
        out: args.out.clone(),
        cache_dir: cache.and_then(|dir| dir.to_str().map(str::to_string)).unwrap_or_default(),
        command: command_line(),
    };
    let observed = with_threads(0, || crate::train::observe(&options, &mut Watch::new()));
    let (page, figures) = observed?;
    output::print_line(&figures);
    output::print_line(&format!("report: {}", escape(&page)));
    Ok(())
}

fn export_job(args: &ExportArgs) -> Result<()> {
    let bytes = crate::weights::export(
        &args.run,
        args.checkpoint.as_deref(),
        &args.out,
        &mut Watch::new(),
    )?;
    output::print_line(&format!(
        "{}: {:.1} MiB",
        escape(&args.out),
        bytes as f64 / f64::from(1 << 20)
    ));
    Ok(())
}

/// Runs `work` in a pool of `threads` threads; 0: as many as there are.
fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| {
        Error::output(
            "threads",
            format!("{threads} threads cannot be started: {e}\n  lower run.threads"),
        )
    })?;
    pool.install(work)
}

/// The command as typed, for the report.
fn command_line() -> String {
    let words = std::env::args_os().map(|word| escape(std::path::Path::new(&word)));
    words.collect::<Vec<_>>().join(" ")
}

/// Prints what clap says about the arguments (help and version included), with a hint where an option that does
/// not exist looks like a setting that does.
fn usage(mut error: clap::Error) -> ExitCode {
    let setting = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option))
            if error.kind() == ErrorKind::UnknownArgument
                && error.get(ContextKind::SuggestedArg).is_none() =>
        {
            Config::nearest_key(option.trim_start_matches('-'))
        }
        _ => None,
    };
    if let Some(key) = setting {
        let hint = format!("a similar setting exists: '--set {key}=VALUE'");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    }
    // Nothing is left to tell anyone if stdout or stderr is closed.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
