//! Reading: every length is compared with the file's true size before anything is allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, escape};
use crate::run::checkpoint::{
    FORMAT_VERSION, KEY_CONFIG, KEY_FORMAT, KEY_METADATA, KEY_SHA256, KEY_STEP, KEY_VERSION,
    LEAF_BYTES, Leaf, MAX_HEADER_BYTES, leaves_of, root_of, sha256_digits,
};

/// Longest header that an error message is worth a second, less frugal parse, in bytes.
const MAX_EXPLAINED_BYTES: usize = 1 << 20;

/// At most this many names are listed in a message.
const MAX_LISTED: usize = 10;

/// The content of a checkpoint or weight file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// The strings stored with the tensors.
    pub metadata: BTreeMap<String, String>,
    /// Shape and elements of each tensor by name; the last extent fastest.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Loaded {
    /// Number of finished steps, if the metadata hold it.
    pub fn step(&self) -> Option<u64> {
        self.metadata.get(KEY_STEP)?.parse().ok()
    }

    /// The resolved configuration as TOML, if the metadata hold it.
    pub fn config(&self) -> Option<&str> {
        self.metadata.get(KEY_CONFIG).map(String::as_str)
    }

    /// Name of the first tensor with a NaN or an infinity, if there is one.
    pub fn first_not_finite(&self) -> Option<&str> {
        let bad = |data: &Vec<f32>| data.iter().any(|x| !x.is_finite());
        self.tensors.iter().find(|(_, (_, data))| bad(data)).map(|(name, _)| name.as_str())
    }

    /// Checks that every number is finite.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the first tensor with another.
    pub fn check_finite(&self, path: &Path) -> Result<()> {
        self.first_not_finite().map_or(Ok(()), |name| {
            let why = format!("{name} holds NaN or infinity\n  use an earlier checkpoint");
            Err(Error::checkpoint(path, why))
        })
    }

    /// Checks that the tensors are exactly those `expected` (names and shapes).
    ///
    /// `path` is only named in the message.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the numbers of missing, surplus and differing tensors, the first ten of
    /// each, and the likely cause.
    pub fn check_fit(&self, path: &Path, expected: &BTreeMap<String, Vec<usize>>) -> Result<()> {
        let missing: Vec<String> =
            expected.keys().filter(|n| !self.tensors.contains_key(*n)).cloned().collect();
        let surplus: Vec<String> =
            self.tensors.keys().filter(|n| !expected.contains_key(*n)).cloned().collect();
        let differing: Vec<String> = expected
            .iter()
            .filter_map(|(name, want)| {
                let (found, _) = self.tensors.get(name)?;
                (found != want).then(|| format!("{name} (found {found:?}, needed {want:?})"))
            })
            .collect();
        let lines: Vec<String> =
            [("missing", &missing), ("not expected", &surplus), ("of another shape", &differing)]
                .iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(what, names)| listed(what, names))
                .collect();
        if lines.is_empty() {
            return Ok(());
        }
        let advice = match likely_prefix(&missing, &surplus) {
            Some(prefix) => format!("all names begin with `{}`: remove that prefix", shown(prefix)),
            None => "the file is of another model: compare the configurations".into(),
        };
        Err(Error::checkpoint(path, format!("{}\n  {advice}", lines.join("\n  "))))
    }
}

/// Loads a checkpoint, checking every byte.
///
/// # Errors
/// [`Error::Checkpoint`] for anything but a whole, unaltered checkpoint of a known format.
pub fn load(path: &Path) -> Result<Loaded> {
    let opened = Opened::open(path)?;
    opened.require_checkpoint()?;
    opened.load_checked()
}

/// Checks a checkpoint as [`load`] does, in constant memory, and returns its metadata.
///
/// # Errors
/// As [`load`].
pub fn verify(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut opened = Opened::open(path)?;
    opened.require_checkpoint()?;
    let mut leaves = Vec::new();
    let mut buffer = Vec::new();
    for (name, info) in opened.tensors_f32()? {
        let mut left = info.data_offsets.1 - info.data_offsets.0;
        while left > 0 {
            buffer.resize(left.min(LEAF_BYTES), 0);
            opened.read_exact(&name, &mut buffer)?;
            leaves.push(Sha256::digest(&buffer).into());
            left -= buffer.len();
        }
    }
    opened.check_sha256(&leaves)?;
    Ok(opened.metadata())
}

