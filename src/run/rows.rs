//! What a run reports of its steps and validations, and the JSON-lines files it goes to.
//!
//! Numbers are written as the shortest text that reads back to the same bits, so that runs of equal bits
//! give equal files; NaN and infinities, which JSON does not have, become `null` and read back as NaN.
//! Keeping the same rows in memory and judging them is not done here.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::Path;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::files::atomic::{AppendFile, output_error, write_atomic};

/// What one step or one validation reported: named values in the order of the file. Which names there are is the
/// business of whoever measures: the training loop and the pretext tasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Number of finished steps, this one included.
    pub step: u64,
    values: Vec<(Cow<'static, str>, f64)>,
}

impl Row {
    /// A row without values.
    pub fn new(step: u64) -> Row {
        Row { step, values: Vec::new() }
    }

    /// The value of that name; NaN if there is none.
    pub fn get(&self, name: &str) -> f64 {
        self.values.iter().find(|(key, _)| key == name).map_or(f64::NAN, |(_, value)| *value)
    }

    /// Gives a name its value; a new name comes last.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: f64) {
        let name = name.into();
        match self.values.iter_mut().find(|(key, _)| *key == name) {
            Some((_, old)) => *old = value,
            None => self.values.push((name, value)),
        }
    }

    /// The row with one more value.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: f64) -> Row {
        self.set(name, value);
        self
    }

    /// Names and values in the order of the file, `step` aside.
    pub fn values(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_ref(), *value))
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.values.len() + 1))?;
        map.serialize_entry("step", &self.step)?;
        for (name, value) in self.values() {
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

/// What stands behind a key: a number, `null`, or something that is not of ours.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Number(Option<f64>),
    Other(IgnoredAny),
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Row, D::Error> {
        struct Rows;
        impl<'de> Visitor<'de> for Rows {
            type Value = Row;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a step")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Row, A::Error> {
                let (mut step, mut row) = (None, Row::default());
                while let Some(key) = map.next_key::<String>()? {
                    if key == "step" {
                        step = Some(map.next_value()?);
                        continue;
                    }
                    if let Entry::Number(value) = map.next_value()? {
                        row.set(key, value.unwrap_or(f64::NAN));
                    }
                }
                row.step = step.ok_or_else(|| serde::de::Error::missing_field("step"))?;
                Ok(row)
            }
        }
        deserializer.deserialize_map(Rows)
    }
}

/// Appends rows to a JSON-lines file, one object per line.
///
/// A failed write leaves no partial line; the run may go on and write again.
#[derive(Debug)]
pub struct RowWriter {
    file: AppendFile,
}

impl RowWriter {
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
                let copy = |new: &mut dyn Write| copy_until(BufReader::new(old), new, step);
                write_atomic(path, copy)?;
            }
        }
        let file = AppendFile::open(path).map_err(|e| output_error(path, &e))?;
        Ok(RowWriter { file })
    }

    /// Appends `row`.
    ///
    /// # Errors
    /// [`Error::Output`] if it cannot be written, or if the file was deleted meanwhile: a new one is then
    /// begun with this row. Neither need stop a training run; a warning, once, is enough.
    pub fn write(&mut self, row: &Row) -> Result<()> {
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
            let what = format!("it was deleted; a new one begins at step {}", row.step);
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
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let failed = |e: io::Error| Error::data(path, e.to_string());
    let mut rows = Vec::new();
    for line in BufReader::new(File::open(path).map_err(failed)?).split(b'\n') {
        rows.extend(serde_json::from_slice::<Row>(&line.map_err(failed)?));
    }
    Ok(rows)
}

/// Copies the whole lines of ascending steps up to `last_step`, as they are.
fn copy_until(mut old: impl BufRead, new: &mut dyn Write, last_step: u64) -> io::Result<()> {
    let mut line = Vec::new();
    let mut previous = 0;
    loop {
        line.clear();
        old.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Ok(());
        }
        let step = serde_json::from_slice::<Row>(&line).map_or(0, |row| row.step);
        if step > previous && step <= last_step {
            previous = step;
            line.push(b'\n');
            new.write_all(&line)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn row(step: u64) -> Row {
        Row::new(step).with("loss", 1.0 / step as f64).with("lr", f64::from(0.1f32))
    }

    fn write_steps(path: &Path, resumed_at: u64, steps: std::ops::RangeInclusive<u64>) {
        let mut writer = RowWriter::open(path, resumed_at).unwrap();
        steps.for_each(|step| writer.write(&row(step)).unwrap());
        writer.sync().unwrap();
    }

    #[test]
    fn the_order_is_that_of_setting_and_foreign_values_are_passed_over() {
        let mut row = Row::new(3).with("b", 1.0).with("a", 2.5);
        row.set("b", 4.0);
        assert_eq!(serde_json::to_string(&row).unwrap(), r#"{"step":3,"b":4.0,"a":2.5}"#);
        let read: Row =
            serde_json::from_str(r#"{"b":4,"word":"x","list":[1],"step":3,"a":2.5,"n":null}"#)
                .unwrap();
        assert_eq!((read.step, read.get("b"), read.get("a")), (3, 4.0, 2.5));
        assert!(read.get("n").is_nan() && read.get("word").is_nan() && read.get("absent").is_nan());
        assert_eq!(read.values().count(), 3);
        assert!(serde_json::from_str::<Row>(r#"{"b":4}"#).is_err(), "a row has a step");
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
            writer.write(&Row::new(i as u64 + 1).with("loss", loss)).unwrap();
        }
        let rows = read_rows(&path).unwrap();
        for (row, value) in rows.iter().zip(values) {
            let same = row.get("loss").to_bits() == value.to_bits();
            assert!(if value.is_finite() { same } else { row.get("loss").is_nan() }, "{value}");
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
        let rows = read_rows(&path).unwrap();
        assert_eq!(rows.len(), 4);
        RowWriter::open(&path, 9).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_names_the_cause() {
        let file = AppendFile::open(Path::new("/dev/full")).unwrap();
        let mut writer = RowWriter { file };
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
        let mut writer = RowWriter::open(&path, 0).unwrap();
        writer.write(&row(1)).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(writer.write(&row(2)).unwrap_err().to_string().contains("deleted"));
        writer.write(&row(3)).unwrap();
        let rows = read_rows(&path).unwrap();
        assert_eq!(rows.iter().map(|row| row.step).collect::<Vec<_>>(), [2, 3]);
    }
}
