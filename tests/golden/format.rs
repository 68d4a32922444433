//! The fixture format: safetensors files whose metadata describe cases with inputs (stored or generated) and
//! outputs (whole or as digest).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

/// One fixture file.
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) kind: String,
    pub(crate) cases: Vec<Case>,
}

/// One case: attributes, inputs by name, expected outputs by name.
pub(crate) struct Case {
    pub(crate) label: String,
    pub(crate) name: String,
    pub(crate) attrs: Map<String, Value>,
    pub(crate) inputs: BTreeMap<String, Tensor>,
    pub(crate) outputs: BTreeMap<String, Expected>,
}

/// A tensor in PyTorch's layout.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f64>,
}

/// What an output must be.
pub(crate) struct Expected {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Values,
    /// Error of PyTorch's own float32 run, relative.
    pub(crate) torch_rel: f64,
    /// Zero in exact arithmetic: magnitude PyTorch's float32 run leaves.
    pub(crate) exact_zero: Option<f64>,
}

pub(crate) enum Values {
    Full(Vec<f64>),
    Digest { digest: Vec<f64>, sample: Vec<f64>, stride: usize },
}

/// The folder to test against: what the environment names, else the subset that comes with the repository.
pub(crate) fn root() -> PathBuf {
    match std::env::var_os("SPATIALSSL_FIXTURES") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures"),
    }
}

/// All fixture files below the root, in order of their paths.
pub(crate) fn files() -> Vec<File> {
    let mut paths = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "safetensors") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    assert!(!paths.is_empty(), "no fixture in {}", root().display());
    paths.iter().map(|p| load(p)).collect()
}

fn load(path: &Path) -> File {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let text = &header.metadata().as_ref().unwrap()["fixture"];
    let fixture: Value = serde_json::from_str(text).unwrap();
    assert_eq!(fixture["format"], 1, "{}: unknown format", path.display());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
    let cases = fixture["cases"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, case)| parse(&stem, name, case, &tensors));
    File {
        path: path.to_path_buf(),
        kind: fixture["kind"].as_str().unwrap().to_string(),
        cases: cases.collect(),
    }
}

fn parse(stem: &str, name: &str, case: &Value, tensors: &SafeTensors) -> Case {
    let entries = |key: &str| case[key].as_object().cloned().unwrap_or_default();
    let inputs = entries("inputs").into_iter().map(|(key, spec)| {
        let shape = shape(&spec["shape"]);
        let data = match spec.get("gen") {
            Some(rule) if !rule.is_null() => generate(rule, shape.iter().product()),
            _ => numbers(tensors, &format!("{name}/in/{key}")),
        };
        (key, Tensor { shape, data })
    });
    let outputs = entries("outputs").into_iter().map(|(key, spec)| {
        let at = format!("{name}/out/{key}");
        let values = if spec["stored"] == "digest" {
            Values::Digest {
                digest: numbers(tensors, &format!("{at}#digest")),
                sample: numbers(tensors, &format!("{at}#sample")),
                stride: spec["sample_stride"].as_u64().unwrap() as usize,
            }
        } else {
            Values::Full(numbers(tensors, &at))
        };
        let exact_zero =
            (spec["exact_zero"] == true).then(|| spec["torch_f32_max_abs"].as_f64().unwrap_or(0.0));
        let torch_rel = spec["torch_f32_rel_l2"].as_f64().unwrap_or(0.0);
        (key, Expected { shape: shape(&spec["shape"]), values, torch_rel, exact_zero })
    });
    Case {
        label: format!("{stem}/{name}"),
        name: name.to_string(),
        attrs: case["attrs"].as_object().unwrap().clone(),
        inputs: inputs.collect(),
        outputs: outputs.collect(),
    }
}

fn shape(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

pub(crate) fn numbers(tensors: &SafeTensors, name: &str) -> Vec<f64> {
    let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => {
            data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
        }
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::U8 => data.iter().map(|&b| f64::from(b)).collect(),
        Dtype::I32 => {
            data.as_chunks::<4>().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect()
        }
        other => panic!("{name}: unexpected type {other:?}"),
    }
}

