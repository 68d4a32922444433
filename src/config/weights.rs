//! Weights of the loss terms, one key for each term that a task declares.

use std::fmt;
use std::sync::LazyLock;

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pretext::{Recipe, terms};

/// Keys of `[tasks]` beside the weights, for the message that lists what the section takes.
const OTHER_KEYS: [&str; 8] = [
    "recipe",
    "vector_head",
    "antisymmetric_gap",
    "trunk",
    "gradient_views",
    "masked_block",
    "masked_ratio",
    "hide_from_all",
];

/// The weight of each term, in the order of [`terms`].
#[derive(Clone, Debug, PartialEq)]
pub struct TermWeights(Vec<f64>);

/// Weights as they were given; the recipe says the others.
#[derive(Clone, Debug, Default)]
pub(super) struct GivenWeights(Vec<Option<f64>>);

impl TermWeights {
    /// The recipe's weights, but for those that are given.
    pub(super) fn new(recipe: Recipe, given: &GivenWeights) -> TermWeights {
        let of_recipe = recipe.weights().into_iter().enumerate();
        let all = of_recipe.map(|(at, w)| given.0.get(at).copied().flatten().unwrap_or(w));
        TermWeights(all.collect())
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

impl<'de> Deserialize<'de> for GivenWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Weights;
        impl<'de> Visitor<'de> for Weights {
            type Value = GivenWeights;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GivenWeights, A::Error> {
                let mut weights = GivenWeights(vec![None; terms().len()]);
                while let Some(key) = map.next_key::<String>()? {
                    let at = place(&key).ok_or_else(|| A::Error::unknown_field(&key, keys()))?;
                    weights.0[at] = Some(map.next_value()?);
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
        let (masked, gap) = ("masked", "gap_axis");
        for (text, expected) in [
            ("recipe = 'paper'", [0.0, 1.0]),
            ("recipe = 'masked'", [1.0, 0.0]),
            ("recipe = 'joint'\ngap_axis = 0.5", [1.0, 0.5]),
            ("masked = 3\nrecipe = 'masked'", [3.0, 0.0]),
        ] {
            let config: Config = toml::from_str(&format!("[tasks]\n{text}\n")).unwrap();
            let weights = &config.tasks.weights;
            assert_eq!([weights.get(masked), weights.get(gap)], expected, "{text}");
        }
        let error = toml::from_str::<Config>("[tasks]\nrouet = 2\n").unwrap_err().to_string();
        assert!(error.contains("unknown field `rouet`") && error.contains("`gap_axis`"), "{error}");
    }
}
