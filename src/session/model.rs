//! What a run works with: data, program, memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::dataset::{DataSet, PrepareOptions};
use crate::driver::Device;
use crate::error::{Error, Result, escape};
use crate::image::{Spacing, Volume};
use crate::model::initial_values;
use crate::ops::AdamW;
use crate::pretext::chosen_tasks;
use crate::run::Ui;
use crate::session::program::{Program, ProgramOptions};
use crate::session::state;
use crate::tape::{Arrangement, CudaStep, Executor, Step};
use crate::views::{Batch, Prefetch, ViewMaker, ViewOptions};

/// The volumes of a run and which of them train.
pub(crate) struct RunData {
    /// All volumes.
    pub set: Arc<DataSet>,
    /// Indices of the training volumes.
    pub train: Vec<usize>,
    /// Indices of the volumes held out.
    pub validation: Vec<usize>,
}

impl RunData {
    /// Finds and prepares the volumes, and splits them. A training volume smaller than a view is noted: it is padded.
    pub(crate) fn open(config: &Config, paths: &[PathBuf], ui: &mut dyn Ui) -> Result<RunData> {
        let data = &config.data;
        let window = data.ct_window.map(|v| v as f32);
        let options =
            PrepareOptions { spacing: data.spacing, normalize: data.normalize, ct_window: window };
        let cache = Path::new(&data.cache_dir);
        let set = DataSet::open(paths, &options, cache, data.on_bad_file, &mut |done, all| {
            ui.preparing(done, all)
        })?;
        for warning in &set.warnings {
            ui.warn(warning);
        }
        let (train, validation) = set.split(data.validation_fraction, data.split_seed);
        let size = config.views.size;
        let small: Vec<_> =
            set.cases.iter().filter(|c| (0..3).any(|a| c.extent[a] < size[a])).collect();
        if let Some(first) = small.first() {
            ui.warn(&format!(
                "{} of {} volumes are smaller than a view of {size:?} voxels and are padded with their smallest value, \
                 the first is {} with {:?}",
                small.len(),
                set.cases.len(),
                escape(&first.source),
                first.extent
            ));
        }
        Ok(RunData { set: Arc::new(set), train, validation })
    }

    /// Half of the largest mean extent of the training volumes, in mm, rounded to whole mm: the default unit of gaps.
    pub(crate) fn default_gap_unit_mm(&self) -> f64 {
        let mean = |a: usize| {
            let sum: usize = self.train.iter().map(|&i| self.set.cases[i].extent[a]).sum();
            sum as f64 / self.train.len().max(1) as f64 * self.set.spacing_mm[a]
        };
        (mean(0).max(mean(1)).max(mean(2)) / 2.0).round().max(1.0)
    }
}

/// How views are cut, with the unit of gaps in voxels.
pub(crate) fn view_options(config: &Config, spacing_mm: [f64; 3]) -> ViewOptions {
    let views = &config.views;
    ViewOptions {
        count: views.count,
        size: views.size,
        sub_size: views.sub_size,
        batch: views.batch,
        offset_rule: views.offset_rule,
        gap_divisor: spacing_mm.map(|mm| (views.gap_unit_mm / mm) as f32),
    }
}

/// The program a configuration describes.
///
/// # Errors
/// [`Error::Config`] or [`Error::Shape`] if sizes do not fit together.
pub fn program_options(config: &Config) -> Result<ProgramOptions> {
    let tasks = &config.tasks;
    Ok(ProgramOptions {
        encoder: config.model.encoder()?,
        views: config.views.count,
        batch: config.views.batch,
        view_size: config.views.size,
        sub_size: config.views.sub_size,
        tasks: chosen_tasks(&tasks.options(), |term| tasks.weights.get(term)),
        gradient_views: tasks.gradient_views,
        adamw: AdamW {
            beta1: config.optim.beta1,
            beta2: config.optim.beta2,
            eps: config.optim.eps,
            weight_decay: config.optim.weight_decay,
        },
        max_norm: (config.optim.clip_norm > 0.0).then_some(config.optim.clip_norm),
    })
}

/// Where training computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// On the CPU.
    Cpu,
    /// On a CUDA device.
    Cuda {
        /// Its number.
        ordinal: usize,
        /// Whether steps are captured into a graph and replayed.
        graph: bool,
        /// Whether every launch is waited for, so that a fault names its kernel.
        sync_each: bool,
        /// Whether values share allocations.
        arrangement: Arrangement,
    },
}

/// A program and its memory.
pub(crate) struct Model {
    /// The recorded step.
    pub program: Program,
    /// Its memory.
    pub step: Executor,
    /// What cuts training views on the device, if they are cut there.
    pub maker: Option<ViewMaker>,
    /// Values of a target on their way into the step; keeps its memory.
    target_values: Vec<f32>,
}

impl Model {
    /// Records the program, allocates its memory, and starts the weights from the seed.
    pub(crate) fn new(config: &Config, target: Target) -> Result<Model> {
        let options = program_options(config)?;
        let program = Program::new(&options)?;
        let mut step = match target {
            Target::Cpu => Executor::cpu(Step::new(&program.tape)),
            Target::Cuda { ordinal, graph, sync_each, arrangement } => {
                let device = Device::open(ordinal, sync_each)?;
                let step = CudaStep::arranged(&program.tape, device, graph, arrangement)?;
                Executor::Cuda(Box::new(step))
            }
        };
        for (id, values) in initial_values(&program.tape, config.run.seed) {
            step.write(id, &values)?;
        }
        state::init_average(&program, &mut step)?;
        for (input, weight) in program.weights().into_iter().zip(options.weights()) {
            step.write(input, &[weight as f32])?;
        }
        Ok(Model { program, step, maker: None, target_values: Vec::new() })
    }

