//! Checkpoints and weight files: safetensors, written atomically and read with suspicion.
//!
//! A checkpoint is a safetensors file whose `__metadata__` holds, beside the caller's strings, the format
//! version and a SHA-256 over everything else in the file: any flipped bit and any cut is found by
//! [`load`]. A weight file ([`save_weights`], [`load_weights`]) is plain safetensors, without them.
//! Pickles (`.pth`, `.pt`) are recognised and refused: reading one can run code.
//!
//! What the tensors mean and whether they fit the model is the caller's business; [`Loaded::check_fit`]
//! compares names and shapes.
//!
//! Source of the file layout: <https://github.com/huggingface/safetensors#format>. The header is built here
//! and not by the crate, whose order of metadata differs from run to run.

mod read;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::atomic::write_atomic;

pub use read::{Loaded, load, load_weights, verify};

/// Version of the checkpoint format that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Metadata key of the number of finished steps, as a decimal number.
pub const KEY_STEP: &str = "step";

/// Metadata key of the resolved configuration, as TOML.
pub const KEY_CONFIG: &str = "config";

/// Metadata key of the format version; its presence makes a file a checkpoint.
const KEY_FORMAT: &str = "spatialssl.format";

/// Metadata key of the crate version that wrote the file.
const KEY_VERSION: &str = "spatialssl.version";

/// Metadata key of the checksum.
const KEY_SHA256: &str = "spatialssl.sha256";

/// Key of the metadata in a safetensors header.
const KEY_METADATA: &str = "__metadata__";

/// Length of a SHA-256 in hexadecimal digits.
const SHA256_DIGITS: usize = 64;

/// Longest header written or read, in bytes. The largest real one (all optimiser state) is some 100 kB;
/// the bound keeps the parser's memory far below what a hostile header could ask for.
const MAX_HEADER_BYTES: usize = 8 << 20;

/// Bytes of tensor data hashed as one leaf.
const LEAF_BYTES: usize = 4 << 20;

// Data are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "safetensors data are little-endian");

/// A tensor to be saved.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    /// Its name, unique in the file.
    pub name: &'a str,
    /// Its extents, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// Its elements, the last extent fastest.
    pub data: &'a [f32],
}

/// What a save took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SaveReport {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Wall-clock time of the save, syncs included, in ms.
    pub ms: f64,
}

/// Saves a checkpoint: `metadata` (with [`KEY_STEP`] and [`KEY_CONFIG`]) and all state as tensors.
///
/// The tensors are written in the order given, without a copy. Equal arguments give equal bytes.
///
/// # Errors
/// [`Error::Output`] if the file cannot be written, or names and metadata together exceed 8 MiB. An older
/// file of that name is then kept.
///
/// # Panics
/// If two tensors have one name, or a shape and its data disagree.
pub fn save(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorRef<'_>],
) -> Result<SaveReport> {
    let start = Instant::now();
    let mut all = metadata.clone();
    all.insert(KEY_FORMAT.into(), FORMAT_VERSION.to_string());
    all.insert(KEY_VERSION.into(), env!("CARGO_PKG_VERSION").into());
    all.insert(KEY_SHA256.into(), "0".repeat(SHA256_DIGITS));
    let mut header = build_header(path, &all, tensors)?;
    let Some(digits) = sha256_digits(&header) else {
        unreachable!("the header just built has a checksum field");
    };
    let leaves: Vec<Leaf> = tensors.iter().flat_map(|t| leaves_of(t.data)).collect();
    let sha256 = root_of(&header, &leaves);
    header[digits].copy_from_slice(sha256.as_bytes());
    let bytes = write_file(path, &header, tensors)?;
    Ok(SaveReport { bytes, ms: start.elapsed().as_secs_f64() * 1e3 })
}

/// Saves a plain safetensors file that PyTorch and others read; `format: pt` is added to the metadata.
///
/// Errors and panics as [`save`].
pub fn save_weights(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorRef<'_>],
) -> Result<SaveReport> {
    let start = Instant::now();
    let mut all = metadata.clone();
    all.insert("format".into(), "pt".into());
    let header = build_header(path, &all, tensors)?;
    let bytes = write_file(path, &header, tensors)?;
    Ok(SaveReport { bytes, ms: start.elapsed().as_secs_f64() * 1e3 })
}

/// The JSON header, padded so that the data start at a multiple of 8 bytes.
fn build_header(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorRef<'_>],
) -> Result<Vec<u8>> {
    let mut header = Map::new();
    header.insert(KEY_METADATA.into(), json!(metadata));
    let mut names = BTreeSet::from([KEY_METADATA]);
    let mut begin = 0;
    for tensor in tensors {
        let name = tensor.name;
        assert!(names.insert(name), "the tensor name `{name}` is used twice or reserved");
        let len: usize = tensor.shape.iter().product();
        assert!(len == tensor.data.len(), "`{name}`: the shape asks for {len} elements");
        let end = begin + size_of_val(tensor.data);
        let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(name.into(), entry);
        begin = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() > MAX_HEADER_BYTES {
        let found = text.len();
        return Err(Error::output(
            path,
            format!(
                "names and metadata take {found} bytes, at most {MAX_HEADER_BYTES} are allowed
  \
                 shorten the configuration, for example by a list file in place of listed paths"
            ),
        ));
    }
    Ok(text)
}

/// Writes length, header and data; returns the file's size in bytes.
fn write_file(path: &Path, header: &[u8], tensors: &[TensorRef<'_>]) -> Result<u64> {
    write_atomic(path, |file: &mut dyn Write| -> io::Result<()> {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header)?;
        tensors.iter().try_for_each(|t| file.write_all(bytemuck::cast_slice(t.data)))
    })?;
    let data_bytes: usize = tensors.iter().map(|t| size_of_val(t.data)).sum();
    Ok((8 + header.len() + data_bytes) as u64)
}

/// The digits of the checksum in a header, or `None` if there is not exactly one such field.
///
/// A quote inside a JSON string is escaped, so the pattern cannot stand in a name or a value.
fn sha256_digits(header: &[u8]) -> Option<std::ops::Range<usize>> {
    let pattern = format!("\"{KEY_SHA256}\":\"");
    let mut found =
        header.windows(pattern.len()).enumerate().filter(|(_, w)| *w == pattern.as_bytes());
    let (at, _) = found.next()?;
    let start = at + pattern.len();
    let digits = start..start + SHA256_DIGITS;
    let closed = header.get(digits.end) == Some(&b'"');
    (closed && found.next().is_none()).then_some(digits)
}

/// SHA-256 of one piece of a tensor.
type Leaf = [u8; 32];

/// The leaves of one tensor, hashed on all cores: a single SHA-256 over 1 GB would take seconds.
fn leaves_of(data: &[f32]) -> Vec<Leaf> {
    let bytes: &[u8] = bytemuck::cast_slice(data);
    bytes.par_chunks(LEAF_BYTES).map(|chunk| Sha256::digest(chunk).into()).collect()
}

/// The checksum in hexadecimal: SHA-256 over the header with its checksum digits as `0`, and the leaves.
///
/// `header` must have the digits zeroed. Which leaf belongs to which tensor follows from the header.
fn root_of(header: &[u8], leaves: &[Leaf]) -> String {
    let mut root = Sha256::new();
    root.update((header.len() as u64).to_le_bytes());
    root.update(header);
    leaves.iter().for_each(|leaf| root.update(leaf));
    root.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
