//! A split that a file states, in the format of nnU-Net's `splits_final.json`: read, matched to volumes, written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::dataset::split::Split;
use crate::dataset::split_names::{Found, Index};
use crate::dataset::subject::{case_name, subject};
use crate::error::{Error, Result, escape};

/// More than the names of any data set; keeps a wrong path from being read for minutes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// At most so many names stand in one message, and of each so many characters.
const NAMES_MAX: usize = 10;
const NAME_CHARS_MAX: usize = 80;
const FORMAT: &str = r#"needed: nnU-Net's splits_final.json, [{"train": ["case_1", ...], "val": ["case_2", ...]}, ...]"#;
const NAMING: &str = "a name is a file's without folder, channel (_0000) and ending; \"folder/name\" where folders repeat it";

/// One fold of a file, not yet matched to volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitFile {
    path: PathBuf,
    fold: usize,
    folds: usize,
    train: Vec<String>,
    validation: Vec<String>,
}

/// Which of the scanned files a [`SplitFile`] names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sides {
    path: PathBuf,
    /// Whether a file is held out; files named nowhere are absent.
    held_out: BTreeMap<PathBuf, bool>,
    /// What to look into, a sentence each.
    pub warnings: Vec<String>,
}

impl SplitFile {
    /// Reads fold `fold`, counted from 0, of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that cannot be read, is too large, of another format, or whose fold trains on
    /// nothing; [`Error::Config`] for `--fold` if there is no such fold.
    pub fn read(path: &Path, fold: usize) -> Result<SplitFile> {
        let bytes = read_file(path)?;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let wrong = |what: String| Error::data(path, format!("{what}\n  {FORMAT}"));
        let mut all: Vec<BTreeMap<String, Vec<String>>> =
            serde_json::from_slice(bytes).map_err(|e| {
                let what = if e.is_data() { "not a list of folds" } else { "not valid JSON" };
                wrong(format!("the file is {what}: {}", shown(&e.to_string())))
            })?;
        let folds = all.len();
        if folds == 0 {
            return Err(wrong("the file holds no fold".into()));
        }
        if fold >= folds {
            let why = format!(
                "there is no fold {fold} in {}: it holds {folds}\n  needed: 0 to {}",
                escape(path),
                folds - 1
            );
            return Err(Error::config("--fold", why));
        }
        let mut chosen = all.swap_remove(fold);
        let mut list = |key: &str| {
            let found: Vec<String> = chosen.keys().map(|key| shown(key)).collect();
            chosen.remove(key).ok_or_else(|| {
                let what = if found.is_empty() { "it is empty".into() } else { listed(&found) };
                wrong(format!("fold {fold} has no list {key:?}: {what}"))
            })
        };
        let (validation, train) = (list("val")?, list("train")?);
        if train.is_empty() {
            let why = format!("fold {fold} names nothing in \"train\"\n  name what to train on");
            return Err(Error::data(path, why));
        }
        Ok(SplitFile { path: path.to_path_buf(), fold, folds, train, validation })
    }

    /// What was chosen, a sentence each: the fold of several, and that nothing is held out.
    pub fn notes(&self) -> Vec<String> {
        let (path, fold, folds) = (escape(&self.path), self.fold, self.folds);
        let mut notes = Vec::new();
        if folds > 1 {
            notes.push(format!("fold {fold} of {path} is used, of {folds}: --fold takes another"));
        }
        if self.validation.is_empty() {
            notes.push(format!("fold {fold} of {path} holds nothing out: nothing is validated"));
        }
        notes
    }

