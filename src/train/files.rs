//! The files a run appends to.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Result;
use crate::run::rows::{Row, RowWriter};
use crate::run::tensorboard::EventWriter;
use crate::run::{METRICS, PROBES, Ui, VALIDATION};

/// Step rows, validation rows, rows of probes, and TensorBoard events.
pub(super) struct Files {
    steps: RowWriter,
    validations: RowWriter,
    /// None if there are no probes, and were none before.
    probes: Option<RowWriter>,
    events: EventWriter,
    warned: bool,
}

impl Files {
    /// Opens them to go on after `done` steps; `probes`: whether there will be any.
    ///
    /// # Errors
    /// [`crate::Error::Output`] if a file cannot be opened.
    pub(super) fn open(out: &Path, done: u64, probes: bool) -> Result<Files> {
        let path = out.join(PROBES);
        let probes = probes || path.exists();
        let clock =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        Ok(Files {
            steps: RowWriter::open(&out.join(METRICS), done)?,
            validations: RowWriter::open(&out.join(VALIDATION), done)?,
            probes: probes.then(|| RowWriter::open(&path, done)).transpose()?,
            events: EventWriter::create(out, Box::new(clock), done)?,
            warned: false,
        })
    }

    /// Reports the first failure to write a row; training does not stop for a log.
    fn check<const N: usize>(&mut self, results: [Result<()>; N], ui: &mut dyn Ui) {
        for error in results.into_iter().filter_map(Result::err) {
            if !self.warned {
                self.warned = true;
                ui.warn(&format!("{error}\n  training goes on; this is said once"));
            }
        }
    }

    /// The row of a step.
    pub(super) fn step(&mut self, row: &Row, ui: &mut dyn Ui) {
        let results = [self.steps.write(row), self.tell("train", row)];
        self.check(results, ui);
    }

    /// The row of a validation.
    pub(super) fn validation(&mut self, row: &Row, ui: &mut dyn Ui) {
        let results = [self.validations.write(row), self.tell("validation", row)];
        self.check(results, ui);
    }

    /// The row of a probe.
    pub(super) fn probe(&mut self, row: &Row, ui: &mut dyn Ui) {
        let written = self.probes.as_mut().map_or(Ok(()), |rows| rows.write(row));
        let results = [written, self.tell("probe", row)];
        self.check(results, ui);
    }

    /// Writes a row for TensorBoard, its names after `kind`.
    fn tell(&mut self, kind: &str, row: &Row) -> Result<()> {
        let tags: Vec<(String, f64)> =
            row.values().map(|(k, v)| (format!("{kind}/{k}"), v)).collect();
        let tags: Vec<(&str, f64)> = tags.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        self.events.scalars(row.step, &tags)
    }

    /// Waits until all rows are on the disk.
    pub(super) fn sync(&mut self, ui: &mut dyn Ui) {
        let probes = self.probes.as_ref().map_or(Ok(()), RowWriter::sync);
        self.check([self.steps.sync(), self.validations.sync(), probes], ui);
    }
}
