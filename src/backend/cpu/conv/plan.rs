//! Index arithmetic of the convolutions: which inputs and taps each output needs, per axis.
//!
//! fprop is one dense problem. dgrad with stride `s` falls apart into `s` problems per axis, one for
//! each residue of the position: within one, consecutive outputs read consecutive inputs with a fixed
//! subset of the taps. Both are described by [`Axis`]; no data is touched here.

use crate::backend::ConvGeometry;

/// One axis of one class: output `out_first + j * out_step` sums, over taps `m`, the input at
/// `in_first + j * in_step + shift * m` times the filter at `tap_first + m * tap_step`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) out_first: usize,
    pub(super) out_step: usize,
    pub(super) count: usize,
    pub(super) in_first: isize,
    pub(super) in_step: usize,
    pub(super) tap_first: usize,
    pub(super) tap_step: usize,
    pub(super) taps: usize,
    /// 1 or -1.
    pub(super) shift: isize,
}

impl Axis {
    /// Lowest input coordinate of output 0.
    pub(super) fn low(&self) -> isize {
        if self.shift < 0 { self.in_first + 1 - self.taps as isize } else { self.in_first }
    }

    /// Highest input coordinate of the last output.
    fn high(&self) -> isize {
        self.low() + ((self.count - 1) * self.in_step + self.taps) as isize - 1
    }

    /// Distance of tap `m` from the lowest input coordinate.
    pub(super) fn tap_offset(&self, m: usize) -> usize {
        if self.shift < 0 { self.taps - 1 - m } else { m }
    }

    /// Index of tap `m` in the filter.
    pub(super) fn tap(&self, m: usize) -> usize {
        self.tap_first + m * self.tap_step
    }

    /// The part with outputs in `range`.
    pub(super) fn clip(&self, range: [usize; 2]) -> Option<Axis> {
        let skip = range[0].saturating_sub(self.out_first).div_ceil(self.out_step);
        let end = range[1].saturating_sub(self.out_first).div_ceil(self.out_step).min(self.count);
        (skip < end).then(|| Axis {
            out_first: self.out_first + skip * self.out_step,
            count: end - skip,
            in_first: self.in_first + (skip * self.in_step) as isize,
            ..*self
        })
    }

    /// The outputs cut into runs that meet data with the same taps, each with just those taps.
    pub(super) fn bands(self, extent: usize) -> impl Iterator<Item = Axis> {
        let valid = move |j: usize| {
            let base = self.in_first + (j * self.in_step) as isize;
            let extent = extent as isize;
            let (low, end) =
                if self.shift < 0 { (base + 1 - extent, base + 1) } else { (-base, extent - base) };
            let low = low.clamp(0, self.taps as isize);
            [low, end.clamp(low, self.taps as isize)].map(|m| m as usize)
        };
        let mut start = 0;
        std::iter::from_fn(move || {
            let first = start;
            if first == self.count {
                return None;
            }
            let [low, end] = valid(first);
            start += (first..self.count).take_while(|&j| valid(j) == [low, end]).count();
            Some(Axis {
                out_first: self.out_first + first * self.out_step,
                count: start - first,
                in_first: self.in_first
                    + (first * self.in_step) as isize
                    + self.shift * low as isize,
                tap_first: self.tap_first + low * self.tap_step,
                taps: end - low,
                ..self
            })
        })
    }

    /// Outputs for which tap `m` meets data.
    pub(super) fn outputs(&self, m: usize, extent: usize) -> [usize; 2] {
        let first = self.in_first + self.shift * m as isize;
        let from = (-first).max(0) as usize;
        let to = (extent as isize - first).max(0) as usize;
        let end = to.div_ceil(self.in_step).min(self.count);
        [from.div_ceil(self.in_step).min(end), end]
    }

    /// Drops taps at either end that meet only padding.
    fn trim(mut self, extent: usize) -> Axis {
        let span = ((self.count - 1) * self.in_step) as isize;
        let meets = |m: usize| {
            let low = self.in_first + self.shift * m as isize;
            extent > 0 && low < extent as isize && low + span >= 0
        };
        let first = (0..self.taps).find(|&m| meets(m)).unwrap_or(self.taps);
        let end = (first..self.taps).rev().find(|&m| meets(m)).map_or(first, |m| m + 1);
        self.in_first += self.shift * first as isize;
        self.tap_first += first * self.tap_step;
        self.taps = end - first;
        self
    }
}