    /// Finds the files that the names stand for: nnU-Net's case, that is all its channels, else the whole name without
    /// ending. A name may begin with the names of folders, which the file must then lie in.
    ///
    /// # Errors
    /// [`Error::Data`] naming what matches no file, or files in several folders, or is on both sides.
    pub fn sides(&self, files: &[PathBuf]) -> Result<Sides> {
        let index = Index::new(files);
        let lists = [("train", &self.train, false), ("val", &self.validation, true)];
        let (mut absent, mut ambiguous) = (Vec::new(), Vec::new());
        let mut counts = Vec::new();
        let mut sides: [BTreeSet<usize>; 2] = Default::default();
        for (key, names, held_out) in lists {
            let before = absent.len();
            for name in names.iter().collect::<BTreeSet<_>>() {
                match index.find(name) {
                    Found::One(of) => sides[usize::from(held_out)].extend(of),
                    Found::None => absent.push(shown(name)),
                    Found::Several(of) => {
                        let places: Vec<String> = of.iter().map(|&i| escape(&files[i])).collect();
                        ambiguous.push(format!("{}: {}", shown(name), listed(&places)));
                    }
                }
            }
            if absent.len() > before {
                counts.push(format!("{} of {} in {key:?}", absent.len() - before, names.len()));
            }
        }
        if !ambiguous.is_empty() {
            return Err(self.ambiguous(&ambiguous));
        }
        if !absent.is_empty() {
            return Err(self.absent(&counts.join(" and "), &absent, files));
        }
        let both: Vec<String> =
            sides[0].intersection(&sides[1]).map(|&i| escape(&files[i])).collect();
        if !both.is_empty() {
            let why = format!(
                "fold {} names {} volumes both in \"train\" and in \"val\": {}\n  \
                 take each out of one of the lists",
                self.fold,
                both.len(),
                listed(&both)
            );
            return Err(Error::data(&self.path, why));
        }
        let held_out = [false, true].into_iter().flat_map(|side| {
            sides[usize::from(side)].iter().map(move |&i| (files[i].clone(), side))
        });
        let held_out: BTreeMap<PathBuf, bool> = held_out.collect();
        let warnings = self.warnings(files, &held_out);
        Ok(Sides { path: self.path.clone(), held_out, warnings })
    }

    fn absent(&self, counts: &str, names: &[String], files: &[PathBuf]) -> Error {
        let have: Vec<String> = files.iter().map(|file| shown(&case_name(file))).collect();
        let why = format!(
            "names of fold {} that match no volume of --data, {counts}: {}\n  the {} volumes of --data: {}\n  {NAMING}\n  \
             give their volumes with --data, or take the names out of the file",
            self.fold,
            listed(names),
            have.len(),
            listed(&have)
        );
        Error::data(&self.path, why)
    }

    fn ambiguous(&self, names: &[String]) -> Error {
        let named: Vec<String> = names.iter().take(NAMES_MAX).cloned().collect();
        let more = names.len() - named.len();
        let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        let why = format!(
            "names of fold {} that stand for volumes in several folders, {} in all:\n  {}{more}\n  \
             write the folder before the name, for example \"sub01/T1\"",
            self.fold,
            names.len(),
            named.join("\n  ")
        );
        Error::data(&self.path, why)
    }

    fn warnings(&self, files: &[PathBuf], held_out: &BTreeMap<PathBuf, bool>) -> Vec<String> {
        let mut warnings = Vec::new();
        let left: Vec<String> =
            files.iter().filter(|f| !held_out.contains_key(*f)).map(|f| escape(f)).collect();
        if !left.is_empty() {
            warnings.push(format!(
                "{} of {} volumes are in neither list of fold {} of {} and are left out: {}",
                left.len(),
                files.len(),
                self.fold,
                escape(&self.path),
                listed(&left)
            ));
        }
        let mut sides: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
        for (file, side) in held_out {
            sides.entry(subject(file)).or_default().insert(*side);
        }
        let both: Vec<String> =
            sides.iter().filter(|(_, of)| of.len() > 1).map(|(name, _)| shown(name)).collect();
        if !both.is_empty() {
            warnings.push(format!(
                "by the names of their files {} subjects have images both in \"train\" and in \"val\", so figures on held-out \
                 volumes will be too good: {}",
                both.len(),
                listed(&both)
            ));
        }
        warnings
    }
}