/// Element `i` of the SplitMix64 stream of `seed`.
pub(crate) fn split_mix(seed: u64, i: u64) -> u64 {
    let mut z = (seed << 32).wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn generate(rule: &Value, len: usize) -> Vec<f64> {
    let value = |seed: u64, i: u64, scale: f64| -> f32 {
        ((split_mix(seed, i) >> 40) as i64 - (1 << 23)) as f32 / 8_388_608.0 * scale as f32
    };
    let (seed, scale) = (rule["seed"].as_u64().unwrap(), rule["scale"].as_f64().unwrap());
    let group = rule["group"].as_u64();
    (0..len as u64)
        .map(|i| {
            let mut v = value(seed, i, scale);
            if let Some(group) = group {
                v += value(
                    rule["group_seed"].as_u64().unwrap(),
                    i / group,
                    rule["group_scale"].as_f64().unwrap(),
                );
            }
            f64::from(v)
        })
        .collect()
}

impl Expected {
    /// Relative L2 error of `got`; over a digest, its estimate.
    fn error(&self, got: &[f64]) -> f64 {
        match &self.values {
            Values::Full(want) => {
                let off: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
                let norm: f64 = want.iter().map(|w| w * w).sum();
                if norm == 0.0 { off.sqrt() } else { (off / norm).sqrt() }
            }
            Values::Digest { digest, sample, stride } => {
                // A bf16 gradient of a task may be off by a tenth of its norm, single elements by more of their own.
                let share = if crate::engine::is_exact() { 0.02 } else { 0.2 };
                for (j, want) in sample.iter().enumerate() {
                    let far = (got[j * stride] - want).abs();
                    assert!(
                        far <= share * digest[2],
                        "element {} is {}, not {want}",
                        j * stride,
                        got[j * stride]
                    );
                }
                let mut projections = [0.0; 16];
                for (i, x) in got.iter().enumerate() {
                    let bits = split_mix(20_250_905, i as u64);
                    for (k, p) in projections.iter_mut().enumerate() {
                        *p += if bits >> k & 1 == 1 { -x } else { *x };
                    }
                }
                let off: f64 =
                    projections.iter().zip(&digest[3..]).map(|(p, q)| (p - q).powi(2)).sum();
                (off / 16.0).sqrt() / digest[0]
            }
        }
    }

    /// Fails unless `got`, in PyTorch's layout, is within `tolerance` (relative), widened where PyTorch's own float32
    /// run is further off than that. Returns the worst ratio of error to bound.
    pub(crate) fn check(&self, name: &str, got: &[f64], tolerance: f64) -> f64 {
        assert_eq!(got.len(), self.shape.iter().product::<usize>(), "{name}: number of elements");
        if let Some(noise) = self.exact_zero {
            // What rounding leaves is larger by 2^15 where numbers are rounded to bf16.
            let unit = if crate::engine::is_on_device() { 32768.0 } else { 1.0 };
            let (worst, bound) =
                (got.iter().fold(0.0f64, |m, g| m.max(g.abs())), (20.0 * noise).max(1e-6) * unit);
            let Some(bound) = crate::engine::bound(name, worst, bound) else { return 0.0 };
            assert!(
                worst <= bound,
                "{name}: {worst:e} where exact arithmetic gives 0 (bound {bound:e})"
            );
            return worst / bound;
        }
        let error = self.error(got);
        let digest = if matches!(self.values, Values::Digest { .. }) { 2.0 } else { 1.0 };
        let bound = tolerance.max(8.0 * self.torch_rel) * digest;
        let Some(bound) = crate::engine::bound(name, error, bound) else { return 0.0 };
        assert!(error <= bound, "{name}: relative error {error:e} is above {bound:e}");
        error / bound
    }

    /// Cosine of the angle between `got` and what is expected; none of digests and of what is 0.
    pub(crate) fn cosine(&self, got: &[f64]) -> Option<f64> {
        let Values::Full(want) = &self.values else { return None };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let scale = (dot(want, want) * dot(got, got)).sqrt();
        (self.exact_zero.is_none() && scale > 0.0).then(|| dot(want, got) / scale)
    }

    /// Fails unless the single number `got` is within `tolerance`, absolute.
    pub(crate) fn check_scalar(&self, name: &str, got: f64, tolerance: f64) {
        let Values::Full(want) = &self.values else { panic!("{name}: a number, not a digest") };
        let error = (got - want[0]).abs();
        let Some(tolerance) = crate::engine::bound(name, error, tolerance) else { return };
        assert!(error <= tolerance, "{name}: {got}, not {} (within {tolerance})", want[0]);
    }

    pub(crate) fn full(&self) -> &[f64] {
        let Values::Full(want) = &self.values else { panic!("stored as digest") };
        want
    }
}

impl Case {
    pub(crate) fn triple(&self, key: &str) -> [usize; 3] {
        let list = self.attrs[key].as_array().unwrap();
        std::array::from_fn(|a| list[a].as_u64().unwrap() as usize)
    }

    pub(crate) fn number(&self, key: &str) -> f64 {
        self.attrs[key].as_f64().unwrap()
    }
}

/// `[N, C, spatial..]` to `[N, spatial.., C]`; with `lead` leading extents kept in place before `C`.
pub(crate) fn channels_last(t: &Tensor, lead: usize) -> Tensor {
    let outer: usize = t.shape[..lead].iter().product();
    let (c, inner) = (t.shape[lead], t.shape[lead + 1..].iter().product::<usize>());
    let mut data = vec![0.0; t.data.len()];
    for o in 0..outer {
        for k in 0..c {
            for i in 0..inner {
                data[(o * inner + i) * c + k] = t.data[(o * c + k) * inner + i];
            }
        }
    }
    let mut shape = t.shape[..lead].to_vec();
    shape.extend(&t.shape[lead + 1..]);
    shape.push(c);
    Tensor { shape, data }
}

/// The reverse of [`channels_last`]: data `[outer, inner, c]` to `[outer, c, inner]`.
pub(crate) fn channels_first(data: &[f64], outer: usize, c: usize) -> Vec<f64> {
    let inner = data.len() / outer / c;
    let mut out = vec![0.0; data.len()];
    for o in 0..outer {
        for i in 0..inner {
            for k in 0..c {
                out[(o * c + k) * inner + i] = data[(o * inner + i) * c + k];
            }
        }
    }
    out
}

#[test]
fn generator_gives_the_documented_numbers() {
    let words = [0xc42c_5a1a_a382_0138, 0x37ad_5fdd_5756_bd3d, 0xaf57_9789_2142_2ad5];
    assert_eq!([split_mix(1, 0), split_mix(1, 1), split_mix(1, 2)], words);
    let rule = serde_json::json!({"seed": 1, "scale": 0.5});
    let want = [0.266_301_75f32, -0.282_510_82, 0.184_930_26].map(f64::from);
    assert_eq!(generate(&rule, 3), want);
}
