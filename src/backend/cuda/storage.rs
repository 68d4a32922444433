//! How values are stored in device memory.

use crate::driver::DevPtr;

/// How a value lies in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// f32: parameters, statistics, losses, everything small.
    Full,
    /// bf16: activations and their gradients.
    Half,
    /// f32 with a bf16 copy beside it, element for element: filters.
    FullAndHalf,
}

impl Storage {
    /// Bytes of one element, without the copy.
    pub fn element_len(self) -> usize {
        if self == Storage::Half { 2 } else { 4 }
    }

    /// How the gradient of such a value is stored.
    pub fn of_gradient(self) -> Storage {
        if self == Storage::Half { Storage::Half } else { Storage::Full }
    }
}

/// Where a value lies: its elements, and their bf16 copy if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DevSpan {
    /// Address of the first element.
    pub ptr: DevPtr,
    /// Address of the first element of the copy, or none.
    pub half_copy: DevPtr,
}
