//! Probes while a run trains: their rows are those of the command, and training does not feel them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::emulator::folder;
use crate::probe::data_set;
use crate::tiny_run::{add_volumes, command, finish, same_rows, signal, steps, volumes, wait_for};

/// What the tests work with: volumes to train on, and a labelled data set of `cases` cases.
fn made(cases: usize) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let scans = volumes(dir.path());
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    add_volumes(&images, cases);
    let set = data_set(dir.path(), &images, cases);
    (dir, scans, set)
}

/// Twelve steps on the CPU.
const SHORT: [&str; 4] = ["--set", "run.steps=12", "--set", "run.device=cpu"];

/// A run of 12 steps with probes after steps 5, 10 and 12.
fn probed(scans: &Path, out: &Path, set: &Path, extra: &[&str]) -> Command {
    let mut command = command(scans, out, &SHORT);
    let data = format!("run.probe_data={}", set.display());
    command.args(["--set", &data, "--set", "run.probe_every=5"]).args(extra);
    command
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn probe_rows(out: &Path) -> Vec<Value> {
    text(&out.join("probe.jsonl")).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The figures of the last row are those that the command finds in the last checkpoint.
fn as_the_command_says(run: &Path, set: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spatialssl"));
    command.args(["probe", "--device", "cpu", "--run"]).arg(run).arg("--data").arg(set);
    finish(command);
    let said: Value = serde_json::from_str(&text(&run.join("probe/probe.json"))).unwrap();
    let rows = probe_rows(run);
    let row = rows.last().unwrap();
    assert_eq!(said["step"], row["step"]);
    for map in ["last_map", "all_maps"] {
        let said = &said["dice"][map];
        for (name, kind) in [
            ("dice", "run"),
            ("random_dice", "random"),
            ("neighbours", "run_neighbours"),
            ("random_neighbours", "random_neighbours"),
        ] {
            let figure = &row[format!("{name}_{map}")];
            assert!(figure.as_f64().is_some_and(|dice| dice > 0.1), "{name} {map}: {row}");
            assert_eq!(*figure, said[kind]["mean"], "{name} {map}");
        }
    }
}

#[test]
fn probes_leave_training_as_it_is_and_a_stopped_one_is_made_up_for() {
    let (dir, scans, set) = made(10);
    let [plain, whole, stopped] = ["plain", "whole", "stopped"].map(|name| dir.path().join(name));
    finish(command(&scans, &plain, &SHORT));
    finish(probed(&scans, &whole, &set, &[]));
    same_rows(&plain, &whole, 14, "12 steps and 2 validations");
    let rows = probe_rows(&whole);
    let at: Vec<&Value> = rows.iter().map(|row| &row["step"]).collect();
    assert_eq!(at, [5, 10, 12]);
    assert_ne!(rows[0]["dice_all_maps"], rows[2]["dice_all_maps"], "the encoder is trained");
    as_the_command_says(&whole, &set);
    let page = text(&whole.join("report/index.html"));
    assert!(page.contains("id=\"probe\"") && page.contains("random encoder"));
    assert!(!text(&plain.join("report/index.html")).contains("id=\"probe\""));
    let events = std::fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().path());
    let events = events.filter(|path| path.display().to_string().contains("tfevents"));
    let told: Vec<u8> = events.flat_map(|path| std::fs::read(path).unwrap()).collect();
    assert!(String::from_utf8_lossy(&told).contains("probe/random_dice_all_maps"));

    // The row of step 5 is written when the probe begins, which takes longer than to send a signal.
    let mut child = probed(&scans, &stopped, &set, &[]).spawn().unwrap();
    assert!(wait_for(&mut child, &stopped, 5).is_none(), "ended before step 5");
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert_eq!((steps(&stopped), probe_rows(&stopped).len()), (5, 0), "{said}");
    assert!(stopped.join("checkpoints/step-00000005.safetensors").is_file());
    let output = probed(&scans, &stopped, &set, &["--resume"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("random encoder is measured"), "it is remembered: {said}");
    same_rows(&plain, &stopped, 14, "12 steps and 2 validations");
    assert_eq!(text(&stopped.join("probe.jsonl")), text(&whole.join("probe.jsonl")));
}

#[test]
fn a_signal_while_the_random_encoder_is_measured_loses_nothing() {
    let (dir, scans, set) = made(10);
    let out = dir.path().join("run");
    let mut child = probed(&scans, &out, &set, &[]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("random encoder is measured")));
    signal(&child, "-TERM");
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(75), "{rest:?}");
    assert!(!out.join("probe-random.json").exists(), "{rest:?}");
    assert!(out.join("checkpoints/step-00000001.safetensors").is_file(), "{rest:?}");
    // On a device the probe runs there, too; the key may change.
    let cuda = ["--resume", "--set", "run.device=cuda", "--set", "run.probe_every=1000"];
    let mut resumed = probed(&scans, &out, &set, &cuda);
    let output = resumed.env("LD_LIBRARY_PATH", folder()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let rows = probe_rows(&out);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["step"], 12);
    assert!(rows[0]["dice_all_maps"].as_f64().is_some_and(|dice| dice > 0.3), "{rows:?}");
}

#[test]
fn a_folder_that_cannot_be_probed_is_refused_before_anything_is_made() {
    let (dir, scans, set) = made(9);
    let out = dir.path().join("run");
    let refused = |set: &Path, code: i32, parts: &[&str]| {
        let output = probed(&scans, &out, set, &[]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!out.exists(), "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{part} is not in {said}"));
    };
    refused(&set, 2, &["run.probe_data", "has 9 cases, needed are 10", "name a larger data set"]);
    refused(&scans, 3, &["imagesTr", "no such folder", "run.probe_data"]);
    refused(Path::new("absent"), 3, &["absent", "run.probe_data"]);
}
