//! What a filter gradient on the CPU works on.

use crate::backend::cpu::conv::plan::{Axis, Dense};
use crate::backend::cpu::isa::Isa;

/// Operands of one call.
#[derive(Clone, Copy)]
pub(super) struct Job<'a, T> {
    pub(super) p: &'a Dense,
    pub(super) isa: Isa,
    /// As given, or blocked: `[channels / COLS][image][D, H, W][COLS]`, the last block of channels as
    /// narrow as need be.
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    pub(super) axes: &'a [Axis; 3],
    pub(super) blocked: bool,
}
