//! From a file name to the voxels of a NIfTI volume, or to a sentence that says what is wrong with it.
//!
//! Memory follows the bytes that are really there, never what the header claims. The `nifti` crate turns
//! stored numbers into floating point, a piece at a time, behind the checks of [`crate::image::nifti::header`].
//!
//! Does not do: colour, complex numbers, several volumes in a file.

use std::path::{Path, PathBuf};

use nifti::{Endianness, InMemNiftiVolume, IntoNdArray, NiftiHeader};

use crate::error::{Error, Result, escape};
use crate::image::Orientation;
use crate::image::nifti::header::{HEAD_1, HEAD_2, Header};
use crate::image::nifti::source::{Source, Suffix, partner, suffix};
use crate::image::nifti::{header, sniff};

/// Voxels decoded at a time; fits the 16-bit extents of the `nifti` crate.
const PIECE_VOXELS: usize = 1 << 15;
/// Voxels by which the buffer of a gzip file grows, since its size is not known beforehand.
const GROWTH_VOXELS: usize = 1 << 22;
/// More voxels than any scanner gives (a cube of 1290).
const VOXELS_MAX: u128 = 1 << 31;
/// Bytes after the voxels of a gzip file that are read to reach its checksum.
const SURPLUS_MAX: u64 = 1 << 20;

/// Unpacked bytes of a gzip file with a bad header that are searched for damage.
const CORRUPT_SEARCH: u64 = 1 << 26;

/// A volume as its file stores it, scaled by slope and intercept.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Extents along the file's axes (x, y, z).
    pub dims: [usize; 3],
    /// Voxel index (x, y, z, 1) to millimetres (right, anterior, superior).
    pub affine: [[f64; 4]; 3],
    /// Edges of a voxel along the file's axes (x, y, z), mm.
    pub spacing_mm: [f64; 3],
    /// Voxels, x fastest, all finite.
    pub voxels: Vec<f32>,
    /// What was odd in the file but could be read, a sentence each.
    pub warnings: Vec<String>,
}

impl Image {
    /// How the file's axes lie in the body.
    pub fn orientation(&self) -> Orientation {
        Orientation::of(&self.affine)
    }
}

/// Size and position of a volume, from its header alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Extents along the file's axes (x, y, z).
    pub dims: [usize; 3],
    /// Voxel index (x, y, z, 1) to millimetres (right, anterior, superior).
    pub affine: [[f64; 4]; 3],
    /// Edges of a voxel along the file's axes (x, y, z), mm.
    pub spacing_mm: [f64; 3],
    /// How the file's axes lie in the body.
    pub orientation: Orientation,
}

/// Reads a NIfTI-1 or NIfTI-2 volume: `.nii`, `.hdr` with `.img`, each also as gzip, in either byte order.
///
/// Errors: [`Error::Data`] naming the file, what is wrong, and what to do.
pub fn read_nifti(path: &Path) -> Result<Image> {
    read(path).map_err(|what| Error::data(path, what))
}

/// Reads and checks the header only; the file's length is compared with it where it is not gzip.
///
/// Errors: as [`read_nifti`].
pub fn read_geometry(path: &Path) -> Result<Geometry> {
    let (header, _) = open(path).map_err(|what| Error::data(path, what))?;
    let affine = header.grid.affine;
    let (dims, spacing_mm) = (header.dims, header.grid.spacing_mm);
    Ok(Geometry { dims, affine, spacing_mm, orientation: Orientation::of(&affine) })
}

/// The files that make up the volume `path`: itself, and its partner if it is one of a pair.
pub(crate) fn files_of(path: &Path) -> Vec<PathBuf> {
    let mut files = vec![path.to_path_buf()];
    match suffix(path) {
        Some((Suffix::Header, stem)) => files.extend(partner(&stem, Suffix::Voxels)),
        Some((Suffix::Voxels, stem)) => files.extend(partner(&stem, Suffix::Header)),
        _ => {}
    }
    files
}

fn read(path: &Path) -> std::result::Result<Image, String> {
    let (mut header, mut source) = open(path)?;
    skip_to_voxels(&mut header, &mut source)?;
    let voxels = voxels(&mut header, &mut source)?;
    check_end(&mut header, &mut source)?;
    Ok(Image {
        dims: header.dims,
        affine: header.grid.affine,
        spacing_mm: header.grid.spacing_mm,
        voxels,
        warnings: header.warnings,
    })
}

