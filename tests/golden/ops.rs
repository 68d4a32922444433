//! Single operations through the tape.

use spatialssl::ops::{
    AdamW, AvgPool, Conv3d, ConvTranspose3d, CosineLoss, Ema, GapAxisLoss, GapNormLoss, Gelu,
    GlobalPool, InstanceNorm, LeakyRelu, Linear, Op, SCALARS, VectorLoss, scalar,
};
use spatialssl::optim::ema_weight;
use spatialssl::tape::{Init, Tape, ValueId};

use crate::FORWARD;
use crate::engine::{self, forward, gradient, loss as loss_tolerance, machine, read, write};
use crate::format::{Case, Tensor, channels_first, channels_last};

/// Result of one operation: its output and the gradients of its inputs, as f64.
pub(crate) struct Ran {
    pub(crate) output: Vec<f64>,
    pub(crate) grads: Vec<Vec<f64>>,
}

/// Runs `op` on `inputs` (our layout) forward and, with `seed` as the output's gradient, backward, in f32.
pub(crate) fn run(op: impl Into<Op>, inputs: &[&Tensor], seed: &[f64]) -> Ran {
    let mut tape = Tape::default();
    let ids: Vec<ValueId> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| tape.param(format!("input {i}"), &t.shape, Init::Constant(0.0)))
        .collect();
    let y = tape.record("y", op, &ids).unwrap();
    tape.keep(y);
    let dims = tape.shape(y).dims().to_vec();
    let dy = tape.input("dy", &dims);
    let grads = tape.backward(&[(y, dy)], &ids);
    for grad in grads.iter().flatten() {
        tape.keep(*grad);
    }
    let mut step = machine(&tape);
    for (&id, t) in ids.iter().zip(inputs) {
        write(&mut step, id, &t.data);
    }
    write(&mut step, dy, seed);
    engine::run(&mut step, &tape);
    let read = |id: ValueId| read(&step, id);
    Ran { output: read(y), grads: grads.iter().map(|g| g.map_or(Vec::new(), read)).collect() }
}

pub(crate) fn check(stem: &str, case: &Case) {
    match stem {
        "conv3d" => conv3d(case),
        "conv_transpose3d" => conv_transpose3d(case),
        "pointwise" => pointwise(case),
        "norm_pool_linear" => norm_pool_linear(case),
        "resample" => crate::resample::check(case),
        "optimiser" => optimiser(case),
        other => panic!("fixture file ops/{other} is not known"),
    }
}

/// Compares output and gradients of an operation on an activation `[N, C, ..]` with further inputs `more`
/// (name, in our layout, back to PyTorch's).
fn activation_op(case: &Case, op: impl Into<Op>, more: &[(&str, Tensor)]) {
    let x = channels_last(&case.inputs["input"], 1);
    let seed = channels_last(&case.inputs["grad_output"], 1);
    let mut inputs = vec![&x];
    inputs.extend(more.iter().map(|(_, t)| t));
    let ran = run(op, &inputs, &seed.data);
    let back = |data: &[f64], shape: &[usize]| channels_first(data, shape[0], shape[1]);
    let (output, grad) = (&case.outputs["output"], &case.outputs["grad/input"]);
    output.check(&case.label, &back(&ran.output, &output.shape), forward());
    grad.check(&format!("{} dx", case.label), &back(&ran.grads[0], &grad.shape), gradient());
    for (i, (name, _)) in more.iter().enumerate() {
        let want = &case.outputs[&format!("grad/{name}")];
        let got = &ran.grads[i + 1];
        let got = if want.shape.len() == 5 { back(got, &want.shape) } else { got.clone() };
        want.check(&format!("{} d{name}", case.label), &got, gradient());
    }
}

fn with_bias(case: &Case) -> Vec<(&'static str, Tensor)> {
    let mut more = vec![("weight", channels_last(&case.inputs["weight"], 1))];
    if let Some(bias) = case.inputs.get("bias") {
        more.push(("bias", bias.clone()));
    }
    more
}

fn conv3d(case: &Case) {
    let bias = case.inputs.contains_key("bias");
    let (stride, padding) = (case.triple("stride"), case.triple("padding"));
    activation_op(case, Conv3d { stride, padding, bias, normed: false }, &with_bias(case));
}

