//! The run folder: who may write there, and one process at a time.
//!
//! Free disk space is not looked at: the standard library cannot tell it. A full disk shows at the first
//! checkpoint, which fails without harm to the older ones.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result, escape};
use crate::files::atomic::output_error;
use crate::files::{atomic, utc_now};
use crate::run::retention;

/// Name of the lock file in a run folder.
const LOCK_FILE: &str = ".lock";

/// Name of the folder of checkpoints in a run folder.
pub const CHECKPOINTS: &str = "checkpoints";

/// Entries that make a folder a run.
const RUN_MARKS: [&str; 4] =
    ["config.toml", "metrics.jsonl", "validation.jsonl", "weights.safetensors"];

/// What a lock file may hold at most, in bytes; more is not ours.
const MAX_LOCK_TEXT: u64 = 1024;

/// The exclusive right to write in a run folder; given up when dropped, or when the process ends however.
#[derive(Debug)]
pub struct RunLock {
    /// Held open: the lock belongs to it.
    _file: File,
    is_supported: bool,
}

impl RunLock {
    /// Locks `dir`, which must exist.
    ///
    /// # Errors
    /// [`Error::Output`] naming process, host and time of the holder if another process has it.
    pub fn acquire(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| output_error(&path, &e))?;
        let is_supported = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Err(held(dir, &mut file)),
            Err(TryLockError::Error(e)) if is_unsupported(&e) => false,
            Err(TryLockError::Error(e)) => return Err(output_error(&path, &e)),
        };
        let text =
            format!("process {} on host {} since {}\n", std::process::id(), host_name(), utc_now());
        file.set_len(0)
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(|e| output_error(&path, &e))?;
        Ok(RunLock { _file: file, is_supported })
    }

    /// `false` on file systems without locks (some network ones): a second run is then not kept out.
    pub fn is_supported(&self) -> bool {
        self.is_supported
    }
}

/// A run folder that is ready to be written to.
#[derive(Debug)]
pub struct RunDir {
    /// The lock; keep it as long as the run lasts.
    pub lock: RunLock,
    /// Whether it holds an earlier run.
    pub is_existing: bool,
    /// Temporary files of an earlier run's interrupted saves, now removed.
    pub removed_temps: Vec<PathBuf>,
}

/// Creates or checks the run folder `out`, locks it, and proves that it can be written to.
///
/// Call it before data are read. `data` are the files and folders given as input. With `resume` an earlier
/// run may be there, but need not: [`RunDir::is_existing`] tells.
///
/// # Errors
/// [`Error::Config`] for `--out` if the path must not be a run folder: `/`, a file, a data folder or a
/// folder inside one, a folder of other things, or an earlier run without `resume`.
/// [`Error::Output`] if it cannot be written to or is locked.
pub fn prepare_run_dir(out: &Path, resume: bool, data: &[PathBuf]) -> Result<RunDir> {
    check_place(out, data)?;
    check_foreign(out)?;
    let checkpoints = out.join(CHECKPOINTS);
    fs::create_dir_all(&checkpoints).map_err(|e| output_error(out, &e))?;
    let lock = RunLock::acquire(out)?;
    let is_existing = is_run(out);
    if is_existing && !resume {
        return Err(Error::config(
            "--out",
            format!(
                "{} already holds a run\n  add --resume to go on with it, or choose another folder",
                escape(out)
            ),
        ));
    }
    let mut removed_temps = atomic::remove_stale_temps(out)?;
    removed_temps.extend(atomic::remove_stale_temps(&checkpoints)?);
    for dir in [out, &checkpoints] {
        atomic::write_atomic(&dir.join(".probe"), |file| file.write_all(b"probe"))?;
        let probe = dir.join(".probe");
        fs::remove_file(&probe).map_err(|e| output_error(&probe, &e))?;
    }
    Ok(RunDir { lock, is_existing, removed_temps })
}

/// Refuses places where no run folder may be: nothing is written or created for it.
///
/// # Errors
/// [`Error::Config`] for `--out`.
pub(crate) fn check_place(out: &Path, data: &[PathBuf]) -> Result<()> {
    let refuse = |why: String| Err(Error::config("--out", format!("{} {why}", escape(out))));
    if out.as_os_str().is_empty() {
        return refuse("is empty\n  name a folder".into());
    }
    if out.exists() && !out.is_dir() {
        return refuse("is a file\n  name a folder".into());
    }
    let place = resolve(out).map_err(|e| output_error(out, &e))?;
    if place.parent().is_none() {
        return refuse("is the root of the file system\n  name a folder of its own".into());
    }
    for folder in data.iter().filter(|path| path.is_dir()) {
        let Ok(folder) = fs::canonicalize(folder) else { continue };
        if place.starts_with(&folder) {
            let which = if place == folder { "is the" } else { "is inside the" };
            return refuse(format!(
                "{which} data folder {0}\n  nothing is written among the data: name a folder outside {0}",
                escape(&folder)
            ));
        }
    }
    Ok(())
}

