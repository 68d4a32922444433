//! Whose image a file is, and what nnU-Net calls it: both follow from the file's own path and from nothing else, so
//! that other files, added or removed, change neither.

use std::path::{Component, Path, absolute};

use crate::image::suffix;

/// Words for a kind of image, in lower case: they say what was scanned, not who.
const KINDS: [&str; 33] = [
    "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "flair", "pd", "pdw", "adc",
    "dwi", "dti", "swi", "asl", "bold", "ct", "cta", "cbct", "pet", "mr", "mri", "mra", "anat",
    "func", "image", "img", "scan", "volume", "vol", "brain",
];

/// A file's name without folder and volume ending; what is not UTF-8 is replaced.
pub(super) fn stem(file: &Path) -> String {
    let bare = suffix(file).map_or_else(|| file.to_path_buf(), |(_, stem)| stem);
    bare.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The name of nnU-Net's case: [`stem`] without the channel's number, `_0000` to `_0009`.
///
/// Not `_0010` and above: few data sets have so many channels, and many number their cases by four digits.
pub(super) fn case_name(file: &Path) -> String {
    let mut name = stem(file);
    if let Some((case, channel)) = name.rsplit_once('_') {
        let digit = channel.strip_prefix("000").unwrap_or_default();
        if !case.is_empty() && digit.len() == 1 && digit.as_bytes()[0].is_ascii_digit() {
            name.truncate(case.len());
        }
    }
    name
}

/// Names of the folders that `file` lies in, the nearest first, up to the root, whose name is empty.
pub(super) fn folders(file: &Path) -> Vec<String> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    // Links stay as they are named, since names are what counts here; only behind `..` the disk must be asked.
    let is_up = folder.components().any(|part| part == Component::ParentDir);
    let whole = if is_up { folder.canonicalize() } else { absolute(folder) };
    let whole = whole.unwrap_or_else(|_| folder.to_path_buf());
    let name = |part: Component<'_>| match part {
        Component::RootDir => String::new(),
        other => other.as_os_str().to_string_lossy().into_owned(),
    };
    whole.components().rev().map(name).collect()
}

/// Whose image `file` is: images of one subject are trained on or held out together.
///
/// 1. `sub-01_ses-1_T1w` and all other names that begin with BIDS's `sub-`: `sub-01`.
/// 2. A name that holds a number beside words for the kind of image: the name without nnU-Net's channel and without
///    such words at its end. `case_07_0000`: `case_07`; `BraTS-00012-t1c`: `BraTS-00012`.
/// 3. Any other: the name of the folder first, since only that tells `P01/T1` from `P02/T1`. Of words for kinds of
///    images nothing is kept: `P01`; other words are, so that `all/anna` and `all/berta` are two. Folders named by
///    such words alone (`anat`), or for a session (`ses-1`), are passed over.
pub fn subject(file: &Path) -> String {
    let name = case_name(file);
    if let Some(rest) = name.strip_prefix("sub-") {
        let label = rest.split('_').next().unwrap_or(rest);
        if !label.is_empty() {
            return format!("sub-{label}");
        }
    }
    let name = without_kind(&name);
    if tells_subject(name) {
        return name.to_string();
    }
    let folder = folders(file).into_iter().find(|folder| !is_passed_over(folder));
    match folder {
        Some(folder) if name.is_empty() => folder,
        Some(folder) => format!("{folder}/{name}"),
        None => name.to_string(),
    }
}

