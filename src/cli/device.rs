//! Which device runs the work.

use std::thread::available_parallelism;

use crate::driver;
use crate::error::{Error, Result};
use crate::session::Target;
use crate::tape::Arrangement;

/// Where Linux states the version of NVIDIA's driver.
const DRIVER_VERSION_FILE: &str = "/proc/driver/nvidia/version";

/// The device a run uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Where to compute.
    pub(super) target: Target,
    /// CPU threads, at least 1.
    pub(super) threads: usize,
    /// One line that says which device it is.
    pub(super) line: String,
}

/// How a GPU is used: `--no-graph`, `--sync-each` and `--separate-values`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GpuFlags {
    pub(super) no_graph: bool,
    pub(super) sync_each: bool,
    pub(super) separate_values: bool,
}

/// The device for `run.device` (already checked for its form) and `run.threads` (0: all).
pub(super) fn choose(device: &str, threads: usize, flags: GpuFlags) -> Result<Choice> {
    let threads = if threads == 0 { cpu_threads() } else { threads };
    let plural = if threads == 1 { "" } else { "s" };
    let cpu = |why: &str| Choice {
        target: Target::Cpu,
        threads,
        line: format!("device: CPU ({threads} thread{plural}){why}"),
    };
    let arrangement =
        if flags.separate_values { Arrangement::Separate } else { Arrangement::Planned };
    let (graph, sync_each) = (!flags.no_graph, flags.sync_each);
    let gpu = |ordinal: usize, (name, memory): &(String, usize)| Choice {
        target: Target::Cuda { ordinal, graph, sync_each, arrangement },
        threads,
        line: format!(
            "device: cuda:{ordinal}, {name}, {:.1} GiB",
            *memory as f64 / (1u64 << 30) as f64
        ),
    };
    if device == "cpu" {
        return Ok(cpu(""));
    }
    match (device, gpus()) {
        // A GPU that is too old, or whose driver is, cannot load the device code.
        ("auto", Ok(found)) => Ok(match driver::Device::open(0, false) {
            Ok(_) => gpu(0, &found[0]),
            Err(error) => cpu(&format!("; GPU not usable: {}", in_short(&error))),
        }),
        ("auto", Err(why)) => Ok(cpu(&format!("; no GPU: {why}"))),
        (_, Ok(found)) => {
            let ordinal = device.strip_prefix("cuda:").and_then(|n| n.parse().ok()).unwrap_or(0);
            match found.get(ordinal) {
                // Before the volumes are read, which may take long.
                Some(one) => driver::check_driver().map(|()| gpu(ordinal, one)),
                None => Err(refusal(device, &format!("{} GPUs, numbered from 0", found.len()))),
            }
        }
        (_, Err(why)) => Err(refusal(device, &why)),
    }
}

fn refusal(device: &str, found: &str) -> Error {
    let driver = driver_version().unwrap_or_else(|| "none".into());
    Error::Device(format!(
        "device {device} cannot be used\n  \
         found: {found}; NVIDIA kernel driver: {driver}\n  \
         needed: an NVIDIA GPU of compute capability 8.0 or later, its driver, and a build with device code (`spatialssl doctor`)\n  \
         use --device cpu, or --device auto"
    ))
}

/// What failed and why, on one line; what to do about it is left out.
fn in_short(error: &Error) -> String {
    // An error of a driver call has its cause on the second line, any other what was found and needed on two.
    let lines = if error.to_string().contains("\n  needed: ") { 3 } else { 2 };
    error.to_string().lines().take(lines).map(str::trim).collect::<Vec<_>>().join(", ")
}

/// All GPUs, at least one, or in a few words why there is none to use.
fn gpus() -> std::result::Result<Vec<(String, usize)>, String> {
    let found = driver::names().map_err(|e| in_short(&e))?;
    if found.is_empty() {
        return Err("the NVIDIA driver finds no device".into());
    }
    if !driver::has_device_code() {
        return Err("this build has no device code".into());
    }
    Ok(found)
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
        let choose = |device, threads| choose(device, threads, GpuFlags::default());
        // This test knows nothing of a GPU, nor does it need one.
        let auto = choose("auto", 3).unwrap();
        if auto.target == Target::Cpu {
            assert!(auto.line.starts_with("device: CPU (3 threads); no GPU: "), "{}", auto.line);
        }
        assert_eq!(choose("cpu", 1).unwrap().line, "device: CPU (1 thread)");
        assert!(choose("cpu", 0).unwrap().threads >= 1);
    }

    #[test]
    fn a_gpu_that_does_not_exist_is_refused_with_what_is_found_and_needed() {
        let error = choose("cuda:99", 0, GpuFlags::default()).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let text = error.to_string();
        for part in ["device cuda:99", "found: ", "needed: ", "use --device cpu"] {
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
