//! One training step as a recorded program: the whole method from views to updated weights.

use std::ops::Range;
use std::sync::Arc;

use crate::config::GradientViews;
use crate::error::Result;
use crate::model::{ResEncUNet, Weights};
use crate::ops::{AdamW, HideBlocks};
use crate::optim::{ParamGroup, Update, record_update};
use crate::pretext::{Hidden, Inputs, Output, Reads, Samples, Target, Task, ViewSizes, Views};
use crate::report::Observable;
use crate::tape::{Role, Tape, ValueId};
use crate::views::Hiding;

/// Everything that shapes the program.
#[derive(Clone, Debug)]
pub struct ProgramOptions {
    /// The dense encoder.
    pub encoder: ResEncUNet,
    /// Number of views.
    pub views: usize,
    /// Samples in a batch.
    pub batch: usize,
    /// Extent of a view, (z, y, x).
    pub view_size: [usize; 3],
    /// Extent of a sub-view, (z, y, x).
    pub sub_size: [usize; 3],
    /// The tasks with the weights of their terms. A task whose weights are all 0 has no gradient.
    pub tasks: Vec<(Arc<dyn Task>, Vec<f64>)>,
    /// Which views train the encoder.
    pub gradient_views: GradientViews,
    /// How blocks of views are hidden from tasks that restore them.
    pub hiding: Hiding,
    /// Whether they are hidden from all tasks, in the views that train the encoder.
    pub hides_from_all: bool,
    /// The update rule.
    pub adamw: AdamW,
    /// Largest gradient norm let through.
    pub max_norm: Option<f64>,
}

/// A task in the step.
#[derive(Clone, Debug)]
pub struct RecordedTask {
    /// The task.
    pub task: Arc<dyn Task>,
    /// Its losses, `[1]` each, in the order of its terms.
    pub losses: Vec<ValueId>,
    /// Their weights, inputs of the step, `[1]` each.
    pub weights: Vec<ValueId>,
    /// What validation reads.
    pub outputs: Vec<Output>,
    /// Norm of the task's gradient at the dense representation of view 0.
    pub norm: ValueId,
    /// Its forward records.
    pub records: Range<usize>,
}

/// The recorded step and the handles to feed and read it.
#[derive(Clone, Debug)]
pub struct Program {
    /// All records.
    pub tape: Tape,
    /// Records of the forward pass: these alone evaluate a batch.
    pub forward_len: usize,
    /// View images, view-major; one value or two (view 0, others).
    pub images: Vec<ValueId>,
    /// Inputs that follow from the samples' plans.
    pub targets: Vec<(Target, ValueId)>,
    /// What the encoders do for all tasks, in words, with its forward records.
    pub passes: Vec<(&'static str, Range<usize>)>,
    /// The tasks, in the order in which they are recorded.
    pub tasks: Vec<RecordedTask>,
    /// The dense representations that tasks which compare views read.
    pub dense: Views,
    /// The input that says which blocks are hidden from the tasks that compare views, if any are.
    pub hides_from_all: Option<ValueId>,
    /// Extent of a block, (z, y, x); 0 if none are hidden.
    pub block: [usize; 3],
    /// Encoder and heads.
    pub groups: [ParamGroup; 2],
    /// The averaged encoder.
    pub average: ValueId,
    /// Its tensors, in the order of the encoder's parameters.
    pub averages: Vec<ValueId>,
    /// The update.
    pub update: Update,
}

impl Program {
    /// Records the step.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if shapes do not fit together.
    ///
    /// # Panics
    /// If the options are not those of a configuration that was checked.
    pub fn new(options: &ProgramOptions) -> Result<Program> {
        options.assert_usable();
        let mut tape = Tape::default();
        let (mut encoder, mut average, mut heads) =
            (Weights::trained(), Weights::averaged(), Weights::trained());
        // Views are the first inputs: a device that cuts them itself copies only what follows.
        let views = record_views(&mut tape, options, &mut encoder, &mut average)?;
        let mut targets = record_targets(&mut tape, options);
        targets.extend(views.mask.clone());
        let mut tasks = record_tasks(&mut tape, options, &mut heads, &views, &targets)?;
        for recorded in &mut tasks {
            let terms = recorded.task.terms().iter();
            let inputs = terms.map(|term| tape.input(format!("weight.{}", term.name), &[1]));
            recorded.weights = inputs.collect();
        }
        let forward_len = tape.records().len();
        let weighted = weighted_losses(options, &tasks);
        let [encoder_grads, head_grads] =
            record_backward(&mut tape, &weighted, [encoder.ids(), heads.ids()]);
        let averages = average_ids(&mut tape, &encoder, average);
        let average = tape.pack("ema encoder", &averages, Role::State);
        let groups = [
            ParamGroup::new(&mut tape, "encoder", encoder.ids(), &encoder_grads),
            ParamGroup::new(&mut tape, "heads", heads.ids(), &head_grads),
        ];
        let averaged = Some((&groups[0], average));
        let update = record_update(&mut tape, &options.adamw, options.max_norm, &groups, averaged)?;
        Ok(Program {
            forward_len,
            hides_from_all: views.hidden.filter(|_| options.hides_from_all).map(|h| h.mask),
            block: views.hidden.map_or([0; 3], |hidden| hidden.block),
            images: views.images,
            passes: views.passes,
            dense: views.dense,
            targets,
            tasks,
            groups,
            average,
            averages,
            update,
            tape,
        })
    }

