//! From the paths a user names to the volume files they stand for.
//!
//! A path is a volume, a folder (searched to any depth), or a text file that lists paths. What is found is
//! sorted, so that the order of a file system never decides what is trained on. Files are named here, not
//! read; apart from their first bytes where the name does not tell a list from a volume.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, escape};
use crate::image::{Suffix, suffix};

/// At most so many files are named in one message.
pub(crate) const NAMED_MAX: usize = 20;
/// Endings looked for in folders, as messages give them.
const ENDINGS: &str = ".nii, .nii.gz, .hdr or .hdr.gz";

/// What the user's paths stand for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan {
    /// Volume files, sorted, each once.
    pub files: Vec<PathBuf>,
    /// What was left out or looked odd, a sentence each.
    pub warnings: Vec<String>,
}

/// Finds the volumes that `paths` name.
///
/// Of a folder that holds `imagesTr` (an nnU-Net data set), `imagesTr` and `imagesTs` are taken and the
/// labels are not. Entries of a list are relative to the list's folder.
/// Errors: [`Error::Data`] naming what is absent or empty.
pub fn scan(paths: &[PathBuf]) -> Result<Scan> {
    let mut found = Scan::default();
    for path in paths {
        let meta = fs::metadata(path);
        if meta.as_ref().is_ok_and(fs::Metadata::is_dir) {
            folder(path, &mut found)?;
        } else if suffix(path).is_some() || !meta.as_ref().is_ok_and(is_text_list(path)) {
            if fs::symlink_metadata(path).is_err() {
                return Err(Error::data(path, "there is no such file or folder"));
            }
            found.files.push(path.clone());
        } else {
            list(path, &mut found)?;
        }
    }
    found.files.sort();
    drop_duplicates(&mut found);
    if found.files.is_empty() {
        return Err(Error::config(
            "--data",
            "no path was given\n  name a volume, a folder or a list",
        ));
    }
    Ok(found)
}

/// Whether a file without a volume's name is a list: a regular file without the bytes of binary formats.
fn is_text_list(path: &Path) -> impl FnOnce(&fs::Metadata) -> bool {
    move |meta| {
        let mut head = Vec::new();
        let read =
            |head: &mut Vec<u8>| File::open(path).and_then(|f| f.take(4096).read_to_end(head));
        meta.is_file()
            && read(&mut head).is_ok()
            && !head.contains(&0)
            && !head.starts_with(&[0x1f, 0x8b])
    }
}

fn folder(top: &Path, found: &mut Scan) -> Result<()> {
    let before = found.files.len();
    let mut seen = HashSet::new();
    let mut open = vec![top.to_path_buf()];
    let mut resource_files = 0usize;
    while let Some(folder) = open.pop() {
        let unreadable =
            |e: std::io::Error| Error::data(&folder, format!("the folder cannot be searched: {e}"));
        if !seen.insert(fs::canonicalize(&folder).map_err(unreadable)?) {
            found
                .warnings
                .push(format!("{} was searched already (a link), skipped", escape(&folder)));
            continue;
        }
        let data_set = folder.join("imagesTr").is_dir();
        let entries = fs::read_dir(&folder).map_err(unreadable)?;
        let mut entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (name, path) = (entry.file_name(), entry.path());
            if path.is_dir() {
                if !data_set || name == "imagesTr" || name == "imagesTs" {
                    open.push(path);
                }
            } else if matches!(suffix(&path), Some((Suffix::Single | Suffix::Header, _))) {
                if name.as_encoded_bytes().starts_with(b"._") {
                    resource_files += 1;
                } else if !data_set {
                    found.files.push(path);
                }
            }
        }
    }
    if resource_files > 0 {
        let top = escape(top);
        found
            .warnings
            .push(format!("{top}: {resource_files} macOS resource files (\"._*\") skipped"));
    }
    if found.files.len() == before {
        let why = format!(
            "the folder holds no volume: no file in it or below ends in {ENDINGS}\n  \
             name another folder, or convert the scans to .nii.gz"
        );
        return Err(Error::data(top, why));
    }
    Ok(())
}

fn list(path: &Path, found: &mut Scan) -> Result<()> {
    let bytes = fs::read(path).map_err(|e| Error::data(path, format!("reading failed: {e}")))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let base = path.parent().unwrap_or(Path::new(""));
    let before = found.files.len();
    let mut absent = Vec::new();
    let (mut lines, mut entries) = (0, 0);
    for (number, line) in (1..).zip(bytes.split(|&b| b == b'\n')) {
        lines = number;
        let Ok(line) = std::str::from_utf8(line) else {
            let why = format!(
                "line {number} of the list is not UTF-8\n  save the list as UTF-8, one path a line"
            );
            return Err(Error::data(path, why));
        };
        let entry = line.trim();
        if entry.is_empty() || entry.starts_with('#') {
            continue;
        }
        entries += 1;
        let named = base.join(entry);
        if named.is_dir() {
            folder(&named, found)?;
        } else if fs::symlink_metadata(&named).is_ok() {
            found.files.push(named);
        } else {
            absent.push(format!("line {number}: {}", escape(&named)));
        }
    }
    if !absent.is_empty() {
        let why = format!(
            "{} of {entries} files in the list do not exist\n  {}\n  paths are relative to the list's folder",
            absent.len(),
            shortened(&absent).join("\n  ")
        );
        return Err(Error::data(path, why));
    }
    if found.files.len() == before {
        let why = format!("the list names no volume in its {lines} lines\n  write one path a line");
        return Err(Error::data(path, why));
    }
    Ok(())
}

