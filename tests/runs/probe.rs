//! A probe of a tiny run on made-up labels, and what it refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::emulator::folder;
use crate::tiny_run::{command, finish, volumes};

/// Extents of the volumes of [`volumes`], (x, y, z).
const DIMS: [usize; 3] = [26, 24, 28];
const NAMES: &str = r#"{"labels": {"background": 0, "low": 1, "bright": 5}}"#;

/// An image file like `like` with another value for each voxel.
fn write_like(like: &Path, to: &Path, value: impl Fn(usize, f32) -> f32) {
    let mut bytes = std::fs::read(like).unwrap();
    for (i, voxel) in bytes[352..].chunks_exact_mut(4).enumerate() {
        let old = f32::from_le_bytes(voxel.try_into().unwrap());
        voxel.copy_from_slice(&value(i, old).to_le_bytes());
    }
    std::fs::write(to, bytes).unwrap();
}

/// A data set whose labels follow from the images: bright voxels, and a slab of the others.
pub(crate) fn data_set(dir: &Path, scans: &Path, cases: usize) -> PathBuf {
    let set = dir.join("set");
    for part in ["imagesTr", "labelsTr"] {
        std::fs::create_dir_all(set.join(part)).unwrap();
    }
    std::fs::write(set.join("dataset.json"), NAMES).unwrap();
    for case in 0..cases {
        let image = scans.join(format!("case{case}.nii"));
        // Both ways to name an image.
        let channel = if case % 2 == 0 { "_0000" } else { "" };
        std::fs::copy(&image, set.join(format!("imagesTr/case{case}{channel}.nii"))).unwrap();
        let slab = DIMS[0] * DIMS[1] * 10;
        write_like(&image, &set.join(format!("labelsTr/case{case}.nii")), |i, value| {
            if value > 8.0 { 5.0 } else { f32::from(u8::from(i < slab)) }
        });
    }
    set
}

struct Made {
    dir: tempfile::TempDir,
    run: PathBuf,
    set: PathBuf,
}

fn made() -> Made {
    let dir = tempfile::tempdir().unwrap();
    let (scans, run) = (volumes(dir.path()), dir.path().join("run"));
    finish(command(&scans, &run, &["--steps", "6"]));
    let set = data_set(dir.path(), &scans, 6);
    Made { dir, run, set }
}

/// Probes with two labelled (unless the arguments say how many) and two test cases.
fn probe(made: &Made, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spatialssl"));
    command.args(["probe", "--test", "2", "--data"]).arg(&made.set).args(arguments);
    if !arguments.contains(&"--labelled") {
        command.args(["--labelled", "2"]);
    }
    command.env("LD_LIBRARY_PATH", folder()).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The figures written into `out`, without times.
fn figures(output: &Output, out: &Path) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = std::fs::read_to_string(out.join("probe.json")).unwrap();
    let mut value: Value = serde_json::from_str(&json).unwrap();
    for key in ["created", "seconds", "weights"] {
        assert!(value.as_object_mut().unwrap().remove(key).is_some(), "{key}");
    }
    value
}

