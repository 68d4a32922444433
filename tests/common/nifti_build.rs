//! Building NIfTI files byte by byte, without the code under test.
//!
//! The base volume has 5 x 4 x 3 voxels of int16 with the values 17, 54, 91, ..., voxels of
//! 1.5 x 2 x 2.5 mm, and axes right, anterior, superior.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

pub(crate) const DIMS: [usize; 3] = [5, 4, 3];
pub(crate) const SPACING_MM: [f64; 3] = [1.5, 2.0, 2.5];

/// The stored numbers of the base volume.
pub(crate) fn values() -> Vec<f64> {
    (0..60).map(|i| f64::from(i * 37 % 97 + 17)).collect()
}

/// A file in the making.
#[derive(Clone)]
pub(crate) struct Build {
    pub(crate) head: Vec<u8>,
    pub(crate) big: bool,
    /// Between header and voxels.
    pub(crate) middle: Vec<u8>,
    pub(crate) voxels: Vec<u8>,
}

impl Build {
    /// The base volume as NIfTI-1.
    pub(crate) fn first(big: bool) -> Build {
        let mut b = Build { head: vec![0; 348], big, middle: vec![0; 4], voxels: Vec::new() };
        b.put(0, &348i32.to_be_bytes());
        for (i, d) in [3i16, 5, 4, 3, 1, 1, 1, 1].into_iter().enumerate() {
            b.put(40 + 2 * i, &d.to_be_bytes());
        }
        for (i, d) in [1.0f32, 1.5, 2.0, 2.5].into_iter().enumerate() {
            b.put(76 + 4 * i, &d.to_be_bytes());
        }
        b = b.f32(108, 352.0).i16(252, 1).i16(254, 1);
        b.head[123] = 2;
        b = b.srow([[1.5, 0.0, 0.0, -3.0], [0.0, 2.0, 0.0, -4.0], [0.0, 0.0, 2.5, -5.0]]);
        b = b.f32(268, -3.0).f32(272, -4.0).f32(276, -5.0);
        b.head[344..348].copy_from_slice(b"n+1\0");
        b.stored(4, &values())
    }

    /// The base volume as NIfTI-2.
    pub(crate) fn second(big: bool) -> Build {
        let mut b = Build { head: vec![0; 540], big, middle: vec![0; 4], voxels: Vec::new() };
        b.put(0, &540i32.to_be_bytes());
        b.head[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
        for (i, d) in [3i64, 5, 4, 3, 1, 1, 1, 1].into_iter().enumerate() {
            b = b.i64(16 + 8 * i, d);
        }
        for (i, d) in [1.0f64, 1.5, 2.0, 2.5].into_iter().enumerate() {
            b.put(104 + 8 * i, &d.to_be_bytes());
        }
        b = b.i64(168, 544);
        b.put(348, &1i32.to_be_bytes());
        b.put(500, &2i32.to_be_bytes());
        for (r, at) in [400, 432, 464].into_iter().enumerate() {
            b.put(at + 8 * r, &SPACING_MM[r].to_be_bytes());
        }
        let voxels = Build::first(big).voxels;
        b.put(12, &4i16.to_be_bytes());
        b.put(14, &16i16.to_be_bytes());
        Build { voxels, ..b }
    }

    /// Writes a number given highest byte first.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let to = &mut self.head[at..at + bytes.len()];
        to.copy_from_slice(bytes);
        if !self.big {
            to.reverse();
        }
    }

    pub(crate) fn i16(mut self, at: usize, value: i16) -> Build {
        self.put(at, &value.to_be_bytes());
        self
    }

    pub(crate) fn i32(mut self, at: usize, value: i32) -> Build {
        self.put(at, &value.to_be_bytes());
        self
    }

    pub(crate) fn i64(mut self, at: usize, value: i64) -> Build {
        self.put(at, &value.to_be_bytes());
        self
    }

    pub(crate) fn f32(mut self, at: usize, value: f32) -> Build {
        self.put(at, &value.to_be_bytes());
        self
    }

    pub(crate) fn byte(mut self, at: usize, value: u8) -> Build {
        self.head[at] = value;
        self
    }

    pub(crate) fn magic(mut self, magic: &[u8; 4]) -> Build {
        self.head[344..348].copy_from_slice(magic);
        self
    }

    pub(crate) fn dim(mut self, dims: &[i16]) -> Build {
        for (i, &d) in dims.iter().enumerate() {
            self.put(40 + 2 * i, &d.to_be_bytes());
        }
        self
    }

    pub(crate) fn srow(mut self, rows: [[f32; 4]; 3]) -> Build {
        for (i, &v) in rows.iter().flatten().enumerate() {
            self.put(280 + 4 * i, &v.to_be_bytes());
        }
        self
    }

    /// Sets `vox_offset` and fills up to it after what is there already.
    pub(crate) fn offset(mut self, offset: usize, extender: u8) -> Build {
        self.middle.resize(offset - 348, 0);
        self.middle[0] = extender;
        self.f32(108, offset as f32)
    }

    /// Appends an extension of the given stated and true size.
    pub(crate) fn extension(mut self, stated: i32, size: usize) -> Build {
        self.middle[0] = 1;
        let bytes = if self.big { stated.to_be_bytes() } else { stated.to_le_bytes() };
        self.middle.extend(bytes);
        self.middle.extend(vec![6; size - 4]);
        let offset = (348 + self.middle.len()) as f32;
        self.f32(108, offset)
    }

    /// Voxels of another type; sets datatype and bitpix.
    pub(crate) fn stored(mut self, code: i16, values: &[f64]) -> Build {
        let mut out = Vec::new();
        for &v in values {
            let mut bytes = match code {
                2 => vec![v as u8],
                4 => (v as i16).to_be_bytes().to_vec(),
                8 => (v as i32).to_be_bytes().to_vec(),
                16 => (v as f32).to_be_bytes().to_vec(),
                64 => v.to_be_bytes().to_vec(),
                256 => vec![v as i8 as u8],
                512 => (v as u16).to_be_bytes().to_vec(),
                768 => (v as u32).to_be_bytes().to_vec(),
                1024 => (v as i64).to_be_bytes().to_vec(),
                _ => (v as u64).to_be_bytes().to_vec(),
            };
            if !self.big {
                bytes.reverse();
            }
            out.extend(bytes);
        }
        let bits = out.len() / values.len() * 8;
        self.voxels = out;
        self.i16(70, code).i16(72, bits as i16)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.head[..], &self.middle, &self.voxels].concat()
    }

    pub(crate) fn gz(&self) -> Vec<u8> {
        gz(&self.bytes())
    }
}

pub(crate) fn gz(bytes: &[u8]) -> Vec<u8> {
    packed(GzEncoder::new(Vec::new(), Compression::new(6)), bytes)
}

/// Writing to memory does not fail; an empty result would fail the case.
pub(crate) fn packed(mut encoder: GzEncoder<Vec<u8>>, bytes: &[u8]) -> Vec<u8> {
    encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default()
}

/// The next number of a SplitMix64 stream.
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
