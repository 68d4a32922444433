//! Training views cut on a CUDA device, here the emulated one.

use std::path::Path;
use std::process::Command;

use crate::common::emulator::folder;
use crate::tiny_run::{command, rows, signal, steps, volumes, wait_for};

/// Six steps on the device, of changes that are the CPU's bit for bit: all but contrast and gamma. No validation: the
/// emulated device is slow.
fn on_device(data: &Path, out: &Path, extra: &[&str]) -> Command {
    let mut command = command(data, out, &["--device", "cuda", "--steps", "6"]);
    for setting in ["run.checkpoint_every=2", "optim.warmup_steps=2", "data.validation_fraction=0"]
    {
        command.args(["--set", setting]);
    }
    for rate in ["rotation", "scaling", "noise", "blur", "brightness", "low_resolution"] {
        command.args(["--set", &format!("augment.{rate}_p=0.5")]);
    }
    for rate in ["contrast", "gamma", "gamma_inverted"] {
        command.args(["--set", &format!("augment.{rate}_p=0")]);
    }
    command.args(extra).env("LD_LIBRARY_PATH", folder());
    command
}

/// What the finished run says.
fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// Views cut on the device, from volumes kept there, give the training that views cut on the CPU give; killed and
/// resumed too.
#[test]
fn views_cut_on_the_device_train_with_the_bits_of_views_cut_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let data = volumes(dir.path());
    let [cpu, device] = ["cpu", "device"].map(|name| dir.path().join(name));
    let note = "views are cut on the device";
    let text = said(on_device(&data, &cpu, &["--set", "data.views_on_device=false"]));
    assert!(!text.contains(note), "{text}");
    let mut child = on_device(&data, &device, &[]).spawn().unwrap();
    if wait_for(&mut child, &device, 3).is_none() {
        signal(&child, "-KILL");
    }
    child.wait().unwrap();
    assert!(steps(&device) >= 3);
    // From launches one by one instead of a graph.
    let text = said(on_device(&data, &device, &["--resume", "--no-graph"]));
    assert!(text.contains(note), "{text}");
    assert!(text.contains("volumes were copied to the device"), "{text}");
    let (left, right) = (rows(&cpu), rows(&device));
    assert_eq!(left.len(), 6);
    assert_eq!(left, right);
}
