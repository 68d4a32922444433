//! Task "gap": how far apart two views are.

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{GapAxisLoss, GapNormLoss, Pairwise, PairwiseKind};
use crate::pretext::heads::{Trunk, Views, linear, uniform};
use crate::tape::{Tape, ValueId};

/// The gap head: `P[i][j] = W (h_i - h_j) + b`.
#[derive(Clone, Debug)]
pub struct Gap {
    /// Leaves `b` out, so that `P[i][j] = -P[j][i]`.
    pub antisymmetric: bool,
}

/// What the gap task records.
#[derive(Clone, Debug)]
pub struct GapOutputs {
    /// `P [N, V, V, 3]`, normalised.
    pub prediction: ValueId,
    /// Features `[V, N, C / 8]`.
    pub features: ValueId,
    /// Loss per axis, `[1]`.
    pub axis: ValueId,
    /// Loss of the length, `[1]`.
    pub norm: ValueId,
}

impl Gap {
    /// Records head and losses; `target [N, V, V, 3]`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if shapes do not fit.
    pub fn record(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        views: &Views,
        target: ValueId,
    ) -> Result<GapOutputs> {
        let features = Trunk { name: "gap_head" }.record(tape, weights, views)?;
        let pairs = tape.record(
            "gap_head.pairs",
            Pairwise { kind: PairwiseKind::Difference },
            &[features],
        )?;
        let start = uniform(tape.shape(pairs).channels());
        let bias = (!self.antisymmetric).then_some(start);
        let prediction = linear(tape, weights, "gap_head.proj_axis", pairs, (start, bias))?;
        let axis = tape.record("loss.gap_axis", GapAxisLoss, &[prediction, target])?;
        let norm = tape.record("loss.gap_norm", GapNormLoss, &[prediction, target])?;
        Ok(GapOutputs { prediction, features, axis, norm })
    }
}