    /// The losses of all tasks, in order.
    pub fn losses(&self) -> Vec<ValueId> {
        self.tasks.iter().flat_map(|task| task.losses.iter().copied()).collect()
    }

    /// The inputs that hold the losses' weights, in the same order.
    pub fn weights(&self) -> Vec<ValueId> {
        self.tasks.iter().flat_map(|task| task.weights.iter().copied()).collect()
    }

    /// The input of that name which follows from the samples' plans.
    ///
    /// # Panics
    /// If no task has such a target.
    pub fn target(&self, name: &str) -> ValueId {
        let found = self.targets.iter().find(|(target, _)| target.name == name);
        found.unwrap_or_else(|| panic!("no task has a target {name}")).1
    }

    /// What a person sees of the tasks.
    pub fn observables(&self) -> Vec<&dyn Observable> {
        self.tasks.iter().map(|task| task.task.as_ref() as &dyn Observable).collect()
    }
}

/// The targets of all tasks, each name once.
fn record_targets(tape: &mut Tape, options: &ProgramOptions) -> Vec<(Target, ValueId)> {
    let sizes = options.view_sizes();
    let mut targets: Vec<(Target, ValueId)> = Vec::new();
    for target in options.tasks.iter().flat_map(|(task, _)| task.targets(&sizes)) {
        if let Some((same, _)) = targets.iter().find(|(other, _)| other.name == target.name) {
            assert_eq!(same.dims, target.dims, "two targets are called {}", target.name);
            continue;
        }
        let input = tape.input(target.name, &target.input_dims(options.batch, options.views));
        targets.push((target, input));
    }
    targets
}

/// Records the tasks, each reading the representation through a gradient-norm tap of its own, and keeps what is read
/// from outside.
fn record_tasks(
    tape: &mut Tape,
    options: &ProgramOptions,
    weights: &mut Weights,
    views: &RecordedViews,
    targets: &[(Target, ValueId)],
) -> Result<Vec<RecordedTask>> {
    let sizes = options.view_sizes();
    let mut all = Vec::new();
    for (task, _) in &options.tasks {
        let first = tape.records().len();
        let (dense, hidden, norm) = views.tapped(tape, task.as_ref())?;
        let own: Vec<ValueId> = task
            .targets(&sizes)
            .iter()
            .flat_map(|target| targets.iter().find(|(other, _)| other.name == target.name))
            .map(|(_, id)| *id)
            .collect();
        let inputs = Inputs { sizes, dense: &dense, hidden, images: &views.images, targets: &own };
        let recorded = task.record(tape, weights, &inputs)?;
        assert_eq!(recorded.losses.len(), task.terms().len(), "losses of task {}", task.name());
        for &id in recorded.losses.iter().chain(recorded.outputs.iter().map(|output| &output.id)) {
            tape.keep(id);
        }
        let (task, outputs) = (Arc::clone(task), recorded.outputs);
        let (losses, weights) = (recorded.losses, Vec::new());
        let records = first..tape.records().len();
        all.push(RecordedTask { task, losses, weights, outputs, norm, records });
    }
    Ok(all)
}

/// Losses that have weight, with the inputs that hold it.
fn weighted_losses(options: &ProgramOptions, tasks: &[RecordedTask]) -> Vec<(ValueId, ValueId)> {
    let weights = options.tasks.iter().flat_map(|(_, weights)| weights);
    let terms = tasks.iter().flat_map(|task| task.losses.iter().zip(&task.weights));
    let weighted = terms.zip(weights).filter(|(_, weight)| **weight != 0.0);
    weighted.map(|((&loss, &input), _)| (loss, input)).collect()
}

/// Gradients of the parameters of both groups.
fn record_backward(
    tape: &mut Tape,
    weighted: &[(ValueId, ValueId)],
    params: [&[ValueId]; 2],
) -> [Vec<Option<ValueId>>; 2] {
    let wanted = [params[0], params[1]].concat();
    let mut grads = tape.backward(weighted, &wanted);
    let heads = grads.split_off(params[0].len());
    [grads, heads]
}

/// Tensors of the averaged encoder: those recorded, or, where no view passes through it, new ones of the same shapes.
fn average_ids(tape: &mut Tape, encoder: &Weights, average: Weights) -> Vec<ValueId> {
    if !average.ids().is_empty() {
        assert_eq!(average.names(), encoder.names(), "both encoders are recorded alike");
        return average.ids().to_vec();
    }
    let pairs = encoder.names().iter().zip(encoder.ids());
    let shapes: Vec<(String, Vec<usize>)> =
        pairs.map(|(name, &id)| (format!("ema.{name}"), tape.shape(id).dims().to_vec())).collect();
    shapes.into_iter().map(|(name, dims)| tape.state(name, &dims)).collect()
}

/// The views and what the encoders make of them.
struct RecordedViews {
    /// One value or two (view 0, others).
    images: Vec<ValueId>,
    /// Representations that tasks read; with no task that reads them, those of the views with hidden blocks.
    dense: Views,
    /// Views with hidden blocks, if a task reads them or all do.
    hidden: Option<Hidden>,
    /// The input that says which blocks are hidden, if any are.
    mask: Option<(Target, ValueId)>,
    /// The passes, in words, with their records.
    passes: Vec<(&'static str, Range<usize>)>,
}

impl RecordedViews {
    /// What `task` reads, under a name of its own at which the norm of its gradient is measured.
    fn tapped(&self, tape: &mut Tape, task: &dyn Task) -> Result<(Views, Option<Hidden>, ValueId)> {
        if let (Reads::Hidden, Some(hidden)) = (task.reads(), self.hidden) {
            let (dense, norm) = tape.tap(&format!("dense.{}", task.name()), hidden.dense)?;
            return Ok((self.dense.clone(), Some(Hidden { dense, ..hidden }), norm));
        }
        let (dense, norm) = self.dense.tapped(tape, task.name())?;
        Ok((dense, None, norm))
    }
}

/// Inputs and dense representations of all views. The averaged encoder runs first, so that its activations are gone
/// before those that backward needs come to stay. A pass that no task reads is not recorded: without tasks that compare
/// views all of them train the encoder, and with `hides_from_all` views with hidden blocks are the only ones.
fn record_views(
    tape: &mut Tape,
    options: &ProgramOptions,
    encoder: &mut Weights,
    average: &mut Weights,
) -> Result<RecordedViews> {
    let [d, h, w] = options.view_size;
    let (v, n, net) = (options.views, options.batch, &options.encoder);
    let c = net.in_channels;
    let compares = options.is_read(Reads::Views);
    let trains_all = options.gradient_views == GradientViews::All || !compares;
    let images = if trains_all {
        vec![tape.input("views", &[v * n, d, h, w, c])]
    } else {
        vec![
            tape.input("view 0", &[n, d, h, w, c]),
            tape.input("views 1..", &[(v - 1) * n, d, h, w, c]),
        ]
    };
    let mut passes = Vec::new();
    let mut end_pass = |what, tape: &Tape, first: usize| {
        passes.push((what, first..tape.records().len()));
        tape.records().len()
    };
    let rest = match images[..] {
        [_, rest] => Some(net.record(tape, average, rest)?),
        _ => None,
    };
    let mut first = end_pass("averaged encoder, views 1..", tape, 0);
    let (mut hidden, mut mask_input) = (None, None);
    if options.hides_from_all || options.is_read(Reads::Hidden) {
        let samples = if trains_all { Samples::PerView } else { Samples::First };
        let target = mask_target(options, samples);
        let mask = tape.input(target.name, &target.input_dims(n, v));
        mask_input = Some((target, mask));
        let block = options.hiding.block;
        let shown = tape.record("hide", HideBlocks { block }, &[images[0], mask])?;
        let dense = net.record(tape, encoder, shown)?;
        first = end_pass("encoder, hidden blocks", tape, first);
        hidden = Some(Hidden { images: images[0], mask, block, dense, samples });
    }
    let online = match hidden {
        Some(hidden) if options.hides_from_all || !compares => hidden.dense,
        _ => net.record(tape, encoder, images[0])?,
    };
    end_pass("encoder, whole views", tape, first);
    passes.retain(|(_, records)| !records.is_empty());
    let values = [online].into_iter().chain(rest).collect();
    let dense = Views { count: v, values };
    Ok(RecordedViews { images, dense, hidden, mask: mask_input, passes })
}

/// Which blocks of the views that train the encoder are hidden.
fn mask_target(options: &ProgramOptions, samples: Samples) -> Target {
    let hiding = options.hiding;
    let cells = hiding.cells(options.view_size);
    let count = cells.iter().product();
    let mut target = Target::per_view("mask", &cells, move |plan, view, out| {
        hiding.append(plan.key, view, count, out);
    });
    target.samples = samples;
    target
}

impl ProgramOptions {
    fn view_sizes(&self) -> ViewSizes {
        ViewSizes { count: self.views, size: self.view_size, sub_size: self.sub_size }
    }

    /// Whether a task reads this representation.
    pub fn is_read(&self, what: Reads) -> bool {
        self.tasks.iter().any(|(task, _)| task.reads() == what)
    }

    /// Weights of the losses of all tasks, in order.
    pub fn weights(&self) -> Vec<f64> {
        self.tasks.iter().flat_map(|(_, weights)| weights.iter().copied()).collect()
    }

    /// # Panics
    /// If sizes do not fit together: in a configuration that was checked they do.
    fn assert_usable(&self) {
        let fits = self.encoder.takes(self.view_size) && self.encoder.out_channels() >= 8;
        assert!(fits, "the network and {:?} voxels", self.view_size);
        assert!(self.views >= 2, "views of a sample: {}", self.views);
        let [size, block] = [self.view_size, self.hiding.block];
        let fills = (0..3).all(|a| block[a] > 0 && size[a].is_multiple_of(block[a]));
        assert!(fills, "hidden blocks of {block:?} voxels in {size:?}");
        // Four convolutions of stride 2.
        assert!(self.sub_size.iter().all(|&s| s >= 16), "sub-views of {:?} voxels", self.sub_size);
    }
}
