//! `spatialssl observe`: what a run has learnt, shown on volumes.

use std::path::Path;

use crate::cli::args::ObserveArgs;
use crate::error::{Error, Result, escape};

/// Checks the command and hands it to `start`.
pub(super) fn run(
    args: &ObserveArgs,
    start: impl FnOnce(&ObserveArgs) -> Result<()>,
) -> Result<()> {
    check_run(&args.run, args.checkpoint.as_deref())?;
    if args.out.is_file() {
        let why = format!("{} is a file\n  give a folder", escape(&args.out));
        return Err(Error::config("--out", why));
    }
    start(args)
}

/// Refuses a `--run` that is not the folder of a run, and a `--checkpoint` that is not a file.
pub(super) fn check_run(run: &Path, checkpoint: Option<&Path>) -> Result<()> {
    if !run.join("config.toml").is_file() {
        let why = format!(
            "{} is not the folder of a run: it holds no config.toml\n  \
             give the folder that was --out of train",
            escape(run)
        );
        return Err(Error::config("--run", why));
    }
    match checkpoint {
        Some(file) if !file.is_file() => Err(Error::checkpoint(
            file,
            "is absent or not a regular file\n  leave --checkpoint out to take the newest valid one",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_folder_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = ObserveArgs {
            run: dir.path().into(),
            checkpoint: None,
            data: vec!["d".into()],
            out: dir.path().join("o"),
        };
        let error = run(&args, |_| panic!("accepted")).unwrap_err();
        assert!(error.to_string().contains("holds no config.toml"), "{error}");
        std::fs::write(dir.path().join("config.toml"), "[run]\n").unwrap();
        let mut calls = 0;
        run(&args, |_| {
            calls += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(calls, 1);
        args.checkpoint = Some(dir.path().join("absent"));
        let error = run(&args, |_| panic!("accepted")).unwrap_err();
        assert_eq!(error.exit_code(), 7);
    }
}
