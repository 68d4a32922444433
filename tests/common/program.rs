//! A whole training step on random views, for tests and benches.

use std::sync::Arc;

use spatialssl::config::GradientViews;
use spatialssl::model::{ResEncUNet, Stage, initialise};
use spatialssl::ops::{AdamW, SCALARS, scalar};
use spatialssl::pretext::{Task, TaskOptions, chosen_tasks, terms};
use spatialssl::random::philox::{Purpose, SampleKey, Stream};
use spatialssl::scalar::Scalar;
use spatialssl::session::{Program, ProgramOptions};
use spatialssl::tape::{Step, ValueId};
use spatialssl::views::Hiding;

/// A residual-encoder U-Net for three views of one channel, the defaults of a run around it.
pub(crate) fn options(
    features: &[usize],
    blocks: &[usize],
    view_size: [usize; 3],
    batch: usize,
) -> ProgramOptions {
    let stage = |(s, (&features, &blocks)): (usize, (&usize, &usize))| Stage {
        features,
        blocks,
        kernel: [3; 3],
        stride: if s == 0 { [1; 3] } else { [2; 3] },
    };
    ProgramOptions {
        encoder: ResEncUNet {
            in_channels: 1,
            stem_channels: features[0],
            stages: features.iter().zip(blocks).enumerate().map(stage).collect(),
            decoder_convs: 1,
            conv_bias: true,
        },
        views: 3,
        batch,
        view_size,
        sub_size: [16; 3],
        tasks: weighted_tasks(&TaskOptions::default()),
        gradient_views: GradientViews::First,
        hiding: Hiding { block: [2; 3], share: [0.6, 0.75] },
        hides_from_all: false,
        adamw: AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        max_norm: Some(12.0),
    }
}

/// Weights of the terms of the paper's tasks, of which no two neighbours are alike.
const WEIGHTS: [(&str, f64); 7] = [
    ("gap_axis", 1.0),
    ("gap_norm", 0.5),
    ("sim_adjacent", 1.0),
    ("sim_distant", 0.5),
    ("sim_spread", 0.75),
    ("vector", 1.0),
    ("route", 0.25),
];

/// The paper's tasks with [`WEIGHTS`].
pub(crate) fn weighted_tasks(options: &TaskOptions) -> Vec<(Arc<dyn Task>, Vec<f64>)> {
    for (name, _) in WEIGHTS {
        assert!(terms().iter().any(|term| term.name == name), "no task has a term {name}");
    }
    let of = |name: &str| WEIGHTS.iter().find(|(term, _)| *term == name).map_or(0.0, |(_, w)| *w);
    chosen_tasks(options, of)
}

/// The same with masked reconstruction: a pass of its own for it, or hidden blocks for all tasks.
pub(crate) fn with_masked(options: ProgramOptions, hides_from_all: bool) -> ProgramOptions {
    let all = chosen_tasks(&TaskOptions::default(), |_| 0.75);
    let masked = all.into_iter().find(|(task, _)| task.name() == "masked").unwrap();
    let tasks = options.tasks.iter().cloned().chain([masked]).collect();
    ProgramOptions { tasks, hides_from_all, ..options }
}

/// A recorded program with its memory and inputs.
pub(crate) struct Run<T> {
    pub(crate) options: ProgramOptions,
    pub(crate) program: Program,
    pub(crate) step: Step<T>,
}

impl<T: Scalar> Run<T> {
    /// Records the program, poisons its arena and starts the weights.
    pub(crate) fn new(options: ProgramOptions) -> Self {
        let program = Program::new(&options).unwrap();
        let mut step = Step::new(&program.tape);
        step.poison(T::from_f64(f64::NAN));
        initialise(&program.tape, &mut step, 7);
        let encoder = step.read(program.groups[0].packed).to_vec();
        step.write(program.average).copy_from_slice(&encoder);
        let mut run = Run { options, program, step };
        for (input, weight) in run.program.weights().into_iter().zip(run.options.weights()) {
            run.step.write(input)[0] = T::from_f64(weight);
        }
        run
    }

    /// Writes the inputs of update `t`; see [`inputs`].
    pub(crate) fn feed(&mut self, t: u32, lr: f64) {
        for (id, values) in inputs(&self.options, &self.program, t, lr) {
            for (to, value) in self.step.write(id).iter_mut().zip(values) {
                *to = T::from_f64(value);
            }
        }
    }
}

/// The inputs of update `t`, counted from 0: views and targets of noise, boxes that fit, and the scalars of the update
/// with learning rate `lr`. With `lr` 0 nothing is updated, nor averaged.
pub(crate) fn inputs(
    options: &ProgramOptions,
    program: &Program,
    t: u32,
    lr: f64,
) -> Vec<(ValueId, Vec<f64>)> {
    let fill = |id: ValueId, value: &mut dyn FnMut(usize) -> f64| -> (ValueId, Vec<f64>) {
        (id, (0..program.tape.shape(id).len()).map(value).collect())
    };
    let mut all = Vec::new();
    for (i, &image) in program.images.iter().enumerate() {
        let stream = stream(t, i as u32);
        all.push(fill(image, &mut |k| f64::from(stream.normal_at(k as u32))));
    }
    for (k, (target, id)) in program.targets.iter().enumerate() {
        let mut stream = stream(t, 100 + k as u32);
        if target.name == "boxes" {
            let room: [usize; 3] =
                std::array::from_fn(|a| options.view_size[a] - options.sub_size[a] + 1);
            let start = |k: usize| (stream.uniform_f64() * room[k % 3] as f64).floor();
            all.push(fill(*id, &mut { start }));
        } else if target.name == "mask" {
            all.push(fill(*id, &mut |_| f64::from(u8::from(stream.chance(0.7)))));
        } else {
            all.push(fill(*id, &mut |k| 0.5 * f64::from(stream.normal_at(k as u32))));
        }
    }
    let mut scalars = [0.0; SCALARS];
    scalars[scalar::LR] = lr;
    scalars[scalar::BIAS1] = 1.0 - options.adamw.beta1.powi(t as i32 + 1);
    scalars[scalar::BIAS2] = 1.0 - options.adamw.beta2.powi(t as i32 + 1);
    scalars[scalar::EMA] = if lr == 0.0 { 0.0 } else { 0.01 };
    all.push(fill(program.update.scalars, &mut |k| scalars[k]));
    all
}

fn stream(t: u32, tensor: u32) -> Stream {
    SampleKey { seed: 3, step: u64::from(t), sample: tensor }.shared(Purpose::NoiseField)
}
