//! One training step as a recorded program: the whole method from views to updated weights.

use crate::config::GradientViews;
use crate::error::Result;
use crate::model::{ResEncUNet, Weights};
use crate::ops::AdamW;
use crate::optim::{ParamGroup, Update, record_update};
use crate::pretext::{
    Gap, GapOutputs, Similarity, SimilarityOutputs, Vector, VectorHead, VectorOutputs, Views,
};
use crate::tape::{Role, Tape, ValueId};

/// Names of the six terms, in the order their weights and values are kept.
pub const TERMS: [&str; 6] =
    ["gap_axis", "gap_norm", "sim_adjacent", "sim_distant", "vector", "route"];

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
    /// Weights of the six terms, in the order of [`TERMS`]. A task whose weights are all 0 has no gradient.
    pub weights: [f64; 6],
    /// Kind of vector head.
    pub vector_head: VectorHead,
    /// Whether the gap head drops its bias.
    pub antisymmetric_gap: bool,
    /// Which views train the encoder.
    pub gradient_views: GradientViews,
    /// The update rule.
    pub adamw: AdamW,
    /// Largest gradient norm let through.
    pub max_norm: Option<f64>,
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
    /// Normalised gaps `[N, V, V, 3]`.
    pub target: ValueId,
    /// Sub-view starts `[N, P, 4, 3]`.
    pub boxes: ValueId,
    /// Weights of the six terms, `[1]` each.
    pub seeds: [ValueId; 6],
    /// Gap task.
    pub gap: GapOutputs,
    /// Similarity task.
    pub similarity: SimilarityOutputs,
    /// Vector task.
    pub vector: VectorOutputs,
    /// Gradient norm of each task at the dense representation of view 0: gap, similarity, vector.
    pub task_norms: [ValueId; 3],
    /// The dense representations.
    pub dense: Views,
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
        let (images, dense) = record_views(&mut tape, options, &mut encoder, &mut average)?;
        let (v, n) = (options.views, options.batch);
        let target = tape.input("gap", &[n, v, v, 3]);
        let boxes = tape.input("boxes", &[n, v * (v - 1) / 2, 4, 3]);
        let made = Heads::record(&mut tape, options, &mut heads, &dense, (target, boxes))?;
        let seeds = TERMS.map(|term| tape.input(format!("weight.{term}"), &[1]));
        let forward_len = tape.records().len();
        let terms = made.losses().into_iter().zip(seeds).zip(options.weights);
        let weighted: Vec<(ValueId, ValueId)> =
            terms.filter(|(_, weight)| *weight != 0.0).map(|(term, _)| term).collect();
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
        let Heads { gap, similarity, vector, task_norms } = made;
        Ok(Program {
            forward_len,
            images,
            target,
            boxes,
            seeds,
            gap,
            similarity,
            vector,
            task_norms,
            dense,
            groups,
            average,
            averages,
            update,
            tape,
        })
    }

    /// The six losses, in the order of [`TERMS`].
    pub fn losses(&self) -> [ValueId; 6] {
        losses(&self.gap, &self.similarity, &self.vector)
    }
}

fn losses(gap: &GapOutputs, sim: &SimilarityOutputs, vector: &VectorOutputs) -> [ValueId; 6] {
    [gap.axis, gap.norm, sim.adjacent, sim.distant, vector.vector, vector.route]
}

/// What the three tasks record.
struct Heads {
    gap: GapOutputs,
    similarity: SimilarityOutputs,
    vector: VectorOutputs,
    /// Norm of each task's gradient at the dense representation.
    task_norms: [ValueId; 3],
}

impl Heads {
    /// Records the tasks, each reading the representation through a probe of its own, and keeps what is read from outside.
    fn record(
        tape: &mut Tape,
        options: &ProgramOptions,
        weights: &mut Weights,
        dense: &Views,
        (target, boxes): (ValueId, ValueId),
    ) -> Result<Heads> {
        let (views, gap_norm) = dense.probed(tape, "gap")?;
        let gap = Gap { antisymmetric: options.antisymmetric_gap };
        let gap = gap.record(tape, weights, &views, target)?;
        let (views, sim_norm) = dense.probed(tape, "similarity")?;
        let similarity = Similarity { sub_size: options.sub_size };
        let similarity = similarity.record(tape, weights, &views, boxes)?;
        let (views, vector_norm) = dense.probed(tape, "vector")?;
        let vector = Vector { head: options.vector_head };
        let vector = vector.record(tape, weights, &views, target)?;
        let cosines = [similarity.adjacent_cosines, similarity.distant_cosines];
        let predictions = [gap.prediction, gap.features, vector.prediction];
        let task_norms = [gap_norm, sim_norm, vector_norm];
        let heads = Heads { gap, similarity, vector, task_norms };
        for id in cosines.into_iter().chain(predictions).chain(heads.losses()) {
            tape.keep(id);
        }
        Ok(heads)
    }

    fn losses(&self) -> [ValueId; 6] {
        losses(&self.gap, &self.similarity, &self.vector)
    }
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

/// Inputs and dense representations of all views. The averaged encoder runs first, so that its activations are gone
/// before those that backward needs come to stay.
fn record_views(
    tape: &mut Tape,
    options: &ProgramOptions,
    encoder: &mut Weights,
    average: &mut Weights,
) -> Result<(Vec<ValueId>, Views)> {
    let [d, h, w] = options.view_size;
    let (v, n, net) = (options.views, options.batch, &options.encoder);
    let c = net.in_channels;
    let (images, values) = match options.gradient_views {
        GradientViews::All => {
            let images = tape.input("views", &[v * n, d, h, w, c]);
            (vec![images], vec![net.record(tape, encoder, images)?])
        }
        GradientViews::First => {
            let first = tape.input("view 0", &[n, d, h, w, c]);
            let rest = tape.input("views 1..", &[(v - 1) * n, d, h, w, c]);
            let rest_dense = net.record(tape, average, rest)?;
            (vec![first, rest], vec![net.record(tape, encoder, first)?, rest_dense])
        }
    };
    Ok((images, Views { count: v, values }))
}

impl ProgramOptions {
    /// # Panics
    /// If sizes do not fit together: in a configuration that was checked they do.
    fn assert_usable(&self) {
        let fits = self.encoder.takes(self.view_size) && self.encoder.out_channels() >= 8;
        assert!(fits, "the network and {:?} voxels", self.view_size);
        assert!(self.views >= 2, "views of a sample: {}", self.views);
        // Four convolutions of stride 2.
        assert!(self.sub_size.iter().all(|&s| s >= 16), "sub-views of {:?} voxels", self.sub_size);
    }
}
