//! The binary from outside: help, exit codes, messages, streams.

use std::path::Path;
use std::time::{Duration, Instant};

use support::{refused, refused_file, refused_setting, run, spatialssl, text, write};

#[cfg(test)]
mod support {
    use std::path::Path;
    use std::process::{Command, Output, Stdio};

    pub(super) fn spatialssl() -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("spatialssl"));
        command.env_remove("NO_COLOR").env_remove("RUST_BACKTRACE").stdin(Stdio::null());
        command
    }

    pub(super) fn run(arguments: &[&str]) -> Output {
        spatialssl().args(arguments).output().unwrap()
    }

    pub(super) fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    /// Runs `train` with these arguments added; it must end with `code`, print nothing to stdout, and one block
    /// to stderr that contains every part.
    pub(super) fn refused(arguments: &[&str], code: i32, parts: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let mut all = vec!["train", "--data", "scans", "--out", out.to_str().unwrap()];
        all.extend(arguments);
        let output = run(&all);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert_eq!(stderr.matches("error:").count(), 1, "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{arguments:?}: {stderr}");
        assert!(!stderr.contains('\u{1b}'), "{arguments:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{arguments:?} lacks {part:?}: {stderr}");
        }
        assert!(!out.exists(), "{arguments:?} left the run's folder");
    }

    pub(super) fn refused_setting(setting: &str, parts: &[&str]) {
        refused(&["--set", setting], 2, parts);
    }

    pub(super) fn refused_file(content: &[u8], parts: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, content).unwrap();
        refused(&["--config", path.to_str().unwrap()], 2, parts);
    }

    pub(super) fn write(dir: &Path, name: &str, content: &str) -> String {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    }
}

#[test]
fn help_lists_the_commands_and_exit_codes() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for line in [
        "Usage: spatialssl <COMMAND>",
        "  train    Pretrain an encoder on volumes without labels",
        "  observe  Show what a run has learnt, on volumes, as an HTML report",
        "  probe    Measure how much anatomy frozen features hold, on labelled volumes",
        "  export   Write the weights of a run for other programs",
        "  profile  Measure where the time of a training step goes",
        "  inspect  Print what a run, a configuration or a weight file holds",
        "  doctor   Report what this machine offers, and check volumes",
        "  75  stopped by a signal, state saved: run again with --resume",
        "  7   checkpoint or weights invalid",
    ] {
        assert!(help.lines().any(|found| found == line), "no line {line:?} in\n{help}");
    }
    for absent in ["finetune", "predict", "evaluate"] {
        assert!(!help.contains(absent), "{absent} is listed and does not exist");
    }
}

