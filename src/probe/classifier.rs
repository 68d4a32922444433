//! The linear classifier of voxels: trained on the tape, applied to whole volumes.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::model::initial_values;
use crate::ops::{AdamW, CrossEntropy, Linear as LinearOp, SCALARS, scalar};
use crate::optim::{ParamGroup, record_update};
use crate::probe::maps::{Map, Maps, Places};
use crate::probe::samples::Samples;
use crate::random::philox::{Purpose, SampleKey};
use crate::session::{Target, executor};
use crate::tape::{Init, Tape};

/// Steps of training, and voxels of a batch, drawn with replacement.
pub(super) const STEPS: u64 = 600;
pub(super) const BATCH: usize = 8192;
/// Learning rate.
pub(super) const RATE: f64 = 1e-2;
/// Its update rule.
pub(super) const RULE: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-4 };

/// `logits[c] = bias[c] + sum_k weight[c, k] feature[k]`, of features as the network gives them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Linear {
    /// Number of classes.
    pub classes: usize,
    /// `[classes, features]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

/// What the training of a classifier depends on beside the voxels.
#[derive(Clone, Copy)]
pub(super) struct Training<'a> {
    /// Weight of each class in the loss.
    pub class_weights: &'a [f32],
    /// Seed of initial values and batches.
    pub seed: u64,
    /// Where to compute.
    pub target: Target,
    /// Steps.
    pub steps: u64,
    /// Whether to give up: the classifier is then unfinished.
    pub stopped: &'a dyn Fn() -> bool,
}

impl Linear {
    /// Trains a classifier on the given columns of standardised samples.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub(super) fn train(
        samples: &Samples,
        columns: Range<usize>,
        training: &Training<'_>,
    ) -> Result<Linear> {
        let (width, classes) = (columns.len(), training.class_weights.len());
        let mut tape = Tape::default();
        let x = tape.input("features", &[BATCH, width]);
        let target = tape.input("classes", &[BATCH]);
        let class_weights = tape.input("class weights", &[classes]);
        let one = tape.input("one", &[1]);
        // As PyTorch's Linear.
        let init = Init::Uniform { bound: 1.0 / (width as f64).sqrt() };
        let weight = tape.param("classifier.weight", &[classes, width], init);
        let bias = tape.param("classifier.bias", &[classes], init);
        let logits = tape.record("classifier", LinearOp { bias: true }, &[x, weight, bias])?;
        let loss = tape.record("loss", CrossEntropy, &[logits, target, class_weights])?;
        let grads = tape.backward(&[(loss, one)], &[weight, bias]);
        let group = ParamGroup::new(&mut tape, "classifier", &[weight, bias], &grads);
        let initial: Vec<_> = [weight, bias]
            .into_iter()
            .zip(initial_values_of(&tape, training.seed, &[weight, bias]))
            .collect();
        let update = record_update(&mut tape, &RULE, None, &[group], None)?;
        let mut step = executor(&tape, training.target)?;
        for (id, values) in initial {
            step.write(id, &values)?;
        }
        step.write(class_weights, training.class_weights)?;
        step.write(one, &[1.0])?;
        let mut batch = Batch::new(columns);
        for t in (1..=training.steps).take_while(|_| !(training.stopped)()) {
            batch.fill(samples, training.seed, t);
            step.write(x, &batch.rows)?;
            step.write(target, &batch.classes)?;
            let mut scalars = [0.0; SCALARS];
            scalars[scalar::LR] = RATE as f32;
            scalars[scalar::BIAS1] = (1.0 - RULE.beta1.powi(t as i32)) as f32;
            scalars[scalar::BIAS2] = (1.0 - RULE.beta2.powi(t as i32)) as f32;
            step.write(update.scalars, &scalars)?;
            step.submit()?;
            step.collect()?;
        }
        let scale = &samples.scale[batch.columns];
        Ok(Linear::unscaled(&step.read(weight)?, &step.read(bias)?, scale))
    }

    /// A classifier of standardised features as one of the features themselves.
    fn unscaled(weight: &[f32], bias: &[f32], scale: &[[f64; 2]]) -> Linear {
        let mut of_features = Vec::with_capacity(weight.len());
        let mut biases = Vec::with_capacity(bias.len());
        for (row, &b) in weight.chunks_exact(scale.len()).zip(bias) {
            let mut sum = f64::from(b);
            for (&w, &[mean, deviation]) in row.iter().zip(scale) {
                let w = f64::from(w) / deviation;
                sum -= w * mean;
                of_features.push(w as f32);
            }
            biases.push(sum as f32);
        }
        Linear { classes: bias.len(), weight: of_features, bias: biases }
    }

    /// The class of every voxel of a volume, by the maps from number `first` on.
    ///
    /// A linear map and an interpolation may change places: logits are computed at each map's own resolution, which is
    /// far less work, and brought to the volume's.
    pub(super) fn classify(&self, maps: &Maps, first: usize) -> Vec<u16> {
        let width = self.weight.len() / self.classes;
        let mut column = 0;
        let layers: Vec<Layer> = maps.maps[first..]
            .iter()
            .map(|map| {
                column += map.channels;
                let columns = column - map.channels..column;
                let weight: Vec<f32> = (0..self.classes)
                    .flat_map(|c| &self.weight[c * width..][columns.clone()])
                    .copied()
                    .collect();
                Layer::new(map, weight, maps.padded)
            })
            .collect();
        let [nz, ny, nx] = maps.extent;
        let mut out = vec![0u16; nz * ny * nx];
        out.par_chunks_mut(nx).enumerate().for_each(|(row, out)| {
            let mut logits = self.bias.repeat(nx);
            layers.iter().for_each(|layer| layer.add(row / ny, row % ny, &mut logits));
            for (out, logits) in out.iter_mut().zip(logits.chunks_exact(self.classes)) {
                *out = largest(logits);
            }
        });
        out
    }
}