/// Loads a safetensors file of any origin; F16 and BF16 become f32. A checkpoint is checked as by [`load`].
///
/// # Errors
/// [`Error::Checkpoint`] if it is no valid safetensors file or holds other number types.
pub fn load_weights(path: &Path) -> Result<Loaded> {
    let mut opened = Opened::open(path)?;
    if opened.metadata().contains_key(KEY_FORMAT) {
        opened.require_checkpoint()?;
        return opened.load_checked();
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in opened.tensors() {
        let data = match info.dtype {
            Dtype::F32 => opened.read_vec::<f32>(&name, &info)?,
            Dtype::F16 => widen(&opened.read_vec::<f16>(&name, &info)?, f16::to_f32),
            Dtype::BF16 => widen(&opened.read_vec::<bf16>(&name, &info)?, bf16::to_f32),
            other => {
                let name = shown(&name);
                return Err(opened.error(format!(
                    "tensor `{name}` is of type {other}, supported are F32, F16 and BF16\n  \
                     convert it, for example with `tensor.float()` in PyTorch"
                )));
            }
        };
        tensors.insert(name, (info.shape, data));
    }
    Ok(Loaded { metadata: opened.metadata(), tensors })
}

fn widen<T: Copy>(data: &[T], to_f32: impl Fn(T) -> f32) -> Vec<f32> {
    data.iter().map(|&x| to_f32(x)).collect()
}

/// A safetensors file whose header has been checked against its size; positioned at the data.
struct Opened<'a> {
    path: &'a Path,
    file: File,
    header: Vec<u8>,
    info: Metadata,
}

