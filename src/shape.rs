//! Shapes of values on the tape: up to six extents, channels last.

use std::fmt;

/// Extents of a value, outermost first, at most six of them.
///
/// Activations are `[N, D, H, W, C]` (channels last), filters `[K, T, R, S, C]`, vectors `[n]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: usize,
    dims: [usize; 6],
}

impl Shape {
    /// A shape of the given extents.
    ///
    /// # Panics
    /// If there are more than six.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= 6, "a shape has at most six extents, got {}", dims.len());
        let mut all = [1; 6];
        all[..dims.len()].copy_from_slice(dims);
        Shape { rank: dims.len(), dims: all }
    }

    /// The extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The extents as `[N, D, H, W, C]`, if there are five.
    pub fn ndhwc(&self) -> Option<[usize; 5]> {
        (self.rank == 5)
            .then(|| [self.dims[0], self.dims[1], self.dims[2], self.dims[3], self.dims[4]])
    }

    /// The last extent: the channels of an activation.
    pub fn channels(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Vec<String> = self.dims().iter().map(usize::to_string).collect();
        write!(f, "[{}]", text.join(" "))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
