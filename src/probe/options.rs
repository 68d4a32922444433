//! What a probe is asked for.

use std::path::PathBuf;

use crate::session::Target;

/// Cases whose labels are used for training, unless the command says otherwise.
pub const LABELLED: u32 = 4;
/// Cases that are predicted.
pub const TEST: u32 = 6;
/// Seed of the random encoder, of voxels and batches.
pub const SEED: u64 = 0;
/// GiB that a forward pass may take.
pub const MEMORY_GIB: f64 = 4.0;

/// What `probe` takes.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// The run folder: its newest valid checkpoint or its weights, unless `weights` is given.
    pub run: Option<PathBuf>,
    /// A weight file.
    pub weights: Option<PathBuf>,
    /// An nnU-Net data set with labels.
    pub data: PathBuf,
    /// The first so many cases, by name, are those whose labels the classifier is trained on.
    pub labelled: usize,
    /// The last so many are those it is tested on.
    pub test: usize,
    /// Seed of the random weights, of voxels and batches.
    pub seed: u64,
    /// Bytes that a forward pass may take; a larger volume goes by windows.
    pub memory: usize,
    /// Where to compute.
    pub target: Target,
    /// Folder of `probe.json` and `probe.html`.
    pub out: PathBuf,
    /// The command as typed, for the page.
    pub command: String,
}
