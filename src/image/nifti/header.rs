//! The header of a NIfTI-1 or NIfTI-2 file, read and checked field by field.
//!
//! Headers in the wild are wrong in every field, and a wrong field read as right gives wrong voxels or a
//! mirrored brain. So nothing leaves this file unchecked. It does not touch files: it takes bytes.
//!
//! Source: nifti1.h (2007) and nifti2.h (2011) of the NIfTI Data Format Working Group.

use crate::image::nifti::affine;
use crate::image::nifti::affine::{Forms, Grid};

/// Bytes of a NIfTI-1 header.
pub(crate) const HEAD_1: usize = 348;
/// Bytes of a NIfTI-2 header.
pub(crate) const HEAD_2: usize = 540;
/// The most bytes that extensions may take before the voxels.
const OFFSET_MAX: f64 = (1u64 << 30) as f64;

/// What to do about a field that no reader could use.
const DAMAGED: &str = "\n  the header is damaged: export or download the volume again";

/// Version and byte order: what must be known before any field can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Whether the header is NIfTI-2.
    pub(crate) second: bool,
    /// Whether numbers are stored with their highest byte first.
    pub(crate) big_endian: bool,
}

impl Layout {
    /// Bytes of the header.
    pub(crate) fn bytes(self) -> usize {
        if self.second { HEAD_2 } else { HEAD_1 }
    }
}

/// A voxel type that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VoxelType {
    /// The `datatype` code of the standard.
    pub(crate) code: i16,
    /// Bytes of a voxel.
    pub(crate) bytes: usize,
    /// Its name in messages.
    pub(crate) name: &'static str,
}

const TYPES: [VoxelType; 10] = [
    VoxelType { code: 2, bytes: 1, name: "uint8" },
    VoxelType { code: 4, bytes: 2, name: "int16" },
    VoxelType { code: 8, bytes: 4, name: "int32" },
    VoxelType { code: 16, bytes: 4, name: "float32" },
    VoxelType { code: 64, bytes: 8, name: "float64" },
    VoxelType { code: 256, bytes: 1, name: "int8" },
    VoxelType { code: 512, bytes: 2, name: "uint16" },
    VoxelType { code: 768, bytes: 4, name: "uint32" },
    VoxelType { code: 1024, bytes: 8, name: "int64" },
    VoxelType { code: 1280, bytes: 8, name: "uint64" },
];

/// A header whose every used field was checked.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// Version and byte order.
    pub(crate) layout: Layout,
    /// Whether the voxels follow in the same file.
    pub(crate) single_file: bool,
    /// Extents along the file's axes (x, y, z), each at least 1.
    pub(crate) dims: [usize; 3],
    /// Type of a stored voxel.
    pub(crate) voxel: VoxelType,
    /// Bytes before the first voxel, in the file that holds the voxels.
    pub(crate) vox_offset: u64,
    /// Slope and intercept, where the stored numbers are to be scaled.
    pub(crate) scaling: Option<(f64, f64)>,
    /// Where the voxels lie in space.
    pub(crate) grid: Grid,
    /// What was odd but could be read.
    pub(crate) warnings: Vec<String>,
}

impl Header {
    /// Number of voxels.
    pub(crate) fn count(&self) -> u128 {
        self.dims.iter().map(|&d| d as u128).product()
    }

    /// Bytes of all voxels.
    pub(crate) fn voxel_bytes(&self) -> u128 {
        self.count() * self.voxel.bytes as u128
    }

    /// The extents as they stand in messages.
    pub(crate) fn shape_text(&self) -> String {
        format!("{} x {} x {} of {}", self.dims[0], self.dims[1], self.dims[2], self.voxel.name)
    }
}

/// Numbers at byte offsets. Offsets are constants below the header's length, which `parse` asserts.
struct Fields<'a> {
    bytes: &'a [u8],
    layout: Layout,
}

impl Fields<'_> {
    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[at..at + N]);
        if self.layout.big_endian {
            out.reverse();
        }
        out
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.take(at))
    }

    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.take(at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.take(at))
    }

    /// A real number: 4 bytes in NIfTI-1, 8 in NIfTI-2.
    fn exact(&self, at: usize) -> f64 {
        if self.layout.second {
            f64::from_le_bytes(self.take(at))
        } else {
            f64::from(f32::from_le_bytes(self.take(at)))
        }
    }

    /// A real number that people read. A float32 becomes the float64 of the same shortest decimal, so
    /// that a stored 1.2 is shown as 1.2.
    fn real(&self, at: usize) -> f64 {
        if self.layout.second {
            return self.exact(at);
        }
        let value = f32::from_le_bytes(self.take(at));
        if value.is_finite() {
            value.to_string().parse().unwrap_or(f64::from(value))
        } else {
            f64::from(value)
        }
    }

    /// The `index`-th of the reals that begin at `at`.
    fn nth(&self, at: usize, index: usize) -> f64 {
        self.real(at + index * if self.layout.second { 8 } else { 4 })
    }

    /// The place of a field in either version.
    fn at(&self, first: usize, second: usize) -> usize {
        if self.layout.second { second } else { first }
    }

    /// Rank (index 0) or the extent along dimension `index`, signed as stored.
    fn dim(&self, index: usize) -> i64 {
        if self.layout.second {
            self.i64(16 + index * 8)
        } else {
            i64::from(self.i16(40 + index * 2))
        }
    }
}

