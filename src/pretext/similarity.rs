//! Task "similarity": the sides of two views that face each other look alike, those that face away do not.

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{CosineLoss, SubView};
use crate::pretext::heads::{Views, conv_gelu};
use crate::tape::{Tape, ValueId};

/// The similarity task.
#[derive(Clone, Debug)]
pub struct Similarity {
    /// Size of a sub-view, (z, y, x).
    pub sub_size: [usize; 3],
}

/// What the similarity task records.
#[derive(Clone, Debug)]
pub struct SimilarityOutputs {
    /// Loss of the adjacent pairs, `[1]`: minus their mean cosine.
    pub adjacent: ValueId,
    /// Loss of the distant pairs, `[1]`: their mean cosine.
    pub distant: ValueId,
    /// Cosine of each adjacent pair, `[N P]`.
    pub adjacent_cosines: ValueId,
    /// Cosine of each distant pair, `[N P]`.
    pub distant_cosines: ValueId,
}

impl Similarity {
    /// Records cut, head and losses; `boxes [N, P, 4, 3]` as [`SubView`] takes them.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if shapes do not fit.
    pub fn record(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        views: &Views,
        boxes: ValueId,
    ) -> Result<SimilarityOutputs> {
        let channels = views.channels(tape);
        let mut inputs = vec![boxes];
        inputs.extend(&views.values);
        let cut = SubView { views: views.count, size: self.sub_size };
        let mut x = tape.record("sim_head.sub_views", cut, &inputs)?;
        for k in 0..4 {
            x = conv_gelu(
                tape,
                weights,
                &format!("sim_head.encoder.{k}"),
                x,
                (channels << (k + 1), 4),
            )?;
        }
        let adjacent =
            tape.record_all("loss.sim_adjacent", CosineLoss { first: 0, factor: -1.0 }, &[x])?;
        let distant =
            tape.record_all("loss.sim_distant", CosineLoss { first: 2, factor: 1.0 }, &[x])?;
        Ok(SimilarityOutputs {
            adjacent: adjacent[0],
            distant: distant[0],
            adjacent_cosines: adjacent[1],
            distant_cosines: distant[1],
        })
    }
}
