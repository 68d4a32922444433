//! `spatialssl doctor --data`: reads every voxel of every volume and says which can be used.

use std::path::PathBuf;

use crate::cli::output::print;
use crate::dataset::{FileReport, FileStatus, check_files};
use crate::error::{Error, Result};

/// One line per file, or with `json` one JSON object for all; an error if any file cannot be used.
pub(super) fn run(paths: &[PathBuf], json: bool) -> Result<()> {
    let mut reports = Vec::new();
    let mut printed = Ok(());
    let summary = check_files(paths, &mut |report| {
        if json {
            reports.push(serde_json::to_value(report).unwrap_or_default());
        } else if printed.is_ok() {
            printed = print(&line(report));
        }
    })?;
    printed?;
    if json {
        let all = serde_json::json!({
            "files": reports,
            "with_warnings": summary.with_warnings,
            "with_errors": summary.with_errors,
            "warnings": summary.warnings,
        });
        print(&format!("{all:#}\n"))?;
    } else {
        let (files, warned, bad) = (summary.files, summary.with_warnings, summary.with_errors);
        let notes: String = summary.warnings.iter().map(|w| format!("note: {w}\n")).collect();
        print(&format!("{notes}{files} files: {bad} cannot be used, {warned} with warnings\n"))?;
    }
    if summary.with_errors == 0 {
        return Ok(());
    }
    let first = paths.first().cloned().unwrap_or_default();
    let what = format!(
        "{} of {} volumes cannot be used, each is named above\n  \
         to train without them: --set data.on_bad_file=skip",
        summary.with_errors, summary.files
    );
    Err(Error::data(first, what))
}

fn line(report: &FileReport) -> String {
    let status = match report.status {
        FileStatus::Ok => "ok",
        FileStatus::Warning => "warning",
        FileStatus::Error => "error",
    };
    let mut text = format!("{status:8} {}", report.file);
    if let (Some(extent), Some(spacing)) = (report.extent, report.spacing_mm) {
        let [x, y, z] = extent;
        let [sx, sy, sz] = spacing;
        let orientation = report.orientation.as_deref().unwrap_or("?");
        text.push_str(&format!("  {x} x {y} x {z}  {sx:.3} x {sy:.3} x {sz:.3} mm  {orientation}"));
    }
    for message in &report.messages {
        text.push_str(&format!("\n         {}", message.replace('\n', "\n         ")));
    }
    text.push('\n');
    text
}