/// fprop or dgrad as a sum over taps: `depth` channels in, `width` channels out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dense {
    pub(super) batch: usize,
    pub(super) input: [usize; 3],
    pub(super) depth: usize,
    pub(super) output: [usize; 3],
    pub(super) width: usize,
    pub(super) filter: [usize; 3],
    pub(super) stride: [usize; 3],
    pub(super) padding: [usize; 3],
    /// dgrad: the filter is `[depth][taps][width]`; fprop: `[width][taps][depth]`.
    pub(super) transposed: bool,
}

impl Dense {
    pub(super) fn fprop(g: &ConvGeometry) -> Self {
        Dense {
            batch: g.batch,
            input: g.input,
            depth: g.in_channels,
            output: g.output(),
            width: g.out_channels,
            filter: g.filter,
            stride: g.stride,
            padding: g.padding,
            transposed: false,
        }
    }

    pub(super) fn dgrad(g: &ConvGeometry) -> Self {
        let fprop = Dense::fprop(g);
        Dense {
            input: fprop.output,
            depth: fprop.width,
            output: fprop.input,
            width: fprop.depth,
            transposed: true,
            ..fprop
        }
    }

    /// Number of taps.
    pub(super) fn taps(&self) -> usize {
        self.filter.iter().product()
    }

    /// Position in a panel of filter index `tap` of axis `d`: by class, inputs ascending.
    fn panel_position(&self, d: usize, tap: usize) -> usize {
        let (taps, classes) = (self.filter[d], self.residues(d));
        if !self.transposed {
            return tap;
        }
        let of_class = |residue: usize| taps.saturating_sub(residue).div_ceil(classes);
        let residue = tap % classes;
        let before: usize = (0..residue).map(of_class).sum();
        before + of_class(residue) - 1 - tap / classes
    }

    /// Position in a panel of a tap.
    pub(super) fn panel_tap(&self, tap: [usize; 3]) -> usize {
        let [t, r, s] = [0, 1, 2].map(|d| self.panel_position(d, tap[d]));
        (t * self.filter[1] + r) * self.filter[2] + s
    }

    /// Whether tasks copy their inputs with padding: with few channels that costs little, and cutting
    /// outputs by the taps they meet, whose sums are short anyway, gains nothing.
    pub(super) fn pads_inputs(&self) -> bool {
        self.depth < 8 && !self.transposed
    }

    /// Most taps that one output sums over.
    pub(super) fn class_taps(&self) -> usize {
        (0..3).map(|d| self.filter[d].div_ceil(self.residues(d))).product()
    }

    /// Voxels of one output image.
    pub(super) fn out_voxels(&self) -> usize {
        self.output.iter().product()
    }

    /// Elements of one input image.
    pub(super) fn image_len(&self) -> usize {
        self.input.iter().product::<usize>() * self.depth
    }

    /// Classes per axis.
    fn residues(&self, d: usize) -> usize {
        if self.transposed { self.stride[d] } else { 1 }
    }

    /// The class of one residue of axis `d`, if it has outputs.
    fn axis(&self, d: usize, residue: usize) -> Option<Axis> {
        let (extent, taps) = (self.output[d], self.filter[d]);
        let (stride, padding) = (self.stride[d], self.padding[d]);
        let axis = if self.transposed {
            // Output i meets input (i + padding - tap) / stride where that is whole.
            let first = (residue + stride - padding % stride) % stride;
            Axis {
                out_first: first,
                out_step: stride,
                count: extent.saturating_sub(first).div_ceil(stride),
                in_first: ((first + padding) / stride) as isize,
                in_step: 1,
                tap_first: residue,
                tap_step: stride,
                taps: taps.saturating_sub(residue).div_ceil(stride),
                shift: -1,
            }
        } else {
            Axis {
                out_first: 0,
                out_step: 1,
                count: extent,
                in_first: -(padding as isize),
                in_step: stride,
                tap_first: 0,
                tap_step: 1,
                taps,
                shift: 1,
            }
        };
        (axis.count > 0).then_some(axis)
    }

