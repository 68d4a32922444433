//! Prepared volumes on disk, so that a second run starts at once, and the index that saves re-hashing.
//!
//! One file holds one volume. Its name is the hash of the source's bytes and of everything that was done
//! to them, so a changed file or option never meets an old volume. Files appear by rename: a reader sees
//! all of a volume or none, and two writers write the same bytes. They are read, not mapped, since a
//! mapped file that another process cuts ends this one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use half::f16;
use sha2::{Digest, Sha256};

use crate::dataset::normalize::Normalize;
use crate::dataset::prepare::PrepareOptions;
use crate::error::{Error, Result, escape};
use crate::files::atomic::{is_temp_name, write_atomic};
use crate::image::Volume;

/// Changes whenever the same source and options give other voxels, or the file another layout.
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"SSLVOLUM";
/// Bytes before the voxels.
const HEAD: usize = 128;
/// Temporary files older than this belong to a process that was killed.
const STALE: Duration = Duration::from_secs(3600);
/// A file changed this shortly ago may change again without its time stamp showing it.
const SETTLED: Duration = Duration::from_secs(2);

/// A hash of a source's content, or of content and preparation.
pub(crate) type Hash = [u8; 32];

/// What the head of a cached volume says.
struct Head {
    extent: [usize; 3],
    spacing_mm: [f64; 3],
    fill: f32,
    /// CRC-32C of everything after the head.
    checksum: u32,
    /// Bytes of the warnings, after the voxels.
    notes: usize,
}

/// The name of a prepared volume: its source's hash with all that decides its voxels.
pub(crate) fn key(content: &Hash, options: &PrepareOptions, spacing_mm: Option<[f64; 3]>) -> Hash {
    let mut hash = Sha256::new();
    hash.update(MAGIC);
    hash.update(FORMAT.to_le_bytes());
    hash.update(content);
    hash.update([options.normalize as u8]);
    if options.normalize == Normalize::Ct {
        options.ct_window.iter().for_each(|v| hash.update(v.to_bits().to_le_bytes()));
    }
    hash.update([u8::from(spacing_mm.is_some())]);
    spacing_mm.iter().flatten().for_each(|v| hash.update(v.to_bits().to_le_bytes()));
    hash.finalize().into()
}

