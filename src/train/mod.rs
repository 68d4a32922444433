//! The training loop and what it writes.

mod config;
mod config_check;
mod config_explain;
mod config_merge;
mod config_model;

pub use config::{
    Config, DataConfig, GradientViews, Normalize, OffsetRule, OnBadFile, OptimConfig, Overrides,
    RunConfig, Spacing, TasksConfig, VectorHead, ViewsConfig,
};
pub use config_model::{ModelConfig, Preset, StagePlan};
