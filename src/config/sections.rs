//! The configuration of a run: its sections, their keys, their defaults.
//!
//! Reading and merging is in `load.rs`, range checks in `check.rs`, the network presets in
//! `model.rs`. Nothing here looks at the data, the device or the environment.

use serde::{Deserialize, Serialize};

use crate::config::model::ModelConfig;
use crate::config::weights::{GivenWeights, TermWeights};
use crate::dataset::{Normalize, OnBadFile};
use crate::error::{Error, Result};
use crate::image::Spacing;
use crate::pretext::{Recipe, TaskOptions, TrunkWidths, VectorHead};
use crate::views::AugmentOptions;
use crate::views::geometry::OffsetRule;

/// Everything that decides what a run computes. Every key has a default; an unknown key is an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Reading and preparing volumes.
    pub data: DataConfig,
    /// Views and sub-views.
    pub views: ViewsConfig,
    /// Augmentation of the training views.
    pub augment: AugmentOptions,
    /// The encoder-decoder.
    pub model: ModelConfig,
    /// The pretext tasks and the weights of their losses.
    pub tasks: TasksConfig,
    /// Optimiser, schedule, moving average.
    pub optim: OptimConfig,
    /// Length, seed, device, and what is written when.
    pub run: RunConfig,
}

/// What the command line may override by options of their own; `None` leaves the value as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--device`, for `run.device`.
    pub device: Option<String>,
    /// `--steps`, for `run.steps`.
    pub steps: Option<u64>,
    /// `--seed`, for `run.seed`.
    pub seed: Option<u64>,
}

/// Section `[data]`: reading and preparing volumes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Voxel size the volumes are resampled to; `median` is resolved when the data are known and written back.
    pub spacing: Spacing,
    /// How intensities are normalised.
    pub normalize: Normalize,
    /// Lowest and highest intensity kept by `normalize = "ct"`, in Hounsfield units.
    pub ct_window: [f64; 2],
    /// Probability of a subject to be held out for validation, 0 to 0.9; without effect under `--split`.
    pub validation_fraction: f64,
    /// Seed of that draw, and of the views that validation cuts; apart from `run.seed`.
    pub split_seed: u64,
    /// Folder of prepared volumes. Empty: the command line chooses one.
    pub cache_dir: String,
    /// What an unusable volume does.
    pub on_bad_file: OnBadFile,
    /// Threads that read and prepare volumes; 0 is taken as 1.
    pub loader_threads: usize,
    /// On a CUDA device: whether training views are cut and augmented there, from volumes kept in its memory.
    pub views_on_device: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            spacing: Spacing::Median,
            normalize: Normalize::Zscore,
            ct_window: [-1000.0, 1000.0],
            validation_fraction: 0.2,
            split_seed: 12345,
            cache_dir: String::new(),
            on_bad_file: OnBadFile::Stop,
            loader_threads: 1,
            views_on_device: true,
        }
    }
}

/// Section `[views]`: what is cut from a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewsConfig {
    /// Views per volume, 2 to 7.
    pub count: usize,
    /// Size of a view, `[z, y, x]` in voxels.
    pub size: [usize; 3],
    /// Size of a sub-view, `[z, y, x]` in voxels.
    pub sub_size: [usize; 3],
    /// Volumes per step.
    pub batch: usize,
    /// How sub-views are placed.
    pub offset_rule: OffsetRule,
    /// The length that counts as 1 in the targets, in mm. 0: half of the largest mean extent of the training
    /// volumes, resolved when the data are known and written back.
    pub gap_unit_mm: f64,
}

impl Default for ViewsConfig {
    fn default() -> Self {
        ViewsConfig {
            count: 3,
            size: [32; 3],
            sub_size: [16; 3],
            batch: 2,
            offset_rule: OffsetRule::Ray,
            gap_unit_mm: 0.0,
        }
    }
}

/// Which views' gradients reach the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientViews {
    /// View 0 only; the others pass through the averaged encoder.
    First,
    /// All views, all through the trained encoder.
    All,
}