/// The checked header and the file with the voxels.
fn open(path: &Path) -> std::result::Result<(Header, Source), String> {
    let (header, source) = match suffix(path) {
        Some((Suffix::Voxels, stem)) => {
            let Some(header_path) = partner(&stem, Suffix::Header) else {
                return Err(format!(
                    "this file holds voxels only, and {}.hdr with their header is missing\n  \
                     put the header beside it",
                    escape(&stem)
                ));
            };
            let (header, _) =
                open_header(&header_path).map_err(|e| format!("{}: {e}", escape(&header_path)))?;
            if header.single_file {
                return Err(format!(
                    "by its magic {} holds the voxels itself, so this file is not needed\n  \
                     name the header's file instead",
                    escape(&header_path)
                ));
            }
            (header, Source::open(path)?)
        }
        named => {
            let (header, source) = open_header(path)?;
            if header.single_file {
                (header, source)
            } else {
                let stem = named.map_or_else(|| path.to_path_buf(), |(_, stem)| stem);
                let Some(voxels) = partner(&stem, Suffix::Voxels) else {
                    return Err(format!(
                        "by its magic this is the header of a pair, and {}.img with the voxels is missing\n  \
                         put it beside the header",
                        escape(&stem)
                    ));
                };
                let source =
                    Source::open(&voxels).map_err(|e| format!("{}: {e}", escape(&voxels)))?;
                (header, source)
            }
        }
    };
    check_size(&header, &source)?;
    Ok((header, source))
}

fn open_header(path: &Path) -> std::result::Result<(Header, Source), String> {
    let mut source = Source::open(path)?;
    match read_header(&mut source) {
        Ok(header) => Ok((header, source)),
        Err(what) if source.gzip() => {
            // A damaged gzip gives a senseless header: then the damage is what to name.
            source.skip(CORRUPT_SEARCH)?;
            Err(what)
        }
        Err(what) => Err(what),
    }
}

fn read_header(source: &mut Source) -> std::result::Result<Header, String> {
    let mut head = [0; HEAD_2];
    let mut got = source.fill(&mut head[..HEAD_1])?;
    if let Some(what) = sniff::not_nifti(&head[..got]) {
        return Err(what);
    }
    let short = |got: usize, needed: usize| {
        format!(
            "the file ends within the header: it has {got} bytes, a header needs {needed} bytes\n  \
             the download or copy is incomplete: fetch it again"
        )
    };
    if got < HEAD_1 {
        return Err(short(got, HEAD_1));
    }
    let layout = header::layout(&head)?;
    if layout.bytes() > got {
        got += source.fill(&mut head[HEAD_1..])?;
        if got < layout.bytes() {
            return Err(short(got, layout.bytes()));
        }
    }
    header::parse(&head, layout)
}

/// Compares what the header claims with what the file can hold, before anything is allocated.
fn check_size(header: &Header, source: &Source) -> std::result::Result<(), String> {
    let (size, most) = (source.size, source.size_max());
    let at_most = if source.gzip() { "can unpack to at most" } else { "holds" };
    if header.vox_offset > most {
        return Err(format!(
            "vox_offset is {}, which lies beyond the end: the file {at_most} {most} bytes",
            header.vox_offset
        ));
    }
    if u128::from(header.vox_offset) + header.voxel_bytes() > u128::from(most) {
        return Err(early_end(header, at_most, most - header.vox_offset, size));
    }
    if header.count() > VOXELS_MAX {
        return Err(format!(
            "the volume is too large: {} are {} voxels, allowed are {VOXELS_MAX}",
            header.shape_text(),
            header.count()
        ));
    }
    Ok(())
}

fn early_end(header: &Header, holds: &str, got: u64, size: u64) -> String {
    format!(
        "the voxels end early: {} need {} bytes, the file {holds} {got} bytes for them ({size} on disk)\n  \
         the download or copy is incomplete: fetch it again",
        header.shape_text(),
        header.voxel_bytes()
    )
}

/// Goes to the first voxel, past the rest of the header and any extensions.
fn skip_to_voxels(header: &mut Header, source: &mut Source) -> std::result::Result<(), String> {
    let mut extender = [0; 4];
    let room = header.vox_offset.saturating_sub(source.at) >= 4;
    if header.single_file && room {
        source.fill(&mut extender)?;
    }
    if extender[0] != 0 && header.single_file {
        zstream_extensions(header, source)?;
    }
    let left = header.vox_offset - source.at;
    if source.skip(left)? < left {
        return Err(format!(
            "vox_offset is {}, which lies beyond the end: the file holds {} bytes",
            header.vox_offset, source.at
        ));
    }
    Ok(())
}