/// The file of a prepared volume.
pub(crate) fn path(folder: &Path, key: &Hash) -> PathBuf {
    folder.join(format!("{}.volume", hex(&key[..16])))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Makes the cache folder and removes what killed processes left in it.
///
/// Errors: [`Error::Output`] naming the folder.
pub(crate) fn open(folder: &Path) -> Result<()> {
    let fail =
        |e: io::Error| Error::output(folder, format!("the cache folder cannot be used: {e}"));
    fs::create_dir_all(folder).map_err(fail)?;
    for entry in fs::read_dir(folder).map_err(fail)?.flatten() {
        let old = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        let name = entry.file_name();
        if is_temp_name(&name) && old.is_some_and(|age| age > STALE) {
            // Another process may have removed it first.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Extent and warnings of a cached volume, if the file is there and whole by its length. Voxels are not read.
pub(crate) fn peek(path: &Path, key: &Hash) -> Option<([usize; 3], Vec<String>)> {
    let (mut file, head) = open_valid(path, key)?;
    let mut notes = vec![0; head.notes];
    if head.notes > 0 {
        let at = HEAD + head.extent.iter().product::<usize>() * 2;
        io::Seek::seek(&mut file, io::SeekFrom::Start(at as u64)).ok()?;
        file.read_exact(&mut notes).ok()?;
    }
    Some((head.extent, read_notes(&notes)?))
}

/// A cached volume, or `None` if it is absent or damaged.
pub(crate) fn read(path: &Path, key: &Hash) -> Option<Volume> {
    let (mut file, head) = open_valid(path, key)?;
    let mut voxels = vec![f16::ZERO; head.extent.iter().product()];
    file.read_exact(bytemuck::cast_slice_mut(&mut voxels)).ok()?;
    let mut notes = vec![0; head.notes];
    file.read_exact(&mut notes).ok()?;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(bytemuck::cast_slice(&voxels)), &notes);
    if checksum != head.checksum {
        return None;
    }
    if cfg!(target_endian = "big") {
        voxels.iter_mut().for_each(|v| *v = f16::from_bits(v.to_bits().swap_bytes()));
    }
    Some(Volume { extent: head.extent, spacing_mm: head.spacing_mm, fill: head.fill, voxels })
}

/// Writes a prepared volume with the warnings about its source.
///
/// Errors: [`Error::Output`] naming the file.
pub(crate) fn write(path: &Path, key: &Hash, volume: &Volume, warnings: &[String]) -> Result<()> {
    let notes = if warnings.is_empty() {
        Vec::new()
    } else {
        serde_json::to_vec(warnings).map_err(|e| Error::output(path, e.to_string()))?
    };
    let swapped: Vec<f16>;
    let stored = if cfg!(target_endian = "big") {
        swapped = volume.voxels.iter().map(|v| f16::from_bits(v.to_bits().swap_bytes())).collect();
        &swapped
    } else {
        &volume.voxels
    };
    let voxels: &[u8] = bytemuck::cast_slice(stored);
    let mut head = Vec::with_capacity(HEAD);
    head.extend(MAGIC);
    head.extend(FORMAT.to_le_bytes());
    head.extend(crc32c::crc32c_append(crc32c::crc32c(voxels), &notes).to_le_bytes());
    volume.extent.iter().for_each(|&n| head.extend((n as u64).to_le_bytes()));
    volume.spacing_mm.iter().for_each(|v| head.extend(v.to_le_bytes()));
    head.extend(volume.fill.to_le_bytes());
    head.extend((notes.len() as u32).to_le_bytes());
    head.extend(key);
    head.resize(HEAD - 4, 0);
    head.extend(crc32c::crc32c(&head).to_le_bytes());
    write_atomic(path, |file| {
        [&head[..], voxels, &notes].into_iter().try_for_each(|part| file.write_all(part))
    })
}

fn read_notes(bytes: &[u8]) -> Option<Vec<String>> {
    if bytes.is_empty() { Some(Vec::new()) } else { serde_json::from_slice(bytes).ok() }
}

/// Opens a cached volume, checks its head, and that the file is as long as the head says.
fn open_valid(path: &Path, key: &Hash) -> Option<(File, Head)> {
    let mut file = File::open(path).ok()?;
    let mut bytes = [0; HEAD];
    file.read_exact(&mut bytes).ok()?;
    let head = parse_head(&bytes, key)?;
    let voxels = head.extent.iter().try_fold(2usize, |n, &e| n.checked_mul(e))?;
    let length = HEAD.checked_add(voxels)?.checked_add(head.notes)?;
    (file.metadata().ok()?.len() == length as u64).then_some((file, head))
}

fn parse_head(bytes: &[u8; HEAD], key: &Hash) -> Option<Head> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let sound = bytes.starts_with(MAGIC)
        && u32_at(8)? == FORMAT
        && bytes[72..104] == *key
        && u32_at(HEAD - 4)? == crc32c::crc32c(&bytes[..HEAD - 4]);
    if !sound {
        return None;
    }
    let extent = [u64_at(16)?, u64_at(24)?, u64_at(32)?].map(usize::try_from);
    let [Ok(z), Ok(y), Ok(x)] = extent else { return None };
    Some(Head {
        extent: [z, y, x],
        spacing_mm: [u64_at(40)?, u64_at(48)?, u64_at(56)?].map(f64::from_bits),
        fill: f32::from_bits(u32_at(64)?),
        checksum: u32_at(12)?,
        notes: u32_at(68)? as usize,
    })
}

/// Size and time of change of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Stamp {
    bytes: u64,
    modified_ns: u64,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Stamp> {
        let meta = fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::other(format!("{} is not a regular file", escape(path))));
        }
        let since = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Stamp { bytes: meta.len(), modified_ns: since.as_nanos() as u64 })
    }

    fn settled(self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_nanos() as u64 > self.modified_ns.saturating_add(SETTLED.as_nanos() as u64)
    }
}

/// Content hashes of source files by path, valid while size and time of change stay the same.
///
/// Lost or damaged, it only costs time. Of two processes that write it, the last one wins.
#[derive(Debug, Default)]
pub(crate) struct Index {
    file: PathBuf,
    entries: BTreeMap<String, (Stamp, Hash)>,
    changed: bool,
}

impl Index {
    /// The index of a cache folder; empty if there is none that can be read.
    pub(crate) fn load(folder: &Path) -> Index {
        let file = folder.join("index.json");
        let entries = fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Index { file, entries, changed: false }
    }

    /// Stores the index if it changed. A failure is silent: the next start hashes again.
    fn save(&self) {
        if self.changed
            && let Ok(bytes) = serde_json::to_vec(&self.entries)
        {
            let _ = write_atomic(&self.file, |file| file.write_all(&bytes));
        }
    }

