//! Weights of the loss terms, one key for each term that a task declares.

use std::fmt;
use std::sync::LazyLock;

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pretext::terms;

/// Keys of `[tasks]` beside the weights, for the message that lists what the section takes.
const OTHER_KEYS: [&str; 4] = ["vector_head", "antisymmetric_gap", "trunk", "gradient_views"];

/// The weight of each term, in the order of [`terms`].
#[derive(Clone, Debug, PartialEq)]
pub struct TermWeights(Vec<f64>);

impl Default for TermWeights {
    fn default() -> Self {
        TermWeights(terms().iter().map(|term| term.weight).collect())
    }
}

impl TermWeights {
    /// The weight of a term.
    ///
    /// # Panics
    /// If no task has a term of that name.
    pub fn get(&self, name: &str) -> f64 {
        self.0[place(name).unwrap_or_else(|| panic!("no task has a term {name}"))]
    }

    /// Changes the weight of a term.
    ///
    /// # Panics
    /// If no task has a term of that name.
    pub fn set(&mut self, name: &str, weight: f64) {
        self.0[place(name).unwrap_or_else(|| panic!("no task has a term {name}"))] = weight;
    }

    /// Terms and weights.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        terms().iter().map(|term| term.name).zip(self.0.iter().copied())
    }
}

fn place(name: &str) -> Option<usize> {
    terms().iter().position(|term| term.name == name)
}

impl Serialize for TermWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, weight) in self.iter() {
            map.serialize_entry(name, &weight)?;
        }
        map.end()
    }
}

/// Every key of the section, as an error lists them.
fn keys() -> &'static [&'static str] {
    static KEYS: LazyLock<Vec<&str>> =
        LazyLock::new(|| terms().iter().map(|term| term.name).chain(OTHER_KEYS).collect());
    &KEYS
}

impl<'de> Deserialize<'de> for TermWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Weights;
        impl<'de> Visitor<'de> for Weights {
            type Value = TermWeights;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TermWeights, A::Error> {
                let mut weights = TermWeights::default();
                while let Some(key) = map.next_key::<String>()? {
                    let at = place(&key).ok_or_else(|| A::Error::unknown_field(&key, keys()))?;
                    weights.0[at] = map.next_value()?;
                }
                Ok(weights)
            }
        }
        deserializer.deserialize_map(Weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, TasksConfig};

    #[test]
    fn keys_of_the_section_are_those_of_its_text() {
        let text = toml::to_string(&TasksConfig::default()).unwrap();
        let written: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(written, keys());
    }

    #[test]
    fn a_weight_is_read_and_an_unknown_key_is_refused_with_the_known_ones() {
        let config: Config =
            toml::from_str("[tasks]\nroute = 2\nvector_head = 'pairwise'\n").unwrap();
        assert_eq!(
            (config.tasks.weights.get("route"), config.tasks.weights.get("vector")),
            (2.0, 1.0)
        );
        let error = toml::from_str::<Config>("[tasks]\nrouet = 2\n").unwrap_err().to_string();
        assert!(error.contains("unknown field `rouet`") && error.contains("`gap_axis`"), "{error}");
    }
}
