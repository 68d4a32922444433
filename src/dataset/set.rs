//! All volumes of a run, prepared before the first step.
//!
//! Every file is read once before training starts, so that a damaged one is named then and not after a day.
//! Training itself reads only the prepared copies: a source that changes later cannot disturb it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use rayon::prelude::*;

use crate::dataset::cache;
use crate::dataset::cache::{Hash, Index};
use crate::dataset::prepare::{PrepareOptions, prepare};
use crate::dataset::scan::{NAMED_MAX, Scan, scan};
use crate::dataset::subject::stem;
use crate::error::{Error, Result, escape};
use crate::image::{Spacing, Volume, files_of, read_geometry};

/// Volumes in memory at a time while a data set is prepared.
const IN_FLIGHT: usize = 2;

/// What to do with a volume that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadFile {
    /// Name all of them and stop.
    Stop,
    /// Leave them out, with a warning for each.
    Skip,
}

/// One prepared volume of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The file's name without folder and ending.
    pub name: String,
    /// The volume's file.
    pub source: PathBuf,
    /// Extent after preparation, (z, y, x).
    pub extent: [usize; 3],
    /// The prepared copy in the cache.
    pub prepared: PathBuf,
    /// What the prepared copy must be of.
    key: Hash,
}

/// The volumes of a run.
#[derive(Clone, Debug)]
pub struct DataSet {
    /// Sorted by path.
    pub cases: Vec<Case>,
    /// The common spacing, (z, y, x), mm; with [`Spacing::Native`] the median of the volumes' own.
    pub spacing_mm: [f64; 3],
    /// What was left out or looked odd, a sentence each.
    pub warnings: Vec<String>,
    options: PrepareOptions,
    /// The spacing that volumes are brought to; `None` keeps their own.
    target_mm: Option<[f64; 3]>,
}

/// A file that cannot be used, and why.
type Bad = (PathBuf, String);
/// Usable files, their spacing, and the others.
type Geometries = (Vec<PathBuf>, Vec<[f64; 3]>, Vec<Bad>);

