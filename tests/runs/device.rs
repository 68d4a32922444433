//! The command line on a CUDA device, here the emulated one: it trains, stops, goes on with the same bits, and says
//! what it runs on.

use std::path::Path;
use std::process::Command;

use crate::common::emulator::folder;
use crate::tiny_run::{command, finish, rows, signal, steps, volumes, wait_for};

const STEPS: [&str; 2] = ["--steps", "6"];

/// A training command whose CUDA driver is the emulated one.
fn on_device(data: &Path, out: &Path, extra: &[&str]) -> Command {
    let mut command = command(data, out, &STEPS);
    let small = ["--set", "views.batch=1", "--set", "run.validation_draws=1"];
    command.args(small).args(["--device", "cuda"]).args(extra);
    command.env("LD_LIBRARY_PATH", folder());
    command
}

fn weights(out: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(out.join("weights.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<(String, Vec<u8>)> =
        tensors.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn training_on_the_device_resumes_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (data, whole, stopped) =
        (volumes(dir.path()), dir.path().join("whole"), dir.path().join("stopped"));
    let output = on_device(&data, &whole, &[]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("device: cuda:0, spatialssl emulated device"), "{said}");
    // Each step has its row, in order, though results arrive a step late.
    let lines = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let numbers: Vec<u64> = lines
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(row["loss"].as_f64().unwrap().is_finite(), "{line}");
            row["step"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);

    let mut child = on_device(&data, &stopped, &[]).spawn().unwrap();
    assert!(wait_for(&mut child, &stopped, 2).is_none(), "ended before step 2");
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let saved = stopped.join(format!("checkpoints/step-{:08}.safetensors", steps(&stopped)));
    assert!(saved.is_file(), "{} is missing", saved.display());
    // Launches one by one instead of a graph: the same bits again.
    finish(on_device(&data, &stopped, &["--resume", "--no-graph"]));
    assert_eq!(rows(&whole), rows(&stopped));
    assert!(weights(&whole) == weights(&stopped), "final weights differ");
}

#[test]
fn a_run_of_the_device_goes_on_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (volumes(dir.path()), dir.path().join("run"));
    let mut child =
        on_device(&data, &out, &["--sync-each", "--profile-steps", "0:1"]).spawn().unwrap();
    assert!(wait_for(&mut child, &out, 1).is_none(), "ended before step 1");
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let small = ["--set", "views.batch=1", "--set", "run.validation_draws=1", "--resume"];
    finish(command(&data, &out, &[&STEPS[..], &small].concat()));
    assert_eq!(steps(&out), 6);
}
