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
mod progress;
mod train;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::error::{Error, Result};
use crate::train::Config;
use args::{Arguments, Command};

pub use train::TrainJob;

/// Runs the command that `arguments` ask for (the first is the program's name), and returns its exit code.
///
/// Prints to stdout and stderr, and installs a panic hook; for `main` alone.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(output::report_panic));
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

// Integration: each `unbuilt` gives way to a call of the library.
fn dispatch(command: &Command) -> Result<()> {
    match command {
        Command::Train(args) => train::run(args, |_job| unbuilt("train")),
        Command::Observe(args) => observe::run(args, |_args| unbuilt("observe")),
        Command::Export(args) => export::run(args, |_args| unbuilt("export")),
        Command::Inspect(args) => inspect::run(args, |_path| unbuilt("inspect of weights")),
        Command::Doctor(args) => doctor::run(args, |_paths| unbuilt("doctor --data")),
    }
}

fn unbuilt(what: &str) -> Result<()> {
    Err(Error::config(what, "not part of this build"))
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