#[test]
fn a_probe_finds_what_follows_from_the_image_however_it_is_computed() {
    let made = made();
    let run = text(&made.run);
    let own = made.run.join("probe");
    let mut one = Command::new(env!("CARGO_BIN_EXE_spatialssl"));
    one.args(["probe", "--run", run, "--labelled", "2", "--test", "2", "--data"]).arg(&made.set);
    let output = one.args(["--device", "cpu"]).env("RAYON_NUM_THREADS", "1").output().unwrap();
    let first = figures(&output, &own);
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(table.lines().any(|line| line.starts_with("bright ")), "{table}");
    assert!(table.lines().last().unwrap().starts_with("mean "), "{table}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("labelled cases (2): case0, case1"), "{said}");
    assert!(said.contains("test cases (2): case4, case5"), "{said}");
    assert_eq!(first["classes"][2]["value"], 5);
    assert_eq!(first["step"], 6);
    assert_eq!(first["labelled"], serde_json::json!(["case0", "case1"]));
    // Brightness is in the features of any encoder.
    for (kind, least) in [("last_map", 0.4), ("all_maps", 0.6)] {
        for method in ["run", "random", "run_neighbours", "random_neighbours"] {
            let dice = &first["dice"][kind][method];
            let bright = dice["classes"][1].as_f64().unwrap();
            assert!(bright > least, "{kind} {method}: {dice}");
            assert_eq!(dice["cases"].as_array().unwrap().len(), 2);
        }
    }
    let page = std::fs::read_to_string(made.run.join("probe/probe.html")).unwrap();
    assert_eq!(page.matches("data:image/png").count(), 9);
    assert!(page.contains("bright") && page.ends_with("</html>\n"));

    // The weights at the end are those of the last checkpoint, one thread gives the bits of several, and weights that
    // do not say how volumes are prepared are probed as the run says.
    let (plain, out) = (made.dir.path().join("plain.safetensors"), made.dir.path().join("out"));
    let bytes = std::fs::read(made.run.join("weights.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    std::fs::write(&plain, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let alone = ["--weights", text(&plain), "--out", text(&out), "--device"];
    let refused = probe(&made, &[&alone[..], &["cpu"]].concat());
    assert_eq!(refused.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("add --run RUN"));
    let with_run = |device| probe(&made, &[&alone[..], &[device, "--run", run]].concat());
    let again = figures(&with_run("cpu"), &out);
    assert_eq!(first["dice"], again["dice"]);

    let device = figures(&with_run("cuda"), &out);
    for kind in ["last_map", "all_maps"] {
        let mean = |of: &Value| of["dice"][kind]["run"]["mean"].as_f64().unwrap();
        // Maps in bf16.
        assert!((mean(&first) - mean(&device)).abs() < 0.03, "{} {}", mean(&first), mean(&device));
        assert_ne!(mean(&first), mean(&device));
    }

    let windows = figures(&probe(&made, &["--run", run, "--memory", "0.002"]), &own);
    assert_eq!(first["window"], Value::Null);
    let window = windows["window"].as_array().unwrap();
    assert!(window.iter().all(|n| n.as_u64().is_some_and(|n| n % 2 == 0)), "{window:?}");
    // Instance norms see other voxels in a window, so figures differ a little.
    let mean = |of: &Value| of["dice"]["all_maps"]["run"]["mean"].as_f64().unwrap();
    assert!((mean(&windows) - mean(&first)).abs() < 0.15, "{} {}", mean(&windows), mean(&first));
    assert_ne!(mean(&windows), mean(&first));
}

/// The probe must end with `code` and say every part, and not a word of a bug.
fn refused(made: &Made, arguments: &[&str], code: i32, parts: &[&str]) {
    let mut all = vec!["--run", text(&made.run)];
    all.extend(arguments);
    let output = probe(made, &all);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert_eq!(said.matches("error:").count(), 1, "{arguments:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{arguments:?} lacks {part:?}: {said}");
    }
}

#[test]
fn cases_that_cannot_be_used_are_named() {
    let made = made();
    let file = |name: &str| made.set.join(name);
    refused(&made, &["--labelled", "5"], 2, &["has 6 cases", "5 labelled and 2 test"]);
    refused(&made, &["--labelled", "0"], 2, &["--labelled"]);
    refused(&made, &["--memory", "0"], 2, &["GiB"]);
    refused(&made, &["--weights", "absent"], 7, &["absent"]);

    let labels = file("labelsTr/case0.nii");
    let good = std::fs::read(&labels).unwrap();
    let again = || std::fs::write(&labels, &good).unwrap();
    write_like(&labels, &labels, |i, value| if i == 7 { 0.5 } else { value });
    refused(&made, &[], 3, &["case0.nii", "a label is 0.5", "whole numbers"]);
    again();
    let mut other = good.clone();
    other[80..84].copy_from_slice(&1.5f32.to_le_bytes());
    std::fs::write(&labels, &other).unwrap();
    refused(&made, &[], 3, &["case0.nii", "the labels lie elsewhere"]);
    let mut other = good.clone();
    other[42..44].copy_from_slice(&24i16.to_le_bytes());
    other[44..46].copy_from_slice(&26i16.to_le_bytes());
    std::fs::write(&labels, &other).unwrap();
    refused(&made, &[], 3, &["case0.nii", "the labels have 24 x 26 x 28 voxels"]);
    again();
    for case in ["labelsTr/case0.nii", "labelsTr/case1.nii"] {
        write_like(&file(case), &file(case), |_, _| 1.0);
    }
    refused(&made, &[], 3, &["all voxels of the 2 labelled cases have the label 1"]);
    again();

    std::fs::remove_file(file("labelsTr/case3.nii")).unwrap();
    refused(&made, &[], 3, &["1 images of imagesTr have no labels", "case3.nii"]);
    std::fs::copy(&labels, file("labelsTr/case3.nii")).unwrap();
    std::fs::copy(&labels, file("imagesTr/case0_0001.nii")).unwrap();
    refused(&made, &[], 3, &["case case0 has 2 images", "one channel"]);
    std::fs::remove_dir_all(file("labelsTr")).unwrap();
    refused(&made, &[], 3, &["labelsTr", "no such folder"]);
}