/// Finds version and byte order from the first bytes of a file.
///
/// `head`: at least 348 bytes. Errors with the sentence for the user when this is no NIfTI header.
pub(crate) fn layout(head: &[u8]) -> Result<Layout, String> {
    assert!(head.len() >= HEAD_1, "the caller reads 348 bytes first");
    let size = [head[0], head[1], head[2], head[3]];
    let (little, big) = (i32::from_le_bytes(size), i32::from_be_bytes(size));
    for (value, big_endian) in [(little, false), (big, true)] {
        if value == HEAD_1 as i32 || value == HEAD_2 as i32 {
            return Ok(Layout { second: value == HEAD_2 as i32, big_endian });
        }
    }
    let magic = &head[344..347];
    if magic == b"n+1" || magic == b"ni1" {
        return Err(format!(
            "sizeof_hdr is {little}, a NIfTI-1 header has 348 there (NIfTI-2: 540)\n  \
             the header is damaged: export the volume again"
        ));
    }
    Err(format!(
        "this is not a NIfTI file: it has no NIfTI magic, and its first number is {little} where 348 or \
         540 must stand\n  convert the scan to .nii.gz first (dcm2niix reads DICOM)"
    ))
}

/// Reads and checks a whole header. `head` holds at least `layout.bytes()` bytes.
pub(crate) fn parse(head: &[u8], layout: Layout) -> Result<Header, String> {
    assert!(head.len() >= layout.bytes(), "the caller reads the whole header first");
    let fields = Fields { bytes: head, layout };
    let mut warnings = Vec::new();
    let single_file = magic(&fields)?;
    let dims = extents(&fields)?;
    let voxel = voxel_type(&fields)?;
    let vox_offset = vox_offset(&fields, single_file, &mut warnings)?;
    let scaling = scaling(&fields, &mut warnings)?;
    let grid = affine::grid(&forms(&fields), &mut warnings)?;
    Ok(Header { layout, single_file, dims, voxel, vox_offset, scaling, grid, warnings })
}

/// Whether voxels follow in the same file.
fn magic(fields: &Fields<'_>) -> Result<bool, String> {
    let magic = fields.bytes[fields.at(344, 4)..][..4].to_vec();
    if fields.layout.second && fields.bytes[8..12] != *b"\r\n\x1a\n" && magic[0] == b'n' {
        return Err("the NIfTI-2 magic is damaged in the way a text-mode transfer does it\n  \
                    copy the file again in binary mode"
            .into());
    }
    match (magic.as_slice(), fields.layout.second) {
        (b"n+1\0", false) | (b"n+2\0", true) => Ok(true),
        (b"ni1\0", false) | (b"ni2\0", true) => Ok(false),
        ([0, 0, 0, 0], false) => {
            Err("this is an Analyze 7.5 file (the header has no NIfTI magic), \
                                      which is not supported: its left and right are undefined\n  \
                                      convert it to NIfTI with a tool that knows its orientation"
                .into())
        }
        (other, second) => Err(format!(
            "unknown version: the magic is \"{}\", needed is {}",
            other.escape_ascii(),
            if second { "\"n+2\" or \"ni2\"" } else { "\"n+1\" or \"ni1\"" }
        )),
    }
}

/// The three extents; further dimensions must have the extent 1.
fn extents(fields: &Fields<'_>) -> Result<[usize; 3], String> {
    let rank = fields.dim(0);
    if !(1..=7).contains(&rank) {
        return Err(format!(
            "the number of dimensions dim[0] is {rank}, allowed are 1 to 7{DAMAGED}"
        ));
    }
    let rank = rank as usize;
    let all: Vec<i64> = (1..=rank).map(|i| fields.dim(i)).collect();
    if let Some(i) = all.iter().position(|&d| d < 1) {
        return Err(format!(
            "the extent dim[{}] is {}, needed is at least 1{DAMAGED}",
            i + 1,
            all[i]
        ));
    }
    let shape = all.iter().map(i64::to_string).collect::<Vec<_>>().join(" x ");
    if rank < 3 {
        return Err(format!(
            "the file has {rank} dimensions ({shape}), needed are 3\n  leave slices and lists out, or join the slices of a scan to one volume"
        ));
    }
    let total = all.iter().try_fold(1u64, |product, &d| product.checked_mul(d as u64));
    if total.and_then(|t| t.checked_mul(8)).is_none_or(|bytes| bytes > i64::MAX as u64) {
        return Err(format!("{shape} voxels are too large for any file: the header is damaged"));
    }
    if rank > 3 && all[3] > 1 && all[4..].iter().all(|&d| d == 1) {
        return Err(format!(
            "the file holds {} volumes ({shape}), needed is one\n  \
             split it into files of one volume each (fslsplit, nibabel.funcs.four_to_three)",
            all[3]
        ));
    }
    if all[3..].iter().any(|&d| d != 1) {
        return Err(format!(
            "the dimensions are {shape}: several values a voxel, needed is one volume of three \
             dimensions\n  split it into files of one volume each"
        ));
    }
    Ok([all[0] as usize, all[1] as usize, all[2] as usize])
}

