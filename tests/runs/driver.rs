//! Which drivers run the device code, through the binary: the emulated driver says it is another one, and for versions
//! of CUDA before
//! 13.0 has nothing that came after 12.0; the build says it comes of another toolkit.

use std::process::{Command, Output};

use crate::common::emulator::{bare_folder, folder};
use crate::tiny_run::{command, finish, steps, volumes};

const DRIVERS: [&str; 4] = ["12.2", "12.4", "12.8", "13.0"];

/// `command` as on a machine whose driver is of one version of CUDA, in a build by one toolkit.
fn on(mut command: Command, driver: &str, toolkit: &str) -> Command {
    let (major, minor) = driver.split_once('.').unwrap();
    let library = if driver == "13.0" { folder() } else { bare_folder() };
    command.env("LD_LIBRARY_PATH", library);
    command.env("EMU_DRIVER_VERSION", format!("{major}0{minor}0"));
    command.env("SPATIALSSL_CUDA_TOOLKIT", toolkit);
    command
}

fn run(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for word in ["panicked", "this is a bug"] {
        assert!(!said.contains(word), "{said}");
    }
    (output, said)
}

fn runs(driver: &str, toolkit: &str) -> bool {
    driver == "13.0" || toolkit.starts_with("12.")
}

#[test]
fn doctor_says_which_drivers_run_kernels() {
    for toolkit in ["13.0", "12.8"] {
        for driver in DRIVERS {
            let what = format!("driver {driver}, toolkit {toolkit}");
            let doctor = |arguments: &[&str]| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_spatialssl"));
                command.arg("doctor").args(arguments);
                let (output, said) = run(on(command, driver, toolkit));
                assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{what}");
                output.stdout
            };
            let report: serde_json::Value = serde_json::from_slice(&doctor(&["--json"])).unwrap();
            assert_eq!(report["driver_cuda"], driver, "{what}");
            assert_eq!(report["cuda_toolkit"], toolkit, "{what}");
            let gpu = &report["gpus"][0];
            assert_eq!(gpu["kernels_run"], runs(driver, toolkit), "{what}: {gpu}");
            let text = String::from_utf8(doctor(&[])).unwrap();
            if runs(driver, toolkit) {
                assert!(text.contains(", kernels run\n"), "{what}: {text}");
                assert!(gpu["error"].is_null(), "{what}: {gpu}");
            } else {
                assert!(
                    text.contains("kernels do not run: the NVIDIA driver is too old"),
                    "{text}"
                );
                let why = gpu["error"].as_str().unwrap();
                let found = format!("found: a driver for CUDA {driver} (");
                assert!(why.contains(&found), "{what}: {why}");
            }
        }
    }
}

/// Trained is on the oldest and the newest of those that do not refuse; `doctor` runs a kernel on all.
#[test]
fn training_refuses_drivers_that_are_too_old_and_runs_on_others() {
    let dir = tempfile::tempdir().unwrap();
    let data = volumes(dir.path());
    for toolkit in ["13.0", "12.8"] {
        for driver in DRIVERS {
            let what = format!("driver {driver}, toolkit {toolkit}");
            let out = dir.path().join(format!("{driver}-{toolkit}"));
            let small =
                ["--steps", "1", "--set", "views.batch=1", "--set", "run.validation_draws=1"];
            let train = |device: &str| {
                let command = command(&data, &out, &[&small[..], &["--device", device]].concat());
                run(on(command, driver, toolkit))
            };
            if runs(driver, toolkit) && !["12.2", "13.0"].contains(&driver) {
                continue;
            }
            let (output, said) = train("cuda");
            if runs(driver, toolkit) {
                assert_eq!(output.status.code(), Some(0), "{what}: {said}");
                assert!(said.contains("device: cuda:0, "), "{what}: {said}");
                assert_eq!(steps(&out), 1, "{what}");
                continue;
            }
            assert_eq!(output.status.code(), Some(5), "{what}: {said}");
            let packages = [("12.2", 535), ("12.4", 550), ("12.8", 570)];
            let package = packages.iter().find(|(version, _)| *version == driver).unwrap().1;
            for part in [
                format!("found: a driver for CUDA {driver} (driver package {package})\n"),
                "needed: one for CUDA 13.0 (driver package 580) or later".into(),
                "compiled by CUDA toolkit 13.0\n".into(),
                "update the NVIDIA driver, or build with nvcc 12.x".into(),
            ] {
                assert!(said.contains(&part), "{what}: {part}: {said}");
            }
            assert!(!out.exists(), "{what}: a refused run leaves a folder");
        }
    }
}

#[test]
fn auto_takes_the_cpu_where_the_driver_is_too_old_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (volumes(dir.path()), dir.path().join("run"));
    let small = ["--steps", "1", "--set", "views.batch=1", "--device", "auto"];
    let (output, said) = run(on(command(&data, &out, &small), "12.4", "13.0"));
    assert_eq!(output.status.code(), Some(0), "{said}");
    let line = said.lines().find(|line| line.contains("device: CPU")).unwrap();
    for part in
        ["GPU not usable: the NVIDIA driver is too old", "CUDA 12.4", "needed: one for CUDA 13.0"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
}

/// Ranges reach a profiler that is found as nsys is, and values apart train.
#[test]
fn a_profiler_is_told_of_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (volumes(dir.path()), dir.path().join("run"));
    let small = ["--steps", "1", "--set", "views.batch=1", "--set", "run.validation_draws=1"];
    let flags = ["--device", "cuda", "--no-graph", "--separate-values"];
    let profiled = |mut command: Command| {
        let profiler = folder().join("libcuda.so");
        command.env("LD_LIBRARY_PATH", folder()).env("NVTX_INJECTION64_PATH", &profiler);
        command.env("EMU_PRINT_RANGES", "1");
        command
    };
    let (output, said) = run(profiled(command(&data, &out, &[&small[..], &flags].concat())));
    assert_eq!(output.status.code(), Some(0), "{said}");
    let [begun, ended] = ["range begins: ", "range ends: "].map(|what| {
        let lines = said.lines().filter_map(|line| line.strip_prefix(what));
        let mut names: Vec<&str> = lines.collect();
        names.sort_unstable();
        names
    });
    assert_eq!(begun, ended);
    for name in ["step 0", "backward ", "optimiser "] {
        assert!(begun.iter().any(|range| range.starts_with(name)), "{name}: {begun:?}");
    }
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_spatialssl"));
    doctor.arg("doctor");
    let (output, _) = run(profiled(doctor));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("profiler ranges to the profiler "), "{text}");
    // A library that is no profiler is nothing to fail for.
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_spatialssl"));
    doctor.arg("doctor").env("NVTX_INJECTION64_PATH", "./.");
    finish(doctor);
}