fn conv_transpose3d(case: &Case) {
    assert_eq!(case.triple("kernel"), case.triple("stride"), "only filters equal to their stride");
    activation_op(
        case,
        ConvTranspose3d { bias: case.inputs.contains_key("bias") },
        &with_bias(case),
    );
}

fn norm_pool_linear(case: &Case) {
    let vector = |name: &'static str| (name, case.inputs[name].clone());
    match case.name.as_str() {
        name if name.starts_with("avg_pool") => {
            activation_op(case, AvgPool { window: case.triple("kernel") }, &[]);
        }
        name if name.starts_with("instance_norm") => {
            let op = InstanceNorm { slope: None, residual: false };
            activation_op(case, op, &[vector("weight"), vector("bias")]);
        }
        name if name.starts_with("global_avg_pool") => {
            let x = channels_last(&case.inputs["input"], 1);
            let ran = run(GlobalPool, &[&x], &case.inputs["grad_output"].data);
            case.outputs["output"].check(&case.label, &ran.output, forward());
            let (n, c) = (x.shape[0], x.shape[4]);
            case.outputs["grad/input"].check(
                &case.label,
                &channels_first(&ran.grads[0], n, c),
                gradient(),
            );
        }
        name if name.starts_with("linear") => {
            let inputs = ["input", "weight", "bias"].map(|n| &case.inputs[n]);
            let ran = run(Linear { bias: true }, &inputs, &case.inputs["grad_output"].data);
            case.outputs["output"].check(&case.label, &ran.output, forward());
            for (grad, name) in ran.grads.iter().zip(["input", "weight", "bias"]) {
                case.outputs[&format!("grad/{name}")].check(&case.label, grad, gradient());
            }
        }
        other => panic!("case {other} is not known"),
    }
}

fn pointwise(case: &Case) {
    match case.name.as_str() {
        "gelu_erf" => elementwise(case, Gelu),
        "leaky_relu" => elementwise(case, LeakyRelu { slope: case.number("slope") }),
        "mse" => loss(case, GapAxisLoss),
        "smooth_l1" => loss(case, VectorLoss),
        "vector_norm" => vector_norm(case),
        "cosine" => cosine(case),
        other => panic!("case {other} is not known"),
    }
}

fn elementwise(case: &Case, op: impl Into<Op>) {
    let ran = run(op, &[&case.inputs["input"]], &case.inputs["grad_output"].data);
    case.outputs["output"].check(&case.label, &ran.output, forward());
    case.outputs["grad/input"].check(&case.label, &ran.grads[0], gradient());
}

fn loss(case: &Case, op: impl Into<Op>) {
    let ran = run(op, &[&case.inputs["pred"], &case.inputs["target"]], &[1.0]);
    case.outputs["output"].check_scalar(&case.label, ran.output[0], loss_tolerance());
    case.outputs["grad/pred"].check(&case.label, &ran.grads[0], gradient());
}

/// The length inside the gap task's loss `(|p| - |g|)^2`: against `g = 0` its root is `|p|`; against a `g` longer by
/// 1/2 its derivative is minus that of `|p|`.
fn vector_norm(case: &Case) {
    let (a, seed) = (&case.inputs["a"], &case.inputs["grad_output"]);
    let (mut lengths, mut slopes) = (Vec::new(), Vec::new());
    for (row, seed) in a.data.chunks(3).zip(&seed.data) {
        let tensor = |data: Vec<f64>| Tensor { shape: vec![1, 3], data };
        let p = tensor(row.to_vec());
        let length = run(GapNormLoss, &[&p, &tensor(vec![0.0; 3])], &[1.0]).output[0].sqrt();
        let ran = run(GapNormLoss, &[&p, &tensor(vec![length + 0.5, 0.0, 0.0])], &[-seed]);
        lengths.push(length);
        slopes.extend(&ran.grads[0]);
    }
    case.outputs["output"].check(&case.label, &lengths, forward());
    case.outputs["grad/a"].check(&case.label, &slopes, gradient());
}

