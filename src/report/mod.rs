//! The self-contained HTML report: what the model learnt, for a person to see.
//!
//! [`write()`] turns a [`ReportData`] into one `index.html` that needs no network and no script. It computes
//! summary figures from what it is given; it runs no model and reads no volume.

mod arrows;
mod boxes;
mod curves;
mod data;
mod figures;
mod page;
mod plot;
#[cfg(test)]
mod sample;
mod scale;
mod scatter;
mod series;
mod slice;
mod text;
mod verdict;

pub use data::{
    CaseObservation, Draw, FileSummary, Mark, MarkKind, PairGap, PairSimilarity, PairSlices, Plane,
    ReportData, RunInfo, Slice, StepPoint, ValidationPoint,
};
pub(crate) use figures::{collapse, norm, summarise};
pub use slice::{Source, VoxelBox, cut_slice, pair_slices, volume_slices};

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::atomic::write_atomic;

/// The page as text, for whoever wants it elsewhere than in a file.
pub fn html(data: &ReportData) -> String {
    page::page(data)
}

/// Writes `index.html` into `dir`, which is made if it is missing, and returns its path.
///
/// A reader sees the old page or the new one, never half of one. Fails with [`Error::Output`] if the folder
/// or the file cannot be written.
pub fn write(data: &ReportData, dir: &Path) -> Result<PathBuf> {
    let advice =
        |e: std::io::Error| format!("{e}; check the free space and the permissions of the folder");
    fs::create_dir_all(dir).map_err(|e| Error::output(dir, advice(e)))?;
    let path = dir.join("index.html");
    write_atomic(&path, |file| file.write_all(html(data).as_bytes()))?;
    Ok(path)
}