    /// The known hash of a file whose size and time of change are as they were.
    fn get(&self, path: &Path) -> Option<Hash> {
        let (stamp, hash) = self.entries.get(&entry_name(path))?;
        (Stamp::of(path).ok()? == *stamp).then_some(*hash)
    }

    fn put(&mut self, path: &Path, stamp: Stamp, hash: Hash) {
        if stamp.settled() {
            self.entries.insert(entry_name(path), (stamp, hash));
            self.changed = true;
        }
    }
}

/// Paths need not be UTF-8, JSON keys must be: their hash is.
fn entry_name(path: &Path) -> String {
    hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()))
}

/// The content hash of a volume's files, from the index where it is known.
///
/// Errors with the sentence for the user.
pub(crate) fn content(
    files: &[PathBuf],
    index: &std::sync::Mutex<Index>,
) -> std::result::Result<Hash, String> {
    let mut all = Sha256::new();
    for file in files {
        let known = lock(index).get(file);
        let hash = match known {
            Some(hash) => hash,
            None => {
                let (stamp, hash) = hash_file(file)?;
                lock(index).put(file, stamp, hash);
                hash
            }
        };
        all.update(hash);
    }
    Ok(all.finalize().into())
}

/// Stores the index; see [`Index::save`].
pub(crate) fn save_index(index: &std::sync::Mutex<Index>) {
    lock(index).save();
}

/// Size and time of change of each file; `None` for those that cannot be asked.
pub(crate) fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file).ok()).collect()
}

/// What to say of a file whose stamp changed between two looks at it.
pub(crate) const CHANGED: &str =
    "the file changed while it was being read\n  run again when it is complete";

/// A thread that panicked left no half-made entry, so its lock is taken over.
fn lock(index: &std::sync::Mutex<Index>) -> std::sync::MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn hash_file(path: &Path) -> std::result::Result<(Stamp, Hash), String> {
    let fail = |e: io::Error| format!("reading failed: {e}");
    let before = Stamp::of(path).map_err(fail)?;
    let mut file = File::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 18];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => hash.update(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
    if Stamp::of(path).map_err(fail)? != before {
        return Err(CHANGED.into());
    }
    Ok((before, hash.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        let voxels = [-1.5, 0.25, 3.0, -0.5].map(f16::from_f32).to_vec();
        Volume { extent: [1, 2, 2], spacing_mm: [5.0, 0.75, 0.8], fill: -1.5, voxels }
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (key, path) = ([7; 32], folder.path().join("a.volume"));
        let warnings = vec!["odd".to_string()];
        write(&path, &key, &volume(), &warnings).unwrap();
        assert_eq!(read(&path, &key), Some(volume()));
        assert_eq!(peek(&path, &key), Some(([1, 2, 2], warnings)));
        assert_eq!(read(&path, &[8; 32]), None);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(read(&path, &key), None, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(read(&path, &key), None, "cut at {at}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn the_key_depends_on_all_that_decides_the_voxels() {
        let base = PrepareOptions {
            spacing: crate::image::Spacing::Median,
            normalize: Normalize::Zscore,
            ct_window: [-1000.0, 1000.0],
        };
        let ct = PrepareOptions { normalize: Normalize::Ct, ..base.clone() };
        let window = PrepareOptions { ct_window: [-200.0, 300.0], ..ct.clone() };
        let keys = [
            key(&[0; 32], &base, None),
            key(&[1; 32], &base, None),
            key(&[0; 32], &base, Some([1.0; 3])),
            key(&[0; 32], &base, Some([1.0, 1.0, 2.0])),
            key(&[0; 32], &ct, None),
            key(&[0; 32], &window, None),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        let unused = PrepareOptions { ct_window: [0.0, 1.0], ..base.clone() };
        assert_eq!(key(&[0; 32], &unused, None), key(&[0; 32], &base, None));
    }

    #[test]
    fn a_changed_file_is_hashed_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        fs::write(&file, b"one").unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
        let index = std::sync::Mutex::new(Index::load(folder.path()));
        let first = content(std::slice::from_ref(&file), &index).unwrap();
        lock(&index).save();
        let index = std::sync::Mutex::new(Index::load(folder.path()));
        assert!(lock(&index).get(&file).is_some(), "the stored index is used");
        fs::write(&file, b"two").unwrap();
        assert!(lock(&index).get(&file).is_none(), "size equal, time changed");
        assert_ne!(content(&[file], &index).unwrap(), first);
    }
}
