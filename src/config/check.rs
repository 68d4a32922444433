//! Range checks of a configuration, and the few values that are brought into range with a warning.

use std::fmt::Debug;

use crate::config::model::Preset;
use crate::config::sections::{
    Config, DataConfig, OptimConfig, RunConfig, TasksConfig, ViewsConfig,
};
use crate::error::{Error, Result};
use crate::image::Spacing;
use crate::pretext::{Reads, chosen_tasks};
use crate::views::geometry::MAX_VIEWS;

/// The similarity head halves a sub-view four times and must keep a voxel.
const SUB_SIZE_MIN: usize = 16;
const VIEW_SIZE_MAX: usize = 1024;
const TRUNK_WIDTH_MAX: usize = 4096;
const STEPS_MAX: u64 = 1_000_000_000;
const LOADER_THREADS_MAX: usize = 64;
const THREADS_MAX: usize = 1024;
/// TOML integers are signed.
const SEED_MAX: u64 = i64::MAX as u64;

impl Config {
    /// Checks every value, and shortens or clamps the few that have an obvious meaning when too large.
    ///
    /// Returns one warning per value changed or likely to be a mistake.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first key out of range, the value found and the values it takes.
    pub fn check(&mut self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        check_data(&mut self.data, &mut warnings)?;
        check_sub_size(&self.views)?;
        check_views(&self.views)?;
        check_view_size(self)?;
        self.augment.check()?;
        check_tasks(&self.tasks)?;
        check_trunk(self, &mut warnings)?;
        check_hiding(self, &mut warnings)?;
        check_run(&mut self.run, &mut warnings)?;
        check_optim(&mut self.optim, self.run.steps, &mut warnings)?;
        Ok(warnings)
    }
}

fn within<T: PartialOrd + Debug>(key: &str, value: T, low: T, high: T) -> Result<()> {
    // Written so that NaN fails.
    if value >= low && value <= high {
        return Ok(());
    }
    Err(Error::config(key, format!("found {value:?}, needs {low:?} to {high:?}")))
}

fn check_data(data: &mut DataConfig, warnings: &mut Vec<String>) -> Result<()> {
    if let Spacing::Mm(size) = data.spacing {
        for value in size {
            within("data.spacing", value, 0.01, 100.0)?;
        }
    }
    let [low, high] = data.ct_window;
    for value in data.ct_window {
        within("data.ct_window", value, -100_000.0, 100_000.0)?;
    }
    if low >= high {
        let why = format!(
            "found [{low:?}, {high:?}], needs the lower value first\n  \
             for example [-1000.0, 1000.0]"
        );
        return Err(Error::config("data.ct_window", why));
    }
    within("data.validation_fraction", data.validation_fraction, 0.0, 0.9)?;
    within("data.split_seed", data.split_seed, 0, SEED_MAX)?;
    if data.loader_threads > LOADER_THREADS_MAX {
        warnings.push(format!(
            "data.loader_threads: {} is lowered to {LOADER_THREADS_MAX}",
            data.loader_threads
        ));
        data.loader_threads = LOADER_THREADS_MAX;
    }
    Ok(())
}

fn check_views(views: &ViewsConfig) -> Result<()> {
    within("views.count", views.count, 2, MAX_VIEWS)?;
    within("views.batch", views.batch, 1, 1024)?;
    within("views.gap_unit_mm", views.gap_unit_mm, 0.0, 10_000.0)?;
    if views.gap_unit_mm > 0.0 {
        // Gaps are divided by it.
        within("views.gap_unit_mm", views.gap_unit_mm, 0.001, 10_000.0)?;
    }
    Ok(())
}

fn check_sub_size(views: &ViewsConfig) -> Result<()> {
    let size = views.sub_size;
    if let Some(axis) = (0..3).find(|&a| size[a] < SUB_SIZE_MIN) {
        return Err(Error::config(
            "views.sub_size",
            format!(
                "found {size:?}, needs {SUB_SIZE_MIN} or more on axis {}: the similarity head halves \
                 it four times\n  \
                 nearest size that fits: {:?}",
                AXES[axis],
                size.map(|s| next_multiple(s.max(SUB_SIZE_MIN), 2)),
            ),
        ));
    }
    fit("views.sub_size", size, [2; 3], [SUB_SIZE_MIN; 3])
}