impl DataSet {
    /// Finds the volumes that `paths` name, and prepares them: [`scan`], then [`DataSet::prepare`].
    ///
    /// Errors: those of both.
    pub fn open(
        paths: &[PathBuf],
        options: &PrepareOptions,
        cache_dir: &Path,
        on_bad: OnBadFile,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<DataSet> {
        DataSet::prepare(scan(paths)?, options, cache_dir, on_bad, progress)
    }

    /// Checks and prepares all volumes of `found`; what is prepared already is only looked up.
    ///
    /// `cache_dir` is made if it is absent. `progress` is told (volumes done, volumes in all).
    /// Errors: [`Error::Data`] naming the bad files, all in one, at most twenty by name; [`Error::Output`]
    /// if the cache cannot be written; [`Error::Config`] for options out of range.
    pub fn prepare(
        found: Scan,
        options: &PrepareOptions,
        cache_dir: &Path,
        on_bad: OnBadFile,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<DataSet> {
        options.assert_usable();
        cache::open(cache_dir)?;
        let total = found.files.len();
        let mut warnings = found.warnings;
        let (files, spacings, mut bad) = geometries(found.files)?;
        let median = median(&spacings);
        let target_mm = match options.spacing {
            Spacing::Median => Some(median),
            Spacing::Native => None,
            Spacing::Mm(mm) => Some(mm),
        };
        let work =
            Work { options, target_mm, cache_dir, index: Mutex::new(Index::load(cache_dir)) };
        let done = bad.len();
        let results = prepare_all(&files, &work, &mut |n| progress(done + n, total));
        cache::save_index(&work.index);
        let mut cases = Vec::new();
        for (file, result) in files.iter().zip(results) {
            match result {
                Ok((case, odd)) => {
                    warnings.extend(odd.iter().map(|w| format!("{}: {w}", escape(file))));
                    cases.push(case);
                }
                Err(Error::Data { what, .. }) => bad.push((file.clone(), what)),
                Err(other) => return Err(other),
            }
        }
        bad.sort();
        if !bad.is_empty() && (on_bad == OnBadFile::Stop || cases.is_empty()) {
            return Err(all_bad(&bad, total, !cases.is_empty()));
        }
        warnings
            .extend(bad.iter().map(|(file, what)| format!("left out {}: {what}", escape(file))));
        let spacing_mm = target_mm.unwrap_or(median);
        Ok(DataSet { cases, spacing_mm, warnings, options: options.clone(), target_mm })
    }

    /// Reads a prepared volume; makes it anew from its source if the copy was damaged or removed.
    ///
    /// Panics if there is no case `index`. Errors: [`Error::Data`] if that fails too.
    pub fn load(&self, index: usize) -> Result<Volume> {
        let case = &self.cases[index];
        if let Some(volume) = cache::read(&case.prepared, &case.key) {
            return Ok(volume);
        }
        let fresh = Mutex::new(Index::default());
        let content = cache::content(&files_of(&case.source), &fresh)
            .map_err(|what| Error::data(&case.source, what))?;
        if cache::key(&content, &self.options, self.target_mm) != case.key {
            let why = "the prepared copy was damaged, and the file changed since the start\n  \
                       start again to use the new content";
            return Err(Error::data(&case.source, why));
        }
        let (volume, warnings) = prepare(&case.source, &self.options, self.target_mm)?;
        // The volume is good without its copy; the next start would name a cache that cannot be written.
        let _ = cache::write(&case.prepared, &case.key, &volume, &warnings);
        Ok(volume)
    }
}

/// The files whose header can be read, with their spacing (z, y, x), and the others.
fn geometries(files: Vec<PathBuf>) -> Result<Geometries> {
    let read: Vec<_> = files.par_iter().map(|file| read_geometry(file)).collect();
    let (mut good, mut spacings, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    for (file, geometry) in files.into_iter().zip(read) {
        match geometry {
            Ok(geometry) => {
                good.push(file);
                spacings.push(geometry.orientation.to_zyx(geometry.spacing_mm));
            }
            Err(Error::Data { what, .. }) => bad.push((file, what)),
            Err(other) => return Err(other),
        }
    }
    Ok((good, spacings, bad))
}

/// The median for each axis; of an even number the mean of the middle two. 1 mm if there are none.
fn median(spacings: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|axis| {
        let mut edges: Vec<f64> = spacings.iter().map(|s| s[axis]).collect();
        edges.sort_by(f64::total_cmp);
        match edges.len() {
            0 => 1.0,
            n if n % 2 == 1 => edges[n / 2],
            n => (edges[n / 2 - 1] + edges[n / 2]) / 2.0,
        }
    })
}

/// What each worker needs.
struct Work<'a> {
    options: &'a PrepareOptions,
    target_mm: Option<[f64; 3]>,
    cache_dir: &'a Path,
    index: Mutex<Index>,
}

type Prepared = Result<(Case, Vec<String>)>;

/// Prepares all files, two at a time. Results are in the order of `files`.
fn prepare_all(
    files: &[PathBuf],
    work: &Work<'_>,
    progress: &mut dyn FnMut(usize),
) -> Vec<Prepared> {
    let next = AtomicUsize::new(0);
    let (send, receive) = mpsc::channel();
    let mut results: Vec<Option<Prepared>> = files.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        for _ in 0..IN_FLIGHT.min(files.len()) {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if send.send((file, prepare_case(file, work))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        for (n, (file, result)) in (1..).zip(receive) {
            // `files` is sorted and without duplicates.
            if let Ok(at) = files.binary_search(file) {
                results[at] = Some(result);
            }
            progress(n);
        }
    });
    results.into_iter().flatten().collect()
}

/// Looks one volume up in the cache, or prepares and stores it.
fn prepare_case(file: &Path, work: &Work<'_>) -> Prepared {
    let files = files_of(file);
    let before = cache::stamps(&files);
    let content = cache::content(&files, &work.index).map_err(|what| Error::data(file, what))?;
    let key = cache::key(&content, work.options, work.target_mm);
    let prepared = cache::path(work.cache_dir, &key);
    let case = |extent| Case {
        name: escape(Path::new(&stem(file))),
        source: file.to_path_buf(),
        extent,
        prepared: prepared.clone(),
        key,
    };
    if let Some((extent, warnings)) = cache::peek(&prepared, &key) {
        return Ok((case(extent), warnings));
    }
    let (volume, warnings) = prepare(file, work.options, work.target_mm)?;
    // Were it stored now, other content would go by this content's name.
    if cache::stamps(&files) != before {
        return Err(Error::data(file, cache::CHANGED));
    }
    cache::write(&prepared, &key, &volume, &warnings)?;
    Ok((case(volume.extent), warnings))
}

/// One error for all files that cannot be used.
fn all_bad(bad: &[Bad], total: usize, some_usable: bool) -> Error {
    let Some((first, what)) = bad.first() else {
        return Error::data("--data", "no volume can be used");
    };
    let mut lines = vec![what.clone()];
    if bad.len() > 1 {
        lines.push(format!("{} of {total} files cannot be used; the others:", bad.len()));
    }
    for (file, what) in bad.iter().take(NAMED_MAX).skip(1) {
        lines.push(format!("{}: {}", escape(file), what.lines().next().unwrap_or_default()));
    }
    if bad.len() > NAMED_MAX {
        lines.push(format!("and {} more", bad.len() - NAMED_MAX));
    }
    if some_usable {
        lines.push("to leave out what cannot be used: --set data.on_bad_file=skip".to_string());
    }
    Error::data(first, lines.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_taken_for_each_axis() {
        assert_eq!(median(&[[1.0, 9.0, 2.0], [3.0, 7.0, 2.0], [2.0, 8.0, 5.0]]), [2.0, 8.0, 2.0]);
        assert_eq!(median(&[[1.0, 1.0, 1.0], [2.0, 1.0, 4.0]]), [1.5, 1.0, 2.5]);
        assert_eq!(median(&[]), [1.0; 3]);
    }
}
