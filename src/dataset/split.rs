//! Which volumes are trained on and which are held out, where no file says so.
//!
//! Each subject has a number in [0, 1) that follows from its name and the seed alone; it is held out if that number is
//! below the fraction asked for. So data that are added, removed or moved change the side of no other subject.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::dataset::subject::subject;
use crate::error::escape;

/// The two sides, as indices of volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Trained on, sorted.
    pub train: Vec<usize>,
    /// Held out, sorted.
    pub validation: Vec<usize>,
    /// Where the rule alone did not decide, a sentence each.
    pub warnings: Vec<String>,
}

impl Split {
    /// Divides `files` by their subjects ([`subject`]); all images of one subject lie on one side.
    ///
    /// `fraction`, 0 to 1, is the probability of a subject to be held out. A fraction above 0 and two subjects or more
    /// give each side at least one: the subject nearest to it by its number. One subject is trained on.
    pub fn by_subject<'a>(
        files: impl IntoIterator<Item = &'a Path>,
        fraction: f64,
        seed: u64,
    ) -> Split {
        assert!((0.0..=1.0).contains(&fraction), "the validation fraction lies between 0 and 1");
        let mut subjects: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, file) in files.into_iter().enumerate() {
            subjects.entry(subject(file)).or_default().push(i);
        }
        let mut drawn: Vec<(f64, &String)> =
            subjects.keys().map(|name| (number(seed, name), name)).collect();
        drawn.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
        let by_rule = drawn.partition_point(|(number, _)| *number < fraction);
        let held_out = match drawn.len() {
            count if fraction > 0.0 && count > 1 => by_rule.clamp(1, count - 1),
            _ => 0,
        };
        let volumes = |of: &[(f64, &String)]| {
            let mut all: Vec<usize> =
                of.iter().flat_map(|(_, name)| subjects[*name].iter().copied()).collect();
            all.sort_unstable();
            all
        };
        let (validation, train) = drawn.split_at(held_out);
        let warning = match drawn.as_slice() {
            [only] if fraction > 0.0 => one_subject(only.1, volumes(&drawn).len()),
            [first, ..] if by_rule < held_out => Some(moved(first.1, "held out")),
            [.., last] if by_rule > held_out => Some(moved(last.1, "trained on")),
            _ => None,
        };
        Split {
            train: volumes(train),
            validation: volumes(validation),
            warnings: warning.into_iter().collect(),
        }
    }
}

fn one_subject(name: &str, volumes: usize) -> Option<String> {
    let text = format!(
        "all {volumes} volumes are taken for images of one subject, {}, so none is held out\n  name the files or their \
         folders by subject, or give a list with --split",
        escape(Path::new(name))
    );
    (volumes > 1).then_some(text)
}

fn moved(name: &str, side: &str) -> String {
    format!(
        "by data.validation_fraction and data.split_seed no subject would be {side}, so the nearest one is, {}; with more \
         data it may change sides",
        escape(Path::new(name))
    )
}

