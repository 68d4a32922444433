//! The trunk of the gap and the vector head, and how wide it is.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{Axis, Concat, GlobalPool};
use crate::pretext::heads::{Views, conv_gelu};
use crate::tape::{Tape, ValueId};

/// Channels after each of the three convolutions: `"auto"`, `"authors"` or `[a, b, c]`.
///
/// The last width is the number of features of a view, of which a linear map makes three coordinates: with fewer than
/// three, an axis cannot be told from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrunkWidths {
    /// Chosen by experiment, see `docs/measurements/learning.md`.
    #[default]
    Auto,
    /// Those of the paper: C / 2, C / 4, C / 8.
    Authors,
    /// These.
    Given([usize; 3]),
}

/// Each width of [`TrunkWidths::Auto`].
const AUTO: usize = 64;

impl TrunkWidths {
    /// The widths for a representation of so many channels.
    pub fn of(self, channels: usize) -> [usize; 3] {
        match self {
            TrunkWidths::Auto => [AUTO; 3],
            TrunkWidths::Authors => [channels / 2, channels / 4, channels / 8],
            TrunkWidths::Given(widths) => widths,
        }
    }
}

impl fmt::Display for TrunkWidths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrunkWidths::Auto => f.write_str("auto"),
            TrunkWidths::Authors => f.write_str("authors"),
            TrunkWidths::Given(widths) => write!(f, "{widths:?}"),
        }
    }
}

impl Serialize for TrunkWidths {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            TrunkWidths::Given(widths) => widths.serialize(serializer),
            word => serializer.collect_str(word),
        }
    }
}

impl<'de> Deserialize<'de> for TrunkWidths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(WidthsVisitor)
    }
}

struct WidthsVisitor;

impl<'de> Visitor<'de> for WidthsVisitor {
    type Value = TrunkWidths;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"auto\", \"authors\" or three numbers of channels, as in [32, 32, 32]")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<TrunkWidths, E> {
        match text {
            "auto" => Ok(TrunkWidths::Auto),
            "authors" => Ok(TrunkWidths::Authors),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut seq: A,
    ) -> std::result::Result<TrunkWidths, A::Error> {
        let mut widths = [0; 3];
        for (i, value) in widths.iter_mut().enumerate() {
            *value =
                seq.next_element()?.ok_or_else(|| de::Error::invalid_length(i, &WidthsVisitor))?;
        }
        if seq.next_element::<usize>()?.is_some() {
            return Err(de::Error::invalid_length(4, &WidthsVisitor));
        }
        Ok(TrunkWidths::Given(widths))
    }
}

/// Three times convolution 3x3x3 of stride 2 and GELU, then the mean over voxels.
#[derive(Clone, Debug)]
pub struct Trunk {
    /// Name of the head, `gap_head` or `vec_head`.
    pub name: &'static str,
    /// How wide it is.
    pub widths: TrunkWidths,
}

impl Trunk {
    /// Features `[V, N, last width]` of all views. The filters of both encoders' views are the same; the part of
    /// view 0 alone sends a gradient on where only it came with one.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if a width is 0, as the paper's are for fewer than 8 channels.
    pub fn record(&self, tape: &mut Tape, weights: &mut Weights, views: &Views) -> Result<ValueId> {
        let (widths, batch) = (self.widths.of(views.channels(tape)), views.batch(tape));
        let mut parts = Vec::new();
        for &value in &views.values {
            let mut x = value;
            for (k, width) in (1..).zip(widths) {
                let name = format!("{}.proj_{k}", self.name);
                x = conv_gelu(tape, weights, &name, x, width, 3)?;
            }
            parts.push(tape.record(&format!("{}.pool", self.name), GlobalPool, &[x])?);
        }
        let all = match parts[..] {
            [one] => one,
            _ => {
                tape.record(&format!("{}.views", self.name), Concat { axis: Axis::Batch }, &parts)?
            }
        };
        Ok(tape.reshape(all, &[views.count, batch, widths[2]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_follow_the_representation_or_are_given() {
        assert_eq!(TrunkWidths::Authors.of(16), [8, 4, 2]);
        assert_eq!(TrunkWidths::Auto.of(16), TrunkWidths::Auto.of(320));
        assert_eq!(TrunkWidths::Given([5, 6, 7]).of(16), [5, 6, 7]);
        assert!(TrunkWidths::Auto.of(16)[2] >= 3);
    }
}
