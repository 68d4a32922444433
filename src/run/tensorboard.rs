//! TensorBoard event files: scalars only, written without a protobuf library.
//!
//! A file is a sequence of records (length, masked CRC-32C of the length, data, masked CRC-32C of the
//! data), each an `Event` message. Field numbers: Event 1 wall_time, 2 step, 3 file_version, 5 summary,
//! 7 session_log; Summary 1 value; Value 1 tag, 2 simple_value; SessionLog 1 status.
//!
//! Source: `tensorflow/core/util/event.proto`, `summary.proto` and `lib/io/record_writer`.

use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::atomic::{AppendFile, output_error};
use crate::run::folder::host_name;

/// Protobuf wire types.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// `SessionLog.START`: the reader drops what earlier files hold at or after the event's step.
const SESSION_START: u64 = 1;

/// Tells the time in seconds since 1970-01-01 UTC.
pub type WallClock = Box<dyn Fn() -> f64 + Send>;

/// Writes one TensorBoard event file.
pub struct EventWriter {
    file: AppendFile,
    clock: WallClock,
}

impl EventWriter {
    /// Creates `events.out.tfevents.SECONDS.HOST.PID.N` in `dir`, for a run that has `done` steps behind it.
    ///
    /// With `done` above 0 TensorBoard is told to forget what earlier files in `dir` hold of later steps.
    ///
    /// # Errors
    /// [`Error::Output`] if the file cannot be created.
    pub fn create(dir: &Path, clock: WallClock, done: u64) -> Result<Self> {
        let now = clock();
        let stem = format!(
            "events.out.tfevents.{:010}.{}.{}",
            now.max(0.0) as u64,
            host_name(),
            std::process::id()
        );
        let mut count = 0;
        let file = loop {
            let path = dir.join(format!("{stem}.{count}"));
            match AppendFile::create_new(&path) {
                Ok(file) => break file,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => count += 1,
                Err(e) => return Err(output_error(&path, &e)),
            }
        };
        let mut writer = EventWriter { file, clock };
        let mut first = Message::default();
        first.bytes(3, b"brain.Event:2");
        writer.event(0, &first)?;
        if done > 0 {
            let mut session = Message::default();
            session.varint(1, SESSION_START);
            let mut event = Message::default();
            event.bytes(7, &session.0);
            writer.event(done + 1, &event)?;
        }
        Ok(writer)
    }

    /// Writes one value of `tag`, such as `loss/total`, at `step`.
    ///
    /// # Errors
    /// As [`EventWriter::scalars`].
    pub fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<()> {
        self.scalars(step, &[(tag, value)])
    }

    /// Writes the values of several tags at `step` as one record; values are rounded to f32.
    ///
    /// # Errors
    /// [`Error::Output`] if the record cannot be written; the file then ends with the record before.
    /// A run need not stop for it.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for &(tag, value) in values {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, value as f32);
            summary.bytes(1, &entry.0);
        }
        let mut event = Message::default();
        event.bytes(5, &summary.0);
        self.event(step, &event)
    }

    /// Writes an event: time and step, then `content`.
    fn event(&mut self, step: u64, content: &Message) -> Result<()> {
        let path = self.file.path();
        if self.file.is_deleted() {
            return Err(Error::output(path, "it was deleted; nothing is added to it any more"));
        }
        let mut event = Message::default();
        event.double(1, (self.clock)());
        event.varint(2, step);
        event.0.extend(&content.0);
        self.file.append(&record(&event.0)).map_err(|e| output_error(self.file.path(), &e))
    }
}

/// `data` as a record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(data);
    bytes.extend(masked_crc(data).to_le_bytes());
    bytes
}

/// CRC-32C, masked: a CRC of data that hold CRCs would be weak.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u8, wire_type: u8) {
        self.0.push(field << 3 | wire_type);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u8, value: u64) {
        self.key(field, VARINT);
        self.raw_varint(value);
    }

    fn bytes(&mut self, field: u8, value: &[u8]) {
        self.key(field, BYTES);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u8, value: f32) {
        self.key(field, FIXED32);
        self.0.extend(value.to_le_bytes());
    }

    fn double(&mut self, field: u8, value: f64) {
        self.key(field, FIXED64);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn clock() -> WallClock {
        Box::new(|| 1_700_000_000.5)
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Bit-by-bit CRC-32C, polynomial 0x1edc6f41 reflected: independent of the crate.
    fn slow_masked_crc(data: &[u8]) -> u32 {
        let crc = !data.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0x82f6_3b78 * (c & 1)))
        });
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }

    /// Splits a file into the data of its records, checking both CRCs of each.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), slow_masked_crc(&bytes[..8]));
            let data = &bytes[12..12 + length];
            assert_eq!(crc(12 + length), slow_masked_crc(data));
            found.push(data.to_vec());
            bytes = &bytes[16 + length..];
        }
        found
    }

    #[test]
    fn records_have_both_checksums_and_the_documented_bytes() {
        // The check value of CRC-32C.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), clock(), 0).unwrap();
        writer.scalar(300, "loss/total", 0.5).unwrap();
        writer.scalars(301, &[("a", f64::NAN), ("b", 1e300)]).unwrap();
        let path = files(dir.path()).remove(0);
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = format!("events.out.tfevents.1700000000.{}.", host_name());
        assert!(name.starts_with(&expected) && name.ends_with(".0"), "{name}");
        let found = records(&fs::read(&path).unwrap());
        assert_eq!(found.len(), 3);
        let time = 1_700_000_000.5f64.to_le_bytes();
        let version = [&[0x09][..], &time, &[0x10, 0, 0x1a, 13], b"brain.Event:2"].concat();
        assert_eq!(found[0], version);
        // Step 300 as a varint is ac 02; the value 0.5 is 00 00 00 3f.
        let value = [&[0x0a, 10][..], b"loss/total", &[0x15, 0, 0, 0, 0x3f]].concat();
        let scalar = [&[0x09][..], &time, &[0x10, 0xac, 0x02, 0x2a, 19, 0x0a, 17], &value].concat();
        assert_eq!(found[1], scalar);
    }

    #[test]
    fn a_second_writer_gets_a_file_of_its_own_and_marks_the_restart() {
        let dir = tempfile::tempdir().unwrap();
        EventWriter::create(dir.path(), clock(), 0).unwrap();
        EventWriter::create(dir.path(), clock(), 7).unwrap();
        let files = files(dir.path());
        assert_eq!(files.len(), 2);
        assert!(files[1].to_str().unwrap().ends_with(".1"));
        let found = records(&fs::read(&files[1]).unwrap());
        assert_eq!(found[1][9..], [0x10, 8, 0x3a, 2, 0x08, 1]);
    }

    #[test]
    fn failures_are_output_errors() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        assert_eq!(EventWriter::create(&absent, clock(), 0).err().unwrap().exit_code(), 4);
        #[cfg(unix)]
        {
            let mut writer = EventWriter::create(dir.path(), clock(), 0).unwrap();
            fs::remove_file(files(dir.path()).remove(0)).unwrap();
            assert_eq!(writer.scalar(1, "a", 1.0).unwrap_err().exit_code(), 4);
        }
    }
}
