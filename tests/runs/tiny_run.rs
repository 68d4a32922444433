//! A training run of seconds on synthetic volumes, through the binary.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Six volumes of 26 x 24 x 28 voxels with smooth content, as plain NIfTI-1.
pub(crate) fn volumes(dir: &Path) -> PathBuf {
    let folder = dir.join("scans");
    std::fs::create_dir(&folder).unwrap();
    add_volumes(&folder, 6);
    folder
}

/// Writes `count` of them into a folder.
pub(crate) fn add_volumes(folder: &Path, count: usize) {
    for case in 0..count {
        std::fs::write(folder.join(format!("case{case}.nii")), volume(case)).unwrap();
    }
}

fn volume(case: usize) -> Vec<u8> {
    let dims = [26usize, 24, 28];
    let mut file = vec![0u8; 352];
    file[..4].copy_from_slice(&348i32.to_le_bytes());
    for (i, d) in [3, dims[0], dims[1], dims[2], 1, 1, 1, 1].into_iter().enumerate() {
        file[40 + 2 * i..42 + 2 * i].copy_from_slice(&(d as i16).to_le_bytes());
    }
    file[70..72].copy_from_slice(&16i16.to_le_bytes());
    file[72..74].copy_from_slice(&32i16.to_le_bytes());
    for i in 0..4 {
        file[76 + 4 * i..80 + 4 * i].copy_from_slice(&1f32.to_le_bytes());
    }
    file[108..112].copy_from_slice(&352f32.to_le_bytes());
    file[344..348].copy_from_slice(b"n+1\0");
    for z in 0..dims[2] {
        for y in 0..dims[1] {
            for x in 0..dims[0] {
                let (x, y, z) = (x as f32, y as f32, z as f32);
                let value =
                    (0.31 * x + case as f32).sin() + (0.23 * y).cos() * 0.1 * z + 0.02 * x * y;
                file.extend(value.to_le_bytes());
            }
        }
    }
    file
}

/// A tiny run: 30 steps, a checkpoint every 4.
pub(crate) fn command(data: &Path, out: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spatialssl"));
    command.arg("train").arg("--data").arg(data).arg("--out").arg(out);
    let cache = format!("data.cache_dir={}", data.parent().unwrap().join("cache").display());
    let settings = [
        &cache,
        "model.preset=custom",
        "model.features=[8,16]",
        "model.blocks=[1,1]",
        "views.size=[16,16,16]",
        "views.batch=2",
        "run.steps=30",
        "run.checkpoint_every=4",
        "run.validate_every=10",
        "run.validation_draws=3",
        "run.keep_last=2",
        "optim.warmup_steps=5",
        "data.validation_fraction=0.34",
    ];
    for setting in settings {
        command.args(["--set", setting]);
    }
    command.args(extra).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

pub(crate) fn finish(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Losses of every step and figures of every validation, as text; times are left out.
pub(crate) fn rows(out: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for name in ["metrics.jsonl", "validation.jsonl"] {
        for line in std::fs::read_to_string(out.join(name)).unwrap().lines() {
            let mut row: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).unwrap();
            row.remove("step_ms");
            row.remove("data_ms");
            all.push(serde_json::to_string(&row).unwrap());
        }
    }
    all
}

/// Rows and final weights of two runs are equal, bit for bit.
pub(crate) fn same(a: &Path, b: &Path) {
    same_rows(a, b, 33, "30 steps and 3 validations");
}

/// The same of runs with so many rows.
pub(crate) fn same_rows(a: &Path, b: &Path, count: usize, what: &str) {
    let (left, right) = (rows(a), rows(b));
    assert_eq!(left.len(), count, "{what}");
    for (l, r) in left.iter().zip(&right) {
        assert_eq!(l, r);
    }
    assert_eq!(left.len(), right.len());
    let weights = |dir: &Path| {
        let bytes = std::fs::read(dir.join("weights.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<(String, Vec<u8>)> =
            tensors.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
        all.sort();
        all
    };
    assert!(weights(a) == weights(b), "final weights differ");
}

/// Steps that `metrics.jsonl` holds now.
pub(crate) fn steps(out: &Path) -> usize {
    std::fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Waits until the run has written `wanted` steps, or has ended.
pub(crate) fn wait_for(child: &mut Child, out: &Path, wanted: usize) -> Option<ExitStatus> {
    for _ in 0..60_000 {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if steps(out) >= wanted {
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("no step {wanted} within two minutes");
}

pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}
