//! What a report is made of. Whoever trains or observes a model fills these structs; nothing here computes.
//!
//! Axis order is (z, y, x) = (superior, anterior, right) throughout: a coordinate grows towards that side of
//! the body. Lengths are in millimetres where the name ends in `_mm`, in voxels otherwise. A value that was
//! not measured is NaN (plots leave it out and say so) or `None` where the type allows it.

use serde::Serialize;

/// Everything one report shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReportData {
    /// Which run this is.
    pub run: RunInfo,
    /// Training steps, in order; may be empty.
    pub steps: Vec<StepPoint>,
    /// Validations during training, in order; may be empty.
    pub validations: Vec<ValidationPoint>,
    /// What the model predicts on volumes it was not trained on; may be empty.
    pub cases: Vec<CaseObservation>,
    /// Standard deviation of the gap head's features over the views of these volumes, mean over features.
    pub feature_std: Option<f64>,
}

/// Identity and settings of a run. All text is escaped when it is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunInfo {
    /// Heading of the page.
    pub title: String,
    /// Date and time of the report, as it is to be printed.
    pub created: String,
    /// The resolved configuration, TOML.
    pub config_toml: String,
    /// The command that was run.
    pub command: String,
    /// Name of the model preset.
    pub model_preset: String,
    /// Number of trained parameters.
    pub parameters: u64,
    /// Volumes trained on.
    pub train_files: Vec<FileSummary>,
    /// Volumes held out.
    pub validation_files: Vec<FileSummary>,
    /// Wall-clock time of training, seconds.
    pub seconds_trained: f64,
    /// Number of finished training steps.
    pub steps: u64,
    /// Whether the similarity task has weight: without it its head may be anything.
    pub trains_similarity: bool,
    /// Sentences to show next to the verdict, for example that training was stopped early.
    pub warnings: Vec<String>,
}

/// One prepared volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FileSummary {
    /// File name as it is to be shown.
    pub name: String,
    /// Edge lengths of a voxel, (z, y, x).
    pub spacing_mm: [f64; 3],
    /// Extent in voxels, (z, y, x).
    pub extent: [usize; 3],
}

/// What one training step reported, as in `metrics.jsonl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepPoint {
    /// Number of the step.
    pub step: u64,
    /// Weighted sum of the six terms.
    pub loss: f64,
    /// Squared error of the gap per axis, normalised units.
    pub gap_axis: f64,
    /// Squared error of the gap's length, normalised units.
    pub gap_norm: f64,
    /// Minus the mean cosine of adjacent boxes, -1 to 1.
    pub sim_adjacent: f64,
    /// Mean cosine of distant boxes, -1 to 1.
    pub sim_distant: f64,
    /// Smooth L1 error of the vectors.
    pub vector: f64,
    /// Smooth L1 error of the routes.
    pub route: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient over all parameters, before clipping.
    pub grad_norm: f64,
    /// Wall-clock time of the step, milliseconds.
    pub step_ms: f64,
    /// Part of the step spent waiting for data, milliseconds.
    pub data_ms: f64,
    /// Gradient norm that each task sends into the dense representation: gap, similarity, vector.
    /// `None` in steps where it was not measured.
    pub task_grad_norms: Option<[f64; 3]>,
}

/// What one validation reported, as in `validation.jsonl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ValidationPoint {
    /// Training step it followed.
    pub step: u64,
    /// Mean absolute error of the gap head, mean over axes.
    pub gap_mae_mm: f64,
    /// The same error of the trivial guess, zero gap.
    pub gap_baseline_mm: f64,
    /// Coefficient of determination of the gap, all axes pooled.
    pub gap_r2: f64,
    /// Mean angle between predicted and true vectors, degrees.
    pub direction_error_deg: f64,
    /// Mean absolute error of the vector head, mean over axes.
    pub vector_mae_mm: f64,
    /// Mean length of the sum of predicted vectors around a closed route.
    pub route_closure_mm: f64,
    /// Share of pairs whose adjacent boxes are more alike than their distant ones, 0 to 1.
    pub similarity_accuracy: f64,
    /// Mean cosine of adjacent boxes.
    pub adjacent_cosine: f64,
    /// Mean cosine of distant boxes.
    pub distant_cosine: f64,
    /// Standard deviation of the gap head's features over views, mean over features.
    pub feature_std: f64,
}