/// Initial values of some parameters.
fn initial_values_of(tape: &Tape, seed: u64, ids: &[crate::tape::ValueId]) -> Vec<Vec<f32>> {
    let all: Vec<_> = initial_values(tape, seed).collect();
    let of = |id: &_| all.iter().find(|(other, _)| other == id).map(|(_, values)| values.clone());
    ids.iter().filter_map(of).collect()
}

/// The first of the largest.
fn largest(logits: &[f32]) -> u16 {
    let first = |best: usize, c: usize| if logits[c] > logits[best] { c } else { best };
    (1..logits.len()).fold(0, first) as u16
}

/// A batch of sampled voxels.
struct Batch {
    columns: Range<usize>,
    rows: Vec<f32>,
    classes: Vec<f32>,
}

impl Batch {
    fn new(columns: Range<usize>) -> Batch {
        Batch { columns, rows: Vec::new(), classes: Vec::new() }
    }

    /// The batch of step `step`.
    fn fill(&mut self, samples: &Samples, seed: u64, step: u64) {
        self.rows.clear();
        self.classes.clear();
        let mut stream = SampleKey { seed, step, sample: 0 }.shared(Purpose::ProbeBatch);
        for _ in 0..BATCH {
            let i = stream.below(samples.classes.len());
            self.rows.extend_from_slice(&samples.rows[i * samples.width..][self.columns.clone()]);
            self.classes.push(f32::from(samples.classes[i]));
        }
    }
}

/// A map's part in the logits.
struct Layer<'a> {
    map: &'a Map,
    classes: usize,
    /// `[classes, channels]`.
    weight: Vec<f32>,
    places: Places,
    /// `[z, y, x, classes]` at the map's resolution; none for a map of the volume's, whose rows are computed when
    /// needed.
    logits: Option<Vec<f32>>,
}

