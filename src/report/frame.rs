//! Where the plot area lies on a picture.

use crate::report::scale::Axis;

/// Position of the plot area and the axes around it.
pub(super) struct Frame {
    /// Pixel column of the left edge.
    pub(super) left: f64,
    /// Pixel row of the upper edge.
    pub(super) top: f64,
    /// Width in pixels.
    pub(super) width: f64,
    /// Height in pixels.
    pub(super) height: f64,
    /// The horizontal axis.
    pub(super) x: Axis,
    /// The vertical axis.
    pub(super) y: Axis,
}

impl Frame {
    /// Pixel column of a value.
    pub(super) fn x(&self, value: f64) -> Option<f64> {
        Some(self.left + self.width * self.x.share(value)?)
    }

    /// Pixel row of a value.
    pub(super) fn y(&self, value: f64) -> Option<f64> {
        Some(self.top + self.height * (1.0 - self.y.share(value)?))
    }

    /// Pixel position of a pair of values.
    pub(super) fn point(&self, p: [f64; 2]) -> Option<[f64; 2]> {
        Some([self.x(p[0])?, self.y(p[1])?])
    }

    /// Pixel row of the lower edge.
    pub(super) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Pixel column of the right edge.
    pub(super) fn right(&self) -> f64 {
        self.left + self.width
    }
}