#[test]
fn help_of_train_lists_its_options_and_examples() {
    let output = run(&["train", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for part in [
        "Usage: spatialssl train [OPTIONS] --data <PATH>... --out <RUN>",
        "--config <FILE>",
        "--set <SECTION.KEY=VALUE>",
        "--device <DEVICE>",
        "--steps <N>",
        "--seed <N>",
        "--resume",
        "--init <WEIGHTS>",
        "--split <FILE>",
        "--fold <N>",
        "spatialssl train --data scans/ --out runs/first --resume",
    ] {
        assert!(help.contains(part), "no {part:?} in\n{help}");
    }
}

#[test]
fn help_of_export_lists_the_formats_that_exist() {
    let help = text(&run(&["export", "--help"]).stdout);
    assert!(help.contains("safetensors") && !help.contains("nnunet"), "{help}");
    let output = run(&["export", "--run", "r", "--to", "nnunet", "--out", "f"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_version_is_the_packages() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), format!("spatialssl {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &[][..],
        &["finetune"],
        &["trian"],
        &["train"],
        &["train", "--data", "d"],
        &["train", "--data", "--out", "r"],
        &["train", "--data", "d", "--out", ""],
        &["train", "--data", "d", "--out", "r", "--out", "s"],
        &["train", "--data", "d", "--out", "r", "--steps"],
        &["inspect"],
        &["doctor", "extra"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_misspelt_option_names_the_nearest() {
    refused(&["--stesp", "5"], 2, &["--stesp", "'--steps'"]);
    refused(&["--batchsize", "5"], 2, &["--batchsize", "--set views.batch=VALUE"]);
    refused(&["--init-weights", "w"], 2, &["--init"]);
    refused(&["--warmup-step", "5"], 2, &["--set optim.warmup_steps=VALUE"]);
    let stderr = text(&run(&["trian"]).stderr);
    assert!(stderr.contains("'train'"), "{stderr}");
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest() {
    refused_file(
        b"[optim]\n\nwarmup = 1\n",
        &["did you mean optim.warmup_steps?", "c.toml, line 3"],
    );
    refused_file(b"[run]\nstep = 1\n", &["did you mean run.steps?", "line 2"]);
    refused_file(b"[view]\ncount = 1\n", &["did you mean views.count?", "line 2"]);
    refused_setting("optim.lrr=1", &["optim.lrr", "did you mean optim.lr?", "set by --set"]);
    refused_setting("lr=1", &["did you mean optim.lr?"]);
    refused_setting("optim.lr", &["section.key=value"]);
    refused_setting("=5", &["section.key=value"]);
}

#[test]
fn a_wrong_type_says_what_is_needed() {
    refused(&["--steps", "abc"], 2, &["'abc'", "--steps"]);
    refused_setting("views.batch=abc", &["views.batch", "\"abc\"", "a whole number"]);
    refused_setting("views.batch=1e12", &["views.batch", "a whole number"]);
    refused_setting("views.size=32", &["a list of three numbers"]);
    refused_file(b"[run]\nsteps = true\n", &["run.steps", "true", "line 2"]);
}

#[test]
fn numbers_out_of_range_name_the_range() {
    for batch in ["0", "1000000000000", "4294967296"] {
        refused_setting(&format!("views.batch={batch}"), &[batch, "1 to 1024"]);
    }
    refused_setting("views.batch=-1", &["-1", "0 or more"]);
    for (lr, part) in [
        ("nan", "NaN"),
        ("inf", "inf"),
        ("NaN", "a number"),
        ("-1", "-1.0, needs 0.0 to 10.0"),
        ("1e-400", "too small"),
    ] {
        refused_setting(&format!("optim.lr={lr}"), &["optim.lr", part]);
    }
    refused(&["--steps", "0"], 2, &["--steps", "from 1 to 1000000000"]);
    refused(&["--steps", "-5"], 2, &["--steps", "-5"]);
    refused_setting("run.steps=0", &["1 to 1000000000"]);
    refused(&["--seed", "-1"], 2, &["--seed", "-1", "a whole number from 0 to"]);
    refused(&["--seed", "18446744073709551616"], 2, &["--seed", "18446744073709551616"]);
    refused_setting("run.seed=18446744073709551616", &["run.seed", "9223372036854775807"]);
    refused_setting("run.keep_last=0", &["would delete the checkpoint just written"]);
    refused_setting("run.max_minutes=-1", &["run.max_minutes"]);
    refused_setting("data.validation_fraction=1.5", &["0.0 to 0.9"]);
}

#[test]
fn view_sizes_that_do_not_fit_name_the_nearest_that_do() {
    refused_setting("views.size=[0,0,0]", &["views.size", "[16, 16, 16]"]);
    refused_setting("views.size=[33,32,32]", &["odd", "[32, 32, 32] or [40, 32, 32]"]);
    refused_setting("views.size=[36,32,32]", &["multiple of 8", "[32, 32, 32] or [40, 32, 32]"]);
    refused_setting("views.sub_size=[8,16,16]", &["views.sub_size", "[16, 16, 16]"]);
    refused_setting("views.sub_size=[64,16,16]", &["at least views.sub_size", "[64, 16, 16]"]);
    refused_setting("model.preset=resenc-m", &["one voxel", "[64, 64, 64]"]);
    refused_setting("model.preset=custom", &["model.features", "needs features and blocks"]);
    refused_setting("model.preset=resenc-x", &["resenc-s, resenc-m, resenc-l, custom"]);
}

#[test]
fn a_file_that_is_no_configuration_is_refused_at_once() {
    let started = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    refused(&["--config", folder], 2, &["not a regular file"]);
    refused(&["--config", "/nowhere/c.toml"], 2, &["/nowhere/c.toml", "cannot be read"]);
    refused(&["--config", "/dev/zero"], 2, &["not a regular file"]);
    refused_file(b"", &["is empty"]);
    refused_file(b"[run]\n# \xff\n", &["not UTF-8", "line 2"]);
    refused_file(&[b'['; 900_000], &["not valid TOML"]);
    refused_file("a.".repeat(400_000).as_bytes(), &["not valid TOML"]);
    let large = dir.path().join("large.toml");
    std::fs::File::create(&large).unwrap().set_len(100 << 20).unwrap();
    refused(&["--config", large.to_str().unwrap()], 2, &["104857600 bytes", "1048576"]);
    // Less than a second each, of eight.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[test]
fn a_split_that_is_none_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let good = write(dir.path(), "s.json", r#"[{"train": ["a"], "val": ["b"]}]"#);
    refused(&["--split", &good, "--fold", "1"], 2, &["--fold", "it holds 1", "0 to 0"]);
    refused(&["--split", &good, "--fold", "-1"], 2, &["--fold", "from 0 to"]);
    refused(&["--fold", "0"], 2, &["--split <FILE>"]);
    let parts = ["cannot read ", "needed: nnU-Net's splits_final.json"];
    for content in ["", "[", "{}", "[]", "[{\"train\": 3}]", "[{\"train\": []}]"] {
        let bad = write(dir.path(), "bad.json", content);
        refused(&["--split", &bad], 3, &parts);
    }
    refused(&["--split", dir.path().to_str().unwrap()], 3, &["not a regular file"]);
    refused(&["--split", "/nowhere/s.json"], 3, &["/nowhere/s.json", "reading failed"]);
}

#[test]
fn resume_and_init_exclude_each_other() {
    let parts = ["--resume and --init", "use --resume to", "use --init to"];
    refused(&["--resume", "--init", "w.safetensors"], 2, &parts);
}

#[test]
fn an_output_that_mixes_with_the_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let file = write(dir.path(), "file", "x");
    let inside = dir.path().join("run");
    for (out, part) in [
        (folder, "is the data folder"),
        (inside.to_str().unwrap(), "is inside the data folder"),
        ("/", "is the root of the file system"),
        (&file, "is a file"),
    ] {
        let output = run(&["train", "--data", folder, "--out", out]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{out}: {stderr}");
        assert!(stderr.contains(part), "{out}: {stderr}");
    }
    assert!(!inside.exists());
}

#[test]
fn a_gpu_is_refused_with_5_and_says_what_to_do() {
    // A number that no machine has, so that the test holds on those with a GPU.
    let parts = ["device cuda:99", "found: ", "needed: ", "use --device cpu"];
    refused(&["--device", "cuda:99"], 5, &parts);
    refused(&["--set", "run.device=cuda:99"], 5, &parts);
    refused(&["--device", "gpu"], 2, &["auto, cpu, cuda or cuda:N", "set by --device"]);
}

#[test]
fn inspect_shows_the_resolved_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "c.toml", "[optim]\nlr = 5e-4\n[data]\nspacing = [1, 1, 2.5]\n");
    let output = run(&["inspect", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for line in ["lr = 0.0005", "spacing = [1.0, 1.0, 2.5]", "keep_last = 3", "[augment]"] {
        assert!(shown.lines().any(|found| found == line), "no line {line:?} in\n{shown}");
    }
    // What it prints is a configuration that says the same.
    write(dir.path(), "config.toml", &shown);
    assert_eq!(text(&run(&["inspect", dir.path().to_str().unwrap()]).stdout), shown);
}

#[test]
fn settings_win_over_the_file_and_options_over_settings() {
    let dir = tempfile::tempdir().unwrap();
    // The value that wins is the one the message finds wrong.
    let file = write(dir.path(), "c.toml", "[run]\ndevice = 'from-file'\nkeep_last = 0\n");
    let file = file.as_str();
    refused(&["--config", file], 2, &["from-file", "line 2"]);
    refused(&["--config", file, "--set", "run.device=from-set"], 2, &["from-set"]);
    let both = ["--device", "from-flag", "--config", file, "--set", "run.device=from-set"];
    refused(&both, 2, &["from-flag"]);
    // A wrong value of the file does not count once overridden.
    let overridden = ["--config", file, "--set", "run.keep_last=2", "--device", "cuda"];
    refused(&overridden, 5, &["cuda"]);
    let twice = ["--set", "run.device=first", "--set", "run.device=second"];
    refused(&twice, 2, &["second"]);
}

#[test]
fn what_was_changed_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "c.toml", "[optim]\nlr = 0\n[run]\nsteps = 10\n");
    let output = run(&["inspect", &file]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    for part in ["lr = 0", "shortened to 10", "only the last step is saved"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert!(stderr.lines().all(|line| line.starts_with("warning: ")), "{stderr}");
    assert!(text(&output.stdout).contains("warmup_steps = 10\n"));
}

#[test]
fn doctor_prints_json_alone_to_stdout() {
    let output = spatialssl()
        .args(["doctor", "--json"])
        .env("XDG_CACHE_HOME", "/somewhere")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["cache_dir"], "/somewhere/spatialssl");
    assert!(report["cpu_threads"].as_u64().unwrap() >= 1);
    assert!(report["cpu_features"].is_array());
    assert!(report["device_code"].is_array() && report["gpus"].is_array());
    let text = text(&run(&["doctor"]).stdout);
    assert!(text.contains("version") && text.contains("device code"), "{text}");
}

#[test]
fn doctor_works_without_an_environment() {
    let output = spatialssl().env_clear().arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("RUN/cache"));
}

#[test]
fn a_closed_stdout_is_a_quiet_end() {
    for arguments in [&["doctor"][..], &["--help"], &["doctor", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = spatialssl().args(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_full_disk_behind_stdout_is_said() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        return;
    }
    let stdout = std::fs::OpenOptions::new().write(true).open(full).unwrap();
    let output = spatialssl().arg("doctor").stdout(stdout).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("stdout"), "{}", text(&output.stderr));
}

#[test]
fn names_with_control_characters_are_escaped() {
    let output = run(&["observe", "--run", "a\u{1b}[2Jb\nc", "--data", "d", "--out", "o"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("a\\u{1b}[2Jb\\nc") && !stderr.contains('\u{1b}'), "{stderr}");
}

#[test]
fn a_run_without_a_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run_folder = dir.path().to_str().unwrap();
    for arguments in [
        &["observe", "--run", run_folder, "--data", "d", "--out", "o"][..],
        &["export", "--run", run_folder, "--to", "safetensors", "--out", "f"],
        &["inspect", run_folder],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("config.toml"), "{arguments:?}");
    }
}
