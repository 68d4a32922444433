//! The list of runs that a tile of a convolution sums over.

/// Starts of the runs that a tile sums over, one pair `(in a, in b)` per run.
#[derive(Default)]
pub(super) struct Segments {
    /// Length of every run.
    pub(super) len: usize,
    /// The starts.
    pub(super) starts: Vec<(usize, usize)>,
    /// The largest start in a, and in b.
    pub(super) max: (usize, usize),
}

impl Segments {
    pub(super) fn clear(&mut self) {
        self.starts.clear();
        self.max = (0, 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(super) fn push(&mut self, a: usize, b: usize) {
        self.starts.push((a, b));
        self.max = (self.max.0.max(a), self.max.1.max(b));
    }
}
