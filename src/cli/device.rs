//! Which device runs the work. This build has the CPU only.

use std::thread::available_parallelism;

use crate::error::{Error, Result};

/// Where Linux states the version of NVIDIA's driver.
const DRIVER_VERSION_FILE: &str = "/proc/driver/nvidia/version";

/// The device a run uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// CPU threads, at least 1.
    pub(super) threads: usize,
    /// One line that says which device it is.
    pub(super) line: String,
}

/// The device for `run.device` (already checked for its form) and `run.threads` (0: all).
pub(super) fn choose(device: &str, threads: usize) -> Result<Choice> {
    let threads = if threads == 0 { cpu_threads() } else { threads };
    let plural = if threads == 1 { "" } else { "s" };
    let cpu = format!("device: CPU ({threads} thread{plural})");
    match device {
        "cpu" => Ok(Choice { threads, line: cpu }),
        "auto" => Ok(Choice { threads, line: format!("{cpu}; no GPU backend in this build") }),
        other => Err(Error::Device(format!(
            "device {other}: this build has no GPU backend\n  \
             found: CPU backend only; NVIDIA driver: {}\n  \
             needed: a build with the CUDA backend, and an NVIDIA driver\n  \
             use --device cpu, or --device auto",
            driver_version().unwrap_or_else(|| "none".into())
        ))),
    }
}

/// Threads the system lets this process run at once.
pub(super) fn cpu_threads() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Version of NVIDIA's kernel driver, if one is loaded.
pub(super) fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string(DRIVER_VERSION_FILE).ok()?;
    version_in(&text).map(str::to_string)
}

fn version_in(text: &str) -> Option<&str> {
    text.split_whitespace()
        .find(|word| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_and_cpu_take_the_cpu_and_say_so() {
        let auto = choose("auto", 3).unwrap();
        assert_eq!(auto.line, "device: CPU (3 threads); no GPU backend in this build");
        assert_eq!(choose("cpu", 1).unwrap().line, "device: CPU (1 thread)");
        assert!(choose("cpu", 0).unwrap().threads >= 1);
    }

    #[test]
    fn a_gpu_is_refused_with_what_is_found_and_needed() {
        let error = choose("cuda:1", 0).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let text = error.to_string();
        for part in ["device cuda:1", "found: ", "needed: ", "use --device cpu"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn the_drivers_version_is_found_in_its_file() {
        let text =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5\nGCC version: 12";
        assert_eq!(version_in(text), Some("550.54.15"));
        assert_eq!(version_in("nothing here"), None);
    }
}
