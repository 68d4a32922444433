//! Fusions of two operations whose rule belongs to neither alone: what the first call does of the second's work. Not
//! here: which calls of a tape are fused (`tape/cuda/fusion.rs`), and the two fusions that one operation's file holds
//! (upsampling into a concatenation, the update with the average).

pub(super) mod conv_gelu;
pub(super) mod conv_norm;
pub(super) mod norm_part;