const AXES: [&str; 3] = ["z", "y", "x"];

fn check_view_size(config: &Config) -> Result<()> {
    let plan = config.model.stage_plan()?;
    let (size, sub) = (config.views.size, config.views.sub_size);
    let total = plan.total_stride();
    // Total strides are powers of two: their least common multiple with 2 is the larger of both.
    let unit = total.map(|t| t.max(2));
    let least = [0, 1, 2].map(|a| next_multiple(sub[a].max(1), unit[a]));
    if let Some(axis) = (0..3).find(|&a| size[a] < sub[a]) {
        return Err(Error::config(
            "views.size",
            format!(
                "found {size:?}, needs at least views.sub_size = {sub:?}; axis {} is smaller\n  \
                 smallest size that fits: {least:?}",
                AXES[axis]
            ),
        ));
    }
    fit("views.size", size, unit, least)?;
    let deepest = [0, 1, 2].map(|a| size[a] / total[a]);
    if deepest == [1; 3] {
        let advice = match config.model.preset.recommended_view_size() {
            Some(size) if config.model.preset != Preset::ResencS => {
                format!("; this network is meant for {size:?}")
            }
            _ => String::new(),
        };
        return Err(Error::config(
            "views.size",
            format!(
                "found {size:?}, needs more than {total:?}: the deepest stage would have one \
                 voxel, which instance normalisation turns into 0\n  \
                 next size that fits: {:?}{advice}",
                size.map(|s| 2 * s)
            ),
        ));
    }
    Ok(())
}

/// Checks that each extent is a multiple of `unit` (at least 2) and not too large.
fn fit(key: &str, size: [usize; 3], unit: [usize; 3], least: [usize; 3]) -> Result<()> {
    if let Some(axis) = (0..3).find(|&a| size[a] > VIEW_SIZE_MAX) {
        let why = format!("found {size:?}, needs at most {VIEW_SIZE_MAX} on axis {}", AXES[axis]);
        return Err(Error::config(key, why));
    }
    let Some(axis) = (0..3).find(|&a| !size[a].is_multiple_of(unit[a])) else {
        return Ok(());
    };
    let reason = if size[axis] % 2 == 1 {
        format!("axis {} is odd, and boxes around the centre would leave the view", AXES[axis])
    } else {
        format!(
            "axis {} must be a multiple of {}, the product of the strides",
            AXES[axis], unit[axis]
        )
    };
    let above = [0, 1, 2].map(|a| next_multiple(size[a].max(least[a]), unit[a]));
    let below = [0, 1, 2].map(|a| (size[a] / unit[a] * unit[a]).max(least[a]));
    let nearest = if below == above {
        format!("nearest size that fits: {above:?}")
    } else {
        format!("nearest sizes that fit: {below:?} or {above:?}")
    };
    Err(Error::config(key, format!("found {size:?}: {reason}\n  {nearest}")))
}

fn next_multiple(value: usize, unit: usize) -> usize {
    value.div_ceil(unit) * unit
}

fn check_tasks(tasks: &TasksConfig) -> Result<()> {
    for (term, weight) in tasks.weights.iter() {
        within(&format!("tasks.{term}"), weight, 0.0, 1e6)?;
    }
    if tasks.weights.iter().all(|(_, weight)| weight == 0.0) {
        return Err(Error::config(
            "tasks",
            "all weights are 0, needs at least one above 0: there would be nothing to learn",
        ));
    }
    Ok(())
}

fn check_trunk(config: &Config, warnings: &mut Vec<String>) -> Result<()> {
    let trunk = config.tasks.trunk;
    let widths = trunk.of(config.model.stage_plan()?.features[0]);
    for width in widths {
        within("tasks.trunk", width, 1, TRUNK_WIDTH_MAX)?;
    }
    if widths[2] < 3 {
        warnings.push(format!(
            "tasks.trunk = {trunk}: a view becomes {} numbers (widths {widths:?}), from which three axes cannot be told: \
             at least one will not be learnt; auto is wide enough",
            widths[2]
        ));
    }
    Ok(())
}