/// Section `[tasks]`: weights of the loss terms, and variants of the heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "GivenTasks")]
pub struct TasksConfig {
    /// Weights by term: a key for each of [`crate::pretext::terms`].
    #[serde(flatten)]
    pub weights: TermWeights,
    /// What weights are unless they are given.
    pub recipe: Recipe,
    /// What the vector head predicts.
    pub vector_head: VectorHead,
    /// Whether the gap head drops its bias, so that the gap from i to j is minus the gap from j to i.
    pub antisymmetric_gap: bool,
    /// Widths of the trunk of the gap and the vector head.
    pub trunk: TrunkWidths,
    /// Which views give the encoder a gradient.
    pub gradient_views: GradientViews,
    /// Extent of the blocks that are hidden, `[z, y, x]` in voxels; 0: the product of the encoder's strides.
    pub masked_block: [usize; 3],
    /// Least and largest share of the blocks that is hidden.
    pub masked_ratio: [f64; 2],
    /// Whether blocks are hidden from the tasks that compare views, too, in the views that train the encoder.
    pub hide_from_all: bool,
}

/// Section `[tasks]` as it is written: weights that are absent are the recipe's.
#[derive(Deserialize)]
#[serde(default)]
struct GivenTasks {
    #[serde(flatten)]
    weights: GivenWeights,
    recipe: Recipe,
    vector_head: VectorHead,
    antisymmetric_gap: bool,
    trunk: TrunkWidths,
    gradient_views: GradientViews,
    masked_block: [usize; 3],
    masked_ratio: [f64; 2],
    hide_from_all: bool,
}

impl Default for GivenTasks {
    fn default() -> Self {
        let TaskOptions { vector_head, antisymmetric_gap, trunk } = TaskOptions::default();
        GivenTasks {
            weights: GivenWeights::default(),
            recipe: Recipe::default(),
            vector_head,
            antisymmetric_gap,
            trunk,
            gradient_views: GradientViews::First,
            masked_block: [0; 3],
            masked_ratio: [0.6, 0.75],
            hide_from_all: false,
        }
    }
}

impl From<GivenTasks> for TasksConfig {
    fn from(given: GivenTasks) -> Self {
        TasksConfig {
            weights: TermWeights::new(given.recipe, &given.weights),
            recipe: given.recipe,
            vector_head: given.vector_head,
            antisymmetric_gap: given.antisymmetric_gap,
            trunk: given.trunk,
            gradient_views: given.gradient_views,
            masked_block: given.masked_block,
            masked_ratio: given.masked_ratio,
            hide_from_all: given.hide_from_all,
        }
    }
}

impl Default for TasksConfig {
    fn default() -> Self {
        GivenTasks::default().into()
    }
}

impl TasksConfig {
    /// Variants of the heads.
    pub(crate) fn options(&self) -> TaskOptions {
        TaskOptions {
            vector_head: self.vector_head,
            antisymmetric_gap: self.antisymmetric_gap,
            trunk: self.trunk,
        }
    }
}

/// Section `[optim]`: AdamW, warm-up and cosine decay, moving average of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of the whole gradient; 0: no clipping.
    pub clip_norm: f64,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// Learning rate of the last step, as a share of `lr`.
    pub final_lr_fraction: f64,
    /// Smallest rate of the moving average.
    pub ema_momentum: f64,
    /// How slowly the moving average's rate falls: update t has `max(ema_momentum, gamma / (gamma + t))`.
    pub ema_gamma: f64,
    /// Steps between updates of the moving average.
    pub ema_interval: u64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        OptimConfig {
            lr: 1e-3,
            weight_decay: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip_norm: 1.0,
            warmup_steps: 100,
            final_lr_fraction: 0.0,
            ema_momentum: 1e-4,
            ema_gamma: 100.0,
            ema_interval: 1,
        }
    }
}

