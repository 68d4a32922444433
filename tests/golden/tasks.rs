//! The three tasks on a given dense representation: losses and gradients.

use std::collections::BTreeMap;

use spatialssl::model::Weights;
use spatialssl::pretext::{
    Gap, Inputs, Similarity, Task, TrunkWidths, Vector, VectorHead, ViewSizes, Views,
};
use spatialssl::tape::{Executor, Tape, ValueId};

use crate::engine::{self, loss, machine, read, task_gradient, write};
use crate::format::{Case, Tensor, channels_first, channels_last};

/// Fixture name of each term.
pub(crate) const NAMES: [&str; 6] =
    ["axis_gap", "norm_gap", "sim_adja", "sim_dist", "vect", "route"];

/// Swaps the two leading extents: samples and views.
fn view_major(t: &Tensor) -> Tensor {
    let (n, v) = (t.shape[0], t.shape[1]);
    let len = t.data.len() / (n * v);
    let mut data = Vec::with_capacity(t.data.len());
    for view in 0..v {
        for sample in 0..n {
            data.extend(&t.data[(sample * v + view) * len..][..len]);
        }
    }
    let mut shape = t.shape.clone();
    shape.swap(0, 1);
    Tensor { shape, data }
}

/// Starts `[N, P, 4, 3]` of boxes `[N, P, 4, 3, 2]`.
fn starts(boxes: &Tensor) -> Vec<f64> {
    boxes.data.iter().step_by(2).copied().collect()
}

struct Recorded {
    tape: Tape,
    weights: Weights,
    dense: ValueId,
    gap: ValueId,
    boxes: Option<ValueId>,
    losses: BTreeMap<&'static str, ValueId>,
}

fn record(case: &Case) -> Recorded {
    let dense = &case.inputs["nir"];
    let (n, v, c) = (dense.shape[0], dense.shape[1], dense.shape[2]);
    let mut tape = Tape::default();
    let mut weights = Weights::trained();
    let dims = [v * n, dense.shape[3], dense.shape[4], dense.shape[5], c];
    let id = tape.param("nir", &dims, spatialssl::tape::Init::Constant(0.0));
    let views = Views { count: v, values: vec![id] };
    let gap = tape.input("gap", &[n, v, v, 3]);
    let has = |head: &str| case.inputs.keys().any(|k| k.starts_with(head));
    let mut losses = BTreeMap::new();
    let mut boxes = None;
    let sub_size = if has("sim_head") { case.triple("sub_view_size") } else { [0; 3] };
    let size = std::array::from_fn(|a| dense.shape[3 + a]);
    let sizes = ViewSizes { count: v, size, sub_size };
    let mut record =
        |task: &dyn Task, target: ValueId, tape: &mut Tape, names: [&'static str; 2]| {
            let inputs =
                Inputs { sizes, dense: &views, hidden: None, images: &[], targets: &[target] };
            let recorded = task.record(tape, &mut weights, &inputs).unwrap();
            losses.extend(names.into_iter().zip(recorded.losses));
        };
    let trunk = TrunkWidths::Authors;
    if has("gap_head") {
        record(&Gap { antisymmetric: false, trunk }, gap, &mut tape, [NAMES[0], NAMES[1]]);
    }
    if has("sim_head") {
        let starts = tape.input("boxes", &[n, v * (v - 1) / 2, 4, 3]);
        record(&Similarity, starts, &mut tape, [NAMES[2], NAMES[3]]);
        boxes = Some(starts);
    }
    if has("vec_head") {
        record(&Vector { head: VectorHead::Absolute, trunk }, gap, &mut tape, [NAMES[4], NAMES[5]]);
    }
    Recorded { tape, weights, dense: id, gap, boxes, losses }
}

pub(crate) fn check(case: &Case) {
    let mut totals = vec!["total".to_string()];
    totals.extend(NAMES.iter().map(ToString::to_string));
    for total in totals {
        let prefix = format!("grad/{total}/");
        let wanted = total == "total" || case.outputs.keys().any(|k| k.starts_with(&prefix));
        if wanted {
            check_gradients_of(case, &total);
        }
    }
}

/// Gradients of one loss, or of the sum of all.
fn check_gradients_of(case: &Case, total: &str) {
    let mut r = record(case);
    let chosen: Vec<ValueId> = r
        .losses
        .iter()
        .filter(|(name, _)| total == "total" || **name == total)
        .map(|(_, &id)| id)
        .collect();
    let seeds: Vec<(ValueId, ValueId)> =
        chosen.iter().map(|&id| (id, r.tape.input("seed", &[1]))).collect();
    let mut ids = r.weights.ids().to_vec();
    ids.push(r.dense);
    let grads = r.tape.backward(&seeds, &ids);
    for id in r.losses.values().copied().chain(grads.iter().flatten().copied()) {
        r.tape.keep(id);
    }
    let mut step = machine(&r.tape);
    let dense = &case.inputs["nir"];
    write(&mut step, r.dense, &channels_last(&view_major(dense), 2).data);
    write(&mut step, r.gap, &case.inputs["gap"].data);
    if let Some(boxes) = r.boxes {
        write(&mut step, boxes, &starts(&case.inputs["boxes"]));
    }
    for (_, seed) in &seeds {
        write(&mut step, *seed, &[1.0]);
    }
    for (name, &id) in r.weights.names().iter().zip(r.weights.ids()) {
        let t = &case.inputs[name];
        write(
            &mut step,
            id,
            &if t.shape.len() == 5 { channels_last(t, 1).data } else { t.data.clone() },
        );
    }
    engine::run(&mut step, &r.tape);
    let result = Result { case, step: &step, dense };
    let total_loss: f64 = r.losses.iter().map(|(name, &id)| result.loss(name, id)).sum();
    let bound = loss() * r.losses.len() as f64;
    case.outputs["loss/total"].check_scalar(&case.label, total_loss, bound);
    let names = r.weights.names().iter().map(String::as_str).chain(["nir"]);
    for (name, grad) in names.zip(&grads) {
        result.gradient(&format!("grad/{total}/{name}"), name, *grad);
    }
}

struct Result<'a> {
    case: &'a Case,
    step: &'a Executor,
    dense: &'a Tensor,
}

impl Result<'_> {
    fn read(&self, id: ValueId) -> Vec<f64> {
        read(self.step, id)
    }

    fn loss(&self, name: &str, id: ValueId) -> f64 {
        let got = self.read(id)[0];
        let want = &self.case.outputs[&format!("loss/{name}")];
        want.check_scalar(&format!("{} {name}", self.case.label), got, loss());
        got
    }

    /// Compares a gradient; where the reference has none, ours must be absent or 0.
    fn gradient(&self, key: &str, name: &str, grad: Option<ValueId>) {
        let label = format!("{} {key}", self.case.label);
        let got = grad.map(|g| self.read(g));
        let Some(want) = self.case.outputs.get(key) else {
            let silent = got.is_none_or(|g| g.iter().all(|&x| x == 0.0));
            assert!(silent, "{label}: the reference has no such gradient");
            return;
        };
        let got = got.unwrap_or_else(|| panic!("{label}: no gradient"));
        let got = match (name, want.shape.len()) {
            ("nir", _) => {
                let (n, v, c) = (self.dense.shape[0], self.dense.shape[1], self.dense.shape[2]);
                let data = channels_first(&got, n * v, c);
                view_major(&Tensor { shape: vec![v, n, c, 1], data }).data
            }
            (_, 5) => channels_first(&got, want.shape[0], want.shape[1]),
            _ => got,
        };
        want.check(&label, &got, task_gradient());
    }
}
