//! Which checkpoints of a run to resume from and which to delete.
//!
//! A checkpoint's age is its step, from its name; file times, which a copy or a wrong clock changes, are
//! never looked at.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::atomic::output_error;
use crate::run::checkpoint;
use crate::run::checkpoint::{KEY_STEP, Loaded};

/// What [`latest_valid`] found.
#[derive(Debug, Default)]
pub struct Latest {
    /// The valid checkpoint of the highest step.
    pub found: Option<(PathBuf, Loaded)>,
    /// Newer ones that are not valid, newest first, with the reason.
    pub rejected: Vec<(PathBuf, String)>,
}

/// File name of the checkpoint after `step` finished steps.
pub fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}.safetensors")
}

/// The checkpoints in `dir`, newest first, by name alone. A missing folder has none.
///
/// # Errors
/// [`Error::Checkpoint`] if the folder cannot be listed.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let failed = |e: std::io::Error| Error::checkpoint(dir, format!("listing failed: {e}"));
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Some(step) = entry.file_name().to_str().and_then(step_of) {
            found.push((step, entry.path()));
        }
    }
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// Loads the valid checkpoint of the highest step in `dir`.
///
/// # Errors
/// [`Error::Checkpoint`] if the folder cannot be listed. Damaged checkpoints are no error: they are listed
/// in [`Latest::rejected`], which the caller should show.
pub fn latest_valid(dir: &Path) -> Result<Latest> {
    let mut latest = Latest::default();
    for (step, path) in list(dir)? {
        let loaded = checkpoint::load(&path).and_then(|loaded| {
            check_step(&path, step, loaded.metadata.get(KEY_STEP).map(String::as_str))?;
            Ok(loaded)
        });
        match loaded {
            Ok(loaded) => {
                latest.found = Some((path, loaded));
                break;
            }
            Err(error) => latest.rejected.push((path, reason(error))),
        }
    }
    Ok(latest)
}

/// Deletes all checkpoints in `dir` but the newest `keep_last`, those in `never_delete`, and, whatever
/// else, the newest valid one. Returns the deleted paths, newest first.
///
/// The newest valid one is looked for by reading, newest first: usually that reads one file.
/// If none is valid nothing is deleted.
///
/// # Errors
/// [`Error::Checkpoint`] if the folder cannot be listed, [`Error::Output`] if a file cannot be deleted.
///
/// # Panics
/// If `keep_last` is 0: it would delete the checkpoint just written.
pub fn prune(dir: &Path, keep_last: usize, never_delete: &[PathBuf]) -> Result<Vec<PathBuf>> {
    assert!(keep_last > 0, "keep_last must be at least 1");
    let all = list(dir)?;
    if all.len() <= keep_last {
        return Ok(Vec::new());
    }
    let is_valid = |step: u64, path: &Path| {
        checkpoint::verify(path)
            .and_then(|meta| check_step(path, step, meta.get(KEY_STEP).map(String::as_str)))
            .is_ok()
    };
    let Some(newest_valid) = all.iter().position(|(step, path)| is_valid(*step, path)) else {
        return Ok(Vec::new());
    };
    let kept_names: Vec<_> = never_delete.iter().filter_map(|path| path.file_name()).collect();
    let mut deleted = Vec::new();
    for (index, (_, path)) in all.into_iter().enumerate() {
        let named = path.file_name().is_some_and(|name| kept_names.contains(&name));
        if index < keep_last || index == newest_valid || named {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => deleted.push(path),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(output_error(&path, &e)),
        }
    }
    Ok(deleted)
}

/// The step in a checkpoint's file name; `None` for any other file.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()?;
    (checkpoint_name(step) == name).then_some(step)
}

/// Refuses a checkpoint that was renamed to another step.
fn check_step(path: &Path, named: u64, stored: Option<&str>) -> Result<()> {
    match stored {
        Some(stored) if stored.parse() != Ok(named) => Err(Error::checkpoint(
            path,
            format!("its name says step {named}, its content step {}", stored.escape_default()),
        )),
        _ => Ok(()),
    }
}

/// The reason alone, on one line: the path is reported beside it.
fn reason(error: Error) -> String {
    match error {
        Error::Checkpoint { why, .. } => why.lines().next().unwrap_or_default().to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::run::checkpoint::{TensorRef, save};

    fn write(dir: &Path, step: u64) -> PathBuf {
        let path = dir.join(checkpoint_name(step));
        let metadata = BTreeMap::from([(KEY_STEP.to_string(), step.to_string())]);
        let data = [step as f32, 1.0];
        save(&path, &metadata, &[TensorRef { name: "w", shape: &[2], data: &data }]).unwrap();
        path
    }

    fn damage(path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    }

    fn steps(dir: &Path) -> Vec<u64> {
        list(dir).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn steps_come_from_canonical_names_only() {
        assert_eq!(step_of("step-00000012.safetensors"), Some(12));
        assert_eq!(step_of("step-123456789.safetensors"), Some(123_456_789));
        for other in ["step-12.safetensors", "step-+0000012.safetensors", "step-00000012.pth", "w"]
        {
            assert_eq!(step_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_highest_valid_step_wins_and_rejected_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(latest_valid(&dir.path().join("absent")).unwrap().found.is_none());
        write(dir.path(), 10);
        let good = write(dir.path(), 99_999_999);
        let cut = write(dir.path(), 100_000_000);
        fs::write(&cut, &fs::read(&cut).unwrap()[..50]).unwrap();
        let flipped = write(dir.path(), 100_000_001);
        damage(&flipped);
        let renamed = dir.path().join(checkpoint_name(100_000_002));
        fs::copy(&good, &renamed).unwrap();
        let latest = latest_valid(dir.path()).unwrap();
        let (path, loaded) = latest.found.unwrap();
        assert_eq!((path, loaded.step()), (good, Some(99_999_999)));
        let paths: Vec<_> = latest.rejected.iter().map(|(path, _)| path.clone()).collect();
        assert_eq!(paths, [renamed, flipped, cut]);
        assert!(latest.rejected[0].1.contains("content step 99999999"), "{:?}", latest.rejected);
        assert!(latest.rejected[1].1.contains("checksum"), "{:?}", latest.rejected);
    }

    #[test]
    fn pruning_keeps_the_newest_and_the_named() {
        let dir = tempfile::tempdir().unwrap();
        for step in 1..=6 {
            write(dir.path(), step);
        }
        let kept = dir.path().join(checkpoint_name(2));
        let deleted = prune(dir.path(), 2, std::slice::from_ref(&kept)).unwrap();
        assert_eq!(steps(dir.path()), [6, 5, 2]);
        assert_eq!(deleted.len(), 3);
        assert!(prune(dir.path(), 3, &[kept]).unwrap().is_empty());
    }

    #[test]
    fn pruning_never_takes_the_last_valid_one() {
        let dir = tempfile::tempdir().unwrap();
        for step in 1..=6 {
            let path = write(dir.path(), step);
            if step > 3 {
                damage(&path);
            }
        }
        prune(dir.path(), 2, &[]).unwrap();
        assert_eq!(steps(dir.path()), [6, 5, 3]);
        damage(&dir.path().join(checkpoint_name(3)));
        assert!(prune(dir.path(), 1, &[]).unwrap().is_empty());
        assert_eq!(steps(dir.path()), [6, 5, 3]);
    }
}
