//! Operations that move numbers against loops that spell out where each comes from; updates against formulas.

use spatialssl::ops::{Axis, Concat, Op, Pairwise, PairwiseKind};
use spatialssl::tape::{Init, Step, Tape};

use crate::common::bound::{Bound, data, normals};
use crate::common::cases::Case;

/// Adds `factor` times element `from` of input `input` to element `to` of the output.
struct Link {
    to: usize,
    input: usize,
    from: usize,
    factor: f64,
}

/// Whether the operation is nothing but links.
pub(crate) fn moves(case: &Case) -> bool {
    use Op::{AvgPool, Concat, Pairwise, ResidualAdd, SubView};
    matches!(case.op, AvgPool(_) | Concat(_) | Pairwise(_) | ResidualAdd(_) | SubView(_))
}

/// All links of an operation that is nothing but links.
fn links(case: &Case, data: &[Vec<f64>]) -> Vec<Link> {
    let dims: Vec<&[usize]> = case.inputs.iter().map(Vec::as_slice).collect();
    match &case.op {
        Op::AvgPool(op) => pool_links(op.window, dims[0]),
        Op::Concat(op) => concat_links(op, &dims),
        Op::Pairwise(op) => pairwise_links(op, dims[0]),
        Op::SubView(op) => sub_view_links(op.views, op.size, &data[0], &dims),
        Op::ResidualAdd(_) => {
            let link = |k: usize| Link { to: k / 2, input: k % 2, from: k / 2, factor: 1.0 };
            (0..2 * data[0].len()).map(link).collect()
        }
        other => panic!("{other:?} moves no numbers"),
    }
}

fn pool_links(window: [usize; 3], x: &[usize]) -> Vec<Link> {
    let [n, d, h, w, c] = *x else { panic!("an activation") };
    let [z, p, q] = [d / window[0], h / window[1], w / window[2]];
    let factor = 1.0 / window.iter().product::<usize>() as f64;
    let mut links = Vec::new();
    for from in 0..n * d * h * w * c {
        let (k, ix, iy, iz, b) =
            (from % c, from / c % w, from / c / w % h, from / c / w / h % d, from / c / w / h / d);
        let (ox, oy, oz) = (ix / window[2], iy / window[1], iz / window[0]);
        if ox < q && oy < p && oz < z {
            let to = (((b * z + oz) * p + oy) * q + ox) * c + k;
            links.push(Link { to, input: 0, from, factor });
        }
    }
    links
}

fn concat_links(op: &Concat, dims: &[&[usize]]) -> Vec<Link> {
    let total: usize = dims.iter().map(|d| d[d.len() - 1]).sum();
    let (mut links, mut before) = (Vec::new(), 0);
    for (input, dims) in dims.iter().enumerate() {
        let (len, c) = (dims.iter().product::<usize>(), dims[dims.len() - 1]);
        for from in 0..len {
            let to = match op.axis {
                Axis::Batch => before + from,
                Axis::Channel => from / c * total + before + from % c,
            };
            links.push(Link { to, input, from, factor: 1.0 });
        }
        before += if op.axis == Axis::Batch { len } else { c };
    }
    links
}

fn pairwise_links(op: &Pairwise, x: &[usize]) -> Vec<Link> {
    let [views, batch, width] = *x else { panic!("[V N K]") };
    let mut links = Vec::new();
    for n in 0..batch {
        for (i, j) in (0..views).flat_map(|i| (0..views).map(move |j| (i, j))) {
            for k in 0..width {
                let pair = (n * views + i) * views + j;
                let (first, second) = ((i * batch + n) * width + k, (j * batch + n) * width + k);
                let (to, other, factor) = match op.kind {
                    PairwiseKind::Difference => (pair * width + k, pair * width + k, -1.0),
                    PairwiseKind::Concat => (pair * 2 * width + k, (pair * 2 + 1) * width + k, 1.0),
                };
                links.push(Link { to, input: 0, from: first, factor: 1.0 });
                links.push(Link { to: other, input: 0, from: second, factor });
            }
        }
    }
    links
}

/// The rule of the module's documentation, one voxel at a time.
fn sub_view_links(views: usize, size: [usize; 3], boxes: &[f64], dims: &[&[usize]]) -> Vec<Link> {
    let (batch, pairs) = (dims[0][0], dims[0][1]);
    let [_, d, h, w, c] = *dims[1] else { panic!("an activation") };
    let all: Vec<(usize, usize)> =
        (0..views).flat_map(|i| (i + 1..views).map(move |j| (i, j))).collect();
    let (mut links, mut to) = (Vec::new(), 0);
    for (role, n, pair) in (0..4)
        .flat_map(|role| (0..batch).map(move |n| (role, n)))
        .flat_map(|(role, n)| (0..pairs).map(move |pair| (role, n, pair)))
    {
        let view = if role % 2 == 0 { all[pair].0 } else { all[pair].1 };
        let (input, image) = match (dims.len(), view) {
            (2, v) => (1, v * batch + n),
            (_, 0) => (1, n),
            (_, v) => (2, (v - 1) * batch + n),
        };
        let start = |axis: usize| boxes[((n * pairs + pair) * 4 + role) * 3 + axis] as usize;
        for z in start(0)..start(0) + size[0] {
            for y in start(1)..start(1) + size[1] {
                for x in start(2)..start(2) + size[2] {
                    for k in 0..c {
                        let from = (((image * d + z) * h + y) * w + x) * c + k;
                        links.push(Link { to, input, from, factor: 1.0 });
                        to += 1;
                    }
                }
            }
        }
    }
    links
}