/// The voxel type, if it is one of the ten real ones and `bitpix` agrees.
fn voxel_type(fields: &Fields<'_>) -> Result<VoxelType, String> {
    let (code, bitpix) = (fields.i16(fields.at(70, 12)), fields.i16(fields.at(72, 14)));
    let refused = match code {
        128 | 2304 => Some("a colour type (RGB)"),
        32 | 1792 | 2048 => Some("complex"),
        1536 => Some("float128"),
        1 => Some("one bit a voxel"),
        0 => Some("unknown"),
        _ => None,
    };
    if let Some(name) = refused {
        return Err(format!(
            "the datatype {code} is {name}, which is not supported\n  \
             convert the volume to one real number a voxel, such as int16 or float32"
        ));
    }
    let Some(&found) = TYPES.iter().find(|t| t.code == code) else {
        let known: Vec<String> = TYPES.iter().map(|t| format!("{} {}", t.code, t.name)).collect();
        return Err(format!(
            "the datatype {code} does not exist; supported are {}",
            known.join(", ")
        ));
    };
    if i32::from(bitpix) != found.bytes as i32 * 8 {
        return Err(format!(
            "bitpix is {bitpix}, but the datatype {} has {} bits: the header contradicts itself{DAMAGED}",
            found.name,
            found.bytes * 8
        ));
    }
    Ok(found)
}

/// Bytes before the first voxel.
fn vox_offset(
    fields: &Fields<'_>,
    single_file: bool,
    warnings: &mut Vec<String>,
) -> Result<u64, String> {
    let stored = if fields.layout.second {
        fields.i64(168) as f64
    } else {
        fields.real(fields.at(108, 168))
    };
    let least = if single_file { fields.layout.bytes() as u64 + 4 } else { 0 };
    if single_file && stored == 0.0 {
        warnings.push(format!("vox_offset is 0, taken as {least}"));
        return Ok(least);
    }
    if !stored.is_finite() || stored.fract() != 0.0 {
        return Err(format!("vox_offset is {stored}, needed is a whole number of bytes{DAMAGED}"));
    }
    if !(least as f64..=OFFSET_MAX).contains(&stored) {
        return Err(format!(
            "vox_offset is {stored}, allowed are {least} to {OFFSET_MAX}{DAMAGED}"
        ));
    }
    Ok(stored as u64)
}

/// Slope and intercept. A slope of 0 means "none" in the standard; NaN is written by some tools for it.
fn scaling(fields: &Fields<'_>, warnings: &mut Vec<String>) -> Result<Option<(f64, f64)>, String> {
    let (slope, inter) = (fields.exact(fields.at(112, 176)), fields.exact(fields.at(116, 184)));
    if slope == 0.0 || (slope == 1.0 && inter == 0.0) {
        return Ok(None);
    }
    if !slope.is_finite() {
        warnings.push(format!("scl_slope is {slope}, voxels are taken unscaled"));
        return Ok(None);
    }
    if !inter.is_finite() {
        return Err(format!(
            "the intercept scl_inter is {inter} with the slope {slope}: voxels cannot be scaled{DAMAGED}"
        ));
    }
    Ok(Some((slope, inter)))
}

fn forms(fields: &Fields<'_>) -> Forms {
    let reals = |at: usize| [0, 1, 2, 3].map(|i| fields.nth(at, i));
    let code = |first: usize, second: usize| {
        if fields.layout.second { fields.i32(second) } else { i32::from(fields.i16(first)) }
    };
    let [b, c, d, x] = reals(fields.at(256, 352));
    let (y, z) = (fields.nth(fields.at(256, 352), 4), fields.nth(fields.at(256, 352), 5));
    Forms {
        pixdim: reals(fields.at(76, 104)),
        qform_code: code(252, 344),
        sform_code: code(254, 348),
        quaternion: [b, c, d],
        q_offset: [x, y, z],
        srow: [reals(fields.at(280, 400)), reals(fields.at(296, 432)), reals(fields.at(312, 464))],
        units: if fields.layout.second {
            fields.i32(500) & 7
        } else {
            i32::from(fields.bytes[123]) & 7
        },
    }
}