/// At most twenty lines, and how many more there are.
pub(crate) fn shortened(lines: &[String]) -> Vec<String> {
    let mut out: Vec<String> = lines.iter().take(NAMED_MAX).cloned().collect();
    if lines.len() > NAMED_MAX {
        out.push(format!("and {} more", lines.len() - NAMED_MAX));
    }
    out
}

fn drop_duplicates(found: &mut Scan) {
    let mut seen = BTreeSet::new();
    let mut twice = Vec::new();
    found.files.retain(|file| {
        let real = fs::canonicalize(file).unwrap_or_else(|_| file.clone());
        let first = seen.insert(real);
        if !first {
            twice.push(escape(file));
        }
        first
    });
    if !twice.is_empty() {
        let named = shortened(&twice).join(", ");
        found.warnings.push(format!("named more than once (or by a link), used once: {named}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, [0]).unwrap();
        }
        folder
    }

    fn names(folder: &Path, found: &Scan) -> Vec<String> {
        let relative = |p: &PathBuf| p.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
        found.files.iter().map(relative).collect()
    }

    #[test]
    fn folders_are_searched_and_labels_of_nnunet_left_out() {
        let folder = tree(&[
            "set/imagesTr/b_0000.nii.gz",
            "set/imagesTs/c_0000.nii.gz",
            "set/labelsTr/b.nii.gz",
            "other/a.NII",
            "other/deep/a.NII",
            "other/._a.nii",
            "other/p.hdr",
            "other/p.img",
            "other/notes.txt",
        ]);
        let found = scan(&[folder.path().to_path_buf()]).unwrap();
        let expected = [
            "other/a.NII",
            "other/deep/a.NII",
            "other/p.hdr",
            "set/imagesTr/b_0000.nii.gz",
            "set/imagesTs/c_0000.nii.gz",
        ];
        assert_eq!(names(folder.path(), &found), expected);
        assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
        assert!(found.warnings[0].contains("1 macOS resource files"));
    }

    #[cfg(unix)]
    #[test]
    fn link_cycles_end_and_links_to_a_file_count_once() {
        let folder = tree(&["in/a.nii"]);
        let link = |to: PathBuf, name: &str| {
            std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        };
        link(folder.path().to_path_buf(), "in/up");
        link(folder.path().join("in/a.nii"), "z.nii");
        link(folder.path().join("absent"), "in/dangling.nii.gz");
        let found = scan(&[folder.path().to_path_buf()]).unwrap();
        assert_eq!(names(folder.path(), &found), ["in/a.nii", "in/dangling.nii.gz"]);
        assert!(found.warnings.iter().any(|w| w.contains("searched already")));
        assert!(found.warnings.iter().any(|w| w.contains("used once")));
    }

    #[test]
    fn lists_of_any_editor_are_read() {
        let folder = tree(&["d/a.nii", "d/b.nii", "c.nii"]);
        let list = folder.path().join("d/list.txt");
        fs::write(&list, "\u{feff}a.nii\r\n\r\n# note\r\n  b.nii\r\na.nii\n../c.nii").unwrap();
        let found = scan(&[list]).unwrap();
        assert_eq!(found.files.len(), 3);
        assert!(found.warnings[0].contains("a.nii"), "{:?}", found.warnings);
    }

    #[test]
    fn all_absent_entries_are_named_with_their_lines() {
        let folder = tree(&["a.nii"]);
        let list = folder.path().join("list");
        let lines: Vec<String> = (1..=25).map(|i| format!("gone{i}.nii")).collect();
        fs::write(&list, format!("a.nii\n{}", lines.join("\n"))).unwrap();
        let text = scan(&[list]).unwrap_err().to_string();
        assert!(text.contains("25 of 26 files") && text.contains("line 2: "), "{text}");
        assert!(text.contains("line 21: ") && text.contains("and 5 more"), "{text}");
        assert!(!text.contains("line 22"), "{text}");
    }

    #[test]
    fn what_names_no_volume_is_an_error() {
        let folder = tree(&["empty/readme.md", "list", "latin"]);
        let path = |name: &str| folder.path().join(name);
        fs::write(path("list"), "# nothing\n").unwrap();
        fs::write(path("latin"), b"a.nii\nM\xfcller.nii\n").unwrap();
        let text = |p: PathBuf| scan(&[p]).unwrap_err().to_string();
        assert!(text(path("empty")).contains(".nii.gz"));
        assert!(text(path("list")).contains("names no volume"));
        assert!(text(path("latin")).contains("line 2"));
        assert!(text(path("absent.nii")).contains("no such file"));
    }
}
