//! Task "vector": in which direction another view lies, by any route.

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{Pairwise, PairwiseKind, RouteLoss, VectorLoss};
use crate::pretext::heads::{Trunk, Views, linear, uniform};
use crate::tape::{Init, Tape, ValueId};

/// How the vector of a pair is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VectorHead {
    /// `q_v = W h_v + b`, `D[i][j] = q_i - q_j`: routes telescope (the authors').
    Absolute,
    /// `D[i][j] = W [h_i; h_j] + b`: routes are a constraint of their own (ours).
    Pairwise,
}

/// The vector task.
#[derive(Clone, Debug)]
pub struct Vector {
    /// Kind of head.
    pub head: VectorHead,
}

/// What the vector task records.
#[derive(Clone, Debug)]
pub struct VectorOutputs {
    /// `D [N, V, V, 3]`, normalised.
    pub prediction: ValueId,
    /// Loss of the vectors, `[1]`.
    pub vector: ValueId,
    /// Loss of the routes, `[1]`.
    pub route: ValueId,
}

impl Vector {
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
    ) -> Result<VectorOutputs> {
        let features = Trunk { name: "vec_head" }.record(tape, weights, views)?;
        let start = uniform(tape.shape(features).channels());
        let prediction = match self.head {
            VectorHead::Absolute => {
                // The authors start this weight at ones.
                let init = (Init::Constant(1.0), Some(start));
                let places = linear(tape, weights, "vec_head.proj_abs_loc", features, init)?;
                tape.record(
                    "vec_head.pairs",
                    Pairwise { kind: PairwiseKind::Difference },
                    &[places],
                )?
            }
            VectorHead::Pairwise => {
                let pairs = tape.record(
                    "vec_head.pairs",
                    Pairwise { kind: PairwiseKind::Concat },
                    &[features],
                )?;
                let start = uniform(tape.shape(pairs).channels());
                linear(tape, weights, "vec_head.proj_pair", pairs, (start, Some(start)))?
            }
        };
        let vector = tape.record("loss.vector", VectorLoss, &[prediction, target])?;
        let route = tape.record("loss.route", RouteLoss, &[prediction, target])?;
        Ok(VectorOutputs { prediction, vector, route })
    }
}
