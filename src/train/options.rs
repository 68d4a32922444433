//! What a run is told beside its configuration, and what its checkpoints say beside its state.

use std::path::PathBuf;

use crate::dataset::SplitFile;
use crate::session::Target;

/// What `train` takes beside the configuration.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Files, folders or lists of volumes.
    pub data: Vec<PathBuf>,
    /// Which of them are trained on and which held out; else [`crate::dataset::Split::by_subject`].
    pub split: Option<SplitFile>,
    /// The run folder.
    pub out: PathBuf,
    /// Go on from the newest valid checkpoint.
    pub resume: bool,
    /// Weights to start from.
    pub init: Option<PathBuf>,
    /// The command as typed, for the report.
    pub command: String,
    /// Where to compute.
    pub target: Target,
    /// On a device: a profiler records the steps after the first number, up to the second.
    pub profile_steps: Option<(u64, u64)>,
}

/// Metadata of a checkpoint: the names of the volumes, as [`crate::session::RunData::file_list`] writes them.
pub(super) const KEY_FILES: &str = "files";

/// Name of the file in a run folder that says which volumes were trained on and held out, in nnU-Net's format.
pub(super) const SPLITS: &str = "splits_final.json";
