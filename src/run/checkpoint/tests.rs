//! Round trips, and every way a file can be damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([
        (KEY_STEP.into(), "42".into()),
        (KEY_CONFIG.into(), "[run]\nname = \"a \\\"spatialssl.sha256\\\":\\\"b\"\n".into()),
        ("note".into(), format!("\"{KEY_SHA256}\":\"{}\" \u{e4}", "0".repeat(64))),
    ])
}

/// A small checkpoint in a folder of its own.
fn example() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let weights: Vec<f32> = (0..24).map(|i| (i as f32).sin()).collect();
    let odd = [f32::MIN_POSITIVE / 2.0, -0.0, f32::INFINITY];
    let tensors = [
        TensorRef { name: "w", shape: &[2, 3, 4], data: &weights },
        TensorRef { name: "a.odd", shape: &[3], data: &odd },
        TensorRef { name: "scalar", shape: &[], data: &[7.0] },
        TensorRef { name: "none", shape: &[0, 5], data: &[] },
    ];
    let report = save(&path, &metadata(), &tensors).unwrap();
    assert_eq!(report.bytes, fs::metadata(&path).unwrap().len());
    (dir, path)
}

/// Loading and verifying `bytes` must both be refused as an invalid checkpoint.
fn assert_refused(path: &Path, bytes: &[u8], what: &str) -> String {
    fs::write(path, bytes).unwrap();
    let loaded = load(path).expect_err(what);
    assert_eq!(loaded.exit_code(), 7, "{what}: {loaded}");
    let verified = verify(path).expect_err(what);
    assert_eq!(verified.to_string(), loaded.to_string());
    loaded.to_string()
}

/// A file of the given header text and `data_bytes` zeros.
fn raw(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

#[test]
fn what_is_saved_is_loaded_bit_for_bit() {
    let (_dir, path) = example();
    let loaded = load(&path).unwrap();
    assert_eq!(loaded.step(), Some(42));
    assert_eq!(loaded.config(), metadata().get(KEY_CONFIG).map(String::as_str));
    for (key, value) in metadata() {
        assert_eq!(loaded.metadata[&key], value);
    }
    assert_eq!(loaded.tensors.len(), 4);
    let (shape, odd) = &loaded.tensors["a.odd"];
    assert_eq!(shape, &[3]);
    assert_eq!(odd[0].to_bits(), (f32::MIN_POSITIVE / 2.0).to_bits());
    assert_eq!(odd[1].to_bits(), (-0.0f32).to_bits());
    assert_eq!(loaded.tensors["w"].0, [2, 3, 4]);
    assert_eq!(loaded.tensors["w"].1[23].to_bits(), 23f32.sin().to_bits());
    assert_eq!(loaded.tensors["scalar"], (vec![], vec![7.0]));
    assert_eq!(loaded.tensors["none"], (vec![0, 5], vec![]));
    assert_eq!(loaded.first_not_finite(), Some("a.odd"));
    assert_eq!(verify(&path).unwrap(), loaded.metadata);
    assert_eq!(load_weights(&path).unwrap().tensors, loaded.tensors);
}

#[test]
fn equal_state_gives_equal_bytes_and_the_crate_reads_them() {
    let (_dir_a, a) = example();
    let (_dir_b, b) = example();
    let bytes = fs::read(a).unwrap();
    assert_eq!(bytes, fs::read(b).unwrap());
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.tensor("w").unwrap().shape(), [2, 3, 4]);
}

#[test]
fn tensors_larger_than_a_leaf_are_covered_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let data = vec![1.5f32; LEAF_BYTES / 4 * 2 + 3];
    save(&path, &metadata(), &[TensorRef { name: "w", shape: &[data.len()], data: &data }])
        .unwrap();
    assert_eq!(load(&path).unwrap().tensors["w"].1, data);
    verify(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for back in [1, 12, 13, LEAF_BYTES] {
        let at = bytes.len() - back;
        bytes[at] ^= 4;
        assert!(assert_refused(&path, &bytes, "flip").contains("checksum"));
        bytes[at] ^= 4;
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let (_dir, path) = example();
    let good = fs::read(&path).unwrap();
    let mut bytes = good.clone();
    for at in 0..good.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert_refused(&path, &bytes, &format!("bit {bit} of byte {at}"));
            bytes[at] = good[at];
        }
    }
    fs::write(&path, &bytes).unwrap();
    load(&path).unwrap();
}

