//! The sizes of a convolution, whoever computes it.

/// Sizes of one convolution; triples are `[depth, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Number of images.
    pub batch: usize,
    /// Extents of the input.
    pub input: [usize; 3],
    /// Channels of the input, `C`.
    pub in_channels: usize,
    /// Channels of the output, `K`.
    pub out_channels: usize,
    /// Extents of the filter, `[T, R, S]`.
    pub filter: [usize; 3],
    /// Steps between outputs, in input voxels.
    pub stride: [usize; 3],
    /// Zeros added on both sides of each axis of the input.
    pub padding: [usize; 3],
}

/// One of the three passes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvPass {
    /// Output from input and filter.
    Fprop,
    /// Gradient of the input from that of the output.
    Dgrad,
    /// Gradient of the filter from input and gradient of the output.
    Wgrad,
}

impl ConvGeometry {
    /// Extents of the output, `floor((input + 2 padding - filter) / stride) + 1`; 0 where the filter
    /// does not fit.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|d| {
            let padded = self.input[d] + 2 * self.padding[d];
            if padded < self.filter[d] { 0 } else { (padded - self.filter[d]) / self.stride[d] + 1 }
        })
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.input.iter().product::<usize>() * self.in_channels
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.output().iter().product::<usize>() * self.out_channels
    }

    /// Elements of the filter.
    pub fn filter_len(&self) -> usize {
        self.out_channels * self.filter.iter().product::<usize>() * self.in_channels
    }

    pub(crate) fn check(&self, x: usize, w: usize, y: usize) {
        assert!(self.stride.iter().all(|&s| s > 0), "strides are at least 1: {self:?}");
        assert!(self.filter.iter().all(|&k| k > 0), "filters have at least one tap: {self:?}");
        assert!(self.in_channels > 0 && self.out_channels > 0, "channels are at least 1: {self:?}");
        assert_eq!(x, self.input_len(), "elements of the input of {self:?}");
        assert_eq!(w, self.filter_len(), "elements of the filter of {self:?}");
        assert_eq!(y, self.output_len(), "elements of the output of {self:?}");
    }
}