impl Sides {
    /// Whether the file is on one of the sides.
    pub fn holds(&self, file: &Path) -> bool {
        self.held_out.contains_key(file)
    }

    /// The sides of `files`, in their order.
    ///
    /// # Errors
    /// [`Error::Data`] if none of them is to be trained on.
    pub fn split<'a>(&self, files: impl IntoIterator<Item = &'a Path>) -> Result<Split> {
        let mut split = Split::default();
        for (i, file) in files.into_iter().enumerate() {
            match self.held_out.get(file) {
                Some(true) => split.validation.push(i),
                Some(false) => split.train.push(i),
                None => {}
            }
        }
        if split.train.is_empty() {
            let why = "no volume is left to train on: none in \"train\" can be used\n  \
                       see the warnings on the volumes left out";
            return Err(Error::data(&self.path, why));
        }
        Ok(split)
    }
}

/// The text of a file with one fold, as nnU-Net writes it. Names that are given twice (channels) are written once.
pub fn to_json<'a>(
    train: impl IntoIterator<Item = &'a str>,
    validation: impl IntoIterator<Item = &'a str>,
) -> String {
    let train: BTreeSet<&str> = train.into_iter().collect();
    let validation: BTreeSet<&str> = validation.into_iter().collect();
    let folds = serde_json::json!([{ "train": train, "val": validation }]);
    format!("{folds:#}\n")
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| Error::data(path, format!("reading failed: {e}"));
    let metadata = fs::metadata(path).map_err(fail)?;
    if !metadata.is_file() {
        return Err(Error::data(path, format!("it is not a regular file\n  {FORMAT}")));
    }
    // Read no further than the cap, whatever the size claimed.
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(fail)?.take(FILE_BYTES_MAX + 1);
    file.read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let why = format!(
            "it has {} bytes, a split at most {FILE_BYTES_MAX}\n  {FORMAT}",
            metadata.len()
        );
        return Err(Error::data(path, why));
    }
    Ok(bytes)
}

/// Text of a file, fit to be printed.
fn shown(text: &str) -> String {
    let cut = text.char_indices().nth(NAME_CHARS_MAX).map(|(at, _)| &text[..at]);
    match cut {
        Some(start) => format!("{}...", escape(Path::new(start))),
        None => escape(Path::new(text)),
    }
}