fn check_hiding(config: &Config, warnings: &mut Vec<String>) -> Result<()> {
    let TasksConfig { masked_block, masked_ratio, hide_from_all, ref weights, .. } = config.tasks;
    let tasks = chosen_tasks(&config.tasks.options(), |term| weights.get(term));
    let hides = hide_from_all || tasks.iter().any(|(task, _)| task.reads() == Reads::Hidden);
    for share in masked_ratio {
        within("tasks.masked_ratio", share, 0.01, 0.99)?;
    }
    if masked_ratio[0] > masked_ratio[1] {
        let why = format!(
            "found {masked_ratio:?}, needs the lower share first\n  for example [0.6, 0.75]"
        );
        return Err(Error::config("tasks.masked_ratio", why));
    }
    let (block, size) = (config.hidden_block()?, config.views.size);
    if let Some(axis) = (0..3).find(|&a| !size[a].is_multiple_of(block[a])) {
        let why = format!(
            "found {masked_block:?}, needs blocks that fill views.size = {size:?}; axis {} does not\n  \
             [0, 0, 0] takes the product of the encoder's strides, {:?}",
            AXES[axis],
            config.model.stage_plan()?.total_stride()
        );
        return Err(Error::config("tasks.masked_block", why));
    }
    if hides && block == size {
        warnings.push(format!(
            "tasks.masked_block: blocks of {block:?} are as large as a view, so nothing of it is left"
        ));
    }
    Ok(())
}

impl Config {
    /// Extent of the blocks that are hidden, (z, y, x).
    ///
    /// # Errors
    /// [`Error::Config`] if the network cannot be.
    pub(crate) fn hidden_block(&self) -> Result<[usize; 3]> {
        let stride = self.model.stage_plan()?.total_stride();
        let given = self.tasks.masked_block;
        Ok(std::array::from_fn(|a| if given[a] == 0 { stride[a] } else { given[a] }))
    }
}

fn check_run(run: &mut RunConfig, warnings: &mut Vec<String>) -> Result<()> {
    within("run.steps", run.steps, 1, STEPS_MAX)?;
    within("run.seed", run.seed, 0, SEED_MAX)?;
    if !is_device(&run.device) {
        return Err(Error::config(
            "run.device",
            format!("found {:?}, needs auto, cpu, cuda or cuda:N (for example cuda:0)", run.device),
        ));
    }
    if run.threads > THREADS_MAX {
        warnings.push(format!("run.threads: {} is lowered to {THREADS_MAX}", run.threads));
        run.threads = THREADS_MAX;
    }
    within("run.validate_every", run.validate_every, 1, STEPS_MAX)?;
    within("run.validation_draws", run.validation_draws, 1, 1000)?;
    within("run.checkpoint_every", run.checkpoint_every, 1, STEPS_MAX)?;
    if run.keep_last == 0 {
        return Err(Error::config(
            "run.keep_last",
            "found 0, needs 1 to 10000: 0 would delete the checkpoint just written",
        ));
    }
    within("run.keep_last", run.keep_last, 1, 10_000)?;
    within("run.max_minutes", run.max_minutes, 0.0, 1e7)?;
    within("run.probe_every", run.probe_every, 1, STEPS_MAX)?;
    if run.checkpoint_every > run.steps {
        warnings.push(format!(
            "run.checkpoint_every = {} is longer than the run of {} steps: only the last step is saved",
            run.checkpoint_every, run.steps
        ));
    }
    Ok(())
}

fn is_device(name: &str) -> bool {
    match name.strip_prefix("cuda:") {
        Some(index) => (1..=3).contains(&index.len()) && index.bytes().all(|b| b.is_ascii_digit()),
        None => ["auto", "cpu", "cuda"].contains(&name),
    }
}

