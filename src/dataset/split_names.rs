//! Between files and the names that a [`crate::dataset::SplitFile`] gives them.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::dataset::subject::{case_name, folders, stem};

/// The name of each file in a [`crate::dataset::SplitFile`]: that of nnU-Net's case, with as many folders before it as
/// it takes to tell it from files elsewhere.
pub fn split_names(files: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = files.iter().map(|file| parts(file)).collect();
    let name = |parts: &[String], depth: usize| {
        let shown: Vec<&str> = parts.iter().take(depth + 1).rev().map(String::as_str).collect();
        shown.join("/")
    };
    let mut names: Vec<String> = vec![String::new(); files.len()];
    let mut open: Vec<usize> = (0..files.len()).collect();
    let mut depth = 0;
    while !open.is_empty() {
        // Channels of one case have the same parts: they count once.
        let mut distinct: HashMap<String, BTreeSet<&[String]>> = HashMap::new();
        for &i in &open {
            distinct.entry(name(&parts[i], depth)).or_default().insert(&parts[i]);
        }
        open.retain(|&i| {
            let own = name(&parts[i], depth);
            let done = distinct[&own].len() == 1;
            if done {
                names[i] = own;
            }
            !done
        });
        depth += 1;
    }
    names
}

/// The case's name and the folders it lies in, the nearest first.
fn parts(file: &Path) -> Vec<String> {
    std::iter::once(case_name(file)).chain(folders(file)).collect()
}

/// The files by the names they may go by: alone, and with the nearest folder before it, so that many files of one name
/// are told apart without a search.
pub(super) struct Index {
    cases: HashMap<String, Vec<usize>>,
    stems: HashMap<String, Vec<usize>>,
    folders: Vec<Vec<String>>,
}

/// What a name stands for.
pub(super) enum Found {
    /// No file.
    None,
    /// The channels of one case, or one volume.
    One(Vec<usize>),
    /// Volumes in several folders.
    Several(Vec<usize>),
}

impl Index {
    pub(super) fn new(files: &[PathBuf]) -> Index {
        let mut index = Index {
            cases: HashMap::new(),
            stems: HashMap::new(),
            folders: files.iter().map(|file| folders(file)).collect(),
        };
        for (i, file) in files.iter().enumerate() {
            let folder = index.folders[i].first().map_or("", String::as_str);
            for (map, name) in [(&mut index.cases, case_name(file)), (&mut index.stems, stem(file))]
            {
                map.entry(format!("{folder}/{name}")).or_default().push(i);
                map.entry(name).or_default().push(i);
            }
        }
        index
    }

    /// The files that `name` stands for, by nnU-Net's names first.
    pub(super) fn find(&self, name: &str) -> Found {
        let above: Vec<&str> = name.rsplit('/').skip(1).collect();
        let key = name.rmatch_indices('/').nth(1).map_or(name, |(at, _)| &name[at + 1..]);
        let lies_in = |i: &&usize| {
            let own = &self.folders[**i];
            above.len() <= own.len() && above.iter().zip(own).all(|(a, b)| a == b)
        };
        for names in [&self.cases, &self.stems] {
            let of: Vec<usize> =
                names.get(key).into_iter().flatten().filter(lies_in).copied().collect();
            let Some(&first) = of.first() else { continue };
            let together = of.iter().all(|&i| self.folders[i] == self.folders[first]);
            return if together { Found::One(of) } else { Found::Several(of) };
        }
        Found::None
    }
}