/// The first ten, and how many more.
fn listed(names: &[String]) -> String {
    let first = names.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::split_names::split_names;

    fn file(content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.json");
        fs::write(&path, content).unwrap();
        (dir, path)
    }

    fn read(content: &str, fold: usize) -> Result<SplitFile> {
        let (_dir, path) = file(content);
        SplitFile::read(&path, fold)
    }

    fn refused(result: Result<impl std::fmt::Debug>, code: u8, parts: &[&str]) {
        let error = result.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), code, "{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    /// Names of the files trained on and held out.
    fn sides(content: &str, files: &[PathBuf]) -> Result<(Vec<usize>, Vec<usize>, Vec<String>)> {
        let sides = read(content, 0)?.sides(files)?;
        let split = sides.split(files.iter().map(PathBuf::as_path))?;
        Ok((split.train, split.validation, sides.warnings))
    }

    #[test]
    fn cases_of_nnunet_are_found_with_all_their_channels() {
        let files = paths(&[
            "/d/imagesTr/a_0000.nii.gz",
            "/d/imagesTr/a_0001.nii.gz",
            "/d/imagesTr/b_0000.nii.gz",
            "/d/imagesTr/c.nii.gz",
            "/d/imagesTr/d_0123.nii.gz",
        ]);
        let content = "\u{feff}[{\"val\": [\"b\", \"d_0123\"], \"train\": [\"a\", \"c\", \"c\"]}]";
        let (train, validation, warnings) = sides(content, &files).unwrap();
        assert_eq!((train, validation), (vec![0, 1, 3], vec![2, 4]));
        assert!(warnings.is_empty(), "{warnings:?}");
        // Our own names hold the channel.
        let content = r#"[{"train": ["a_0000", "a_0001"], "val": ["b_0000"]}]"#;
        let (train, validation, _) = sides(content, &files).unwrap();
        assert_eq!((train, validation), (vec![0, 1], vec![2]));
    }

    #[test]
    fn the_fold_is_chosen_and_said() {
        let content = r#"[{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": []}]"#;
        let first = read(content, 0).unwrap();
        assert_eq!(
            (&first.train[..], &first.validation[..]),
            (&["a".into()][..], &["b".into()][..])
        );
        assert!(first.notes().len() == 1 && first.notes()[0].contains("fold 0"));
        assert!(first.notes()[0].contains("of 2: --fold"), "{:?}", first.notes());
        let second = read(content, 1).unwrap();
        assert_eq!(second.train, ["b"]);
        assert!(second.notes()[1].contains("holds nothing out"), "{:?}", second.notes());
        refused(read(content, 2), 2, &["--fold", "no fold 2", "it holds 2", "0 to 1"]);
        let only = read(r#"[{"train": ["a"], "val": ["b"]}]"#, 0).unwrap();
        assert!(only.notes().is_empty());
    }

    #[test]
    fn a_file_of_another_format_is_refused() {
        let needed = "needed: nnU-Net's splits_final.json";
        for (content, part) in [
            ("", "not valid JSON"),
            ("[{", "not valid JSON"),
            ("train: a\u{1b}[2J", "not valid JSON"),
            ("[]", "no fold"),
            ("[{}]", "no list \"val\": it is empty"),
            (r#"{"train": ["a"], "val": []}"#, "not a list of folds"),
            (r#"["a"]"#, "not a list of folds"),
            (r#"[[["a"], ["b"]]]"#, "not a list of folds"),
            (r#"[{"train": "\u202e", "val": []}]"#, "line 1 column"),
            (r#"[{"train": [3], "val": []}]"#, "integer `3`"),
            (r#"[{"train": ["a"], "validation": []}]"#, "no list \"val\": train, validation"),
            (r#"[{"\u001b[2J": [], "val": []}]"#, "no list \"train\""),
        ] {
            refused(read(content, 0), 3, &[needed, part, "s.json"]);
        }
        refused(read(&"[".repeat(100_000), 0), 3, &[needed]);
        refused(read(r#"[{"train": [], "val": ["a"]}]"#, 0), 3, &["names nothing in \"train\""]);
        let (dir, path) = file(b"[{\"train\": [\"\xff\"], \"val\": []}]");
        refused(SplitFile::read(&path, 0), 3, &[needed]);
        refused(SplitFile::read(dir.path(), 0), 3, &["not a regular file"]);
        refused(SplitFile::read(Path::new("/dev/zero"), 0), 3, &["not a regular file"]);
        refused(SplitFile::read(&dir.path().join("absent"), 0), 3, &["reading failed"]);
        File::create(&path).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        refused(SplitFile::read(&path, 0), 3, &["67108865 bytes", "67108864"]);
    }

    #[test]
    fn names_without_a_volume_are_counted_and_ten_named() {
        let files = paths(&["/d/a.nii", "/d/b.nii"]);
        let gone: Vec<String> = (0..12).map(|i| format!("\"gone{i}\"")).collect();
        let content =
            format!("[{{\"train\": [\"a\", {}], \"val\": [\"b\", \"x\"]}}]", gone.join(", "));
        let parts = [
            "12 of 13 in \"train\" and 1 of 2 in \"val\": gone0, ",
            "gone7 and 3 more",
            "2 volumes of --data: a, b",
        ];
        refused(sides(&content, &files), 3, &parts);
        let long = format!(r#"[{{"train": ["{}\u001b"], "val": []}}]"#, "\u{e9}".repeat(5000));
        let text = sides(&long, &files).unwrap_err().to_string();
        assert!(text.len() < 1000 && text.contains("\u{e9}..."), "{text}");
    }

    #[test]
    fn volumes_on_both_sides_are_refused_and_others_left_out() {
        let files = paths(&["/d/a_0000.nii", "/d/b.nii", "/d/c.nii"]);
        let both = r#"[{"train": ["a", "b"], "val": ["a_0000"]}]"#;
        refused(sides(both, &files), 3, &["1 volumes both", "/d/a_0000.nii", "fold 0"]);
        let (train, validation, warnings) =
            sides(r#"[{"train": ["a"], "val": ["c"]}]"#, &files).unwrap();
        assert_eq!((train, validation), (vec![0], vec![2]));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("1 of 3 volumes are in neither list"), "{warnings:?}");
        assert!(warnings[0].ends_with("left out: /d/b.nii"), "{warnings:?}");
    }

    #[test]
    fn a_subject_on_both_sides_is_warned_about() {
        let files =
            paths(&["/d/sub-1_ses-1_T1w.nii", "/d/sub-1_ses-2_T1w.nii", "/d/sub-2_T1w.nii"]);
        let content =
            r#"[{"train": ["sub-1_ses-1_T1w"], "val": ["sub-1_ses-2_T1w", "sub-2_T1w"]}]"#;
        let (_, _, warnings) = sides(content, &files).unwrap();
        assert!(
            warnings[0].contains("1 subjects") && warnings[0].ends_with(": sub-1"),
            "{warnings:?}"
        );
    }

    #[test]
    fn equal_names_are_told_apart_by_folders() {
        let files = paths(&["/d/s1/t1.nii", "/d/s2/t1.nii", "/e/s2/t1.nii", "/d/s3/t2.nii"]);
        let content = r#"[{"train": ["t1"], "val": ["t2"]}]"#;
        let parts = ["1 in all:\n  t1: /d/s1/t1.nii, /d/s2/t1.nii, /e/s2/t1.nii\n", "\"sub01/T1\""];
        refused(sides(content, &files), 3, &parts);
        let content = r#"[{"train": ["s1/t1", "/e/s2/t1"], "val": ["d/s2/t1"]}]"#;
        let (train, validation, _) = sides(content, &files).unwrap();
        assert_eq!((train, validation), (vec![0, 2], vec![1]));
        refused(sides(r#"[{"train": ["s2/t1"], "val": []}]"#, &files), 3, &["/d/s2/t1.nii"]);
        refused(sides(r#"[{"train": ["s4/t1"], "val": []}]"#, &files), 3, &["1 of 1 in"]);
    }

    #[test]
    fn what_is_written_reads_back() {
        let files = paths(&[
            "/d/a_0000.nii",
            "/d/a_0001.nii",
            "/d/s1/t1.nii",
            "/d/s2/t1.nii",
            "/e/s2/t1.nii",
            "/t1.nii",
            "/d/x\"\u{1b}.nii",
        ]);
        let names = split_names(&files);
        assert_eq!(names[..6], ["a", "a", "s1/t1", "d/s2/t1", "e/s2/t1", "/t1"]);
        let of = |indices: &[usize]| indices.iter().map(|&i| names[i].as_str()).collect::<Vec<_>>();
        let (train, validation) = (vec![0, 1, 3, 5], vec![2, 4, 6]);
        let text = to_json(of(&train), of(&validation));
        assert_eq!(text.matches("\"a\"").count(), 1, "{text}");
        let (found, held_out, _) = sides(&text, &files).unwrap();
        assert_eq!((found, held_out), (train, validation));
    }

    #[test]
    fn a_split_whose_training_volumes_are_all_unusable_is_refused() {
        let files = paths(&["/d/a.nii", "/d/b.nii"]);
        let found = read(r#"[{"train": ["a"], "val": ["b"]}]"#, 0).unwrap().sides(&files).unwrap();
        assert!(found.holds(&files[0]) && !found.holds(Path::new("/d/c.nii")));
        refused(found.split([files[1].as_path()]), 3, &["no volume is left to train on"]);
    }
}