fn check_optim(optim: &mut OptimConfig, steps: u64, warnings: &mut Vec<String>) -> Result<()> {
    within("optim.lr", optim.lr, 0.0, 10.0)?;
    if optim.lr == 0.0 {
        warnings.push("optim.lr = 0: the weights will not change".into());
    }
    within("optim.weight_decay", optim.weight_decay, 0.0, 10.0)?;
    // Bias correction divides by 1 - beta^t.
    for (key, beta) in [("optim.beta1", optim.beta1), ("optim.beta2", optim.beta2)] {
        if !(0.0..1.0).contains(&beta) {
            return Err(Error::config(key, format!("found {beta:?}, needs 0 to less than 1")));
        }
    }
    within("optim.eps", optim.eps, 1e-30, 1.0)?;
    within("optim.clip_norm", optim.clip_norm, 0.0, 1e9)?;
    within("optim.warmup_steps", optim.warmup_steps, 0, STEPS_MAX)?;
    within("optim.final_lr_fraction", optim.final_lr_fraction, 0.0, 1.0)?;
    within("optim.ema_momentum", optim.ema_momentum, 0.0, 1.0)?;
    within("optim.ema_gamma", optim.ema_gamma, 0.0, 1e9)?;
    within("optim.ema_interval", optim.ema_interval, 1, STEPS_MAX)?;
    if optim.warmup_steps > steps {
        warnings.push(format!(
            "optim.warmup_steps = {} is longer than the run of {steps} steps: shortened to {steps}",
            optim.warmup_steps
        ));
        optim.warmup_steps = steps;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GradientViews;

    fn refused(change: impl FnOnce(&mut Config)) -> (String, String) {
        let mut config = Config::default();
        change(&mut config);
        match config.check() {
            Err(Error::Config { key, why }) => (key, why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_pass_without_a_warning() {
        assert_eq!(Config::default().check().unwrap(), Vec::<String>::new());
        let mut config = Config::default();
        config.tasks.gradient_views = GradientViews::All;
        assert!(config.check().is_ok());
    }

    #[test]
    fn each_number_has_a_range() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 28] = [
            ("views.gap_unit_mm", |c| c.views.gap_unit_mm = 1e-9),
            ("data.spacing", |c| c.data.spacing = Spacing::Mm([1.0, 0.0, 1.0])),
            ("data.spacing", |c| c.data.spacing = Spacing::Mm([1.0, f64::NAN, 1.0])),
            ("data.ct_window", |c| c.data.ct_window = [5.0, 5.0]),
            ("data.ct_window", |c| c.data.ct_window = [f64::NEG_INFINITY, 5.0]),
            ("data.validation_fraction", |c| c.data.validation_fraction = 1.0),
            ("views.count", |c| c.views.count = 1),
            ("views.batch", |c| c.views.batch = 0),
            ("views.batch", |c| c.views.batch = 4_294_967_296),
            ("views.gap_unit_mm", |c| c.views.gap_unit_mm = -1.0),
            ("tasks.route", |c| c.tasks.weights.set("route", f64::INFINITY)),
            ("optim.lr", |c| c.optim.lr = f64::NAN),
            ("optim.lr", |c| c.optim.lr = f64::INFINITY),
            ("optim.lr", |c| c.optim.lr = -1.0),
            ("optim.beta1", |c| c.optim.beta1 = 1.0),
            ("optim.beta2", |c| c.optim.beta2 = f64::NAN),
            ("optim.eps", |c| c.optim.eps = 0.0),
            ("optim.clip_norm", |c| c.optim.clip_norm = -1.0),
            ("optim.final_lr_fraction", |c| c.optim.final_lr_fraction = 1.1),
            ("optim.ema_interval", |c| c.optim.ema_interval = 0),
            ("run.steps", |c| c.run.steps = 0),
            ("run.seed", |c| c.run.seed = u64::MAX),
            ("run.device", |c| c.run.device = "gpu".into()),
            ("run.device", |c| c.run.device = "cuda:".into()),
            ("run.validate_every", |c| c.run.validate_every = 0),
            ("run.keep_last", |c| c.run.keep_last = 0),
            ("run.max_minutes", |c| c.run.max_minutes = f64::NAN),
            ("run.probe_every", |c| c.run.probe_every = 0),
        ];
        for (key, change) in cases {
            assert_eq!(refused(change).0, key);
        }
    }

    #[test]
    fn weights_may_be_zero_but_not_all() {
        let mut config = Config::default();
        config.tasks.weights.set("gap_axis", 0.0);
        assert!(config.check().is_ok());
        let (key, _) = refused(|c| {
            let names: Vec<_> = c.tasks.weights.iter().map(|(name, _)| name).collect();
            names.into_iter().for_each(|name| c.tasks.weights.set(name, 0.0));
        });
        assert_eq!(key, "tasks");
    }

    #[test]
    fn a_view_that_does_not_fit_is_refused_with_the_nearest_sizes() {
        let (_, why) = refused(|c| c.views.size = [33, 32, 32]);
        assert!(why.contains("axis z is odd"), "{why}");
        assert!(why.contains("[32, 32, 32] or [40, 32, 32]"), "{why}");
        let (_, why) = refused(|c| c.views.size = [32, 36, 44]);
        assert!(why.contains("axis y must be a multiple of 8"), "{why}");
        assert!(why.contains("[32, 32, 40] or [32, 40, 48]"), "{why}");
        let (_, why) = refused(|c| c.views.size = [0, 32, 32]);
        assert!(why.contains("at least views.sub_size"), "{why}");
        assert!(why.contains("[16, 16, 16]"), "{why}");
        let (_, why) = refused(|c| c.views.size = [32, 32, 4096]);
        assert!(why.contains("at most 1024 on axis x"), "{why}");
    }

    #[test]
    fn an_axis_without_strides_needs_an_even_size_only() {
        let anisotropic = |z: usize| {
            let mut config = Config::default();
            config.model.strides = vec![[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2]];
            config.views.size = [z, 32, 32];
            config.check()
        };
        assert!(anisotropic(34).is_ok());
        let text = anisotropic(33).unwrap_err().to_string();
        assert!(text.contains("[32, 32, 32] or [34, 32, 32]"), "{text}");
    }

    #[test]
    fn a_sub_view_must_survive_four_halvings() {
        let (key, why) = refused(|c| c.views.sub_size = [16, 15, 16]);
        assert_eq!(key, "views.sub_size");
        assert!(why.contains("[16, 16, 16]"), "{why}");
        let (_, why) = refused(|c| c.views.sub_size = [17, 16, 16]);
        assert!(why.contains("odd"), "{why}");
        assert!(why.contains("[16, 16, 16] or [18, 16, 16]"), "{why}");
        let (key, _) = refused(|c| c.views.sub_size = [34, 16, 16]);
        assert_eq!(key, "views.size");
        let mut config = Config::default();
        config.views.sub_size = [18, 20, 32];
        assert!(config.check().is_ok());
    }

    #[test]
    fn one_voxel_in_the_deepest_stage_is_refused() {
        let (key, why) = refused(|c| c.model.preset = Preset::ResencM);
        assert_eq!(key, "views.size");
        assert!(why.contains("[64, 64, 64]") && why.contains("[128, 128, 128]"), "{why}");
        let mut config = Config::default();
        config.model.preset = Preset::ResencM;
        config.views.size = [32, 32, 64];
        assert!(config.check().is_ok());
    }

    #[test]
    fn what_is_brought_into_range_is_said() {
        let mut config = Config::default();
        config.run.steps = 50;
        config.run.threads = 1_000_000;
        config.data.loader_threads = 10_000;
        config.optim.lr = 0.0;
        let warnings = config.check().unwrap().join("\n");
        assert_eq!(config.optim.warmup_steps, 50);
        assert_eq!((config.run.threads, config.data.loader_threads), (1024, 64));
        for word in ["warmup_steps", "threads", "loader_threads", "lr = 0", "checkpoint_every"] {
            assert!(warnings.contains(word), "{word}: {warnings}");
        }
    }
}
