//! What a run reports of its steps and validations, and the JSON-lines files it goes to.
//!
//! Numbers are written as the shortest text that reads back to the same bits, so that runs of equal bits
//! give equal files; NaN and infinities, which JSON does not have, become `null` and read back as NaN.
//! Keeping the same rows in memory and judging them is not done here.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::marker::PhantomData;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::files::atomic::{AppendFile, output_error, write_atomic};

/// Defines a row: a step number and `f64` values that may be absent or `null` when read.
macro_rules! row {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Serialize, Deserialize)]
        pub struct $name {
            /// Number of finished steps, this one included.
            pub step: u64,
            $($(#[$field_doc])* #[serde(default = "nan", deserialize_with = "null_as_nan")] pub $field: f64,)*
        }

        impl $name {
            /// A row in which nothing has been measured: all values are NaN.
            pub fn new(step: u64) -> Self {
                $name { step, $($field: f64::NAN,)* }
            }

            /// Names and values in the order of the file, `step` aside.
            pub fn values(&self) -> Vec<(&'static str, f64)> {
                vec![$((stringify!($field), self.$field),)*]
            }
        }
    };
}

row! {
    /// One training step. All losses are dimensionless; what they mean is the tasks' business.
    StepRow {
        /// The weighted sum that is minimised.
        loss,
        /// Loss of the gap task, per axis.
        gap_axis,
        /// Loss of the gap task, Euclidean norm.
        gap_norm,
        /// Loss of the similarity task, adjacent sub-views.
        sim_adjacent,
        /// Loss of the similarity task, distant sub-views.
        sim_distant,
        /// Loss of the vector task.
        vector,
        /// Loss of the route task.
        route,
        /// Learning rate of this step.
        lr,
        /// Euclidean norm of the whole gradient before clipping.
        grad_norm,
        /// Wall-clock time of the step in ms, without the wait for data.
        step_ms,
        /// Time the step waited for its data in ms.
        data_ms,
        /// Norm of the gap task's gradient at the dense representation.
        grad_gap,
        /// Norm of the similarity task's gradient at the dense representation.
        grad_similarity,
        /// Norm of the vector task's gradient at the dense representation.
        grad_vector,
    }
}

row! {
    /// One validation over the held-out volumes.
    ValidationRow {
        /// Mean absolute error of the predicted gaps in mm.
        gap_mae_mm,
        /// The same error of the best constant prediction, in mm.
        gap_baseline_mm,
        /// Coefficient of determination of the predicted gaps; 1 is perfect, 0 a constant.
        gap_r2,
        /// Mean angle between predicted and true displacements in degrees.
        direction_error_deg,
        /// Mean absolute error of the predicted vectors in mm.
        vector_mae_mm,
        /// Mean length of the sum of a closed route's predicted vectors in mm; 0 is consistent.
        route_closure_mm,
        /// Share of pairs told rightly as adjacent or distant, from 0 to 1.
        similarity_accuracy,
        /// Mean cosine similarity of adjacent sub-views.
        adjacent_cosine,
        /// Mean cosine similarity of distant sub-views.
        distant_cosine,
        /// Standard deviation of the features over samples; 0 means collapse.
        feature_std,
    }
}

/// A row of a JSON-lines file, ordered by its step.
pub trait Row: Serialize + DeserializeOwned {
    /// Number of finished steps.
    fn step(&self) -> u64;
}

impl Row for StepRow {
    fn step(&self) -> u64 {
        self.step
    }
}

impl Row for ValidationRow {
    fn step(&self) -> u64 {
        self.step
    }
}

/// Appends rows to a JSON-lines file, one object per line.
///
/// A failed write leaves no partial line; the run may go on and write again.
#[derive(Debug)]
pub struct RowWriter<R> {
    file: AppendFile,
    rows: PhantomData<fn(&R)>,
}

impl<R: Row> RowWriter<R> {
    /// Opens `path` to go on after `step` finished steps; 0 starts anew.
    ///
    /// Rows of later steps, which the resumed run will write again, and torn or foreign lines are dropped
    /// (the file is replaced atomically), so that the file of a stopped and resumed run equals that of an
    /// uninterrupted one in all but the times measured.
    ///
    /// # Errors
    /// [`Error::Output`] if the file cannot be read or written.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        match File::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(output_error(path, &e)),
            Ok(old) => {
                let copy = |new: &mut dyn Write| copy_until::<R>(BufReader::new(old), new, step);
                write_atomic(path, copy)?;
            }
        }
        let file = AppendFile::open(path).map_err(|e| output_error(path, &e))?;
        Ok(RowWriter { file, rows: PhantomData })
    }

    /// Appends `row`.
    ///
    /// # Errors
    /// [`Error::Output`] if it cannot be written, or if the file was deleted meanwhile: a new one is then
    /// begun with this row. Neither need stop a training run; a warning, once, is enough.
    pub fn write(&mut self, row: &R) -> Result<()> {
        let path = self.file.path().to_path_buf();
        let mut line = serde_json::to_vec(row)
            .map_err(|e| Error::output(&path, format!("a row has no JSON form: {e}")))?;
        line.push(b'\n');
        let is_deleted = self.file.is_deleted();
        if is_deleted {
            self.file = AppendFile::open(&path).map_err(|e| output_error(&path, &e))?;
        }
        self.file.append(&line).map_err(|e| output_error(&path, &e))?;
        if is_deleted {
            let what = format!("it was deleted; a new one begins at step {}", row.step());
            return Err(Error::output(path, what));
        }
        Ok(())
    }

    /// Waits until all rows are on the disk. Call it before a checkpoint is saved: after a power loss the
    /// file then still holds every row up to that checkpoint.
    ///
    /// # Errors
    /// [`Error::Output`] if the system reports a failure.
    pub fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|e| output_error(self.file.path(), &e))
    }
}