#[test]
fn every_cut_and_every_surplus_is_found() {
    let (_dir, path) = example();
    let good = fs::read(&path).unwrap();
    for len in 0..good.len() {
        assert_refused(&path, &good[..len], &format!("cut to {len} bytes"));
    }
    let mut longer = good.clone();
    longer.extend(b"PK\x05\x06");
    assert!(assert_refused(&path, &longer, "surplus").contains("bytes follow the data"));
}

#[test]
fn swapped_tensors_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let tensors = [
        TensorRef { name: "a", shape: &[1], data: &[1.0] },
        TensorRef { name: "b", shape: &[1], data: &[2.0] },
    ];
    save(&path, &BTreeMap::new(), &tensors).unwrap();
    let bytes = fs::read(&path).unwrap();
    let mut data_swapped = bytes.clone();
    let at = bytes.len() - 8;
    data_swapped[at..].rotate_left(4);
    assert_refused(&path, &data_swapped, "data");
    let mut renamed = bytes.clone();
    let at = bytes.windows(4).position(|w| w == b"\"a\":").unwrap();
    renamed[at + 1] = b'c';
    assert_refused(&path, &renamed, "name");
}

#[test]
fn hostile_headers_are_refused_with_a_reason() {
    let (_dir, path) = example();
    let entry = |name: &str, shape: &str, a: u64, b: u64| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{a},{b}]}}")
    };
    let half = 1u64 << 61;
    // Tensors of 2^61 bytes each, up to the end of the address space.
    let many: Vec<String> = (0..8)
        .map(|i| {
            let end = if i == 7 { u64::MAX - 3 } else { (i + 1) * half };
            entry(&format!("t{i}"), &format!("[{}]", (end - i * half) / 4), i * half, end)
        })
        .collect();
    let cases = [
        (raw("[]", 0), "no `{`"),
        (raw("{\"a\"", 0), "not valid"),
        (raw(&"{\"a\":".repeat(200_000), 0), "not valid"),
        (raw(&format!("{{{}", "[".repeat(200_000)), 0), "not valid"),
        (raw(&format!("{{\"__metadata__\":{}", "[".repeat(200_000)), 0), "not valid"),
        ([&3u64.to_le_bytes()[..], b"{\xff}"].concat(), "UTF-8"),
        (raw(&format!("{{{},{}}}", entry("a", "[2]", 0, 8), entry("b", "[2]", 4, 12)), 12), "`b`"),
        (raw(&format!("{{{},{}}}", entry("a", "[2]", 0, 8), entry("b", "[2]", 12, 20)), 20), "`b`"),
        (raw(&format!("{{{}}}", entry("a", "[2]", 8, 0)), 8), "tensor `a`"),
        (raw(&format!("{{{}}}", entry("a", "[3]", 0, 8)), 8), "tensor `a`: shape [3]"),
        (raw(&format!("{{{}}}", entry("a", "[9223372036854775807,3]", 0, 8)), 8), "overflows"),
        (raw(&format!("{{{}}}", entry("a", "[-1]", 0, 8)), 8), "tensor `a`"),
        (raw(&format!("{{{}}}", entry("a", "[4611686018427387903]", 0, u64::MAX - 3)), 8), "`a`"),
        (raw(&format!("{{{}}}", many.join(",")), 8), ""),
        (raw(&format!("{{{}}}", entry("a", "[2]", 0, 8)).replace("F32", "Q7"), 8), "tensor `a`"),
        (raw("{\"__metadata__\":{\"k\":1}}", 0), "not valid"),
        (u64::MAX.to_le_bytes().repeat(2), "asks for 18446744073709551615"),
        ((1u64 << 63).to_le_bytes().repeat(2), "asks for"),
        (vec![0; 32], "no `{`"),
        (raw(&format!("{{{}}}", " ".repeat(MAX_HEADER_BYTES)), 0), "at most"),
    ];
    for (bytes, needle) in cases {
        let text = assert_refused(&path, &bytes, needle);
        assert!(text.contains(needle), "`{needle}` is not in: {text}");
        assert!(text.len() < 2000 && load_weights(&path).is_err());
    }
}

