//! The seam for a pretext task: what a step computes of it. What a person sees of it is [`crate::report::Observable`].

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::model::Weights;
use crate::pretext::heads::Views;
use crate::report::Observable;
use crate::tape::{Tape, ValueId};
use crate::views::SamplePlan;
use crate::views::geometry::SUB_VIEWS;

/// Appends the values of a sample, or of its view of that number.
type Values = dyn Fn(&SamplePlan, usize, &mut Vec<f32>) + Send + Sync;

/// An input of the step that follows from the samples' plans. Tasks that name the same target share it.
#[derive(Clone)]
pub struct Target {
    /// Name of the input.
    pub name: &'static str,
    /// Extents for one sample, or one view; the input is `[N, ..]`, or `[V N, ..]`.
    pub dims: Vec<usize>,
    /// How the input holds the samples.
    pub samples: Samples,
    values: Arc<Values>,
}

impl Target {
    /// A target of that name; `values` appends the values of one sample, as many as `dims` says.
    pub fn new(
        name: &'static str,
        dims: &[usize],
        values: impl Fn(&SamplePlan, &mut Vec<f32>) + Send + Sync + 'static,
    ) -> Target {
        let values = move |plan: &SamplePlan, _: usize, out: &mut Vec<f32>| values(plan, out);
        Target { name, dims: dims.to_vec(), samples: Samples::First, values: Arc::new(values) }
    }

    /// A target of every view; `values` appends those of one view of a sample, by its number.
    pub fn per_view(
        name: &'static str,
        dims: &[usize],
        values: impl Fn(&SamplePlan, usize, &mut Vec<f32>) + Send + Sync + 'static,
    ) -> Target {
        Target { name, dims: dims.to_vec(), samples: Samples::PerView, values: Arc::new(values) }
    }

    /// Extents of the input for `batch` samples of `views` views.
    pub fn input_dims(&self, batch: usize, views: usize) -> Vec<usize> {
        let images = batch * self.samples.parts(views);
        [&[images], &self.dims[..]].concat()
    }

    /// The values of the samples of a batch, in `out`.
    ///
    /// # Panics
    /// If the task appends another number of values than its extents say.
    pub fn fill(&self, samples: &[SamplePlan], out: &mut Vec<f32>) {
        out.clear();
        let views = self.samples.parts(samples.first().map_or(0, |plan| plan.starts.len()));
        for view in 0..views {
            for plan in samples {
                (self.values)(plan, view, out);
            }
        }
        let len = views * samples.len() * self.dims.iter().product::<usize>();
        assert_eq!(out.len(), len, "values of target {} {:?}", self.name, self.dims);
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.dims)
    }
}

/// Views with hidden blocks, and what the trained encoder makes of them.
#[derive(Clone, Copy, Debug)]
pub struct Hidden {
    /// The views as they are, `[M, D, H, W, C]`: view 0 of every sample, or all views, view-major.
    pub images: ValueId,
    /// `[M, D / bz, H / by, W / bx]`: 1 where a block is hidden, else 0.
    pub mask: ValueId,
    /// Extent of a block in voxels, (z, y, x).
    pub block: [usize; 3],
    /// Dense representation of the views with hidden blocks.
    pub dense: ValueId,
    /// Whether M counts the samples, or all views.
    pub samples: Samples,
}

/// Which representation a task reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// That of all views, as they are: [`Inputs::dense`].
    Views,
    /// That of views with hidden blocks: [`Inputs::hidden`].
    Hidden,
}

/// What a task may read while it is recorded.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// How views are cut.
    pub sizes: ViewSizes,
    /// Dense representations of all views.
    pub dense: &'a Views,
    /// Views with hidden blocks, for a task that reads them.
    pub hidden: Option<Hidden>,
    /// The views themselves, as many values as [`Views::values`] has, `[V N, D, H, W, C]`.
    pub images: &'a [ValueId],
    /// The task's targets, in the order of [`Task::targets`].
    pub targets: &'a [ValueId],
}

/// How an output holds the samples of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// `[N, ..]`.
    First,
    /// `[V, N, ..]`: of every view.
    PerView,
    /// `[4, N, ..]`: of the four boxes of a pair of views, in the order of [`crate::views::geometry::SUB_VIEWS`].
    PerBox,
}

impl Samples {
    /// How often a sample of so many views is there.
    pub fn parts(self, views: usize) -> usize {
        match self {
            Samples::First => 1,
            Samples::PerView => views,
            Samples::PerBox => SUB_VIEWS,
        }
    }
}

/// A value that validation reads: [`crate::report::Draw::output`] holds it, sample by sample.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub id: ValueId,
    /// How it holds samples.
    pub samples: Samples,
}

/// What a task has recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Losses, `[1]` each, in the order of [`Observable::terms`].
    pub losses: Vec<ValueId>,
    /// What validation reads.
    pub outputs: Vec<Output>,
}

/// A pretext task. `docs/adding-a-task.md` shows how to write one.
pub trait Task: Observable + fmt::Debug + Send + Sync {
    /// Inputs that the task needs beside the views.
    fn targets(&self, views: &ViewSizes) -> Vec<Target>;
    /// Records its head and its losses. The names of its parameters begin with `head()`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if shapes do not fit.
    fn record(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        inputs: &Inputs<'_>,
    ) -> Result<Recorded>;
    /// Which representation it reads.
    fn reads(&self) -> Reads {
        Reads::Views
    }
    /// First part of the names of its parameters: they are not weights of the encoder, and are not exported.
    fn head(&self) -> &'static str;
}

/// What the targets' shapes depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewSizes {
    /// Views of a sample, V.
    pub count: usize,
    /// Extent of a view in voxels, (z, y, x).
    pub size: [usize; 3],
    /// Extent of a sub-view in voxels, (z, y, x).
    pub sub_size: [usize; 3],
}

impl ViewSizes {
    /// Unordered pairs of views, P.
    pub fn pairs(&self) -> usize {
        self.count * self.count.saturating_sub(1) / 2
    }
}

/// The gap matrix in units of the divisor, `[V, V, 3]`: target of the gap and of the vector task.
pub(super) fn gap_target(views: &ViewSizes) -> Target {
    Target::new("gap", &[views.count, views.count, 3], |plan, out| {
        out.extend_from_slice(plan.gap.as_flattened());
    })
}
