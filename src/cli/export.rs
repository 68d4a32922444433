//! `spatialssl export`: the weights of a run, for other programs.

use crate::cli::args::{ExportArgs, ExportFormat};
use crate::cli::observe::check_run;
use crate::error::{Error, Result, escape};

/// Checks the command and hands it to the writer of its format.
pub(super) fn run(
    args: &ExportArgs,
    safetensors: impl FnOnce(&ExportArgs) -> Result<()>,
) -> Result<()> {
    check_run(&args.run, args.checkpoint.as_deref())?;
    if args.out.is_dir() {
        let why = format!("{} is a folder\n  give a file", escape(&args.out));
        return Err(Error::config("--out", why));
    }
    match args.to {
        ExportFormat::Safetensors => safetensors(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_folder_and_a_file_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = ExportArgs {
            run: dir.path().into(),
            checkpoint: None,
            to: ExportFormat::Safetensors,
            out: dir.path().join("w.safetensors"),
        };
        let refused = |args: &ExportArgs| match run(args, |_| panic!("accepted")) {
            Err(Error::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&args), "--run");
        std::fs::write(dir.path().join("config.toml"), "[run]\n").unwrap();
        let mut calls = 0;
        run(&args, |_| {
            calls += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(calls, 1);
        args.out = dir.path().into();
        assert_eq!(refused(&args), "--out");
    }
}
