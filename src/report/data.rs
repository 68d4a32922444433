//! What a report is made of. Whoever trains or observes a model fills these structs; nothing here computes.
//!
//! Axis order is (z, y, x) = (superior, anterior, right) throughout: a coordinate grows towards that side of
//! the body. Lengths are in millimetres where the name ends in `_mm`, in voxels otherwise. A value that was
//! not measured is NaN (plots leave it out and say so) or `None` where the type allows it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::run::rows::Row;

/// Everything one report shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReportData {
    /// Which run this is.
    pub run: RunInfo,
    /// Training steps, in order, as in `metrics.jsonl`; may be empty.
    pub steps: Vec<Row>,
    /// Validations during training, in order, as in `validation.jsonl`; may be empty.
    pub validations: Vec<Row>,
    /// Probes during training, in order, as in `probe.jsonl`; may be empty.
    pub probes: Vec<Row>,
    /// What the model predicts on volumes it was not trained on; may be empty.
    pub cases: Vec<CaseObservation>,
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

/// One set of views and what the heads say of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Draw {
    /// Centre of each view in voxels of the volume, (z, y, x).
    pub view_centres: Vec<[f64; 3]>,
    /// Centre of view `j` minus centre of view `i`, millimetres, `[V][V]`; a pair of a view with itself counts in no
    /// figure.
    pub gaps_mm: Vec<[f64; 3]>,
    /// Extent of the frame that the views lie in: the volume's, or a view's where that is larger.
    pub frame_mm: [f64; 3],
    /// The length that counts as 1 in the gap target, per axis.
    pub unit_mm: [f64; 3],
    /// Extent of a view in voxels, (z, y, x).
    pub view_size: [usize; 3],
    /// Extent of a block of voxels that may be hidden, (z, y, x); 0 if none are.
    pub block: [usize; 3],
    /// First voxel of the boxes of each pair of views inside the views that own them: adjacent in `i` and in `j`,
    /// distant in `i` and in `j`; pairs `i < j` in order.
    pub boxes: Vec<[[usize; 3]; 4]>,
    /// What the tasks' heads say, by the name of the output.
    pub outputs: BTreeMap<&'static str, Vec<f64>>,
    /// Slices through the volume on which the views are marked, see [`super::volume_slices`]; may be empty.
    pub slices: Vec<Slice>,
    /// What a task shows on slices of the views, by its name; may be empty.
    pub pictures: BTreeMap<&'static str, Vec<Slice>>,
}

impl Draw {
    /// Number of views.
    pub fn views(&self) -> usize {
        self.view_centres.len()
    }

    /// An output by its name; empty if it was not computed.
    pub fn output(&self, name: &str) -> &[f64] {
        self.outputs.get(name).map_or(&[], Vec::as_slice)
    }

    /// Ordered pairs of different views with the true vector from the first to the second and the one that output
    /// `name`, `[V][V][3]` in units of [`Draw::unit_mm`], predicts.
    pub fn vectors(&self, name: &str) -> impl Iterator<Item = PairVector> {
        let (views, output) = (self.views(), self.output(name));
        let pairs = (0..views).flat_map(move |i| (0..views).map(move |j| (i, j)));
        pairs.filter(move |(i, j)| i != j && !output.is_empty()).map(move |(i, j)| {
            let at = i * views + j;
            let predicted_mm = std::array::from_fn(|a| output[3 * at + a] * self.unit_mm[a]);
            PairVector { i, j, truth_mm: self.gaps_mm[at], predicted_mm }
        })
    }
}

/// Where view `j` lies as seen from view `i`: truth and prediction, millimetres, (z, y, x).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairVector {
    /// The view started from.
    pub i: usize,
    /// The view arrived at.
    pub j: usize,
    /// Centre of `j` minus centre of `i`.
    pub truth_mm: [f64; 3],
    /// What a head predicts.
    pub predicted_mm: [f64; 3],
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

impl Plane {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Plane::Axial => "axial",
            Plane::Coronal => "coronal",
            Plane::Sagittal => "sagittal",
        }
    }
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
