//! Nothing lost: a run that is killed, stopped or given another number of threads ends with the same bits.

use crate::tiny_run::{command, finish, same, signal, steps, volumes, wait_for};

#[test]
fn killed_ten_times_a_run_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (data, whole, killed) =
        (volumes(dir.path()), dir.path().join("whole"), dir.path().join("killed"));
    finish(command(&data, &whole, &[]));
    // Kill at steps of a fixed random order; some land before the first checkpoint, some between two.
    for (round, at) in [3, 6, 9, 5, 14, 11, 19, 17, 26, 23].into_iter().enumerate() {
        let extra: &[&str] = if round == 0 { &[] } else { &["--resume"] };
        let mut child = command(&data, &killed, extra).spawn().unwrap();
        if wait_for(&mut child, &killed, at).is_none() {
            signal(&child, "-KILL");
        }
        child.wait().unwrap();
    }
    finish(command(&data, &killed, &["--resume"]));
    same(&whole, &killed);
}

#[test]
fn threads_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (data, one, two) = (volumes(dir.path()), dir.path().join("one"), dir.path().join("two"));
    finish(command(&data, &one, &["--set", "run.threads=1"]));
    finish(command(&data, &two, &["--set", "run.threads=2", "--set", "data.loader_threads=2"]));
    same(&one, &two);
}

#[test]
fn a_signal_saves_and_resuming_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (data, whole, stopped) =
        (volumes(dir.path()), dir.path().join("whole"), dir.path().join("stopped"));
    finish(command(&data, &whole, &[]));
    for (name, at) in [("-TERM", 7), ("-INT", 13), ("-USR1", 21)] {
        let extra: &[&str] = if at == 7 { &[] } else { &["--resume"] };
        let mut child = command(&data, &stopped, extra).spawn().unwrap();
        assert!(wait_for(&mut child, &stopped, at).is_none(), "ended before step {at}");
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(75), "{name}");
        let saved = stopped.join(format!("checkpoints/step-{:08}.safetensors", steps(&stopped)));
        assert!(saved.is_file(), "{} is missing", saved.display());
    }
    finish(command(&data, &stopped, &["--resume"]));
    same(&whole, &stopped);
}

#[test]
fn resuming_with_other_settings_or_volumes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (volumes(dir.path()), dir.path().join("run"));
    finish(command(&data, &out, &["--steps", "4"]));
    let refused = |extra: &[&str], parts: &[&str]| {
        let output = command(&data, &out, extra).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(7), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    };
    refused(
        &["--resume", "--steps", "4", "--set", "optim.lr=0.5"],
        &["optim.lr was 0.001, is 0.5"],
    );
    std::fs::remove_file(data.join("case0.nii")).unwrap();
    refused(&["--resume", "--steps", "4"], &["\"case0\" is gone"]);
}

#[test]
fn volumes_that_vanish_end_the_run_with_its_state_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (volumes(dir.path()), dir.path().join("run"));
    let mut child = command(&data, &out, &["--steps", "400"]).spawn().unwrap();
    assert!(wait_for(&mut child, &out, 6).is_none(), "ended before step 6");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("case"), "the volume is named: {said}");
    let saved = out.join(format!("checkpoints/step-{:08}.safetensors", steps(&out)));
    assert!(saved.is_file(), "{} is missing: {said}", saved.display());
}
