//! Files that are either as they were or wholly new, and files that grow by whole records.
//!
//! [`write_atomic`] is the only way the crate replaces a file: temporary file in the same folder, flush,
//! sync, rename, sync of the folder. `AppendFile` is for logs. Neither retries: the caller decides.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// End of every temporary file's name; what [`remove_stale_temps`] looks for.
const TEMP_SUFFIX: &str = ".spatialssl.tmp";

/// Tells the temporary files of one process apart.
static TEMP_COUNT: AtomicU64 = AtomicU64::new(0);

/// Writes `path` as a whole or not at all.
///
/// `fill` writes the content to a buffered temporary file `.NAME.PID-N.spatialssl.tmp` in the folder of
/// `path`; it is then synced, renamed over `path`, and the folder synced, so that after a power loss
/// either the old or the new content is there. The mode follows the umask. On any failure the
/// temporary file is removed and `path` is as before; only if the last step, the sync of the folder,
/// fails, the new content may already be in place.
///
/// # Errors
/// [`Error::Output`] with the cause and advice.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let folder = folder_of(path);
    let name = path
        .file_name()
        .ok_or_else(|| Error::output(path, "the path names no file\n  give a file name"))?;
    let (temp, file) = create_temp(folder, name).map_err(|e| output_error(path, &e))?;
    let replaced = fill_and_sync(file, fill).and_then(|()| fs::rename(&temp, path));
    if let Err(error) = replaced {
        // The first error is the one to report; a temporary file left behind is found at the next start.
        let _ = fs::remove_file(&temp);
        return Err(output_error(path, &error));
    }
    sync_folder(folder).map_err(|e| output_error(path, &e))
}

/// Removes the temporary files of interrupted [`write_atomic`] calls in `dir` and returns their paths.
///
/// Call it only while the run lock is held: a temporary file of a living process looks the same.
///
/// # Errors
/// [`Error::Output`] if the folder cannot be listed or a file cannot be removed. A missing folder has none.
pub fn remove_stale_temps(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(output_error(dir, &e)),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| output_error(dir, &e))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && is_temp_name(&entry.file_name()) {
            fs::remove_file(entry.path()).map_err(|e| output_error(&entry.path(), &e))?;
            removed.push(entry.path());
        }
    }
    removed.sort();
    Ok(removed)
}

/// Whether `name` is one that [`write_atomic`] gives its temporary files.
pub(crate) fn is_temp_name(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b".") && bytes.ends_with(TEMP_SUFFIX.as_bytes())
}

/// An [`Error::Output`] for `path` that spells out the usual causes and what to do.
pub fn output_error(path: &Path, cause: &io::Error) -> Error {
    let advice = match cause.kind() {
        ErrorKind::StorageFull => {
            "the disk is full (ENOSPC)\n  free space there, or choose another folder"
        }
        ErrorKind::QuotaExceeded => {
            "the disk quota is used up (EDQUOT)\n  free space under the quota, or choose another folder"
        }
        ErrorKind::PermissionDenied => {
            "permission denied (EACCES)\n  make the folder writable for this user, or choose another folder"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only (EROFS)\n  remount it writable, or choose another folder"
        }
        ErrorKind::NotFound => "the folder does not exist, or was removed\n  create it again",
        ErrorKind::NotADirectory => {
            "a part of the path is a file, not a folder (ENOTDIR)\n  choose another path"
        }
        ErrorKind::IsADirectory => "the path is a folder (EISDIR)\n  give the name of a file",
        ErrorKind::FileTooLarge => {
            "the file would be larger than allowed (EFBIG)\n  see `ulimit -f`"
        }
        ErrorKind::StaleNetworkFileHandle => {
            "the network file system was lost (ESTALE)\n  mount it again and resume"
        }
        _ => return Error::output(path, cause.to_string()),
    };
    Error::output(path, advice)
}

/// A log file that grows by whole records: a record that does not fit is taken back.
///
/// Every [`AppendFile::append`] is one write without a buffer of our own, so that a killed process
/// loses nothing that was appended; a power loss may, unless [`AppendFile::sync`] was called.
#[derive(Debug)]
pub(crate) struct AppendFile {
    path: PathBuf,
    file: File,
    /// Bytes of whole records.
    len: u64,
    /// A failed record could not be taken back: its remains stand at the end.
    torn: bool,
}

impl AppendFile {
    /// Creates `path`, which must not exist.
    pub(crate) fn create_new(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        Ok(AppendFile { path: path.to_path_buf(), file, len: 0, torn: false })
    }

