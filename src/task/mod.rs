//! The pretext tasks: heads, losses, metrics.

mod gap;
mod heads;
mod similarity;
mod vector;

pub use gap::{Gap, GapOutputs};
pub use heads::{Trunk, Views};
pub use similarity::{Similarity, SimilarityOutputs};
pub use vector::{Vector, VectorHead, VectorOutputs};