#[test]
fn other_kinds_of_file_are_named() {
    let (dir, path) = example();
    for start in [&b"PK\x03\x04aaaaaaaaaaaaaaaa"[..], b"\x80\x02}q\x00(X\x05\x00\x00\x00aaaa"] {
        let text = assert_refused(&path, start, "pickle");
        assert!(text.contains("pickle is refused"), "{text}");
    }
    assert!(load(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    assert!(load(&dir.path().join("absent")).unwrap_err().to_string().contains("no such file"));
    // A header of 640 bytes begins as a pickle does.
    let header = format!("{{{}}}", " ".repeat(638));
    fs::write(&path, raw(&header, 0)).unwrap();
    assert!(load_weights(&path).unwrap().tensors.is_empty());
}

#[test]
fn a_newer_format_names_both_versions() {
    let (_dir, path) = example();
    let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
    let newer = text.replace("\"spatialssl.format\":\"1\"", "\"spatialssl.format\":\"2\"");
    assert_ne!(newer, text);
    // Lossy text changes the data, which does not matter: the version is looked at first.
    let length = fs::read(&path).unwrap().len();
    let mut bytes = newer.into_bytes();
    bytes.resize(length, 0);
    let message = assert_refused(&path, &bytes, "newer");
    assert!(message.contains("format 2") && message.contains("up to format 1"), "{message}");
    assert!(message.contains(env!("CARGO_PKG_VERSION")), "{message}");
}

#[test]
fn weights_are_plain_and_of_three_types() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let tensor = TensorRef { name: "w", shape: &[2], data: &[1.0, -2.5] };
    save_weights(&path, &BTreeMap::from([("k".into(), "v".into())]), &[tensor]).unwrap();
    let loaded = load_weights(&path).unwrap();
    let expected = [("format".to_string(), "pt".to_string()), ("k".into(), "v".into())];
    assert_eq!(loaded.metadata, BTreeMap::from(expected));
    assert_eq!(loaded.tensors["w"], (vec![2], vec![1.0, -2.5]));
    assert!(load(&path).unwrap_err().to_string().contains("--init"));

    let header = "{\"h\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]},\
                  \"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[2,6]}}";
    let mut bytes = raw(header, 0);
    // 1.5 in binary16; 1.0 and -3.0 in bfloat16.
    for half in [0x3e00u16, 0x3f80, 0xc040] {
        bytes.extend(half.to_le_bytes());
    }
    fs::write(&path, &bytes).unwrap();
    let loaded = load_weights(&path).unwrap();
    assert_eq!(loaded.tensors["h"], (vec![1], vec![1.5]));
    assert_eq!(loaded.tensors["b"], (vec![2], vec![1.0, -3.0]));

    let wide = header.replace("\"F16\",\"shape\":[1]", "\"I16\",\"shape\":[1]");
    fs::write(&path, raw(&wide, 6)).unwrap();
    let error = load_weights(&path).unwrap_err();
    assert_eq!(error.exit_code(), 7);
    assert!(error.to_string().contains("tensor `h` is of type I16"), "{error}");
}

#[test]
fn names_and_shapes_that_do_not_fit_are_counted() {
    let tensor = (vec![1], vec![0.0]);
    let expected: BTreeMap<String, Vec<usize>> =
        (0..12).map(|i| (format!("w{i:02}"), vec![1])).collect();
    let path = Path::new("f");
    let mut loaded = Loaded::default();
    for name in expected.keys() {
        loaded.tensors.insert(name.clone(), tensor.clone());
    }
    loaded.check_fit(path, &expected).unwrap();
    loaded.tensors.insert("w03".into(), (vec![2], vec![0.0; 2]));
    loaded.tensors.remove("w05");
    loaded.tensors.insert("x\u{1b}".into(), tensor.clone());
    let text = loaded.check_fit(path, &expected).unwrap_err().to_string();
    assert!(text.contains("1 tensors missing: w05"), "{text}");
    assert!(text.contains("1 tensors not expected: x\\u{1b}"), "{text}");
    assert!(text.contains("w03 (found [2], needed [1])"), "{text}");

    let mut prefixed = Loaded::default();
    for name in expected.keys() {
        prefixed.tensors.insert(format!("module.{name}"), tensor.clone());
    }
    let error = prefixed.check_fit(path, &expected).unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. }));
    let text = error.to_string();
    assert!(text.contains("12 tensors missing") && text.contains("and 2 more"), "{text}");
    assert!(text.contains("`module.`"), "{text}");
}

#[test]
fn metadata_that_could_not_be_read_back_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let long = BTreeMap::from([(KEY_CONFIG.into(), "x".repeat(MAX_HEADER_BYTES))]);
    assert_eq!(save(&path, &long, &[]).unwrap_err().exit_code(), 4);
    assert!(!path.exists());
}
