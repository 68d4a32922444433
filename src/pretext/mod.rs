//! The pretext tasks: heads and losses. Not here: where views lie to each other (`views::geometry`), and figures in millimetres.

mod gap;
mod heads;
mod similarity;
mod vector;

pub use gap::{Gap, GapOutputs};
pub use heads::{Trunk, Views};
pub use similarity::{Similarity, SimilarityOutputs};
pub use vector::{Vector, VectorHead, VectorOutputs};
