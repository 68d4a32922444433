//! Configurations of runs that are older than a setting.

use toml::{Table, Value};

use crate::config::sections::Config;

/// What a run computed before a setting existed, where that is not the setting's default: section, key, value.
fn before() -> [(&'static str, &'static str, Value); 3] {
    [
        ("tasks", "trunk", Value::String("authors".into())),
        ("tasks", "recipe", Value::String("paper".into())),
        ("tasks", "sim_spread", Value::Float(0.0)),
    ]
}

/// The configuration that a run was written with, in TOML, with what absent keys meant at its time.
///
/// # Errors
/// What TOML says.
pub(super) fn completed(text: &str) -> Result<Table, toml::de::Error> {
    let mut table: Table = text.parse()?;
    for (section, key, value) in before() {
        if let Some(Value::Table(keys)) = table.get_mut(section)
            && !keys.contains_key(key)
        {
            keys.insert(key.to_string(), value);
        }
    }
    Ok(table)
}

impl Config {
    /// The configuration of a run, as it was written by this version or an older one.
    ///
    /// # Errors
    /// Why it cannot be read, or is out of range.
    pub(crate) fn of_run(text: &str) -> Result<Config, String> {
        let table = completed(text).map_err(|e| e.message().to_string())?;
        let mut config: Config =
            table.try_into().map_err(|e: toml::de::Error| e.message().to_string())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pretext::TrunkWidths;

    #[test]
    fn an_absent_key_means_what_it_meant_then() {
        let now = Config::default().to_toml().unwrap();
        assert_eq!(Config::of_run(&now).unwrap(), Config::default());
        let then: String = now
            .lines()
            .filter(|line| !line.starts_with("trunk") && !line.starts_with("sim_spread"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_ne!(then, now);
        let read = Config::of_run(&then).unwrap();
        assert_eq!(read.tasks.trunk, TrunkWidths::Authors);
        assert_eq!(read.tasks.weights.get("sim_spread"), 0.0);
        assert!(Config::of_run("[tasks").unwrap_err().len() > 5);
    }
}
