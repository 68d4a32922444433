//! A program, its memory, and what feeds it.

use crate::config::Config;
use crate::driver::Device;
use crate::error::Result;
use crate::model::initial_values;
use crate::ops::AdamW;
use crate::pretext::{Output, Reads, chosen_tasks};
use crate::session::data::RunData;
use crate::session::program::{Program, ProgramOptions};
use crate::session::state;
use crate::tape::{Arrangement, CudaStep, Executor, Step, Tape};
use crate::views::{Batch, Hiding, Prefetch, ViewMaker, ViewOptions};

/// The program a configuration describes.
///
/// # Errors
/// [`crate::Error::Config`] or [`crate::Error::Shape`] if sizes do not fit together.
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
        hiding: Hiding { block: config.hidden_block()?, share: tasks.masked_ratio },
        hides_from_all: tasks.hide_from_all,
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

/// The memory of a tape where it is to be computed.
///
/// # Errors
/// [`crate::Error::Device`] if the device cannot be used or its memory does not suffice.
pub(crate) fn executor(tape: &Tape, target: Target) -> Result<Executor> {
    Ok(match target {
        Target::Cpu => Executor::cpu(Step::new(tape)),
        Target::Cuda { ordinal, graph, sync_each, arrangement } => {
            let device = Device::open(ordinal, sync_each)?;
            Executor::Cuda(Box::new(CudaStep::arranged(tape, device, graph, arrangement)?))
        }
    })
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
        let mut step = executor(&program.tape, target)?;
        for (id, values) in initial_values(&program.tape, config.run.seed) {
            step.write(id, &values)?;
        }
        state::init_average(&program, &mut step)?;
        for (input, weight) in program.weights().into_iter().zip(options.weights()) {
            step.write(input, &[weight as f32])?;
        }
        Ok(Model { program, step, maker: None, target_values: Vec::new() })
    }

    /// Lets training views be cut on the device, if there is one and the configuration wants it; returns whether they
    /// are.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if memory does not suffice.
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

    /// Writes a batch into the inputs; of a batch whose views are cut on the device, the plans.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub(crate) fn feed(&mut self, batch: &Batch) -> Result<()> {
        if let Some(mut rest) = batch.voxels() {
            for &id in &self.program.images {
                let (first, others) = rest.split_at(self.program.tape.shape(id).len());
                self.step.write(id, first)?;
                rest = others;
            }
        } else {
            let (Executor::Cuda(step), Some(maker)) = (&self.step, &mut self.maker) else {
                panic!("a batch without voxels is for a device that cuts its views")
            };
            maker.plan(&step.queue().device, batch)?;
        }
        for (target, id) in &self.program.targets {
            target.fill(&batch.samples, &mut self.target_values);
            self.step.write(*id, &self.target_values)?;
        }
        Ok(())
    }
}

impl Model {
    /// Runs the forward pass on the batch fed last and reads the outputs of all tasks. Tasks that compare views see
    /// them whole: where blocks are hidden from them in training, they have a pass of their own.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub(crate) fn outputs(&mut self) -> Result<Vec<(Output, Vec<f64>)>> {
        let Model { program, step, .. } = self;
        let read = |step: &Executor, output: &Output| {
            let values = step.read(output.id)?.iter().map(|&x| f64::from(x)).collect();
            Ok((*output, values))
        };
        let of = |reads: Reads| {
            let tasks = program.tasks.iter().filter(move |task| task.task.reads() == reads);
            tasks.flat_map(|task| &task.outputs)
        };
        step.run_range(0..program.forward_len)?;
        let mut all = Vec::new();
        for output in of(Reads::Hidden) {
            all.push(read(step, output)?);
        }
        if let Some(mask) = program.hides_from_all {
            step.write(mask, &vec![0.0; program.tape.shape(mask).len()])?;
            step.run_range(0..program.forward_len)?;
        }
        for output in of(Reads::Views) {
            all.push(read(step, output)?);
        }
        Ok(all)
    }

    /// Submits a step on the batch fed last; of a batch without views, they are cut at its head.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
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
    /// [`crate::Error::Device`] if the device fails.
    pub(crate) fn look_ahead(&mut self, prefetch: &Prefetch) -> Result<()> {
        match (&self.step, &mut self.maker) {
            (Executor::Cuda(step), Some(maker)) => {
                maker.look_ahead(&step.queue().device, &prefetch.upcoming())
            }
            _ => Ok(()),
        }
    }
}
