//! One operation against differences, alone, and used twice.

use spatialssl::ops::Op;
use spatialssl::shape::Shape;

use crate::common::bound::{Bound, data, is_update, normals};
use crate::common::cases::Case;

/// Step of the differences. The four-point formula errs by `eps^4 / 30` of the fifth derivative, below rounding.
const EPS: f64 = 1e-5;
/// Inputs keep this distance, in the argument of the function that has it, from where a derivative jumps: twenty
/// times what the largest difference moves it by.
const MARGIN: f64 = 1e-3;

pub(crate) fn differentiable(case: &Case) -> bool {
    !is_update(&case.op)
}

/// Gradients of all inputs in f64 for one draw of inputs that is clear of kinks, and what made them.
struct Checked {
    bound: Bound<f64>,
    data: Vec<Vec<f64>>,
    seed: Vec<f64>,
    output: Vec<f64>,
    grads: Vec<Option<Vec<f64>>>,
}

impl Checked {
    fn new(case: &Case) -> Self {
        let mut bound = Bound::<f64>::new(case, 1, |_| true);
        let seed = normals(0, 1000, bound.step.read(bound.outputs[0]).len());
        for draw in 0..1000 {
            let data = data(case, draw);
            bound.feed(&data);
            bound.set(bound.seeds[0], &seed);
            bound.forward();
            bound.backward();
            let output = bound.step.read(bound.outputs[0]).to_vec();
            if clear_of_kinks(case, &data, &output) {
                let grads = read(&bound);
                return Checked { bound, data, seed, output, grads };
            }
        }
        panic!("{}: no draw is clear of kinks", case.name);
    }

    /// Derivative of `sum seed y` along `direction` of input `i`, by the four-point central difference.
    fn difference(&mut self, i: usize, direction: &[f64]) -> f64 {
        let mut at = |step: f64| -> Vec<f64> {
            let moved: Vec<f64> =
                self.data[i].iter().zip(direction).map(|(x, d)| x + step * d).collect();
            self.bound.set(self.bound.inputs[i], &moved);
            self.bound.forward();
            self.bound.step.read(self.bound.outputs[0]).to_vec()
        };
        let values = [at(-2.0 * EPS), at(-EPS), at(EPS), at(2.0 * EPS)];
        self.bound.set(self.bound.inputs[i], &self.data[i]);
        let slope = |k: usize| {
            let [far_below, below, above, far_above] = &values;
            (8.0 * (above[k] - below[k]) - (far_above[k] - far_below[k])) / (12.0 * EPS)
        };
        self.seed.iter().enumerate().map(|(k, seed)| seed * slope(k)).sum()
    }
}

fn read(bound: &Bound<f64>) -> Vec<Option<Vec<f64>>> {
    bound.grads.iter().map(|g| g.map(|id| bound.step.read(id).to_vec())).collect()
}

/// For each input with a gradient, the largest error over the directions as a fraction of its bound: 1e-6 of the
/// derivative (of a typical one, where it happens to be small) and the rounding of the differences.
pub(crate) fn check(case: &Case) -> Vec<(usize, f64)> {
    let mut checked = Checked::new(case);
    let size: f64 = checked.seed.iter().zip(&checked.output).map(|(s, y)| (s * y).abs()).sum();
    let rounding = 4.0 * f64::EPSILON * size / EPS + f64::MIN_POSITIVE;
    let mut worst = Vec::new();
    for i in 0..case.inputs.len() {
        let has = checked.grads[i].is_some();
        assert_eq!(has, case.op.rule().differentiable(i), "{}: gradient of input {i}", case.name);
        let Some(grad) = checked.grads[i].clone() else { continue };
        let typical = (grad.iter().map(|g| g * g).sum::<f64>() / grad.len() as f64).sqrt();
        let mut ratio = 0.0f64;
        for direction in directions(i as u32, grad.len()) {
            let want: f64 = grad.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let got = checked.difference(i, &direction);
            let bound = 1e-6 * want.abs().max(typical) + rounding;
            let error = (want - got).abs() / bound;
            assert!(!error.is_nan(), "{}: input {i}: gradient {want}, difference {got}", case.name);
            ratio = ratio.max(error);
        }
        worst.push((i, ratio));
    }
    worst
}

/// One random direction and up to eight coordinates, first and last among them.
fn directions(tensor: u32, len: usize) -> Vec<Vec<f64>> {
    let mut all = vec![normals(1, tensor, len)];
    for k in 0..len.min(8) {
        let mut unit = vec![0.0; len];
        unit[k * (len - 1) / (len.min(8) - 1).max(1)] = 1.0;
        all.push(unit);
    }
    all
}

fn clear_of_kinks(case: &Case, data: &[Vec<f64>], output: &[f64]) -> bool {
    let shapes: Vec<Shape> = case.inputs.iter().map(|dims| Shape::new(dims)).collect();
    let inputs: Vec<&[f64]> = data.iter().map(Vec::as_slice).collect();
    case.op.rule().kink_distance(&shapes, &inputs, output) > MARGIN
}

/// A gradient that is the only one asked for has the bits it has among others.
pub(crate) fn check_alone(case: &Case) {
    let checked = Checked::new(case);
    for (i, want) in checked.grads.iter().enumerate() {
        let Some(want) = want else { continue };
        let mut bound = Bound::<f64>::new(case, 1, |k| k == i);
        bound.feed(&checked.data);
        bound.set(bound.seeds[0], &checked.seed);
        bound.step.run();
        for (k, got) in read(&bound).into_iter().enumerate() {
            assert_eq!(got.is_some(), k == i, "{}: gradient of input {k}", case.name);
            if let Some(got) = got {
                assert_eq!(&got, want, "{} {}, input {i}", case.op.rule().name(), case.name);
            }
        }
    }
}

/// An operation recorded twice on the same inputs: the backward pass of the second sets the gradients, that of the
/// first adds, and together they are the gradient for the sum of both seeds.
pub(crate) fn check_twice(case: &Case) {
    // An upsampling refuses to add to its input's gradient; no network gives its input a second reader.
    let refuses = |i: usize| i == 0 && matches!(case.op, Op::ConvTranspose3d(_));
    let mut checked = Checked::new(case);
    let other = normals(0, 1001, checked.seed.len());
    let mut twice = Bound::<f64>::new(case, 2, |i| !refuses(i));
    twice.feed(&checked.data);
    twice.set(twice.seeds[0], &checked.seed);
    twice.set(twice.seeds[1], &other);
    twice.step.run();
    let sum: Vec<f64> = checked.seed.iter().zip(&other).map(|(a, b)| a + b).collect();
    checked.bound.set(checked.bound.seeds[0], &sum);
    checked.bound.step.run();
    for (i, (got, want)) in read(&twice).into_iter().zip(read(&checked.bound)).enumerate() {
        let (Some(got), Some(want)) = (got, want) else {
            assert!(refuses(i) || !case.op.rule().differentiable(i), "{}: {i}", case.name);
            continue;
        };
        let largest = want.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        // Each sum of up to 1e5 products of either rounding, of which neighbouring ones may cancel.
        let bound = 1e-12 * largest.max(1.0);
        for (k, (g, w)) in got.iter().zip(&want).enumerate() {
            let label = format!("{} {}, input {i}, element {k}", case.op.rule().name(), case.name);
            assert!((g - w).abs() <= bound, "{label}: {g}, not {w}");
        }
    }
}
