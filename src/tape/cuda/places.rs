//! The device memory behind a layout: one allocation, or one for each value.

use std::ops::Range;

use crate::driver::{DevPtr, Device, DeviceBuffer};
use crate::error::Result;

/// How the values of a tape share allocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrangement {
    /// All in one; values that are never alive together share bytes.
    #[default]
    Planned,
    /// Each in its own, of exactly its length, so that tools see an access outside of it. Takes more memory.
    Separate,
}

/// Allocations by where they begin in the layout. What lies between them is in none: gaps for alignment.
pub(super) struct Places {
    blocks: Vec<(usize, DeviceBuffer)>,
}

/// A part of a range of the layout: its bytes, counted from the start of the range, and where they lie.
pub(super) struct Piece<'a> {
    pub(super) bytes: Range<usize>,
    pub(super) block: &'a DeviceBuffer,
    pub(super) offset: usize,
}

impl Places {
    /// Allocates `spans`, offsets in the layout and lengths.
    pub(super) fn new(mut spans: Vec<(usize, usize)>, device: &Device) -> Result<Places> {
        spans.sort_unstable();
        let blocks = spans
            .into_iter()
            .map(|(offset, len)| Ok((offset, device.alloc(len)?)))
            .collect::<Result<_>>()?;
        Ok(Places { blocks })
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> usize {
        self.blocks.iter().map(|(_, block)| block.len()).sum()
    }

    /// Address of a place of the layout; none for a value that has no memory because nothing uses it.
    pub(super) fn address(&self, offset: usize) -> DevPtr {
        let behind = self.blocks.partition_point(|(begin, _)| *begin <= offset);
        let Some((begin, block)) = behind.checked_sub(1).map(|at| &self.blocks[at]) else {
            return DevPtr::NULL;
        };
        if offset - begin <= block.len() {
            block.ptr().offset(offset - begin)
        } else {
            DevPtr::NULL
        }
    }

    /// The parts of a range of the layout that lie in allocations.
    pub(super) fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = Piece<'_>> {
        self.blocks.iter().filter_map(move |(begin, block)| {
            let from = range.start.max(*begin);
            let to = range.end.min(begin + block.len());
            (from < to).then(|| Piece {
                bytes: from - range.start..to - range.start,
                block,
                offset: from - begin,
            })
        })
    }
}
