//! The self-contained HTML report: what the model learnt, for a person to see.
//!
//! [`write()`] turns a [`ReportData`] into one `index.html` that needs no network and no script. It computes
//! summary figures from what it is given; it runs no model and reads no volume.

mod curves;
mod data;
mod frame;
mod images;
mod observable;
mod page;
mod plot;
mod scale;
mod series;
mod slice;
mod statistics;
mod text;
mod verdict;

pub use curves::{points, validation_plot};
pub use data::{
    CaseObservation, Draw, FileSummary, Mark, MarkKind, PairVector, Plane, ReportData, RunInfo,
    Slice,
};
pub use images::{ImageBudget, colour_image, image_row};
pub use observable::{
    Description, Figure, Guess, Measured, Observable, Summary, Term, collapse, in_words, summarise,
    unlearnt, unlearnt_axes,
};
pub use page::{HALF, THIRD, document, figure};
pub use plot::{Picture, Plot};
pub use scale::Scale;
pub use series::{Shape, thin_evenly};
pub(crate) use slice::plane_axes;
pub use slice::{Scene, Source, VoxelBox, cut_slice, volume_slices};
pub use statistics::{AXES, AxisErrors, angle_deg, axis_errors, mean, median, norm, r_squared};
pub use text::{direction, escape, name, number, usable};
pub use verdict::against_guess;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::atomic::write_atomic;

/// The page as text, for whoever wants it elsewhere than in a file.
pub fn html(data: &ReportData, tasks: &[&dyn Observable]) -> String {
    page::page(data, tasks)
}

/// Writes `index.html` into `dir`, which is made if it is missing, and returns its path.
///
/// A reader sees the old page or the new one, never half of one. Fails with [`Error::Output`] if the folder
/// or the file cannot be written.
pub fn write(data: &ReportData, tasks: &[&dyn Observable], dir: &Path) -> Result<PathBuf> {
    let advice =
        |e: std::io::Error| format!("{e}; check the free space and the permissions of the folder");
    fs::create_dir_all(dir).map_err(|e| Error::output(dir, advice(e)))?;
    let path = dir.join("index.html");
    write_atomic(&path, |file| file.write_all(html(data, tasks).as_bytes()))?;
    Ok(path)
}
