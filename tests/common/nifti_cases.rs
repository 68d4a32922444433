//! Malformed and odd NIfTI files, each with what reading it must give.
//!
//! What a case starts from is the base volume of [`build`].

use flate2::{Compression, GzBuilder};

#[path = "nifti_build.rs"]
pub(crate) mod build;

use build::{Build, DIMS, SPACING_MM, gz, packed, splitmix, values};

/// What reading a case must give.
pub(crate) enum Expect {
    /// An input error (exit code 3) whose text contains this.
    Error(&'static str),
    /// A volume.
    Volume(Expected),
}

/// A volume as it must be read.
pub(crate) struct Expected {
    /// Extents (x, y, z).
    pub(crate) dims: [usize; 3],
    /// Edges of a voxel (x, y, z), mm.
    pub(crate) spacing_mm: [f64; 3],
    /// Directions of the file's axes.
    pub(crate) code: &'static str,
    /// Voxels, x fastest.
    pub(crate) voxels: Vec<f32>,
    /// A part of one of the warnings; `None`: there must be no warning.
    pub(crate) warning: Option<&'static str>,
}

/// One case: files to write into an empty folder, the first of which is read.
pub(crate) struct Case {
    /// Short name.
    pub(crate) id: String,
    /// Names and contents.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// What reading the first file must give.
    pub(crate) expect: Expect,
}

fn base() -> Build {
    Build::first(false)
}

fn good() -> Expected {
    Expected {
        dims: DIMS,
        spacing_mm: SPACING_MM,
        code: "RAS",
        voxels: values().iter().map(|&v| v as f32).collect(),
        warning: None,
    }
}

/// The table in the making.
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, id: impl Into<String>, name: &str, bytes: Vec<u8>, expect: Expect) {
        self.0.push(Case { id: id.into(), files: vec![(name.into(), bytes)], expect });
    }

    fn bad(&mut self, id: impl Into<String>, bytes: Vec<u8>, says: &'static str) {
        self.add(id, "a.nii", bytes, Expect::Error(says));
    }

    fn bad_gz(&mut self, id: &str, bytes: Vec<u8>, says: &'static str) {
        self.add(id, "a.nii.gz", bytes, Expect::Error(says));
    }

    fn ok(&mut self, id: impl Into<String>, build: &Build, expected: Expected) {
        self.add(id, "a.nii", build.bytes(), Expect::Volume(expected));
    }

    fn warned(&mut self, id: impl Into<String>, build: &Build, warning: &'static str) {
        self.ok(id, build, Expected { warning: Some(warning), ..good() });
    }
}

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut c = Cases(Vec::new());
    truncated(&mut c);
    identity(&mut c);
    dimensions(&mut c);
    types(&mut c);
    offsets(&mut c);
    scaling(&mut c);
    geometry(&mut c);
    pairs(&mut c);
    second_version(&mut c);
    gzip(&mut c);
    other_formats(&mut c);
    contents(&mut c);
    c.0
}

fn truncated(c: &mut Cases) {
    let whole = base().bytes();
    c.bad("empty", vec![], "it has 0 bytes, a header needs 348");
    for n in [1, 4, 100, 347] {
        c.bad(format!("header_{n}_bytes"), whole[..n].to_vec(), "a header needs 348");
    }
    c.bad("header_only", whole[..352].to_vec(), "int16 need 120 bytes, the file holds 0 bytes");
    c.bad("voxels_half", whole[..412].to_vec(), "need 120 bytes, the file holds 60 bytes");
    c.bad("voxels_one_short", whole[..471].to_vec(), "need 120 bytes, the file holds 119 bytes");
    c.bad_gz("voxels_half_gz", gz(&whole[..412]), "need 120 bytes, the file holds 60 bytes");
    let trailing = [&whole[..], &[0; 9]].concat();
    let warned = Expected { warning: Some("9 trailing bytes"), ..good() };
    c.add("ok_trailing_bytes", "a.nii", trailing, Expect::Volume(warned));
}

