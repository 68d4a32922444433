//! Probes of the encoder while it trains: when they are due, what is remembered of the random encoder, the rows.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::Config;
use crate::dataset::LabelledSet;
use crate::error::{Error, Result};
use crate::files::atomic::write_atomic;
use crate::probe::{Figures, RunProbe};
use crate::run::rows::{Row, read_rows};
use crate::run::{PROBES, Ui};
use crate::session::Model;
use crate::train::options::RunOptions;

/// File in a run folder with the figures of the random encoder, and what they depend on.
const RANDOM: &str = "probe-random.json";

/// Names of the figures in a row, after nothing or `random_`.
const NAMES: [&str; 4] =
    ["dice_last_map", "dice_all_maps", "neighbours_last_map", "neighbours_all_maps"];

/// The probes of a run.
pub(super) struct Probing {
    probe: RunProbe,
    /// Steps between probes.
    every: u64,
    /// The last step.
    last: u64,
    /// The run folder.
    out: PathBuf,
    /// Figures of the random encoder, once they are known.
    random: Option<Figures>,
}

impl Probing {
    /// Reads the labels of the data set that `run.probe_data` names.
    ///
    /// # Errors
    /// [`Error::Data`] naming a file that cannot be used.
    pub(super) fn new(
        set: &LabelledSet,
        config: &Config,
        options: &RunOptions,
        ui: &mut dyn Ui,
    ) -> Result<Probing> {
        let probe = RunProbe::new(set, config, options.target, ui)?;
        let (every, last) = (config.run.probe_every, config.run.steps);
        Ok(Probing { probe, every, last, out: options.out.clone(), random: None })
    }

    /// Whether a probe follows `step`, unless the run ends there: then it does anyhow.
    pub(super) fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every) || step == self.last
    }

    /// Whether the probe that follows `step` was interrupted, or never begun: a resumed run makes up for it.
    pub(super) fn is_missing(&self, step: u64) -> bool {
        let rows = read_rows(&self.out.join(PROBES)).unwrap_or_default();
        step > 0 && self.is_due(step) && rows.last().is_none_or(|row| row.step < step)
    }

    /// Finds the figures of the random encoder: those that the run folder remembers of the same data and settings, else
    /// measured here, which takes as long as any probe. They stay unknown if it was told to stop.
    ///
    /// # Errors
    /// [`Error::Data`], [`Error::Config`] or [`Error::Device`] if the data set cannot be probed; [`Error::Output`].
    pub(super) fn measure_random(
        &mut self,
        stopped: &dyn Fn() -> bool,
        ui: &mut dyn Ui,
    ) -> Result<()> {
        let path = self.out.join(RANDOM);
        self.random = remembered(&path, self.probe.depends_on());
        if self.random.is_none() {
            ui.note("probe: the random encoder is measured, once for this run");
            let Some(figures) = self.probe.random_figures(stopped)? else { return Ok(()) };
            let text = json!({"of": self.probe.depends_on(), "figures": figures});
            write_atomic(&path, |file| file.write_all(format!("{text:#}\n").as_bytes()))?;
            self.random = Some(figures);
        }
        let [last, all, ..] = self.random.unwrap_or([f64::NAN; 4]);
        ui.note(&format!(
            "probe of the random encoder: mean Dice {last:.3} by the last map, {all:.3} by all maps"
        ));
        Ok(())
    }

    /// The row of the probe that follows `step`, and what it says in words; none if it was told to stop.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Device`].
    pub(super) fn row(
        &self,
        model: &Model,
        step: u64,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Option<(Row, String)>> {
        let params = &model.program.groups[0].params;
        let tensors = params.iter().map(|&id| Ok(model.step.read(id)?.into_owned()));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let Some(own) = self.probe.figures(&tensors, stopped)? else { return Ok(None) };
        let random = self.random.unwrap_or([f64::NAN; 4]);
        let mut row = Row::new(step);
        NAMES.iter().zip(own).for_each(|(name, value)| row.set(*name, value));
        for (name, value) in NAMES.iter().zip(random) {
            row.set(format!("random_{name}"), value);
        }
        let text = format!(
            "mean Dice {:.3} by the last map (random encoder {:.3}), {:.3} by all maps ({:.3})",
            own[0], random[0], own[1], random[1]
        );
        Ok(Some((row, text)))
    }
}

/// What a failed probe is to a run that goes on.
pub(super) fn failed(step: u64, error: &Error) -> String {
    format!("the probe at step {step} failed: {error}\n  training goes on without its figures")
}

/// Figures in `path`, if they are of the same data and settings.
fn remembered(path: &Path, of: &Value) -> Option<Figures> {
    let text = std::fs::read_to_string(path).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    let figures = value["figures"].as_array().filter(|_| value["of"] == *of)?;
    let figures: Vec<f64> = figures.iter().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect();
    figures.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_random_encoder_are_remembered_with_what_they_depend_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RANDOM);
        let of = json!({"files": [["a", 7, 0.1 + 0.2]]});
        assert_eq!(remembered(&path, &of), None);
        let figures = [0.1 + 0.2, 1.0 / 3.0, f64::NAN, 0.7];
        std::fs::write(&path, json!({"of": of, "figures": figures}).to_string()).unwrap();
        let read = remembered(&path, &of).unwrap();
        assert_eq!([read[0], read[1], read[3]], [figures[0], figures[1], figures[3]]);
        assert!(read[2].is_nan());
        assert_eq!(remembered(&path, &json!({"files": [["a", 8, 0.1 + 0.2]]})), None);
        std::fs::write(&path, json!({"of": of, "figures": [0.5]}).to_string()).unwrap();
        assert_eq!(remembered(&path, &of), None);
    }
}
