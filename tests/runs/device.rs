//! Runs on a CUDA device, here the emulated one.

use std::path::Path;
use std::process::Command;

use crate::tiny_run::{command, finish, same, signal, steps, volumes, wait_for};

/// A tiny run on the device, of changes that are the CPU's bit for bit: all but contrast and gamma.
fn on_device(data: &Path, out: &Path, extra: &[&str]) -> Command {
    let mut command = command(data, out, &["--device", "cuda"]);
    for rate in ["rotation", "scaling", "noise", "blur", "brightness", "low_resolution"] {
        command.args(["--set", &format!("augment.{rate}_p=0.5")]);
    }
    for rate in ["contrast", "gamma", "gamma_inverted"] {
        command.args(["--set", &format!("augment.{rate}_p=0")]);
    }
    command.args(extra).env("LD_LIBRARY_PATH", env!("SPATIALSSL_EMULATOR_DIR"));
    command
}

/// Views cut on the device, from volumes kept there, give the training that views cut on the CPU give; killed and resumed too.
#[test]
fn views_cut_on_the_device_train_with_the_bits_of_views_cut_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let data = volumes(dir.path());
    let [cpu, device] = ["cpu", "device"].map(|name| dir.path().join(name));
    finish(on_device(&data, &cpu, &["--set", "data.views_on_device=false"]));
    let mut child = on_device(&data, &device, &[]).spawn().unwrap();
    if wait_for(&mut child, &device, 11).is_none() {
        signal(&child, "-KILL");
    }
    child.wait().unwrap();
    assert!(steps(&device) >= 11);
    finish(on_device(&data, &device, &["--resume"]));
    same(&cpu, &device);
}
