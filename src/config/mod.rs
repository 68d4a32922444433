//! The configuration of a run: sections and defaults, reading and merging, what is refused and in which words. Not
//! here: what a setting does.

mod check;
mod explain;
mod load;
mod model;
mod older;
mod same;
mod sections;
mod setting;
mod weights;

pub use model::{ModelConfig, Preset, StagePlan};
pub use sections::{
    Config, DataConfig, GradientViews, OptimConfig, Overrides, RunConfig, TasksConfig, ViewsConfig,
};
pub use weights::TermWeights;