/// Output and gradients in f32 on whole numbers, which are exact in any order; with a window of other than a power
/// of two, within the rounding of its 27 terms.
pub(crate) fn check(case: &Case) {
    let whole = |mut values: Vec<f64>| {
        values.iter_mut().for_each(|v| *v = (*v * 3.0).round());
        values
    };
    let boxes = usize::from(matches!(case.op, Op::SubView(_)));
    let mut data = data(case, 0);
    for values in &mut data[boxes..] {
        *values = whole(std::mem::take(values));
    }
    let links = links(case, &data);
    let mut bound = Bound::<f32>::new(case, 1, |_| true);
    let seed = whole(normals(0, 1000, bound.step.read(bound.outputs[0]).len()));
    bound.feed(&data);
    bound.set(bound.seeds[0], &seed);
    bound.step.run();
    let mut output = vec![0.0; seed.len()];
    let mut grads: Vec<Vec<f64>> = data.iter().map(|d| vec![0.0; d.len()]).collect();
    for link in &links {
        output[link.to] += link.factor * data[link.input][link.from];
        grads[link.input][link.from] += link.factor * seed[link.to];
    }
    let exact = links.iter().all(|l| l.factor.abs().log2().fract() == 0.0);
    let label = format!("{} {}", case.op.rule().name(), case.name);
    let compare = |what: &str, got: &[f32], want: &[f64]| {
        for (k, (&g, &w)) in got.iter().zip(want).enumerate() {
            let bound = if exact { 0.0 } else { 27.0 * 9.0 * f64::from(f32::EPSILON) };
            assert!((f64::from(g) - w).abs() <= bound, "{label} {what} {k}: {g}, not {w}");
        }
    };
    compare("output", bound.step.read(bound.outputs[0]), &output);
    for (i, grad) in bound.grads.iter().enumerate() {
        assert_eq!(grad.is_some(), i >= boxes, "{label}: gradient of input {i}");
        if let Some(grad) = grad {
            compare(&format!("gradient {i}"), bound.step.read(*grad), &grads[i]);
        }
    }
}

/// Updates and the norm in f64 against their formulas, element by element; with a norm that is not finite AdamW must
/// leave everything as it is.
pub(crate) fn check_update(case: &Case) {
    let data = data(case, 0);
    let mut bound = Bound::<f64>::new(case, 1, |_| true);
    bound.feed(&data);
    let output = bound.outputs[0];
    let before = normals(0, 1000, bound.step.read(output).len());
    bound.set(output, &before);
    match &case.op {
        Op::AdamW(op) => {
            bound.step.run();
            let (lr, factor) = (1e-3, 0.5);
            for (k, &p) in bound.step.read(output).iter().enumerate() {
                let g = data[2][k] * factor;
                let (m, v) = ((1.0 - op.beta1) * g / 0.1, (1.0 - op.beta2) * g * g / 1e-3);
                let want =
                    before[k] - lr * op.weight_decay * before[k] - lr * m / (v.sqrt() + op.eps);
                assert!((p - want).abs() <= 1e-14 * want.abs().max(1.0), "{p}, not {want}");
            }
            let after = bound.step.read(output).to_vec();
            for norm in [f64::NAN, f64::INFINITY] {
                bound.set(bound.inputs[1], &[norm, 0.0]);
                bound.step.run();
                assert_eq!(bound.step.read(output), after, "a norm of {norm} skips the update");
            }
        }
        Op::Ema(_) => {
            bound.step.run();
            for (k, &average) in bound.step.read(output).iter().enumerate() {
                let want = 0.75 * before[k] + 0.25 * data[1][k];
                assert!((average - want).abs() <= 1e-15 * want.abs().max(1.0), "{average}");
            }
        }
        Op::GradNorm(op) => {
            bound.step.run();
            let norm = data.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
            let factor = op.max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
            let got = bound.step.read(output);
            assert!((got[0] / norm - 1.0).abs() < 1e-13 && (got[1] / factor - 1.0).abs() < 1e-13);
            bound.step.write(bound.inputs[0])[0] = f64::NAN;
            bound.step.run();
            assert!(!bound.step.read(output)[0].is_finite(), "a NaN must show in the norm");
        }
        _ => {}
    }
}

/// Two taps of one value: each measures the gradient of its own reader, and the value receives both.
pub(crate) fn check_tap() {
    let mut tape = Tape::default();
    let x = tape.param("x", &[5], Init::Constant(0.0));
    let (a, norm_a) = tape.tap("a", x).unwrap();
    let (b, norm_b) = tape.tap("b", x).unwrap();
    let [da, db] = ["da", "db"].map(|name| tape.input(name, &[5]));
    let dx = tape.backward(&[(a, da), (b, db)], &[x])[0].unwrap();
    tape.keep(dx);
    let mut step = Step::<f64>::new(&tape);
    step.poison(f64::NAN);
    step.write(da).copy_from_slice(&[3.0, 0.0, 4.0, 0.0, 0.0]);
    step.write(db).copy_from_slice(&[0.0, -12.0, 5.0, 0.0, 0.0]);
    step.run();
    assert_eq!((step.read(norm_a)[0], step.read(norm_b)[0]), (5.0, 13.0));
    assert_eq!(step.read(dx), [3.0, -12.0, 9.0, 0.0, 0.0]);
}
