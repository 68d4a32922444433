//! The pretext tasks: geometry, heads, losses, metrics.