impl<'a> Layer<'a> {
    fn new(map: &'a Map, weight: Vec<f32>, padded: [usize; 3]) -> Layer<'a> {
        let classes = weight.len() / map.channels;
        let places = Places::new(map.extent, padded);
        let mut layer = Layer { map, classes, weight, places, logits: None };
        if map.extent != padded {
            let mut logits = vec![0.0; map.data.len() / map.channels * classes];
            let row = map.extent[2];
            logits.par_chunks_mut(row * classes).enumerate().for_each(|(i, to)| {
                layer.add_products(&map.data[i * row * map.channels..], to);
            });
            layer.logits = Some(logits);
        }
        layer
    }

    /// Adds the logits of the voxels that begin in `from`.
    fn add_products(&self, from: &[f32], to: &mut [f32]) {
        let voxels = from.chunks_exact(self.map.channels);
        for (voxel, to) in voxels.zip(to.chunks_exact_mut(self.classes)) {
            for (to, weight) in to.iter_mut().zip(self.weight.chunks_exact(self.map.channels)) {
                *to += voxel.iter().zip(weight).map(|(v, w)| v * w).sum::<f32>();
            }
        }
    }

    /// Adds the logits of the row of the volume along x at (z, y).
    fn add(&self, z: usize, y: usize, to: &mut [f32]) {
        let [_, my, mx] = self.map.extent;
        let Some(logits) = &self.logits else {
            let from = &self.map.data[(z * my + y) * mx * self.map.channels..];
            return self.add_products(from, to);
        };
        let [zs, ys, xs] = &self.places.axes;
        let mut row = vec![0.0; mx * self.classes];
        for (z, wz) in zs[z].ends() {
            for (y, wy) in ys[y].ends() {
                let from = &logits[(z * my + y) * mx * self.classes..][..mx * self.classes];
                row.iter_mut().zip(from).for_each(|(to, v)| *to += wz * wy * v);
            }
        }
        for (to, tap) in to.chunks_exact_mut(self.classes).zip(xs) {
            for (x, wx) in tap.ends() {
                let from = &row[x * self.classes..][..self.classes];
                to.iter_mut().zip(from).for_each(|(to, v)| *to += wx * v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::maps::tests::some;

    /// Standardised samples of three classes, along the columns 1 and 2.
    fn samples() -> Samples {
        let mut samples = Samples::new(3);
        for i in 0..600u16 {
            let (class, noise) = (i % 3, f32::from(i % 7) * 0.1);
            let place = [[3.0, 5.0], [7.0, 5.0], [5.0, 9.0]][usize::from(class)];
            samples.rows.extend([f32::from(i % 5), place[0] + noise, 100.0 * (place[1] - noise)]);
            samples.classes.push(class);
        }
        samples.standardise();
        samples
    }

    fn training(class_weights: &[f32]) -> Training<'_> {
        Training { class_weights, seed: 1, target: Target::Cpu, steps: 60, stopped: &|| false }
    }

    #[test]
    fn classes_that_lie_apart_are_learnt_and_the_seed_decides_the_bits() {
        let samples = samples();
        let linear = Linear::train(&samples, 1..3, &training(&[1.0; 3])).unwrap();
        // Applied to a map of one row whose features are not standardised.
        let data: Vec<f32> = [[3.1, 495.0], [7.2, 480.0], [5.5, 860.0]].concat();
        let map = Map { extent: [1, 1, 3], channels: 2, data };
        let maps = Maps { padded: [1, 1, 3], extent: [1, 1, 3], maps: vec![map] };
        assert_eq!(linear.classify(&maps, 0), [0, 1, 2]);
        assert_eq!(linear, Linear::train(&samples, 1..3, &training(&[1.0; 3])).unwrap());
        let other = Training { seed: 2, ..training(&[1.0; 3]) };
        assert_ne!(linear, Linear::train(&samples, 1..3, &other).unwrap());
    }

    #[test]
    fn a_class_without_weight_is_not_learnt() {
        let samples = samples();
        let linear = Linear::train(&samples, 1..3, &training(&[1.0, 1.0, 0.0])).unwrap();
        let data: Vec<f32> = [[3.1, 495.0], [7.2, 480.0], [5.5, 860.0]].concat();
        let map = Map { extent: [1, 1, 3], channels: 2, data };
        let maps = Maps { padded: [1, 1, 3], extent: [1, 1, 3], maps: vec![map] };
        assert!(linear.classify(&maps, 0)[2] < 2);
    }

    #[test]
    fn logits_interpolated_are_logits_of_interpolated_maps() {
        let maps = some([5, 4, 7]);
        let classes = 3;
        let voxels: Vec<usize> = (0..5 * 4 * 7).collect();
        let rows = maps.rows(&voxels);
        for first in [0, 1] {
            let start = maps.columns(first).start;
            let width = maps.width() - start;
            let weight: Vec<f32> = (0..classes * width).map(|i| (i as f32 * 1.3).cos()).collect();
            let linear = Linear { classes, weight: weight.clone(), bias: vec![0.1, 0.0, -0.1] };
            let got = linear.classify(&maps, first);
            for (&v, got) in voxels.iter().zip(got) {
                let row = &rows[v * maps.width() + start..(v + 1) * maps.width()];
                let logits: Vec<f32> = (0..classes)
                    .map(|c| {
                        let weights = &weight[c * width..(c + 1) * width];
                        linear.bias[c] + row.iter().zip(weights).map(|(a, b)| a * b).sum::<f32>()
                    })
                    .collect();
                // The class may differ only where two are equal up to rounding.
                let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert!(best - logits[usize::from(got)] < 1e-5, "voxel {v}: {got} of {logits:?}");
            }
        }
    }

    #[test]
    fn the_scale_of_features_is_taken_into_the_classifier() {
        let linear = Linear::unscaled(&[2.0, 3.0], &[1.0], &[[5.0, 2.0], [-1.0, 4.0]]);
        // 2 (x - 5) / 2 + 3 (y + 1) / 4 + 1
        assert_eq!((linear.weight, linear.bias), (vec![1.0, 0.75], vec![-3.25]));
    }
}