/// One voxel at a time, so that the loss is the cosine itself.
fn cosine(case: &Case) {
    let [a, b] = ["a", "b"].map(|n| channels_last(&case.inputs[n], 1));
    let c = *a.shape.last().unwrap();
    let (mut cosines, mut da, mut db) = (Vec::new(), Vec::new(), Vec::new());
    let voxels = a.data.chunks(c).zip(b.data.chunks(c));
    for ((a, b), &seed) in voxels.zip(&case.inputs["grad_output"].data) {
        let data = [a, b, &vec![0.5; c], &vec![0.5; c]].concat();
        let x = Tensor { shape: vec![4, 1, 1, 1, c], data };
        let ran = run(CosineLoss { first: 0, factor: 1.0 }, &[&x], &[seed]);
        cosines.push(ran.output[0]);
        da.extend(&ran.grads[0][..c]);
        db.extend(&ran.grads[0][c..2 * c]);
    }
    let n = a.shape[0];
    case.outputs["output"].check(&case.label, &cosines, forward());
    case.outputs["grad/a"].check(&case.label, &channels_first(&da, n, c), gradient());
    case.outputs["grad/b"].check(&case.label, &channels_first(&db, n, c), gradient());
}

fn optimiser(case: &Case) {
    if case.name.starts_with("ema") {
        ema(case);
    } else {
        adamw(case);
    }
}

fn adamw(case: &Case) {
    let (param, grads) = (&case.inputs["param"], &case.inputs["grads"]);
    let n = param.data.len();
    let betas: Vec<f64> =
        case.attrs["betas"].as_array().unwrap().iter().map(|b| b.as_f64().unwrap()).collect();
    let rule = AdamW {
        beta1: betas[0],
        beta2: betas[1],
        eps: case.number("eps"),
        weight_decay: case.number("weight_decay"),
    };
    let mut tape = Tape::default();
    let [scalars, norm, grad] =
        [("scalars", SCALARS), ("norm", 2), ("grad", n)].map(|(s, n)| tape.input(s, &[n]));
    let [p, m, v] = ["p", "m", "v"].map(|s| tape.state(s, &[n]));
    tape.update("adamw", rule.clone(), &[scalars, norm, grad], &[p, m, v]).unwrap();
    let mut step = machine(&tape);
    write(&mut step, p, &param.data);
    write(&mut step, norm, &[1.0, 1.0]);
    let mut seen = Vec::new();
    for (t, g) in grads.data.chunks(n).enumerate() {
        let mut values = [0.0; SCALARS];
        values[scalar::LR] = case.number("lr");
        values[scalar::BIAS1] = 1.0 - rule.beta1.powi(t as i32 + 1);
        values[scalar::BIAS2] = 1.0 - rule.beta2.powi(t as i32 + 1);
        write(&mut step, scalars, &values);
        write(&mut step, grad, g);
        engine::run(&mut step, &tape);
        seen.extend(read(&step, p));
    }
    let read = |id| read(&step, id);
    case.outputs["params"].check(&case.label, &seen, FORWARD);
    case.outputs["exp_avg"].check(&case.label, &read(m), FORWARD);
    case.outputs["exp_avg_sq"].check(&case.label, &read(v), FORWARD);
}

fn ema(case: &Case) {
    let (start, params) = (&case.inputs["start"], &case.inputs["params"]);
    let n = start.data.len();
    let mut tape = Tape::default();
    let [scalars, p] = [("scalars", SCALARS), ("p", n)].map(|(s, n)| tape.input(s, &[n]));
    let average = tape.state("average", &[n]);
    tape.update("ema", Ema, &[scalars, p], &[average]).unwrap();
    let mut step = machine(&tape);
    write(&mut step, average, &start.data);
    let mut seen = Vec::new();
    let wanted = case.attrs["weights"].as_array().unwrap();
    for (t, values) in params.data.chunks(n).enumerate() {
        let interval = case.number("interval") as u64;
        let weight = ema_weight(t as u64, case.number("momentum"), case.number("gamma"), interval);
        assert!((weight - wanted[t].as_f64().unwrap()).abs() < 1e-12, "{}: weight {t}", case.label);
        let mut values_in = [0.0; SCALARS];
        values_in[scalar::EMA] = weight;
        write(&mut step, scalars, &values_in);
        write(&mut step, p, values);
        engine::run(&mut step, &tape);
        seen.extend(read(&step, average));
    }
    case.outputs["averages"].check(&case.label, &seen, FORWARD);
}