/// What the model predicts on one volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CaseObservation {
    /// Name of the volume as it is to be shown.
    pub name: String,
    /// Edge lengths of a voxel, (z, y, x).
    pub spacing_mm: [f64; 3],
    /// Extent of a view in voxels, (z, y, x).
    pub view_size: [usize; 3],
    /// Extent of a sub-view in voxels, (z, y, x).
    pub sub_size: [usize; 3],
    /// Independent draws of views from the volume.
    pub draws: Vec<Draw>,
}

/// One set of views and what was predicted for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Draw {
    /// Centre of each view in voxels of the volume, (z, y, x).
    pub view_centres: Vec<[f64; 3]>,
    /// Gaps and vectors of ordered pairs of views; a pair of a view with itself is left out of every figure.
    pub gaps: Vec<PairGap>,
    /// Similarity of unordered pairs of views, `i < j`.
    pub similarities: Vec<PairSimilarity>,
    /// Length of the sum of predicted vectors around a closed route, mean over routes.
    pub route_closure_mm: f64,
    /// Slices through the volume on which the views are marked, see [`super::volume_slices`]; may be empty.
    pub slices: Vec<Slice>,
}

/// Where view `j` lies as seen from view `i`: truth and predictions, millimetres, (z, y, x).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PairGap {
    /// The view started from.
    pub i: usize,
    /// The view arrived at.
    pub j: usize,
    /// Centre of `j` minus centre of `i`.
    pub truth_mm: [f64; 3],
    /// What the gap head predicts.
    pub gap_mm: [f64; 3],
    /// What the vector head predicts.
    pub vector_mm: [f64; 3],
}

/// The four boxes of one pair of views and how alike they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PairSimilarity {
    /// The first view.
    pub i: usize,
    /// The second view.
    pub j: usize,
    /// First voxel of the adjacent box inside view `i` and inside view `j`, (z, y, x).
    pub adjacent_start: [[usize; 3]; 2],
    /// First voxel of the distant box inside view `i` and inside view `j`, (z, y, x).
    pub distant_start: [[usize; 3]; 2],
    /// Mean cosine of the two adjacent boxes.
    pub adjacent_cosine: f64,
    /// Mean cosine of the two distant boxes.
    pub distant_cosine: f64,
    /// Slices of the two views on which the boxes are marked, see [`super::pair_slices`]; may be absent.
    pub slices: Option<Box<PairSlices>>,
}

/// Slices of the views of one pair; the first of each two belongs to view `i`, the second to view `j`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairSlices {
    /// Through the centres of the adjacent boxes.
    pub adjacent: [Slice; 2],
    /// Through the centres of the distant boxes.
    pub distant: [Slice; 2],
}

/// A plane of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Plane {
    /// Seen from above: right is to the right, anterior is up.
    Axial,
    /// Seen from behind: right is to the right, superior is up.
    Coronal,
    /// Seen from the right: anterior is to the right, superior is up.
    Sagittal,
}

/// A grey image of one plane, as it is to be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slice {
    /// Which plane.
    pub plane: Plane,
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Height and width of a pixel; the image is shown in these proportions.
    pub pixel_mm: [f64; 2],
    /// `width * height` grey values, the top row first. Left out of the serialised form.
    #[serde(skip)]
    pub pixels: Vec<u8>,
    /// Rectangles drawn over the image.
    pub marks: Vec<Mark>,
}

/// A rectangle on a slice, in pixels from the top left corner.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mark {
    /// What it shows.
    pub kind: MarkKind,
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
    /// Whether the slice cuts the box; one that lies in front or behind is drawn dashed.
    pub cut: bool,
}

/// What a rectangle on a slice shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MarkKind {
    /// The sub-view that faces the other view.
    Adjacent,
    /// The sub-view on the far side.
    Distant,
    /// A whole view, by number.
    View(usize),
}