/// Checks the sizes in the chain of extensions. Their content is not used, so a broken chain is a warning:
/// `vox_offset` alone says where the voxels are.
fn zstream_extensions(header: &mut Header, source: &mut Source) -> std::result::Result<(), String> {
    let mut first = true;
    loop {
        let room = header.vox_offset - source.at;
        if room < 8 {
            if first {
                header.warnings.push(
                    "the header announces extensions, but vox_offset leaves no room for them"
                        .into(),
                );
            }
            return Ok(());
        }
        let mut head = [0; 8];
        if source.fill(&mut head)? < 8 {
            return Ok(());
        }
        let size = [head[0], head[1], head[2], head[3]];
        let size = if header.layout.big_endian {
            i32::from_be_bytes(size)
        } else {
            i32::from_le_bytes(size)
        };
        if size == 0 && !first {
            return Ok(());
        }
        if size < 8 || size % 16 != 0 || size as u64 > room {
            header.warnings.push(format!(
                "an extension has the size {size}, needed is a multiple of 16 up to {room}; \
                 extensions are ignored"
            ));
            return Ok(());
        }
        source.skip(size as u64 - 8)?;
        first = false;
    }
}

/// Decodes and scales all voxels; replaces those that are not finite.
fn voxels(header: &mut Header, source: &mut Source) -> std::result::Result<Vec<f32>, String> {
    let count = header.count() as usize;
    let mut out: Vec<f32> = Vec::new();
    let mut overflows = 0usize;
    while out.len() < count {
        let wanted = PIECE_VOXELS.min(count - out.len());
        let mut bytes = vec![0; wanted * header.voxel.bytes];
        let got = source.fill(&mut bytes)?;
        if got < bytes.len() {
            let got = (out.len() * header.voxel.bytes + got) as u64;
            return Err(early_end(header, "holds", got, source.size));
        }
        if out.capacity() - out.len() < wanted {
            let left = count - out.len();
            let grow = if source.gzip() { left.min(GROWTH_VOXELS) } else { left };
            out.try_reserve_exact(grow)
                .map_err(|_| format!("not enough memory for {} as float32", header.shape_text()))?;
        }
        for raw in decode(header, bytes)? {
            let value = match header.scaling {
                Some((slope, inter)) => raw * slope + inter,
                None => raw,
            };
            let value = value as f32;
            overflows += usize::from(raw.is_finite() && !value.is_finite());
            out.push(value);
        }
    }
    if let (Some((slope, inter)), 1..) = (header.scaling, overflows) {
        return Err(format!(
            "scl_slope {slope} and scl_inter {inter} take {overflows} voxels out of the range of float32"
        ));
    }
    replace_not_finite(&mut out, &mut header.warnings)?;
    Ok(out)
}

/// One piece through the `nifti` crate: stored bytes to float64, without scaling.
fn decode(header: &Header, bytes: Vec<u8>) -> std::result::Result<Vec<f64>, String> {
    let count = (bytes.len() / header.voxel.bytes) as u16;
    let piece = NiftiHeader {
        dim: [3, count, 1, 1, 1, 1, 1, 1],
        datatype: header.voxel.code,
        bitpix: header.voxel.bytes as i16 * 8,
        scl_slope: 0.0,
        scl_inter: 0.0,
        endianness: if header.layout.big_endian { Endianness::Big } else { Endianness::Little },
        ..NiftiHeader::default()
    };
    InMemNiftiVolume::from_raw_data(&piece, bytes)
        .and_then(IntoNdArray::into_ndarray::<f64>)
        .map(|array| array.into_raw_vec_and_offset().0)
        .map_err(|e| format!("the voxels cannot be decoded: {e}"))
}

fn replace_not_finite(
    voxels: &mut [f32],
    warnings: &mut Vec<String>,
) -> std::result::Result<(), String> {
    let bad = voxels.iter().filter(|v| !v.is_finite()).count();
    if bad == 0 {
        return Ok(());
    }
    if bad == voxels.len() {
        return Err(format!("no finite voxel: all {bad} are NaN, infinite, or beyond float32"));
    }
    let least = voxels.iter().copied().filter(|v| v.is_finite()).fold(f32::INFINITY, f32::min);
    voxels.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = least);
    warnings.push(format!(
        "{bad} of {} voxels are NaN, infinite or beyond float32; set to the smallest finite value {least}",
        voxels.len()
    ));
    Ok(())
}

/// Reads a gzip file to its end, where its checksum stands, and notes bytes after the voxels.
fn check_end(header: &mut Header, source: &mut Source) -> std::result::Result<(), String> {
    let surplus = if source.gzip() {
        let surplus = source.skip(SURPLUS_MAX + 1)?;
        if surplus > SURPLUS_MAX {
            return Err(format!(
                "more than {SURPLUS_MAX} bytes of trailing data follow the {} that the header announces\n  \
                 the header does not belong to this file, or the file is not a volume",
                header.shape_text()
            ));
        }
        surplus
    } else {
        source.size.saturating_sub(source.at)
    };
    if surplus > 0 {
        header.warnings.push(format!("{surplus} trailing bytes after the voxels are ignored"));
    }
    Ok(())
}
