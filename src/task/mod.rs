//! The pretext tasks: geometry, heads, losses, metrics.

#[cfg(test)]
pub mod geometry;
