//! Which volumes are trained on: `--split`, and the file that a run leaves.

use std::path::Path;

use crate::tiny_run::{command, finish, same, volumes};

fn write(dir: &Path, content: &str) -> String {
    let path = dir.join("s.json");
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_string()
}

/// Exit code and what is said.
fn said(data: &Path, out: &Path, extra: &[&str]) -> (Option<i32>, String) {
    let output = command(data, out, extra).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn split_of(run: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(run.join("splits_final.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_file_says_what_is_trained_on_and_resuming_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (volumes(dir.path()), dir.path().join("run"));
    let content = r#"[{"train": ["case0"], "val": ["case1"]},
                      {"train": ["case5", "case1", "case3"], "val": ["case2"]}]"#;
    let file = write(dir.path(), content);
    let given = ["--steps", "4", "--split", &file, "--fold", "1"];
    let (code, text) = said(&data, &out, &given);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "fold 1 of",
        "of 2: --fold takes another",
        "2 of 6 volumes are in neither list",
        "case0.nii, ",
        "3 volumes to train on, 1 held out",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let expected = serde_json::json!([{"train": ["case1", "case3", "case5"], "val": ["case2"]}]);
    assert_eq!(split_of(&out), expected);

    let written = out.join("splits_final.json");
    let hint = format!("--split {}", written.display());
    let (code, text) = said(&data, &out, &["--steps", "4", "--resume"]);
    assert_eq!(code, Some(7), "{text}");
    assert!(text.contains("\"case0\" is new") && text.contains(&hint), "{text}");
    assert!(text.contains("with other volumes"), "{text}");
    assert_eq!(split_of(&out), expected, "a refused run changes nothing");
    let swapped = content.replace(r#""case3"], "val": ["case2"]"#, r#""case2"], "val": ["case3"]"#);
    let other = write(dir.path(), &swapped);
    let (code, text) =
        said(&data, &out, &["--steps", "4", "--resume", "--split", &other, "--fold", "1"]);
    assert_eq!(code, Some(7), "{text}");
    assert!(text.contains("the same volumes, but others of them held out"), "{text}");
    assert!(text.contains("validation: \"case2\" is gone") && text.contains(&hint), "{text}");
    let written = written.to_str().unwrap();
    let (code, text) = said(&data, &out, &["--steps", "4", "--resume", "--split", written]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn the_split_a_run_leaves_gives_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let (data, one, two) = (volumes(dir.path()), dir.path().join("one"), dir.path().join("two"));
    finish(command(&data, &one, &[]));
    let written = one.join("splits_final.json");
    finish(command(&data, &two, &["--split", written.to_str().unwrap()]));
    same(&one, &two);
    assert_eq!(split_of(&one), split_of(&two));
    let fold = &split_of(&one)[0];
    let count = |key: &str| fold[key].as_array().unwrap().len();
    assert!(count("train") + count("val") == 6 && count("val") > 0, "{fold}");
}

#[test]
fn a_split_that_does_not_fit_ends_before_anything_is_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (volumes(dir.path()), dir.path().join("run"));
    for (content, part) in [
        (r#"[{"train": ["case1", "case9"], "val": []}]"#, "1 of 2 in \"train\": case9"),
        (r#"[{"train": ["case1"], "val": ["case1"]}]"#, "both in \"train\" and in \"val\""),
    ] {
        let file = write(dir.path(), content);
        let (code, text) = said(&data, &out, &["--split", &file]);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains(part) && text.contains("s.json"), "{text}");
        assert!(!dir.path().join("cache").exists());
    }
    // Nothing was begun: the folder is free.
    let file = write(dir.path(), r#"[{"train": ["case1"], "val": []}]"#);
    let (code, text) = said(&data, &out, &["--steps", "2", "--split", &file]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("holds nothing out"), "{text}");
}