impl<'a> Opened<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let error = |why: String| Error::checkpoint(path, why);
        let io_error = |e: std::io::Error| error(read_failure(&e));
        let kind = std::fs::metadata(path).map_err(io_error)?;
        if !kind.is_file() {
            return Err(error("it is not a regular file\n  name a .safetensors file".into()));
        }
        let mut file = File::open(path).map_err(io_error)?;
        let file_bytes = file.metadata().map_err(io_error)?.len();
        let mut start = Vec::new();
        file.by_ref().take(16).read_to_end(&mut start).map_err(io_error)?;
        let header_bytes = header_length(&start, file_bytes).map_err(error)?;
        let mut header = vec![0; header_bytes];
        file.seek(SeekFrom::Start(8)).map_err(io_error)?;
        file.read_exact(&mut header).map_err(io_error)?;
        let text = std::str::from_utf8(&header)
            .map_err(|e| error(format!("the header is not UTF-8 ({e})\n  {DAMAGED}")))?;
        let info: Metadata = serde_json::from_str(text)
            .map_err(|e| error(format!("{}\n  {DAMAGED}", explain(text, &e.to_string()))))?;
        let held = file_bytes - 8 - header_bytes as u64;
        let needed = info.data_len() as u64;
        if needed != held {
            let what = if held < needed { "the data end early" } else { "bytes follow the data" };
            return Err(error(format!(
                "{what}: the header describes {needed} bytes of tensors, the file holds {held}\n  {DAMAGED}"
            )));
        }
        Ok(Opened { path, file, header, info })
    }

    fn error(&self, why: impl Into<String>) -> Error {
        Error::checkpoint(self.path, why)
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.info.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Names and descriptions in the order of the data.
    fn tensors(&self) -> Vec<(String, TensorInfo)> {
        let names = self.info.offset_keys().into_iter();
        names.filter_map(|n| self.info.info(&n).cloned().map(|info| (n, info))).collect()
    }

    /// As [`Opened::tensors`], for a checkpoint: all are F32.
    fn tensors_f32(&self) -> Result<Vec<(String, TensorInfo)>> {
        let tensors = self.tensors();
        match tensors.iter().find(|(_, info)| info.dtype != Dtype::F32) {
            None => Ok(tensors),
            Some((name, info)) => Err(self.error(format!(
                "tensor `{}` is of type {}, a checkpoint holds F32 only\n  {DAMAGED}",
                shown(name),
                info.dtype
            ))),
        }
    }

    /// Checks that this is a checkpoint of a format this build reads.
    fn require_checkpoint(&self) -> Result<()> {
        let metadata = self.metadata();
        let Some(format) = metadata.get(KEY_FORMAT) else {
            return Err(self.error(
                "it holds weights but no training state (no format version)\n  \
                 to start a new run from weights use --init",
            ));
        };
        match format.parse::<u32>() {
            Ok(version) if version == FORMAT_VERSION => Ok(()),
            Ok(version) if version > FORMAT_VERSION => {
                let writer = metadata.get(KEY_VERSION).map_or("unknown", String::as_str);
                Err(self.error(format!(
                    "it has format {version} (written by spatialssl {}), this build ({}) reads up to \
                     format {FORMAT_VERSION}\n  use the newer spatialssl",
                    shown(writer),
                    env!("CARGO_PKG_VERSION")
                )))
            }
            _ => Err(self.error(format!(
                "its format version is `{}`, needed is {FORMAT_VERSION}\n  {DAMAGED}",
                shown(format)
            ))),
        }
    }

    fn load_checked(mut self) -> Result<Loaded> {
        let mut leaves = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, info) in self.tensors_f32()? {
            let data = self.read_vec::<f32>(&name, &info)?;
            leaves.extend(leaves_of(&data));
            tensors.insert(name, (info.shape, data));
        }
        self.check_sha256(&leaves)?;
        Ok(Loaded { metadata: self.metadata(), tensors })
    }

    fn check_sha256(&mut self, leaves: &[Leaf]) -> Result<()> {
        let Some(digits) = sha256_digits(&self.header) else {
            return Err(
                self.error(format!("the field `{KEY_SHA256}` is absent or damaged\n  {DAMAGED}"))
            );
        };
        let stored = self.header[digits.clone()].to_vec();
        self.header[digits].fill(b'0');
        let found = root_of(&self.header, leaves);
        if stored == found.as_bytes() {
            return Ok(());
        }
        let stored = shown(&String::from_utf8_lossy(&stored));
        Err(self
            .error(format!("the checksum differs: stored {stored}, found {found}\n  {DAMAGED}")))
    }

    /// Reads the next tensor; its size has been checked against the file's.
    fn read_vec<T: bytemuck::Pod>(&mut self, name: &str, info: &TensorInfo) -> Result<Vec<T>> {
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        let len = bytes / size_of::<T>();
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| {
            self.error(format!("tensor `{}` needs {bytes} bytes of memory", shown(name)))
        })?;
        data.resize(len, T::zeroed());
        self.read_exact(name, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }

    fn read_exact(&mut self, name: &str, buffer: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact(buffer);
        read.map_err(|e| self.error(format!("tensor `{}`: {}", shown(name), read_failure(&e))))
    }
}

/// The usual advice.
const DAMAGED: &str =
    "the file is damaged or incomplete: copy it again, or use an older checkpoint";

/// The length of the header, given the first 16 bytes of a file and its size.
fn header_length(start: &[u8], file_bytes: u64) -> std::result::Result<usize, String> {
    let Some(length) = start.first_chunk::<8>() else {
        return Err(format!(
            "it has {file_bytes} bytes, the smallest safetensors file has 10\n  {DAMAGED}"
        ));
    };
    let length = u64::from_le_bytes(*length);
    let is_object = start.get(8) == Some(&b'{');
    if !(is_object && length <= MAX_HEADER_BYTES as u64) {
        if let Some(refusal) = recognise(start) {
            return Err(refusal.into());
        }
        if !is_object && length <= file_bytes.saturating_sub(8) {
            return Err(format!("it is not a safetensors file (no `{{` at byte 8)\n  {DAMAGED}"));
        }
    }
    if length > file_bytes - 8 {
        return Err(format!(
            "the header asks for {length} bytes, the file has {file_bytes}\n  \
             it is not a safetensors file, or was cut: copy it again, or use an older checkpoint"
        ));
    }
    match usize::try_from(length) {
        Ok(length) if length <= MAX_HEADER_BYTES => Ok(length),
        _ => Err(format!(
            "the header is {length} bytes long, at most {MAX_HEADER_BYTES} are read\n  {DAMAGED}"
        )),
    }
}

