//! The pretext tasks: geometry, heads, losses, metrics.

mod gap;
pub mod geometry;
mod heads;
mod similarity;
mod vector;

pub use gap::{Gap, GapOutputs};
pub use heads::{Trunk, Views};
pub use similarity::{Similarity, SimilarityOutputs};
pub use vector::{Vector, VectorHead, VectorOutputs};
