//! The case table against golden values of its own, which `tests/golden/cases.py` computed in float64.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::common::bound::{Bound, data, is_update, normals};
use crate::common::cases::{Case, cases};
use crate::format::{Expected, Values, numbers};
use crate::{FORWARD, GRADIENT};

/// Arrays of at most this many elements are stored whole.
const WHOLE: usize = 16 * 1024;
/// At least this many elements of a longer one.
const SAMPLE: usize = 4096;

/// What the golden values of all small cases are computed from and compared with: every array by its name.
struct Run {
    bound: Bound<f32>,
    /// Inputs, then the gradient of the output; for an update the values that it changes.
    given: BTreeMap<String, Vec<f64>>,
}

fn small() -> impl Iterator<Item = Case> {
    cases().into_iter().filter(|case| !case.real)
}

fn label(case: &Case) -> String {
    format!("{}/{}", case.op.rule().name(), case.name)
}

/// What the golden values hold for: the operation with its attributes, and the extents of its inputs.
fn description(case: &Case) -> String {
    format!("{:?} {:?}", case.op, case.inputs)
}

/// Whether the operation changes values in place.
fn in_place(case: &Case) -> bool {
    is_update(&case.op) && case.op.rule().name() != "grad_norm"
}

impl Run {
    /// Memory with the inputs of the gradient check's first draw.
    fn new(case: &Case) -> Self {
        let mut bound = Bound::<f32>::new(case, 1, |_| true);
        let mut given = BTreeMap::new();
        let inputs = data(case, 0);
        bound.feed(&inputs);
        for (i, input) in inputs.into_iter().enumerate() {
            given.insert(format!("x{i}"), input);
        }
        for (i, &id) in bound.seeds.clone().iter().enumerate() {
            let seed = normals(0, 1000 + i as u32, bound.step.read(id).len());
            bound.set(id, &seed);
            given.insert("dy".into(), seed);
        }
        if in_place(case) {
            for (i, &id) in bound.outputs.clone().iter().enumerate() {
                let mut state = normals(0, 1000 + i as u32, bound.step.read(id).len());
                // The second moment of a gradient.
                if i == 2 {
                    state.iter_mut().for_each(|v| *v *= *v);
                }
                bound.set(id, &state);
                given.insert(format!("s{i}"), state);
            }
        }
        Run { bound, given }
    }

    /// Runs both passes; outputs `y..` and gradients `dx..`.
    fn results(mut self) -> BTreeMap<String, Vec<f64>> {
        self.bound.forward();
        let mut results = BTreeMap::new();
        let read =
            |bound: &Bound<f32>, id| bound.step.read(id).iter().map(|&v| f64::from(v)).collect();
        for (i, &id) in self.bound.outputs.iter().enumerate() {
            results.insert(format!("y{i}"), read(&self.bound, id));
        }
        self.bound.backward();
        // A tap measures only now.
        if let Some(&last) = self.bound.outputs.get(1) {
            results.insert("y1".into(), read(&self.bound, last));
        }
        for (i, &id) in self.bound.grads.iter().enumerate() {
            if let Some(id) = id {
                results.insert(format!("dx{i}"), read(&self.bound, id));
            }
        }
        results
    }
}

/// The elements that are stored: all, or every k-th, k odd so that no lane of a vector register stays unseen.
fn stored(values: &[f64]) -> Vec<f64> {
    let stride = if values.len() <= WHOLE { 1 } else { values.len().div_ceil(SAMPLE) | 1 };
    values.iter().copied().step_by(stride).collect()
}

/// Golden values of every small case of the table, and of no other; in float32 through the tape, within the tolerances
/// of the other golden values.
#[test]
fn the_case_table_matches() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let described: BTreeMap<String, String> =
        serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let mut unseen: BTreeSet<&str> = golden.names().into_iter().collect();
    let (mut worst, mut missing) = ((0.0, String::new()), Vec::new());
    for case in small() {
        let label = label(&case);
        if described.get(&label) != Some(&description(&case)) {
            missing.push(label);
            continue;
        }
        for (name, got) in Run::new(&case).results() {
            let name = format!("{label}/{name}");
            assert!(unseen.remove(name.as_str()), "{name}: no golden value");
            let ratio = compare(&name, &stored(&got), numbers(&golden, &name));
            if ratio > worst.0 {
                worst = (ratio, name);
            }
        }
    }
    println!("worst error {:.3} of its bound, {}", worst.0, worst.1);
    let how = "tests/golden/README.md says how to compute golden values anew";
    assert!(missing.is_empty(), "cases that are new or changed: {missing:#?}; {how}");
    assert!(unseen.is_empty(), "golden values without a case: {unseen:#?}; {how}");
}

/// Error as a fraction of its bound; panics above 1.
fn compare(name: &str, got: &[f64], want: Vec<f64>) -> f64 {
    assert!(got.iter().all(|g| g.is_finite()), "{name}: {got:?}");
    let zero = want.iter().all(|&w| w == 0.0);
    let gradient = name.rsplit('/').next().is_some_and(|last| last.starts_with("dx"));
    let expected = Expected {
        shape: vec![want.len()],
        values: Values::Full(want),
        torch_rel: 0.0,
        exact_zero: zero.then_some(0.0),
    };
    expected.check(name, got, if gradient { GRADIENT } else { FORWARD })
}

/// Writes what `cases.py` reads into the folder that `SPATIALSSL_CASES_OUT` names; does nothing without it.
#[test]
fn inputs_of_the_case_table_are_written_where_asked() {
    let Some(folder) = std::env::var_os("SPATIALSSL_CASES_OUT") else { return };
    let (mut arrays, mut described, mut ops) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for case in small() {
        let (label, run) = (label(&case), Run::new(&case));
        for (name, values) in &run.given {
            let dims = match name.strip_prefix('x') {
                Some(i) => case.inputs[i.parse::<usize>().unwrap()].clone(),
                None => vec![values.len()],
            };
            // As the operation gets them: rounded to f32.
            let bytes: Vec<u8> = values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect();
            arrays.push((format!("{label}/{name}"), dims, bytes));
        }
        described.insert(label.clone(), description(&case));
        ops.insert(label, format!("{:?}", case.op));
    }
    let views = arrays
        .iter()
        .map(|(name, dims, b)| (name, TensorView::new(Dtype::F32, dims.clone(), b).unwrap()));
    let text = |map| serde_json::to_string(map).unwrap();
    let metadata: HashMap<String, String> =
        [("cases".into(), text(&described)), ("ops".into(), text(&ops))].into();
    let bytes = safetensors::serialize(views, Some(metadata)).unwrap();
    std::fs::write(Path::new(&folder).join("inputs.safetensors"), bytes).unwrap();
}
