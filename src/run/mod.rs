//! The folder of a run and the files in it: who may write there, checkpoints, rows of figures. Not here: what is
//! trained.

pub mod checkpoint;
pub mod folder;
pub mod retention;
pub mod rows;
pub mod tensorboard;
mod watch;

pub use watch::Ui;

/// File of the step rows in a run folder.
pub const METRICS: &str = "metrics.jsonl";
/// File of the validation rows in a run folder.
pub const VALIDATION: &str = "validation.jsonl";
/// File of the rows of probes in a run folder.
pub const PROBES: &str = "probe.jsonl";