/// Section `[run]`: length, seed, device, and what is written when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Seed of initial weights, views and augmentation. At most 2^63 - 1, the largest integer of TOML.
    pub seed: u64,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// CPU threads; 0: all.
    pub threads: usize,
    /// Steps between validations.
    pub validate_every: u64,
    /// Draws of views from each validation volume.
    pub validation_draws: usize,
    /// Steps between checkpoints; the last step is always saved.
    pub checkpoint_every: u64,
    /// Checkpoints kept, newest first.
    pub keep_last: usize,
    /// Longest duration in minutes, after which the run ends as if it had reached its last step; 0: no limit.
    pub max_minutes: f64,
    /// A labelled nnU-Net data set on which the encoder is probed while it trains; empty: none.
    pub probe_data: String,
    /// Steps between probes; the last step has one too.
    pub probe_every: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            steps: 2000,
            seed: 0,
            device: "auto".into(),
            threads: 0,
            validate_every: 200,
            validation_draws: 8,
            checkpoint_every: 200,
            keep_last: 3,
            max_minutes: 0.0,
            probe_data: String::new(),
            probe_every: 1000,
        }
    }
}

impl Config {
    /// The configuration as TOML: every key, in a fixed order, no comments. Reading it back gives an equal value.
    ///
    /// # Errors
    /// [`Error::Config`] if a number is beyond what TOML can hold, which [`Config::check`] excludes.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::config("configuration", format!("cannot be written as TOML: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_survive_a_round_trip() {
        let text = Config::default().to_toml().unwrap();
        let back: Config = toml::from_str(&text).unwrap();
        assert_eq!(back, Config::default());
        assert_eq!(back.to_toml().unwrap(), text);
    }

    #[test]
    fn values_that_are_not_defaults_survive_a_round_trip() {
        let mut config = Config::default();
        config.data.spacing = Spacing::Mm([1.5, 0.1 + 0.2, 3.0]);
        config.data.normalize = Normalize::ZscoreNonzero;
        config.data.cache_dir = "a \"b\"\\\n\u{1b}c".into();
        config.views.offset_rule = OffsetRule::Source;
        config.model.preset = super::super::Preset::Custom;
        config.model.features = vec![8, 16];
        config.model.strides = vec![[1, 1, 1], [1, 2, 2]];
        config.tasks.vector_head = VectorHead::Pairwise;
        config.optim.eps = f64::MIN_POSITIVE;
        config.run.seed = i64::MAX as u64;
        let back: Config = toml::from_str(&config.to_toml().unwrap()).unwrap();
        assert_eq!(back, config);
    }

    #[test]
    fn words_are_spelt_as_documented() {
        let text = "data = { normalize = 'zscore_nonzero', on_bad_file = 'skip' }\n\
                    views = { offset_rule = 'source' }\n\
                    model = { preset = 'resenc-l' }\n\
                    tasks = { vector_head = 'pairwise', gradient_views = 'all' }\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.data.normalize, Normalize::ZscoreNonzero);
        assert_eq!(config.data.on_bad_file, OnBadFile::Skip);
        assert_eq!(config.views.offset_rule, OffsetRule::Source);
        assert_eq!(config.model.preset, super::super::Preset::ResencL);
        assert_eq!(config.tasks.vector_head, VectorHead::Pairwise);
        assert_eq!(config.tasks.gradient_views, GradientViews::All);
    }

    #[test]
    fn sections_are_written_in_order() {
        let text = Config::default().to_toml().unwrap();
        let heads: Vec<&str> = text.lines().filter(|l| l.starts_with('[')).collect();
        assert_eq!(
            heads,
            ["[data]", "[views]", "[augment]", "[model]", "[tasks]", "[optim]", "[run]"]
        );
    }

    #[test]
    fn spacing_takes_words_and_triples_only() {
        let read = |text: &str| toml::from_str::<Config>(&format!("[data]\nspacing = {text}"));
        assert_eq!(read("\"native\"").unwrap().data.spacing, Spacing::Native);
        assert_eq!(read("[1, 2.5, 3]").unwrap().data.spacing, Spacing::Mm([1.0, 2.5, 3.0]));
        for bad in ["\"mediam\"", "[1, 2]", "[1, 2, 3, 4]", "1.0", "[1, 2, \"a\"]"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