/// Reads all rows of a file; lines that are no row (a torn last one) are passed over.
///
/// # Errors
/// [`Error::Data`] if the file cannot be read.
pub fn read_rows<R: Row>(path: &Path) -> Result<Vec<R>> {
    let failed = |e: io::Error| Error::data(path, e.to_string());
    let mut rows = Vec::new();
    for line in BufReader::new(File::open(path).map_err(failed)?).split(b'\n') {
        rows.extend(serde_json::from_slice::<R>(&line.map_err(failed)?));
    }
    Ok(rows)
}

/// Copies the whole lines of ascending steps up to `last_step`, as they are.
fn copy_until<R: Row>(
    mut old: impl BufRead,
    new: &mut dyn Write,
    last_step: u64,
) -> io::Result<()> {
    let mut line = Vec::new();
    let mut previous = 0;
    loop {
        line.clear();
        old.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Ok(());
        }
        let step = serde_json::from_slice::<R>(&line).map_or(0, |row| row.step());
        if step > previous && step <= last_step {
            previous = step;
            line.push(b'\n');
            new.write_all(&line)?;
        }
    }
}

fn nan() -> f64 {
    f64::NAN
}

fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn row(step: u64) -> StepRow {
        StepRow { loss: 1.0 / step as f64, lr: 0.1f32 as f64, ..StepRow::new(step) }
    }

    fn write_steps(path: &Path, resumed_at: u64, steps: std::ops::RangeInclusive<u64>) {
        let mut writer = RowWriter::<StepRow>::open(path, resumed_at).unwrap();
        steps.for_each(|step| writer.write(&row(step)).unwrap());
        writer.sync().unwrap();
    }

    #[test]
    fn keys_and_order_are_the_documented_ones() {
        let keys = |text: String| {
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&text).unwrap();
            object.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            keys(serde_json::to_string(&StepRow::new(1)).unwrap()),
            "step loss gap_axis gap_norm sim_adjacent sim_distant vector route lr grad_norm step_ms \
             data_ms grad_gap grad_similarity grad_vector"
        );
        assert_eq!(
            keys(serde_json::to_string(&ValidationRow::new(1)).unwrap()),
            "step gap_mae_mm gap_baseline_mm gap_r2 direction_error_deg vector_mae_mm \
             route_closure_mm similarity_accuracy adjacent_cosine distant_cosine feature_std"
        );
        assert_eq!(StepRow::new(1).values()[7].0, "lr");
    }

    #[test]
    fn every_number_reads_back_to_its_bits_or_nan() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let values = [
            0.1,
            f64::MIN_POSITIVE / 4.0,
            f64::MAX,
            -0.0,
            1.0 / 3.0,
            1e21,
            f64::INFINITY,
            f64::NAN,
        ];
        let mut writer = RowWriter::open(&path, 0).unwrap();
        for (i, &loss) in values.iter().enumerate() {
            writer.write(&StepRow { loss, ..StepRow::new(i as u64 + 1) }).unwrap();
        }
        let rows: Vec<StepRow> = read_rows(&path).unwrap();
        for (row, value) in rows.iter().zip(values) {
            let same = row.loss.to_bits() == value.to_bits();
            assert!(if value.is_finite() { same } else { row.loss.is_nan() }, "{value}");
        }
        assert_eq!(rows.len(), values.len());
        assert!(fs::read_to_string(&path).unwrap().contains("\"loss\":null"));
    }

    #[test]
    fn a_resumed_file_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        write_steps(&whole, 0, 1..=20);
        let expected = fs::read(&whole).unwrap();
        for resumed_at in [0, 1, 7, 13] {
            let path = dir.path().join("stopped");
            write_steps(&path, 0, 1..=13);
            // Killed within a line.
            let mut torn = fs::read(&path).unwrap();
            torn.extend(b"{\"step\":14,\"loss\":0.0");
            fs::write(&path, torn).unwrap();
            write_steps(&path, resumed_at, resumed_at + 1..=20);
            assert_eq!(fs::read(&path).unwrap(), expected, "resumed at {resumed_at}");
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn lines_that_are_no_rows_and_repeated_steps_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        fs::write(
            &path,
            b"{\"step\":1}\nnonsense\n\xff\n\n{\"step\":2}\n{\"step\":1}\n{\"step\":3}",
        )
        .unwrap();
        let rows: Vec<ValidationRow> = read_rows(&path).unwrap();
        assert_eq!(rows.len(), 4);
        RowWriter::<ValidationRow>::open(&path, 9).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_names_the_cause() {
        let file = AppendFile::open(Path::new("/dev/full")).unwrap();
        let mut writer = RowWriter::<StepRow> { file, rows: PhantomData };
        for _ in 0..2 {
            let error = writer.write(&row(1)).unwrap_err();
            assert_eq!(error.exit_code(), 4);
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_deleted_file_is_reported_once_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let mut writer = RowWriter::<StepRow>::open(&path, 0).unwrap();
        writer.write(&row(1)).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(writer.write(&row(2)).unwrap_err().to_string().contains("deleted"));
        writer.write(&row(3)).unwrap();
        let rows: Vec<StepRow> = read_rows(&path).unwrap();
        assert_eq!(rows.iter().map(Row::step).collect::<Vec<_>>(), [2, 3]);
    }
}