fn words(name: &str) -> impl DoubleEndedIterator<Item = &str> {
    name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

fn is_kind(word: &str) -> bool {
    KINDS.iter().any(|kind| word.eq_ignore_ascii_case(kind))
}

/// `name` without the words for kinds of images at its end, and without what stands between.
fn without_kind(name: &str) -> &str {
    let mut rest = name;
    while let Some(last) = words(rest).next_back() {
        let Some(at) = rest.rfind(last).filter(|_| is_kind(last)) else { return rest };
        rest = rest[..at].trim_end_matches(|c: char| !c.is_alphanumeric());
    }
    rest
}

/// Whether a number is left once words for kinds of images, numbered or not (`T1`, `scan2`), are taken out. A digit
/// alone (`T1_2`) numbers images rather than subjects.
fn tells_subject(name: &str) -> bool {
    let is_numbered_kind = |word: &str| {
        is_kind(word) || word.strip_suffix(|c: char| c.is_ascii_digit()).is_some_and(is_kind)
    };
    let left: String = words(name).filter(|word| !is_numbered_kind(word)).collect();
    left.chars().count() > 1 && left.chars().any(|c| c.is_ascii_digit())
}

fn is_passed_over(folder: &str) -> bool {
    folder.is_empty() || folder.starts_with("ses-") || words(folder).all(is_kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_told_by_name_or_folder() {
        for (path, expected) in [
            ("/d/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01"),
            ("/d/sub-01/ses-2/anat/sub-01_ses-2_run-2_T2w.nii.gz", "sub-01"),
            ("/d/sub-01.nii", "sub-01"),
            ("/d/imagesTr/case_07_0000.nii.gz", "case_07"),
            ("/d/imagesTr/case_07_0001.nii.gz", "case_07"),
            ("/d/imagesTr/amos_0123.nii.gz", "amos_0123"),
            ("/d/volumes/IXI012.nii.gz", "IXI012"),
            ("/elsewhere/IXI012.NII", "IXI012"),
            ("/d/IXI012-Guys-0889-T1.nii.gz", "IXI012-Guys-0889"),
            ("/d/x/BraTS-00012-000-t1c.nii.gz", "BraTS-00012-000"),
            ("/d/x/BraTS-00012-000-T2F.nii.gz", "BraTS-00012-000"),
            ("/d/case7.hdr", "case7"),
            ("/d/case_7.nii", "case_7"),
            ("/d/volume-12.nii", "volume-12"),
            ("/d/sub01/T1.nii.gz", "sub01"),
            ("/d/sub01/FLAIR_0000.nii.gz", "sub01"),
            ("/d/sub02/T1.nii.gz", "sub02"),
            ("/d/sub02/ses-1/anat/T1.nii.gz", "sub02"),
            ("/d/sub02/scan1.nii.gz", "sub02/scan1"),
            ("/d/sub02/T1_2.nii.gz", "sub02/T1_2"),
            ("/d/sub02/lung.nii.gz", "sub02/lung"),
            ("/d/all/anna.nii", "all/anna"),
            ("/d/all/anna_ct.nii", "all/anna"),
            ("/d/all/7.nii", "all/7"),
            ("/d/all/m\u{fc}ller_3.nii", "m\u{fc}ller_3"),
            ("/d/all/sub-_T1w.nii", "all/sub"),
        ] {
            assert_eq!(subject(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn nothing_is_told_and_nothing_panics_without_a_name_or_folder() {
        assert_eq!(subject(Path::new("/T1.nii")), "");
        assert_eq!(subject(Path::new("/anna.nii")), "anna");
        assert_eq!(subject(Path::new("")), subject(Path::new("./")));
        assert_eq!(case_name(Path::new("_0000.nii")), "_0000");
        assert_eq!(case_name(Path::new("x_000\u{e9}.nii")), "x_000\u{e9}");
    }

    #[test]
    fn folders_are_the_same_however_the_path_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap().join("P01");
        std::fs::create_dir(&folder).unwrap();
        let plain = folder.join("T1.nii");
        for path in [folder.join("./T1.nii"), folder.join("../P01/T1.nii")] {
            assert_eq!((subject(&path).as_str(), folders(&path)), ("P01", folders(&plain)));
        }
        assert_eq!(folders(Path::new("/a/b/x.nii")), ["b", "a", ""]);
        assert_eq!(folders(Path::new("x.nii")), folders(Path::new("./x.nii")));
    }
}