    /// Opens `path` at its end; creates it if absent.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(AppendFile { path: path.to_path_buf(), file, len, torn: false })
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `record` as a whole; on failure the file is cut back to the records before it.
    pub(crate) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.len)?;
            self.torn = false;
        }
        match self.file.write_all(record) {
            Ok(()) => {
                self.len += record.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.torn = self.file.set_len(self.len).is_err();
                Err(error)
            }
        }
    }

    /// Whether the file was deleted while open, so that what is appended reaches nobody.
    pub(crate) fn is_deleted(&self) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            self.file.metadata().is_ok_and(|meta| meta.nlink() == 0)
        }
        #[cfg(not(unix))]
        {
            false
        }
    }

    /// Waits until all records are on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The folder that holds `path`.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A new temporary file beside `name`, never an existing one.
fn create_temp(folder: &Path, name: &OsStr) -> io::Result<(PathBuf, File)> {
    let pid = std::process::id();
    loop {
        let count = TEMP_COUNT.fetch_add(1, Ordering::Relaxed);
        let mut temp_name = std::ffi::OsString::from(".");
        temp_name.push(name);
        temp_name.push(format!(".{pid}-{count}{TEMP_SUFFIX}"));
        let temp = folder.join(temp_name);
        match OpenOptions::new().write(true).create_new(true).open(&temp) {
            Ok(file) => return Ok((temp, file)),
            // A leftover of an earlier process that had our number.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

fn fill_and_sync(
    file: File,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let filled = fill(&mut writer).and_then(|()| writer.flush());
    // Taken apart by hand: dropping the writer after an error would write its buffer once more.
    let (file, _) = writer.into_parts();
    filled?;
    file.sync_all()
}

/// Makes the names in `folder` durable, where the file system can.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network and FUSE file systems know no sync of a folder.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_the_whole_file_and_leaves_no_temp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        fs::write(&path, "a longer old text").unwrap();
        write_atomic(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    #[cfg(unix)]
    fn mode_follows_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        fs::write(&plain, "x").unwrap();
        let ours = dir.path().join("ours");
        write_atomic(&ours, |w| w.write_all(b"x")).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn a_failure_at_any_byte_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        fs::write(&path, "old").unwrap();
        // Up to beyond the buffer of 1 MiB, so that some content has reached the temporary file.
        for good_bytes in [0usize, 1, 1000, 3 << 20] {
            let error = write_atomic(&path, |w| {
                w.write_all(&vec![7; good_bytes])?;
                Err(ErrorKind::QuotaExceeded.into())
            })
            .unwrap_err();
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains("EDQUOT"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert_eq!(names(dir.path()), ["a.bin"]);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        fs::write(&path, "old").unwrap();
        let error = write_atomic(&path, |_| {
            OpenOptions::new().write(true).open("/dev/full")?.write_all(b"x")
        })
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("ENOSPC") && text.contains("a.bin") && text.contains("free"),
            "{text}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_parent_that_is_a_file_is_an_output_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        let error = write_atomic(&file.join("a.bin"), |w| w.write_all(b"x")).unwrap_err();
        assert!(error.to_string().contains("ENOTDIR"), "{error}");
        let error = write_atomic(&dir.path().join("absent/a.bin"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("does not exist"), "{error}");
        let error = write_atomic(Path::new("/"), |_| Ok(())).unwrap_err();
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    #[cfg(unix)]
    fn a_read_only_folder_keeps_the_old_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
        // The super-user may write there all the same: then there is nothing to see.
        let is_root = File::create(dir.path().join("probe")).is_ok();
        let written = write_atomic(&path, |w| w.write_all(b"new"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if !is_root {
            assert!(written.unwrap_err().to_string().contains("EACCES"));
            assert_eq!(fs::read(&path).unwrap(), b"old");
        }
    }

    #[test]
    fn only_our_own_temps_are_stale() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".a.bin.12-0.spatialssl.tmp", "b.spatialssl.tmp", ".c.tmp", "d"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::create_dir(dir.path().join(".e.1-1.spatialssl.tmp")).unwrap();
        let removed = remove_stale_temps(dir.path()).unwrap();
        assert_eq!(removed, [dir.path().join(".a.bin.12-0.spatialssl.tmp")]);
        assert_eq!(names(dir.path()).len(), 4);
        assert!(remove_stale_temps(&dir.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn a_deleted_log_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = AppendFile::create_new(&path).unwrap();
        log.append(b"one\n").unwrap();
        assert!(!log.is_deleted());
        fs::remove_file(&path).unwrap();
        assert!(log.is_deleted());
        assert!(AppendFile::create_new(dir.path()).is_err());
    }

    #[test]
    fn appending_takes_up_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        AppendFile::open(&path).unwrap().append(b"one\n").unwrap();
        let mut log = AppendFile::open(&path).unwrap();
        log.append(b"two\n").unwrap();
        log.sync().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    }
}