/// The subject's number in [0, 1): the first 52 bits of the SHA-256 of `seed/name` in UTF-8, after the binary point.
/// Every such number is exact in f64, so it is the same on every machine.
fn number(seed: u64, subject: &str) -> f64 {
    let hash = Sha256::digest(format!("{seed}/{subject}").as_bytes());
    let bits = hash.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    (bits >> 12) as f64 / (1u64 << 52) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn files(count: usize) -> Vec<PathBuf> {
        (0..count).map(|i| PathBuf::from(format!("/d/P{i:03}.nii.gz"))).collect()
    }

    fn split(files: &[PathBuf], fraction: f64, seed: u64) -> Split {
        Split::by_subject(files.iter().map(PathBuf::as_path), fraction, seed)
    }

    fn held_out(files: &[PathBuf], fraction: f64, seed: u64) -> Vec<String> {
        let validation = split(files, fraction, seed).validation;
        validation.into_iter().map(|i| subject(&files[i])).collect()
    }

    /// By Python: `int(hashlib.sha256(b"12345/sub-01").hexdigest()[:13], 16) / 16**13`.
    #[test]
    fn the_numbers_are_those_of_an_independent_program() {
        assert_eq!(number(12345, "sub-01"), 0.21829225275235187);
        assert_eq!(number(0, "IXI012"), 0.6622482313896685);
        assert_eq!(number(12345, "IXI012"), 0.7568721305706483);
        assert_eq!(number(7, "\u{e9}"), 0.39085073513018886);
    }

    #[test]
    fn added_removed_and_moved_data_change_no_other_side() {
        let all = files(200);
        let whole = held_out(&all, 0.3, 7);
        // Binomial: mean 60, deviation 6.5; four deviations.
        assert!(whole.len().abs_diff(60) < 26, "{}", whole.len());
        let some: Vec<PathBuf> = all.iter().step_by(3).cloned().collect();
        let kept: Vec<String> = some.iter().map(|file| subject(file)).collect();
        let expected: Vec<String> = whole.iter().filter(|s| kept.contains(s)).cloned().collect();
        assert_eq!(held_out(&some, 0.3, 7), expected);
        let moved: Vec<PathBuf> =
            all.iter().map(|f| Path::new("/e/f").join(f.file_name().unwrap())).collect();
        assert_eq!(held_out(&moved, 0.3, 7), whole);
    }

    #[test]
    fn the_order_of_files_does_not_matter() {
        let mut reversed = files(50);
        let straight = held_out(&reversed, 0.2, 7);
        reversed.reverse();
        let mut found = held_out(&reversed, 0.2, 7);
        found.sort();
        assert_eq!(found, straight);
    }

    #[test]
    fn a_split_is_complete_sorted_and_seeded() {
        let all = files(50);
        let one = split(&all, 0.2, 7);
        assert!(one.train.is_sorted() && one.validation.is_sorted() && one.warnings.is_empty());
        let mut both = [one.train.clone(), one.validation.clone()].concat();
        both.sort_unstable();
        assert_eq!(both, (0..50).collect::<Vec<_>>());
        assert_ne!(split(&all, 0.2, 8), one);
        // A larger fraction holds out more, never others.
        let more = split(&all, 0.4, 7).validation;
        assert!(one.validation.iter().all(|i| more.contains(i)));
    }

    #[test]
    fn images_of_one_subject_lie_on_one_side() {
        let paths =
            ["/d/x1_0000.nii", "/d/x1_0001.nii", "/d/y1_0000.nii", "/d/sub-1_ses-1_T1w.nii"];
        let files: Vec<PathBuf> =
            paths.iter().chain(&["/e/sub-1_ct.nii"]).map(Into::into).collect();
        let mut differ = 0;
        for seed in 0..50 {
            let train = split(&files, 0.5, seed).train;
            assert_eq!(train.contains(&0), train.contains(&1));
            assert_eq!(train.contains(&3), train.contains(&4));
            differ += usize::from(train.contains(&0) != train.contains(&2));
        }
        assert!((10..40).contains(&differ), "{differ}");
    }

    #[test]
    fn two_subjects_or_more_give_each_side_one_and_say_so() {
        let all = files(6);
        let numbers: Vec<f64> = all.iter().map(|file| number(3, &subject(file))).collect();
        let least = (0..6).min_by(|&a, &b| numbers[a].total_cmp(&numbers[b])).unwrap();
        let most = (0..6).max_by(|&a, &b| numbers[a].total_cmp(&numbers[b])).unwrap();
        let low = split(&all, numbers[least] / 2.0, 3);
        assert_eq!(low.validation, [least]);
        assert!(low.warnings[0].contains(&format!("{}; ", subject(&all[least]))), "{low:?}");
        let high = split(&all, 1.0, 3);
        assert_eq!(high.train, [most]);
        assert!(high.warnings[0].contains("trained on"), "{high:?}");
        let none = split(&all, 0.0, 3);
        assert_eq!((none.train.len(), none.validation, none.warnings), (6, vec![], vec![]));
    }

    #[test]
    fn one_subject_is_trained_on() {
        for seed in 0..20 {
            let one = split(&files(1), 0.9, seed);
            assert_eq!((one.train, one.validation, one.warnings), (vec![0], vec![], vec![]));
        }
        let scans: Vec<PathBuf> = vec!["/p\u{1b}/T1.nii".into(), "/p\u{1b}/T2.nii".into()];
        let both = split(&scans, 0.2, 0);
        assert_eq!(both.train, [0, 1]);
        assert!(both.warnings[0].contains("one subject, p\\u{1b}, so"), "{both:?}");
        assert_eq!(split(&[], 0.5, 0), Split::default());
    }

    #[test]
    fn every_subject_is_held_out_equally_often() {
        let all = files(10);
        let mut drawn = [0u32; 10];
        for seed in 0..2000 {
            split(&all, 0.3, seed).validation.iter().for_each(|&i| drawn[i] += 1);
        }
        // Binomial: mean 600, and 5.6 more since one at least is held out (else none in 0.7^10 of the draws);
        // deviation 20.5; five deviations.
        assert!(drawn.iter().all(|&n| n.abs_diff(606) < 103), "{drawn:?}");
    }
}
