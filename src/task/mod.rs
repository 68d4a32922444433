//! The pretext tasks: geometry, heads, losses, metrics.

pub mod geometry;
