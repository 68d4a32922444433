//! The `spatialssl` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    spatialssl::cli::run(std::env::args_os())
}
