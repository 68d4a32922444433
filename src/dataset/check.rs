//! A check of every voxel of every volume, for `doctor --data`.

use std::path::{Path, PathBuf};

use crate::dataset::scan::scan;
use crate::error::{Error, Result, escape};
use crate::image::read_nifti;

/// What a check says about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileStatus {
    /// It can be used.
    Ok,
    /// It can be used; something in it is odd.
    Warning,
    /// It cannot be used.
    Error,
}

/// The check of one file.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct FileReport {
    /// The file, with control characters escaped.
    pub file: String,
    /// Whether it can be used.
    pub status: FileStatus,
    /// The warnings, or what is wrong and what to do.
    pub messages: Vec<String>,
    /// Extents along the file's axes (x, y, z), if it can be read.
    pub extent: Option<[usize; 3]>,
    /// Edges of a voxel along the file's axes (x, y, z), mm.
    pub spacing_mm: Option<[f64; 3]>,
    /// The side of the body towards which each file axis grows, such as `PSR`.
    pub orientation: Option<String>,
}

/// Numbers of files by status.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct DoctorSummary {
    /// Files checked.
    pub files: usize,
    /// Files that can be used but are odd.
    pub with_warnings: usize,
    /// Files that cannot be used.
    pub with_errors: usize,
    /// What was odd about the paths themselves, a sentence each.
    pub warnings: Vec<String>,
}

/// Reads every voxel of every volume that `paths` name, and hands a report on each file to `emit` at once.
///
/// Errors: [`Error::Data`] if a path stands for nothing; a bad volume is a report, not an error.
pub fn check_files(paths: &[PathBuf], emit: &mut dyn FnMut(&FileReport)) -> Result<DoctorSummary> {
    let found = scan(paths)?;
    let mut summary = DoctorSummary { warnings: found.warnings, ..DoctorSummary::default() };
    for file in &found.files {
        let report = check(file);
        summary.files += 1;
        summary.with_warnings += usize::from(report.status == FileStatus::Warning);
        summary.with_errors += usize::from(report.status == FileStatus::Error);
        emit(&report);
    }
    Ok(summary)
}

fn check(file: &Path) -> FileReport {
    let mut report = FileReport {
        file: escape(file),
        status: FileStatus::Ok,
        messages: Vec::new(),
        extent: None,
        spacing_mm: None,
        orientation: None,
    };
    match read_nifti(file) {
        Ok(image) => {
            report.extent = Some(image.dims);
            report.spacing_mm = Some(image.spacing_mm);
            report.orientation = Some(image.orientation().code());
            let first = image.voxels.first();
            if image.voxels.iter().all(|v| Some(v) == first) {
                report.status = FileStatus::Error;
                report
                    .messages
                    .push("the volume is constant: nothing can be learned from it".into());
            } else if !image.warnings.is_empty() {
                report.status = FileStatus::Warning;
            }
            report.messages.extend(image.warnings);
        }
        Err(Error::Data { what, .. }) => {
            report.status = FileStatus::Error;
            report.messages.push(what);
        }
        Err(other) => {
            report.status = FileStatus::Error;
            report.messages.push(other.to_string());
        }
    }
    report
}
