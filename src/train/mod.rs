//! The training loop and what it writes.

pub mod atomic;
pub mod checkpoint;
mod config;
mod config_check;
mod config_explain;
mod config_merge;
mod config_model;
mod device_views;
pub mod events;
mod later;
pub mod lock;
pub mod metrics;
mod observe;
mod profile;
mod program;
pub mod retention;
mod roofs;
mod run;
mod session;
pub mod signal;
mod state;
mod trainer;
mod ui;
mod validate;
mod view_maker;
mod volume_pool;

pub use config::{Config, DataConfig, OptimConfig, Overrides, RunConfig, TasksConfig, ViewsConfig};
pub use config_model::{ModelConfig, Preset, StagePlan};
pub use device_views::{DeviceViews, DeviceVolume};
pub use later::{ObserveOptions, export, observe};
pub use profile::{Profile, ProfileRow, Share, profile};
pub use program::{GradientViews, Program, ProgramOptions, TERMS};
pub use roofs::{Effort, Roof, Roofs, Wgmma, measure_roofs, wgmma_roof};
pub use run::{RunOptions, run};
pub use session::{Target, program_options};
pub use ui::Ui;
pub use view_maker::ViewMaker;
pub use volume_pool::PoolOptions;

/// File of the step rows in a run folder.
pub const METRICS: &str = "metrics.jsonl";
/// File of the validation rows in a run folder.
pub const VALIDATION: &str = "validation.jsonl";