fn identity(c: &mut Cases) {
    c.bad("all_zero", vec![0; 4096], "no NIfTI magic");
    let random: Vec<u8> =
        (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    c.bad("random_bytes", random, "not a NIfTI file");
    c.bad("magic_zero", base().magic(&[0; 4]).bytes(), "Analyze");
    c.bad("magic_n3", base().magic(b"n+3\0").bytes(), "unknown version");
    c.bad("magic_escape", base().magic(b"\x1b[2J").bytes(), "\\x1b[2J");
    c.bad("magic_ni1_single", base().magic(b"ni1\0").bytes(), "a.img");
    for (value, says) in
        [(0, "sizeof_hdr is 0"), (349, "sizeof_hdr is 349"), (-1, "sizeof_hdr is -1")]
    {
        c.bad(format!("sizeof_hdr_{value}"), base().i32(0, value).bytes(), says);
    }
    let mut text = base();
    text.head[148..228].fill(0xff);
    text.head[4..14].copy_from_slice(b"\x1b[2J\x07\xff\xfe\n\r\0");
    c.ok("ok_header_text_ff", &text, good());
    c.ok("ok_header_text", &text, good());
}

fn dimensions(c: &mut Cases) {
    for (rank, says) in [
        (0, "dim[0] is 0, allowed are 1 to 7"),
        (8, "dim[0] is 8"),
        (-3, "dim[0] is -3"),
        (32767, "dim[0] is 32767"),
    ] {
        c.bad(format!("rank_{rank}"), base().i16(40, rank).bytes(), says);
    }
    for (extent, says) in [(0, "dim[2] is 0"), (-1, "dim[2] is -1"), (-32768, "dim[2] is -32768")] {
        c.bad(format!("extent_{extent}"), base().i16(44, extent).bytes(), says);
    }
    let huge = base().dim(&[3, 32767, 1024, 1024]);
    c.bad("claims_64_gib", huge.bytes(), "need 68717379584 bytes, the file holds 120");
    c.bad_gz("claims_gz_64_gib", huge.gz(), "the voxels end early");
    c.bad(
        "claims_2_to_105",
        base().dim(&[7; 1]).dim(&[7, 32767, 32767, 32767, 32767, 32767, 32767, 32767]).bytes(),
        "too large",
    );
    let mut state = 1u64;
    let noise: Vec<u8> = (0..2 << 20).map(|_| splitmix(&mut state) as u8).collect();
    let claims = Build { voxels: noise, ..base().dim(&[3, 8192, 8192, 8]) };
    c.bad_gz("claims_gz_1_gib", claims.gz(), "need 1073741824 bytes, the file holds 2097152");
    let one = Expected { warning: None, ..good() };
    c.ok("ok_4d_one_volume", &base().dim(&[4, 5, 4, 3, 1]), one);
    c.ok("ok_5d_ones", &base().dim(&[5, 5, 4, 3, 1, 1]), good());
    c.ok("ok_dim_tail_zero", &base().dim(&[3, 5, 4, 3, 0, 0, 0, 0]), good());
    c.ok("ok_dim_tail_junk", &base().dim(&[3, 5, 4, 3, -7, 99, 32767, 5]), good());
    c.bad("dims_4d_five", base().dim(&[4, 5, 4, 3, 5]).bytes(), "5 volumes");
    c.bad("dims_5d_vectors", base().dim(&[5, 5, 4, 1, 1, 3]).bytes(), "5 x 4 x 1 x 1 x 3");
    c.bad("dims_2d", base().dim(&[2, 5, 12]).bytes(), "2 dimensions");
    c.bad("dims_1d", base().dim(&[1, 60]).bytes(), "1 dimensions");
    let one = base().dim(&[3, 1, 1, 1]).stored(4, &[7.0]);
    c.ok("ok_one_voxel", &one, Expected { dims: [1, 1, 1], voxels: vec![7.0], ..good() });
    let thin: Vec<f64> = (0..480).map(f64::from).collect();
    let voxels = thin.iter().map(|&v| v as f32).collect();
    let thin = base().dim(&[3, 160, 1, 3]).stored(4, &thin);
    c.ok("ok_thin", &thin, Expected { dims: [160, 1, 3], voxels, ..good() });
    let long: Vec<f64> = (0..70_000).map(|i| f64::from(i % 251)).collect();
    let voxels = long.iter().map(|&v| v as f32).collect();
    let long = base().dim(&[3, 7, 100, 100]).stored(2, &long);
    c.ok("ok_several_pieces", &long, Expected { dims: [7, 100, 100], voxels, ..good() });
}

fn types(c: &mut Cases) {
    for code in [0, 1, 3, 12345, -4] {
        c.bad(format!("datatype_{code}"), base().i16(70, code).bytes(), "the datatype ");
    }
    for (id, code, bits, says) in [
        ("type_rgb24", 128, 24, "colour"),
        ("type_rgba32", 2304, 32, "colour"),
        ("type_complex64", 32, 64, "complex"),
        ("type_complex128", 1792, 128, "complex"),
        ("type_complex256", 2048, 256, "complex"),
        ("type_float128", 1536, 128, "float128"),
    ] {
        c.bad(id, base().i16(70, code).i16(72, bits).bytes(), says);
    }
    for bits in [0, 1, 8, 64, -16] {
        c.bad(format!("bitpix_{bits}"), base().i16(72, bits).bytes(), "bitpix is ");
    }
    for code in [2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280] {
        for big in [false, true] {
            // int8 and int16 are to show their sign, and the wide types their upper bytes.
            let values: Vec<f64> = match code {
                256 => values().iter().map(|v| v - 100.0).collect(),
                4 | 8 | 1024 => values().iter().map(|v| v * 300.0 - 15_000.0).collect(),
                16 | 64 => values().iter().map(|v| v * -0.25).collect(),
                _ => values(),
            };
            let voxels = values.iter().map(|&v| v as f32).collect();
            let order = if big { "be" } else { "le" };
            let build = Build::first(big).stored(code, &values);
            c.ok(format!("ok_type_{code}_{order}"), &build, Expected { voxels, ..good() });
        }
    }
}

fn offsets(c: &mut Cases) {
    for (name, value) in [
        ("nan", f32::NAN),
        ("inf", f32::INFINITY),
        ("-352", -352.0),
        ("1e30", 1e30),
        ("100", 100.0),
        ("beyond", 100_000.0),
        ("fraction", 352.5),
    ] {
        c.bad(format!("vox_offset_{name}"), base().f32(108, value).bytes(), "vox_offset is ");
    }
    c.bad_gz("vox_offset_beyond_gz", base().f32(108, 5000.0).gz(), "vox_offset is 5000");
    c.warned("ok_vox_offset_zero", &base().f32(108, 0.0), "vox_offset is 0");
    c.ok("ok_gap_no_extension", &base().offset(512, 0), good());
    c.ok("ok_extension", &base().extension(32, 32), good());
    let mut big = Build::first(true).extension(32, 32);
    c.ok("ok_extension_be", &big, good());
    big = base().extension(32, 32).extension(48, 48);
    c.ok("ok_extension_two", &big, good());
    c.ok("ok_extension_padding", &base().extension(32, 32).offset(512, 1), good());
    let mut many = base();
    for _ in 0..65_536 {
        many.middle.extend([16, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    many.middle[0] = 1;
    let offset = (348 + many.middle.len()) as f32;
    c.ok("ok_extension_65536", &many.f32(108, offset), good());
    for stated in [0, -16, 7, i32::MAX, 64] {
        let build = base().extension(stated, 32);
        c.warned(format!("extension_{stated}"), &build, "an extension has the size");
    }
    c.warned("extension_flag_no_room", &base().offset(352, 1), "leaves no room");
}

fn scaling(c: &mut Cases) {
    let scaled = |slope: f64, inter: f64| {
        let voxels = values().iter().map(|v| (v * slope + inter) as f32).collect();
        Expected { voxels, ..good() }
    };
    let with = |slope: f32, inter: f32| base().f32(112, slope).f32(116, inter);
    c.ok("ok_scl_slope_zero", &with(0.0, 5.0), good());
    c.warned("ok_scl_slope_nan", &with(f32::NAN, f32::NAN), "scl_slope is NaN");
    c.warned("scl_slope_inf", &with(f32::INFINITY, 0.0), "scl_slope is inf");
    c.ok("ok_scl_half", &with(0.5, -1024.0), scaled(0.5, -1024.0));
    c.ok("ok_scl_negative", &with(-2.0, 3.0), scaled(-2.0, 3.0));
    let bytes = with(1.7, 0.0).stored(2, &values());
    c.ok("ok_scl_uint8", &bytes, scaled(f64::from(1.7f32), 0.0));
    c.bad("scl_huge", with(3e38, 0.0).bytes(), "scl_slope");
    c.bad("scl_inter_nan", with(2.0, f32::NAN).bytes(), "scl_inter is NaN");
    c.bad("scl_inter_inf", with(2.0, f32::INFINITY).bytes(), "scl_inter is inf");
}

/// Only the quaternion places the volume.
fn by_quaternion(b: f32, c: f32, d: f32) -> Build {
    base().i16(254, 0).f32(256, b).f32(260, c).f32(264, d)
}

fn geometry(c: &mut Cases) {
    for (name, value) in
        [("nan", f32::NAN), ("inf", f32::INFINITY), ("tiny", 1e-30), ("huge", 1e30)]
    {
        c.bad(format!("pixdim_{name}"), base().f32(84, value).bytes(), "pixdim[2]");
    }
    c.warned("pixdim_zero", &base().f32(84, 0.0), "pixdim[2] is 0");
    c.bad(
        "pixdim_zero_no_sform",
        by_quaternion(0.0, 0.0, 0.0).f32(84, 0.0).bytes(),
        "pixdim[2] is 0",
    );
    c.warned("pixdim_negative", &base().f32(84, -2.0), "pixdim[2] is -2");
    c.warned("sform_zero", &base().srow([[0.0; 4]; 3]), "the sform is zero");
    c.bad("sform_nan", base().f32(280, f32::NAN).bytes(), "sform");
    let flat = [[1.5, 0.0, 0.0, 0.0], [0.0, 2.0, 2.5, 0.0], [0.0, 0.0, 0.0, 0.0]];
    c.bad("sform_singular", base().srow(flat).bytes(), "singular");
    c.bad("quaternion_nan", by_quaternion(f32::NAN, 0.0, 0.0).bytes(), "quaternion");
    let axes = |code| Expected { code, ..good() };
    let long = Expected { warning: Some("has the length 2"), ..axes("LPS") };
    c.ok("quaternion_long", &by_quaternion(0.0, 0.0, 2.0), long);
    // Half a turn about z and the third axis reversed.
    c.ok("ok_qfac_minus", &by_quaternion(0.0, 0.0, 1.0).f32(76, -1.0), axes("LPI"));
    c.ok("ok_qfac_zero", &by_quaternion(0.0, 0.0, 1.0).f32(76, 0.0), axes("LPS"));
    c.ok("ok_qform_only", &by_quaternion(1.0, 0.0, 0.0), axes("RPI"));
    // A quarter turn about x: y becomes z.
    let half = 0.5f32.sqrt();
    c.ok("ok_qform_quarter", &by_quaternion(half, 0.0, 0.0), axes("RSP"));
    let sform = |rows: [[f32; 4]; 3]| base().i16(252, 0).srow(rows);
    let las = [[-1.5, 0.0, 0.0, 9.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.5, 0.0]];
    c.ok("ok_orient_las", &sform(las), axes("LAS"));
    let psr = [[0.0, 0.0, 2.5, 0.0], [-1.5, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]];
    c.ok("ok_orient_psr", &sform(psr), axes("PSR"));
    let (s, k) = (0.4f32.sin(), 0.4f32.cos());
    let oblique =
        [[-1.5 * k, 2.0 * s, 0.0, 0.0], [1.5 * s, 2.0 * k, 0.0, 0.0], [0.0, 0.0, -2.5, 0.0]];
    c.ok("ok_orient_oblique", &sform(oblique), axes("LAI"));
    let sheared = [[1.5, 0.4, 0.0, 0.0], [0.0, 1.96, 0.0, 0.0], [0.0, 0.0, 2.5, 0.0]];
    c.warned("ok_sheared", &sform(sheared), "not at right angles");
    c.warned("ok_no_form", &base().i16(252, 0).i16(254, 0), "neither sform nor qform");
    let unit = [[-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    c.warned("ok_sform_unit_scale", &base().srow(unit), "directions of the qform");
    let own = Expected { warning: Some("directions of the sform"), ..axes("LPS") };
    c.ok("ok_sform_unit_scale_alone", &sform(unit), own);
    let disagree = Expected { warning: Some("different directions"), ..axes("LAS") };
    c.ok("ok_forms_disagree", &base().srow(las), disagree);
    c.warned("form_code_99", &base().i16(254, 99), "sform_code is 99");
    c.bad("units_metres", base().byte(123, 1).bytes(), "1500 mm");
    let metres = base().byte(123, 1).i16(254, 0).f32(80, 0.0015).f32(84, 0.002).f32(88, 0.0025);
    c.warned("ok_units_metres", &metres, "in metres");
    c.warned("ok_units_unknown", &base().byte(123, 5), "length unit 5");
}

fn pairs(c: &mut Cases) {
    let pair = Build { middle: vec![], ..base().magic(b"ni1\0").f32(108, 0.0) };
    let two =
        |head: &str, h: Vec<u8>, img: &str, v: Vec<u8>| vec![(head.into(), h), (img.into(), v)];
    let volume = || Expect::Volume(good());
    let mut add = |id: &str, files, expect| c.0.push(Case { id: id.into(), files, expect });
    let (head, voxels) = (pair.head.clone(), pair.voxels.clone());
    add("ok_pair", two("a.hdr", head.clone(), "a.img", voxels.clone()), volume());
    add("ok_pair_gz", two("a.hdr.gz", gz(&head), "a.img.gz", gz(&voxels)), volume());
    add("ok_pair_mixed", two("a.hdr", head.clone(), "a.img.gz", gz(&voxels)), volume());
    add("ok_pair_by_img", two("a.img", voxels.clone(), "a.hdr", head.clone()), volume());
    let shifted = [&[9; 160][..], &voxels].concat();
    let offset = pair.clone().f32(108, 160.0).head;
    add("ok_pair_offset", two("a.hdr", offset, "a.img", shifted), volume());
    add("pair_no_img", vec![("a.hdr".into(), head.clone())], Expect::Error("a.img"));
    add("pair_no_hdr", vec![("a.img".into(), voxels.clone())], Expect::Error("a.hdr"));
    let short = two("a.hdr", head.clone(), "a.img", voxels[..50].to_vec());
    add("pair_img_short", short, Expect::Error("need 120 bytes, the file holds 50"));
    let single = two("a.img", voxels, "a.hdr", base().bytes());
    add("pair_not_needed", single, Expect::Error("holds the voxels itself"));
}

fn second_version(c: &mut Cases) {
    c.ok("nifti2_le", &Build::second(false), good());
    c.ok("nifti2_be", &Build::second(true), good());
    c.bad("nifti2_rank_200", Build::second(false).i64(16, 200).bytes(), "dim[0] is 200");
    let negative = Build::second(false).i64(32, -(1 << 62));
    c.bad("nifti2_negative", negative.bytes(), "dim[2] is -4611686018427387904");
    let huge = Build::second(false).i64(24, 1 << 62).i64(32, 1 << 62);
    c.bad("nifti2_overflow", huge.bytes(), "too large");
    c.bad("nifti2_short", Build::second(false).bytes()[..500].to_vec(), "a header needs 540");
    let text_mode = Build::second(false).byte(8, b'\n');
    c.bad("nifti2_text_mode", text_mode.bytes(), "text-mode");
}

fn gzip(c: &mut Cases) {
    let (plain, whole) = (base().bytes(), base().gz());
    let n = whole.len();
    c.add("ok_gz", "a.nii.gz", whole.clone(), Expect::Volume(good()));
    c.bad_gz("gz_half", whole[..n / 2].to_vec(), "truncated gzip");
    c.bad_gz("gz_magic_only", whole[..2].to_vec(), "truncated gzip");
    c.bad_gz("gz_empty", vec![], "a header needs 348");
    c.bad_gz("gz_of_nothing", gz(&[]), "a header needs 348");
    c.bad_gz("gz_no_trailer", whole[..n - 8].to_vec(), "truncated gzip");
    c.bad_gz("gz_half_trailer", whole[..n - 3].to_vec(), "truncated gzip");
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    c.bad_gz("gz_bad_crc", flipped(n - 8), "checksum");
    c.bad_gz("gz_bad_length", flipped(n - 1), "checksum");
    c.bad_gz("gz_bit_flip", flipped(n / 2), "corrupt gzip");
    let (a, b) = plain.split_at(400);
    c.add("ok_gz_two_members", "a.nii.gz", [gz(a), gz(b)].concat(), Expect::Volume(good()));
    let fields = GzBuilder::new().filename("scan.nii").extra(vec![1; 30]).comment("c");
    let named = packed(fields.write(Vec::new(), Compression::fast()), &plain);
    c.add("ok_gz_fields", "a.nii.gz", named, Expect::Volume(good()));
    c.bad_gz("gz_junk_after", [&whole[..], b"junk at the end"].concat(), "corrupt gzip");
    c.bad_gz("gz_double", gz(&whole), "compressed twice");
    c.add("gz_not_gzip", "a.nii.gz", plain.clone(), Expect::Volume(good()));
    c.add("gz_named_nii", "a.nii", whole.clone(), Expect::Volume(good()));
    let zeros = gz(&vec![0; 16 << 20]);
    c.bad_gz("gz_bomb", [whole, zeros.repeat(256)].concat(), "trailing data");
    let surplus = Expected { warning: Some("1000 trailing bytes"), ..good() };
    let trailing = gz(&[&plain[..], &[0; 1000]].concat());
    c.add("ok_gz_trailing", "a.nii.gz", trailing, Expect::Volume(surplus));
}

fn other_formats(c: &mut Cases) {
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    c.bad("lfs_pointer", lfs.to_vec(), "git lfs pull");
    c.bad_gz("lfs_pointer_gz", lfs.to_vec(), "Git LFS");
    c.bad_gz("html_page", b"\n<!DOCTYPE html><html><body>403</body></html>".to_vec(), "web page");
    let mut dicom = vec![0; 1000];
    dicom[128..132].copy_from_slice(b"DICM");
    c.bad("dicom", dicom, "dcm2niix");
    c.bad("nrrd", b"NRRD0004\ntype: short\ndimension: 3\n".to_vec(), "NRRD");
    c.bad("npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}".to_vec(), "NumPy");
    c.bad("bz2", b"BZh91AY&SY\x00\x01\x02".to_vec(), "bunzip2");
    c.bad("zip", b"PK\x03\x04\x14\x00\x00\x00\x08\x00".to_vec(), "zip");
    c.bad("text", b"subject,age\n1,43\n2,57\n".to_vec(), "plain text");
    let mut double = vec![0, 5, 0x16, 7, 0, 2, 0, 0];
    double.resize(4096, 0);
    c.add("apple_double", "._a.nii.gz", double, Expect::Error("macOS resource file"));
}

fn contents(c: &mut Cases) {
    let floats = |change: &dyn Fn(&mut Vec<f64>)| {
        let mut v = values();
        change(&mut v);
        v
    };
    let mut odd = |id: &str, code: i16, stored: Vec<f64>, voxels: Vec<f32>, warning| {
        c.ok(id, &base().stored(code, &stored), Expected { voxels, warning, ..good() });
    };
    let base_voxels: Vec<f32> = values().iter().map(|&v| v as f32).collect();
    let mut some = base_voxels.clone();
    (some[3], some[9], some[10]) = (17.0, 17.0, 17.0);
    let holes = |a, b| floats(&|v| (v[3], v[9], v[10]) = (f64::NAN, a, b));
    let three = Some("3 of 60 voxels");
    odd("train_some_nan", 16, holes(f64::NAN, f64::NAN), some.clone(), three);
    odd("train_inf", 16, holes(f64::INFINITY, f64::NEG_INFINITY), some.clone(), three);
    odd("train_1e300", 64, holes(1e300, -1e300), some, three);
    let mut peak = base_voxels.clone();
    peak[5] = 3e37;
    odd("train_peak", 16, floats(&|v| v[5] = f64::from(3e37f32)), peak, None);
    let denormal: Vec<f64> = (1..=60).map(|i| f64::from(f32::from_bits(i))).collect();
    odd("train_denormal", 16, denormal, (1..=60).map(f32::from_bits).collect(), None);
    odd("train_zeros", 4, vec![0.0; 60], vec![0.0; 60], None);
    let large: Vec<f64> = (0..60).map(|i| (2f64.powi(60)) + f64::from(i) * 2f64.powi(40)).collect();
    let rounded = large.iter().map(|&v| v as f32).collect();
    odd("train_int64_large", 1024, large, rounded, None);
    let all_nan = base().stored(16, &[f64::NAN; 60]);
    c.bad("train_all_nan", all_nan.bytes(), "no finite voxel");
}
