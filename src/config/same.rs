//! Whether two configurations compute the same.

use crate::config::older::completed;
use crate::config::sections::Config;
use crate::error::Result;

impl Config {
    /// The settings that change what a step computes and differ from those of `old`, a configuration in TOML, each with
    /// the old and the new value.
    ///
    /// # Errors
    /// As [`Config::to_toml`].
    pub(crate) fn differences(&self, old: &str) -> Result<Vec<String>> {
        let text = self.to_toml()?;
        let (old, new) = (completed(old).unwrap_or_default(), completed(&text).unwrap_or_default());
        let mut differences = Vec::new();
        for (section, values) in &new {
            for (key, value) in values.as_table().into_iter().flatten() {
                let name = format!("{section}.{key}");
                let before = old.get(section).and_then(|s| s.get(key));
                if !MAY_CHANGE.contains(&name.as_str()) && before != Some(value) {
                    let before = before.map_or_else(|| "absent".to_string(), ToString::to_string);
                    differences.push(format!("{name} was {before}, is {value}"));
                }
            }
        }
        Ok(differences)
    }
}

/// Settings that do not change what a step computes.
const MAY_CHANGE: [&str; 12] = [
    "data.cache_dir",
    "data.loader_threads",
    "data.views_on_device",
    "data.on_bad_file",
    "run.device",
    "run.threads",
    "run.checkpoint_every",
    "run.keep_last",
    "run.max_minutes",
    "run.validation_draws",
    "run.probe_data",
    "run.probe_every",
];
