//! The spacing volumes are brought to, as a configuration spells it.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Voxel size of the prepared volumes: `"median"`, `"native"` or `[z, y, x]` in mm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spacing {
    /// The median of the training volumes, per axis.
    Median,
    /// No resampling.
    Native,
    /// This size, `[z, y, x]` in mm.
    Mm([f64; 3]),
}

impl Serialize for Spacing {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Spacing::Median => serializer.serialize_str("median"),
            Spacing::Native => serializer.serialize_str("native"),
            Spacing::Mm(size) => size.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Spacing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(SpacingVisitor)
    }
}

struct SpacingVisitor;

impl<'de> Visitor<'de> for SpacingVisitor {
    type Value = Spacing;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"median\", \"native\" or [z, y, x] in mm")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Spacing, E> {
        match text {
            "median" => Ok(Spacing::Median),
            "native" => Ok(Spacing::Native),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Spacing, A::Error> {
        let mut size = [0.0; 3];
        for (i, value) in size.iter_mut().enumerate() {
            *value =
                seq.next_element()?.ok_or_else(|| de::Error::invalid_length(i, &SpacingVisitor))?;
        }
        if seq.next_element::<f64>()?.is_some() {
            return Err(de::Error::invalid_length(4, &SpacingVisitor));
        }
        Ok(Spacing::Mm(size))
    }
}
