//! Typed operations: shape rule, forward and backward of each.