/// What another kind of file is refused with, by its first bytes.
fn recognise(start: &[u8]) -> Option<&'static str> {
    let is_pickle = start[0] == 0x80 && (2..=5).contains(&start[1]);
    if is_pickle || start.starts_with(b"PK\x03\x04") {
        return Some(
            "it is a PyTorch file (.pth, .pt): pickle is refused, because reading one can run code\n  \
             convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, \
             weights_only=True), \"weights.safetensors\")",
        );
    }
    let is_hdf5 = start.starts_with(b"\x89HDF");
    is_hdf5.then_some("it is an HDF5 file\n  convert it to safetensors")
}

/// Why a header is not accepted, with the tensor's name where the parser gives none.
fn explain(text: &str, parser_says: &str) -> String {
    let parsed =
        if text.len() <= MAX_EXPLAINED_BYTES { serde_json::from_str(text).ok() } else { None };
    let Some(Value::Object(entries)) = parsed else {
        return format!("the header is not valid: {}", shown(parser_says));
    };
    let tensors = entries.iter().filter(|(name, _)| *name != KEY_METADATA);
    for (name, entry) in tensors {
        let what = match TensorInfo::deserialize(entry) {
            Err(error) => error.to_string(),
            Ok(info) => match info_fault(&info) {
                Some(what) => what,
                None => continue,
            },
        };
        return format!("tensor `{}`: {}", shown(name), shown(&what));
    }
    format!("the header is not valid: {}", shown(parser_says))
}

/// What is wrong with one tensor's description by itself.
fn info_fault(info: &TensorInfo) -> Option<String> {
    let (begin, end) = info.data_offsets;
    let bits = info
        .shape
        .iter()
        .try_fold(info.dtype.bitsize(), |product, &extent| product.checked_mul(extent));
    match (bits, end.checked_sub(begin)) {
        (_, None) => Some(format!("its data end at {end}, before their begin at {begin}")),
        (None, _) => Some(format!("the product of its shape {:?} overflows", info.shape)),
        (Some(bits), Some(bytes)) if bits.div_ceil(8) != bytes => Some(format!(
            "shape {:?} of {} needs {} bytes, the header gives it {bytes}",
            info.shape,
            info.dtype,
            bits.div_ceil(8)
        )),
        _ => None,
    }
}

fn read_failure(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file".into(),
        ErrorKind::PermissionDenied => {
            "permission denied (EACCES)\n  make it readable for this user".into()
        }
        ErrorKind::UnexpectedEof => format!("the file ended while it was read\n  {DAMAGED}"),
        _ => format!("reading failed: {error}"),
    }
}

/// Text from a file as it may be printed: escaped, and cut at 200 characters.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(200).collect();
    escape(Path::new(&short))
}

fn listed(what: &str, names: &[String]) -> String {
    let some: Vec<String> = names.iter().take(MAX_LISTED).map(|n| shown(n)).collect();
    let rest = names.len() - some.len();
    let more = if rest == 0 { String::new() } else { format!(", and {rest} more") };
    format!("{} tensors {what}: {}{more}", names.len(), some.join(", "))
}

/// A prefix such as `module.` that turns every missing name into a surplus one.
fn likely_prefix<'a>(missing: &[String], surplus: &'a [String]) -> Option<&'a str> {
    let first = missing.first()?;
    let prefix = surplus.iter().find_map(|name| name.strip_suffix(first.as_str()))?;
    let fits = |name: &String| surplus.iter().any(|s| s.strip_prefix(prefix) == Some(name));
    (!prefix.is_empty() && missing.iter().all(fits)).then_some(prefix)
}
