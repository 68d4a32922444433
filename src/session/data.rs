//! The volumes of a run, and how views are cut from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::dataset::{DataSet, PrepareOptions, Split, SplitFile, scan, split_names, to_json};
use crate::error::{Result, escape};
use crate::image::{Spacing, Volume};
use crate::run::Ui;
use crate::views::ViewOptions;

/// The volumes of a run and which of them train.
pub(crate) struct RunData {
    /// All volumes.
    pub set: Arc<DataSet>,
    /// Indices of the training volumes.
    pub train: Vec<usize>,
    /// Indices of the volumes held out.
    pub validation: Vec<usize>,
    /// What a split's file calls each volume of the set.
    pub names: Vec<String>,
}

impl RunData {
    /// Finds and prepares the volumes, and splits them: as `split` says, else by their subjects. A volume that `split`
    /// does not name is neither read nor prepared. One smaller than a view is noted: it is padded.
    pub(crate) fn open(
        config: &Config,
        paths: &[PathBuf],
        split: Option<&SplitFile>,
        ui: &mut dyn Ui,
    ) -> Result<RunData> {
        let data = &config.data;
        let window = data.ct_window.map(|v| v as f32);
        let options =
            PrepareOptions { spacing: data.spacing, normalize: data.normalize, ct_window: window };
        let cache = Path::new(&data.cache_dir);
        let mut found = scan(paths)?;
        // By all files found, so that a name stays unique when the same `--data` is scanned again.
        let names: BTreeMap<PathBuf, String> =
            found.files.iter().cloned().zip(split_names(&found.files)).collect();
        let sides = split.map(|split| split.sides(&found.files)).transpose()?;
        if let Some(sides) = &sides {
            found.files.retain(|file| sides.holds(file));
        }
        split.into_iter().flat_map(SplitFile::notes).for_each(|note| ui.note(&note));
        let set = DataSet::prepare(found, &options, cache, data.on_bad_file, &mut |done, all| {
            ui.preparing(done, all)
        })?;
        let sources = set.cases.iter().map(|case| case.source.as_path());
        let chosen = match &sides {
            Some(sides) => sides.split(sources)?,
            None => Split::by_subject(sources, data.validation_fraction, data.split_seed),
        };
        let of_sides = sides.iter().flat_map(|sides| &sides.warnings);
        for warning in set.warnings.iter().chain(of_sides).chain(&chosen.warnings) {
            ui.warn(warning);
        }
        warn_of_small(&set, config.views.size, ui);
        let names = set.cases.iter().map(|case| names[&case.source].clone()).collect();
        let (train, validation) = (chosen.train, chosen.validation);
        Ok(RunData { set: Arc::new(set), train, validation, names })
    }

    /// Half of the largest mean extent of the training volumes, in mm, rounded to whole mm: the default unit of gaps.
    pub(crate) fn default_gap_unit_mm(&self) -> f64 {
        let mean = |a: usize| {
            let sum: usize = self.train.iter().map(|&i| self.set.cases[i].extent[a]).sum();
            sum as f64 / self.train.len().max(1) as f64 * self.set.spacing_mm[a]
        };
        (mean(0).max(mean(1)).max(mean(2)) / 2.0).round().max(1.0)
    }

    /// Names of the volumes, training ones first, as a checkpoint keeps them.
    pub(crate) fn file_list(&self) -> String {
        let names = |of: &[usize]| -> Vec<&str> {
            of.iter().map(|&i| self.set.cases[i].name.as_str()).collect()
        };
        serde_json::json!({"train": names(&self.train), "validation": names(&self.validation)})
            .to_string()
    }

    /// The split in the format that `--split` reads.
    pub(crate) fn splits_final(&self) -> String {
        let names =
            |of: &[usize]| -> Vec<&str> { of.iter().map(|&i| self.names[i].as_str()).collect() };
        to_json(names(&self.train), names(&self.validation))
    }
}

fn warn_of_small(set: &DataSet, size: [usize; 3], ui: &mut dyn Ui) {
    let small: Vec<_> =
        set.cases.iter().filter(|c| (0..3).any(|a| c.extent[a] < size[a])).collect();
    if let Some(first) = small.first() {
        ui.warn(&format!(
            "{} of {} volumes are smaller than a view of {size:?} voxels and are padded with their smallest value, \
             the first is {} with {:?}",
            small.len(),
            set.cases.len(),
            escape(&first.source),
            first.extent
        ));
    }
}

/// How views are cut, with the unit of gaps in voxels.
pub(crate) fn view_options(config: &Config, spacing_mm: [f64; 3]) -> ViewOptions {
    let views = &config.views;
    ViewOptions {
        count: views.count,
        size: views.size,
        sub_size: views.sub_size,
        batch: views.batch,
        offset_rule: views.offset_rule,
        gap_divisor: spacing_mm.map(|mm| (views.gap_unit_mm / mm) as f32),
    }
}

/// The volume of case `index`, with its name in any error.
pub(crate) fn load(set: &DataSet, index: usize) -> Result<Arc<Volume>> {
    set.load(index).map(Arc::new)
}

/// The spacing of prepared volumes as the log prints it.
pub(crate) fn spacing_text(config: &Config, set: &DataSet) -> String {
    let [z, y, x] = set.spacing_mm;
    match config.data.spacing {
        Spacing::Native => "each volume at its own spacing".to_string(),
        _ => format!("spacing {z:.3} x {y:.3} x {x:.3} mm (z, y, x)"),
    }
}
