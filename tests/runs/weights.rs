//! Weights leave a run and come back: export, `--init`, inspection, observation.

use std::path::Path;
use std::process::{Command, Output};

use crate::tiny_run::{command, finish, rows, volumes};

fn spatialssl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spatialssl")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn exported_weights_are_those_of_the_run_and_start_another() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (volumes(dir.path()), dir.path().join("run"));
    finish(command(&data, &run, &["--steps", "6"]));
    let (own, out) = (run.join("weights.safetensors"), dir.path().join("out.safetensors"));
    let output =
        spatialssl(&["export", "--run", text(&run), "--to", "safetensors", "--out", text(&out)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(&own).unwrap(), std::fs::read(&out).unwrap());

    let bytes = std::fs::read(&own).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let stem = tensors.tensor("encoder.stem.convs.0.conv.weight").unwrap();
    assert_eq!(stem.shape(), [8, 1, 3, 3, 3], "PyTorch's order");
    let up = tensors.tensor("decoder.transpconvs.0.weight").unwrap();
    assert_eq!(up.shape(), [16, 8, 2, 2, 2], "input channels first");
    assert!(tensors.names().iter().all(|n| n.starts_with("encoder.") || n.starts_with("decoder.")));

    // Weights and checkpoint hold filters in different orders and must start the same run.
    let checkpoint = run.join("checkpoints/step-00000006.safetensors");
    let [a, b, plain] = ["a", "b", "plain"].map(|n| dir.path().join(n));
    finish(command(&data, &a, &["--steps", "2", "--init", text(&own)]));
    finish(command(&data, &b, &["--steps", "2", "--init", text(&checkpoint)]));
    finish(command(&data, &plain, &["--steps", "2"]));
    assert_eq!(rows(&a), rows(&b));
    assert_ne!(rows(&a), rows(&plain));
}

#[test]
fn weights_of_another_network_are_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (volumes(dir.path()), dir.path().join("run"));
    finish(command(&data, &run, &["--steps", "2"]));
    let weights = run.join("weights.safetensors");
    let extra = ["--init", text(&weights), "--set", "model.features=[8,24]", "--steps", "2"];
    let output = command(&data, &dir.path().join("other"), &extra).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("encoder.stages.1.blocks.0.conv1.conv.weight"), "{said}");
}

#[test]
fn a_run_can_be_inspected_and_observed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run, seen) = (volumes(dir.path()), dir.path().join("run"), dir.path().join("seen"));
    finish(command(&data, &run, &["--steps", "4"]));
    let output = spatialssl(&["inspect", text(&run)]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["[views]", "conv3d", "backward", "adamw", "arena", "trained parameters"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(said.contains("spacing = [1.0, 1.0, 1.0]"), "the median is resolved: {said}");
    let output = spatialssl(&["inspect", text(&run.join("weights.safetensors"))]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("encoder.stem.convs.0.conv.weight") && said.contains("tensors"),
        "{said}"
    );

    let output =
        spatialssl(&["observe", "--run", text(&run), "--data", text(&data), "--out", text(&seen)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(seen.join("index.html")).unwrap();
    assert!(page.contains("case5") && page.contains("<svg"));
    let outside = page.replace("http://www.w3.org/", "");
    assert!(
        !outside.contains("src=\"http") && !outside.contains("url(http"),
        "the page needs nothing from outside"
    );
}
