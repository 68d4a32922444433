//! The bytes of a volume file: opened with care, unpacked if they are gzip, counted.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::error::escape;

/// No deflate stream unpacks to more than this many times its size.
const DEFLATE_RATIO_MAX: u64 = 1032;

/// A readable file, unpacked while it is read.
pub(crate) struct Source {
    reader: Reader,
    /// Bytes on disk.
    pub(crate) size: u64,
    /// Unpacked bytes read so far.
    pub(crate) at: u64,
}

enum Reader {
    Plain(BufReader<File>),
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
}

impl Source {
    /// Opens a regular file. Whether it is gzip is told by its first two bytes, not by its name.
    pub(crate) fn open(path: &Path) -> Result<Source, String> {
        let meta = fs::metadata(path).map_err(|e| open_error(path, &e))?;
        if meta.is_dir() {
            return Err("this is a folder, needed is a volume file".into());
        }
        // Opening a pipe would wait for a writer for ever.
        if !meta.is_file() {
            return Err(
                "this is not a regular file (a pipe, socket or device)\n  name a file on disk"
                    .into(),
            );
        }
        let mut file = File::open(path).map_err(|e| open_error(path, &e))?;
        let mut head = Vec::with_capacity(2);
        Read::by_ref(&mut file).take(2).read_to_end(&mut head).map_err(|e| plain_error(&e))?;
        file.rewind().map_err(|e| plain_error(&e))?;
        let buffered = BufReader::with_capacity(1 << 16, file);
        let reader = if head == [0x1f, 0x8b] {
            Reader::Gzip(Box::new(MultiGzDecoder::new(buffered)))
        } else {
            Reader::Plain(buffered)
        };
        Ok(Source { reader, size: meta.len(), at: 0 })
    }

    /// Whether the file is gzip.
    pub(crate) fn gzip(&self) -> bool {
        matches!(self.reader, Reader::Gzip(_))
    }

    /// The most bytes that the file can unpack to.
    pub(crate) fn size_max(&self) -> u64 {
        if self.gzip() { self.size.saturating_mul(DEFLATE_RATIO_MAX) } else { self.size }
    }

    /// Reads until `buffer` is full or the data end. Returns the bytes read.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_some(&mut buffer[done..])? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    /// Reads past `count` bytes or to the end. Returns the bytes passed.
    pub(crate) fn skip(&mut self, count: u64) -> Result<u64, String> {
        let mut piece = [0; 4096];
        let mut left = count;
        while left > 0 {
            let wanted = left.min(piece.len() as u64) as usize;
            match self.read_some(&mut piece[..wanted])? {
                0 => break,
                n => left -= n as u64,
            }
        }
        Ok(count - left)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        loop {
            let read = match &mut self.reader {
                Reader::Plain(reader) => reader.read(buffer),
                Reader::Gzip(reader) => reader.read(buffer),
            };
            match read {
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if self.gzip() => return Err(self.gzip_error(&e)),
                Err(e) => return Err(plain_error(&e)),
            }
        }
    }

    /// flate2 reports damage as `UnexpectedEof` (the file ends early) or as invalid input or data.
    fn gzip_error(&self, error: &io::Error) -> String {
        let at = self.at;
        match error.kind() {
            io::ErrorKind::UnexpectedEof => format!(
                "truncated gzip: the file of {} bytes ends early, after {at} unpacked bytes\n  \
                 the download or copy is incomplete: fetch it again",
                self.size
            ),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => format!(
                "corrupt gzip: after {at} unpacked bytes the checksum or the data are wrong ({error})\n  \
                 the file is damaged or has foreign bytes at its end: `gzip -t` will tell; fetch it again"
            ),
            _ => plain_error(error),
        }
    }
}

fn plain_error(error: &io::Error) -> String {
    format!("reading failed: {error}")
}

/// Why a file cannot be opened, with dangling links told from absent files.
fn open_error(path: &Path, error: &io::Error) -> String {
    match (error.kind(), fs::read_link(path)) {
        (io::ErrorKind::NotFound, Ok(target)) => format!(
            "this is a link to {}, which does not exist\n  in a DataLad or git-annex data set, fetch it with \
             `datalad get` or `git annex get`",
            escape(&target)
        ),
        (io::ErrorKind::NotFound, Err(_)) => "there is no such file".into(),
        (io::ErrorKind::PermissionDenied, _) => "permission denied".into(),
        _ => error.to_string(),
    }
}

/// How a file name of a volume ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suffix {
    /// `.nii`, `.nii.gz`
    Single,
    /// `.hdr`, `.hdr.gz`
    Header,
    /// `.img`, `.img.gz`
    Voxels,
}

/// The suffix of a volume's file name and the name without it; upper case counts too.
pub(crate) fn suffix(path: &Path) -> Option<(Suffix, PathBuf)> {
    let is = |p: &Path, e: &str| p.extension().is_some_and(|x| x.eq_ignore_ascii_case(e));
    let bare = if is(path, "gz") { path.with_extension("") } else { path.to_path_buf() };
    let kind = [("nii", Suffix::Single), ("hdr", Suffix::Header), ("img", Suffix::Voxels)]
        .into_iter()
        .find(|(e, _)| is(&bare, e))?
        .1;
    Some((kind, bare.with_extension("")))
}

/// The other file of a `.hdr`/`.img` pair, if it is on disk.
pub(crate) fn partner(stem: &Path, wanted: Suffix) -> Option<PathBuf> {
    let endings = match wanted {
        Suffix::Header => ["hdr", "hdr.gz", "HDR", "HDR.GZ"],
        _ => ["img", "img.gz", "IMG", "IMG.GZ"],
    };
    let named = |ending: &str| {
        let mut name = stem.file_name().unwrap_or_default().to_os_string();
        name.push(".");
        name.push(ending);
        stem.with_file_name(name)
    };
    endings.iter().map(|e| named(e)).find(|p| fs::symlink_metadata(p).is_ok())
}
