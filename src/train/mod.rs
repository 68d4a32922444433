//! The training loop and what it writes.

pub mod atomic;
pub mod checkpoint;
mod config;
mod config_check;
mod config_explain;
mod config_merge;
mod config_model;
pub mod events;
pub mod lock;
pub mod metrics;
mod program;
pub mod retention;
pub mod signal;

pub use config::{Config, DataConfig, OptimConfig, Overrides, RunConfig, TasksConfig, ViewsConfig};
pub use config_model::{ModelConfig, Preset, StagePlan};
pub use program::{GradientViews, Program, ProgramOptions, TERMS};
