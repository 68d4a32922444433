//! A mask with a weight for each block of voxels, as operations read it.

use std::ops::Range;

use bytemuck::NoUninit;

use crate::error::Result;
use crate::ops::{OpRule, activation, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Extents of the map and of a block, in which the weight of an element is found.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    extent: [usize; 3],
    channels: usize,
    block: [usize; 3],
}

impl Blocks {
    /// Blocks of a map `[N, D, H, W, C]`.
    ///
    /// # Panics
    /// If it is no map.
    pub(super) fn of(map: Shape, block: [usize; 3]) -> Blocks {
        let Some([_, d, h, w, c]) = map.ndhwc() else { panic!("a map has five extents") };
        Blocks { extent: [d, h, w], channels: c, block }
    }

    /// Elements of a row along x, and of a row within a block.
    fn rows(&self) -> (usize, usize) {
        (self.extent[2] * self.channels, self.block[2] * self.channels)
    }

    /// Calls `f(weight, elements)` for the parts of `range`, a range of elements, that lie in one row of one block.
    pub(super) fn for_each<T: Scalar>(
        &self,
        mask: &[T],
        range: Range<usize>,
        mut f: impl FnMut(T, Range<usize>),
    ) {
        let (row, cell) = self.rows();
        let cells: [usize; 3] = std::array::from_fn(|a| self.extent[a] / self.block[a]);
        let mut at = range.start;
        while at < range.end {
            let (line, within) = (at / row, at % row);
            let (plane, y) = (line / self.extent[1], line % self.extent[1]);
            let (n, z) = (plane / self.extent[0], plane % self.extent[0]);
            let place = (n * cells[0] + z / self.block[0]) * cells[1] + y / self.block[1];
            let end = (at + cell - within % cell).min(range.end);
            f(mask[place * cells[2] + within / cell], at..end);
            at = end;
        }
    }

    /// Elements of a block.
    pub(super) fn len(&self) -> usize {
        self.block.iter().product::<usize>() * self.channels
    }
}

/// Extents by which a kernel finds the weight of an element.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct BlocksParams {
    extent: [i32; 3],
    cells: [i32; 3],
    block: [i32; 3],
    channels: i32,
}

impl Blocks {
    /// What kernels get of them.
    pub(super) fn params(&self) -> BlocksParams {
        let all = |values: [usize; 3]| values.map(|v| v as i32);
        BlocksParams {
            extent: all(self.extent),
            cells: all(std::array::from_fn(|a| self.extent[a] / self.block[a])),
            block: all(self.block),
            channels: self.channels as i32,
        }
    }
}

/// That blocks of extent `block` fill `map`, and that `mask` has one weight for each.
pub(super) fn check_mask(
    op: &dyn OpRule,
    map: Shape,
    block: [usize; 3],
    mask: Shape,
) -> Result<()> {
    let [n, d, h, w, _] = activation(op, map)?;
    let ([bz, by, bx], extent) = (block, [d, h, w]);
    if (0..3).any(|a| block[a] == 0 || !extent[a].is_multiple_of(block[a])) {
        return refuse(op, format!("blocks of {block:?} do not fill {extent:?}"));
    }
    let needed = Shape::new(&[n, d / bz, h / by, w / bx]);
    if mask != needed {
        return refuse(op, format!("mask {mask} is not {needed}"));
    }
    Ok(())
}