    /// The part of a class with outputs in `range`.
    fn clipped(&self, d: usize, residue: usize, range: [usize; 2]) -> Option<Axis> {
        self.axis(d, residue)?.clip(range)
    }

    /// Number of classes, empty ones included.
    pub(super) fn classes(&self) -> usize {
        (0..3).map(|d| self.residues(d)).product()
    }

    /// Class `index` restricted to outputs in `ranges`, if there are any.
    pub(super) fn class(&self, index: usize, ranges: &[[usize; 2]; 3]) -> Option<[Axis; 3]> {
        let [_, ry, rx] = [0, 1, 2].map(|d| self.residues(d));
        let residues = [index / (ry * rx), index / rx % ry, index % rx];
        let axis = |d: usize| self.clipped(d, residues[d], ranges[d]);
        Some([axis(0)?, axis(1)?, axis(2)?])
    }

    /// All outputs.
    pub(super) fn everything(&self) -> [[usize; 2]; 3] {
        self.output.map(|extent| [0, extent])
    }

    /// First and one past the last filter index of axis `d` that meets data.
    pub(super) fn used_taps(&self, d: usize) -> [usize; 2] {
        let axes = (0..self.residues(d)).filter_map(|r| self.axis(d, r));
        let axes = axes.map(|axis| axis.trim(self.input[d])).filter(|axis| axis.taps > 0);
        axes.fold([self.filter[d], 0], |[low, high], axis| {
            [low.min(axis.tap_first), high.max(axis.tap(axis.taps - 1) + 1)]
        })
    }

    /// The box of inputs that the outputs in `ranges` need in all classes, padding included.
    pub(super) fn region(&self, ranges: &[[usize; 2]; 3]) -> Region {
        let mut region = Region { low: [0; 3], dims: [0; 3] };
        for (d, &range) in ranges.iter().enumerate() {
            let axes = (0..self.residues(d)).filter_map(|r| self.clipped(d, r, range));
            let bounds = axes.filter(|a| a.taps > 0).map(|a| (a.low(), a.high()));
            let both = bounds.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            if let Some((low, high)) = both {
                (region.low[d], region.dims[d]) = (low, (high - low + 1) as usize);
            }
        }
        region
    }

    /// The box of inputs that all taps of `axes` need for the outputs in `ranges`, padding included.
    pub(super) fn region_of(axes: &[Axis; 3], ranges: &[[usize; 2]; 3]) -> Region {
        let parts = [0, 1, 2].map(|d| axes[d].clip(ranges[d]).map(|a| (a.low(), a.high())));
        let low = parts.map(|part| part.map_or(0, |(low, _)| low));
        let dims = parts.map(|part| part.map_or(0, |(low, high)| (high - low + 1) as usize));
        Region { low, dims }
    }
}

/// A box of input coordinates, part of which may lie outside the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) low: [isize; 3],
    pub(super) dims: [usize; 3],
}

impl Region {
    /// Number of voxels.
    pub(super) fn voxels(&self) -> usize {
        self.dims.iter().product()
    }
}

/// Where a voxel of the input is in memory: a [`Region`] copied out, or the input itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) low: [isize; 3],
    pub(super) strides: [usize; 3],
}

impl Grid {
    /// Rows of `dims` voxels of `pitch` values, one after the other.
    pub(super) fn packed(low: [isize; 3], dims: [usize; 3], pitch: usize) -> Self {
        Grid { low, strides: [dims[1] * dims[2] * pitch, dims[2] * pitch, pitch] }
    }

    /// Offset of output `j` of axis `d` with its lowest tap.
    pub(super) fn along(&self, axis: &Axis, d: usize, j: usize) -> usize {
        let coordinate = axis.low() + (j * axis.in_step) as isize - self.low[d];
        coordinate.max(0) as usize * self.strides[d]
    }
}

/// Bounds of part `index` of `len` things cut into `parts` nearly equal ones.
pub(super) fn even(len: usize, parts: usize, index: usize) -> [usize; 2] {
    let (size, rest) = (len / parts, len % parts);
    let start = index * size + index.min(rest);
    [start, start + size + usize::from(index < rest)]
}
