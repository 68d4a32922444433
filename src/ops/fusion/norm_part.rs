//! What a convolution kernel gets for the instance norm beside it.

use bytemuck::NoUninit;

use crate::driver::DevPtr;

/// `Conv3dNorm`: where a kernel leaves partial results of a norm, and what it reads for them.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(in crate::ops) struct NormPart {
    pub(super) partial: DevPtr,
    pub(super) counts: DevPtr,
    pub(super) x: DevPtr,
    pub(super) y: DevPtr,
    pub(super) stats: DevPtr,
    pub(super) gamma: DevPtr,
    pub(super) beta: DevPtr,
    pub(super) g: DevPtr,
    pub(super) slope: f32,
    pub(super) unused: i32,
}

impl NormPart {
    /// Of a call that does nothing for a norm.
    pub(in crate::ops) const NONE: NormPart = NormPart {
        partial: DevPtr::NULL,
        counts: DevPtr::NULL,
        x: DevPtr::NULL,
        y: DevPtr::NULL,
        stats: DevPtr::NULL,
        gamma: DevPtr::NULL,
        beta: DevPtr::NULL,
        g: DevPtr::NULL,
        slope: 1.0,
        unused: 0,
    };

    /// Whether there is one.
    pub(in crate::ops) fn is_some(&self) -> bool {
        !self.partial.is_null()
    }
}