    /// Lets training views be cut on the device, if there is one and the configuration wants it; returns whether they are.
    ///
    /// # Errors
    /// [`Error::Device`] if memory does not suffice.
    pub(crate) fn cut_on_device(
        &mut self,
        config: &Config,
        data: &RunData,
        views: &ViewOptions,
    ) -> Result<bool> {
        if let (Executor::Cuda(step), true) = (&mut self.step, config.data.views_on_device) {
            let extents: Vec<_> = data.train.iter().map(|&i| data.set.cases[i].extent).collect();
            self.maker = Some(ViewMaker::new(&step.queue().device, views, &extents)?);
            step.make_on_device(&self.program.images);
        }
        Ok(self.maker.is_some())
    }

    /// Number of trained parameters.
    pub(crate) fn parameters(&self) -> u64 {
        self.program.tape.params().iter().map(|&p| self.program.tape.shape(p).len() as u64).sum()
    }

    /// Writes a batch into the inputs; of a batch without views, the plans.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub(crate) fn feed(&mut self, batch: &Batch) -> Result<()> {
        let mut rest = &batch.views[..];
        if rest.is_empty() {
            let (Executor::Cuda(step), Some(maker)) = (&self.step, &mut self.maker) else {
                panic!("a batch without views is for a device that cuts them")
            };
            maker.plan(&step.queue().device, batch)?;
        } else {
            for &id in &self.program.images {
                let (first, others) = rest.split_at(self.program.tape.shape(id).len());
                self.step.write(id, first)?;
                rest = others;
            }
        }
        for (target, id) in &self.program.targets {
            target.fill(&batch.samples, &mut self.target_values);
            self.step.write(*id, &self.target_values)?;
        }
        Ok(())
    }
}

impl Model {
    /// Submits a step on the batch fed last; of a batch without views, they are cut at its head.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub(crate) fn submit(&mut self) -> Result<()> {
        let Model { program, step, maker, .. } = self;
        match (step, maker) {
            (Executor::Cuda(step), Some(maker)) => {
                assert!(maker.is_planned(), "a batch is fed before each step");
                let place = |&id| (step.half_address(id), program.tape.shape(id).dims()[0]);
                let places: Vec<_> = program.images.iter().map(place).collect();
                maker.send(&step.queue().device)?;
                step.submit_making(|queue| maker.launch(queue, &places))?;
                maker.record_use(&step.queue().device)
            }
            (step, _) => step.submit(),
        }
    }

    /// Begins to copy the volumes of batches to come to the device, if views are cut there.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub(crate) fn look_ahead(&mut self, prefetch: &Prefetch) -> Result<()> {
        match (&self.step, &mut self.maker) {
            (Executor::Cuda(step), Some(maker)) => {
                maker.look_ahead(&step.queue().device, &prefetch.upcoming())
            }
            _ => Ok(()),
        }
    }
}

/// The volume of case `index`, with its name in any error.
pub(crate) fn load(set: &DataSet, index: usize) -> Result<Arc<Volume>> {
    set.load(index).map(Arc::new)
}

/// Checks that a resumed run computes what the checkpoint's run computed.
///
/// # Errors
/// [`Error::Checkpoint`] naming each difference, old and new.
pub(crate) fn check_same(path: &Path, old: &str, new: &Config) -> Result<()> {
    let text = new.to_toml()?;
    let parse = |text: &str| toml::from_str::<toml::Table>(text).unwrap_or_default();
    let (old, new) = (parse(old), parse(&text));
    let mut differences = Vec::new();
    for (section, values) in &new {
        for (key, value) in values.as_table().into_iter().flatten() {
            let name = format!("{section}.{key}");
            let before = old.get(section).and_then(|s| s.get(key));
            if !MAY_CHANGE.contains(&name.as_str()) && before != Some(value) {
                let before = before.map_or_else(|| "absent".to_string(), ToString::to_string);
                differences.push(format!("{name} was {before}, is {value}"));
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let why = format!(
        "the run was started with other settings:\n  {}\n  \
         resume with the run's own config.toml, or start a new run in another folder",
        differences.join("\n  ")
    );
    Err(Error::checkpoint(path, why))
}

/// Settings that do not change what a step computes.
const MAY_CHANGE: [&str; 10] = [
    "data.cache_dir",
    "data.loader_threads",
    "data.views_on_device",
    "data.on_bad_file",
    "run.device",
    "run.threads",
    "run.checkpoint_every",
    "run.keep_last",
    "run.max_minutes",
    "run.validation_draws",
];

/// The spacing of prepared volumes as the log prints it.
pub(crate) fn spacing_text(config: &Config, set: &DataSet) -> String {
    let [z, y, x] = set.spacing_mm;
    match config.data.spacing {
        Spacing::Native => "each volume at its own spacing".to_string(),
        _ => format!("spacing {z:.3} x {y:.3} x {x:.3} mm (z, y, x)"),
    }
}