/// The absolute path of `path` without links, also if its end does not exist yet.
fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let mut absent: Vec<OsString> = Vec::new();
    for ancestor in absolute.ancestors() {
        match fs::canonicalize(ancestor) {
            Ok(mut found) => {
                for part in absent.iter().rev() {
                    match Path::new(part).components().next() {
                        Some(Component::ParentDir) => _ = found.pop(),
                        _ => found.push(part),
                    }
                }
                return Ok(found);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let part = ancestor.components().next_back();
                absent.extend(part.map(|part| part.as_os_str().to_owned()));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(absolute)
}

/// Refuses a folder that holds things which are not a run's.
fn check_foreign(out: &Path) -> Result<()> {
    if is_run(out) {
        return Ok(());
    }
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(output_error(out, &e)),
    };
    let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name()));
    let mut foreign: Vec<OsString> = names
        .filter(|name| {
            let ours = name == LOCK_FILE || name == CHECKPOINTS || atomic::is_temp_name(name);
            !ours
        })
        .collect();
    foreign.sort();
    match foreign.first() {
        None => Ok(()),
        Some(first) => Err(Error::config(
            "--out",
            format!(
                "{} is not empty and holds no run: it has {} entries, the first is {}\n  \
                 name a new or empty folder",
                escape(out),
                foreign.len(),
                escape(Path::new(first))
            ),
        )),
    }
}

/// Whether `out` holds anything a run has written.
fn is_run(out: &Path) -> bool {
    let has_checkpoint =
        || retention::list(&out.join(CHECKPOINTS)).is_ok_and(|all| !all.is_empty());
    RUN_MARKS.iter().any(|mark| out.join(mark).exists()) || has_checkpoint()
}

/// The error of the second run, naming the first.
fn held(dir: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    let read = file.take(MAX_LOCK_TEXT).read_to_string(&mut text);
    let holder = match read {
        Ok(_) if !text.trim().is_empty() => escape(Path::new(text.trim())),
        _ => "another process".into(),
    };
    let advice = "wait until it ends, stop it, or choose another --out";
    Error::output(dir, format!("the run folder is in use by {holder}\n  {advice}"))
}

/// Whether locking failed because the file system has no locks.
fn is_unsupported(error: &std::io::Error) -> bool {
    /// "No locks available": a network file system without its lock service.
    const ENOLCK: i32 = 37;
    error.kind() == ErrorKind::Unsupported
        || (cfg!(target_os = "linux") && error.raw_os_error() == Some(ENOLCK))
}

/// This machine's name, or `unknown`; letters, digits, `-`, `.` and `_` only.
pub(crate) fn host_name() -> String {
    let text = ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let name: String = text.trim().chars().filter(is_plain).take(64).collect();
    if name.is_empty() { "unknown".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_run_is_refused_and_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let first = prepare_run_dir(&out, false, &[]).unwrap();
        assert!(first.lock.is_supported());
        let error = prepare_run_dir(&out, true, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        assert!(text.contains(&format!("process {} on host", std::process::id())), "{text}");
        assert!(text.contains(&host_name()) && text.contains("since 20"), "{text}");
        drop(first);
        prepare_run_dir(&out, false, &[]).unwrap();
    }

    #[test]
    fn a_lock_file_left_by_a_dead_process_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join(LOCK_FILE),
            "process 1 on host a, a longer text than ours ever is, by far\n",
        )
        .unwrap();
        let run = prepare_run_dir(dir.path(), false, &[]).unwrap();
        let text = fs::read_to_string(dir.path().join(LOCK_FILE)).unwrap();
        assert!(text.starts_with(&format!("process {} ", std::process::id())), "{text}");
        assert_eq!(text.lines().count(), 1);
        assert!(!run.is_existing);
    }

    #[test]
    #[cfg(unix)]
    fn places_that_mix_with_the_data_are_refused_by_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("scans");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
        let check = |out: &str| check_place(&dir.path().join(out), std::slice::from_ref(&data));
        for out in ["scans", "scans/new/run", "link", "new/../scans/run"] {
            let why = check(out).unwrap_err().to_string();
            assert!(why.contains("the data folder") && why.contains("--out"), "{out}: {why}");
        }
        for out in ["run", "scans2", "scans/../run"] {
            assert!(check(out).is_ok(), "{out}");
        }
    }

    #[test]
    fn unfit_places_are_refused_as_usage() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.nii"), "x").unwrap();
        let inputs = [data.clone()];
        let foreign = dir.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.doc"), "x").unwrap();
        let cases = [
            (PathBuf::from("/"), "root"),
            (PathBuf::from("/absent/../.."), "root"),
            (data.join("a.nii"), "is a file"),
            (data.clone(), "is the data folder"),
            (data.join("new/run"), "is inside the data folder"),
            (dir.path().join("absent/../data/run"), "is inside"),
            (foreign.clone(), "thesis.doc"),
            (PathBuf::new(), "is empty"),
        ];
        for (out, needle) in cases {
            let error = prepare_run_dir(&out, true, &inputs).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains(needle), "`{needle}` is not in: {error}");
        }
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
        prepare_run_dir(&dir.path().join("data-run"), false, &inputs).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn a_link_into_the_data_is_seen_through() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&data, &link).unwrap();
        let error = prepare_run_dir(&link.join("run"), false, &[data]).unwrap_err();
        assert!(error.to_string().contains("is inside"), "{error}");
    }

    #[test]
    fn an_existing_run_needs_resume_and_loses_its_stale_temps() {
        let dir = tempfile::tempdir().unwrap();
        drop(prepare_run_dir(dir.path(), false, &[]).unwrap());
        let temp = dir.path().join("checkpoints/.step-00000001.safetensors.1-0.spatialssl.tmp");
        fs::write(&temp, "x").unwrap();
        fs::write(dir.path().join("config.toml"), "x").unwrap();
        let error = prepare_run_dir(dir.path(), false, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--resume"), "{error}");
        assert!(temp.exists());
        let run = prepare_run_dir(dir.path(), true, &[]).unwrap();
        assert!(run.is_existing);
        assert_eq!(run.removed_temps, [temp]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn an_out_below_a_file_is_an_output_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        let error = prepare_run_dir(&file.join("run"), false, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("ENOTDIR"), "{error}");
    }
}
