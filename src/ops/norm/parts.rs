//! How a norm is cut on the device, and where its partial results lie.

use crate::driver::DevPtr;
use crate::ops::Pass;
use crate::shape::Shape;

/// Channels that a block treats at most.
const TILE_CHANNELS: usize = 64;
/// Blocks that a pass is cut into, about.
const BLOCKS: usize = 256;
/// Slices of an instance at most.
const SLICES: usize = 128;
/// Accesses that make a slice worth a block of its own.
const SLICE_ACCESSES: usize = 4096;
/// Accesses of an instance up to which one block does all of it in one launch.
const SMALL_ACCESSES: usize = 8192;
/// Instances up to which one block does the backward pass of all of them.
const SMALL_INSTANCES: usize = 4;

/// How a pass is cut into blocks; by the shape alone.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
pub(super) struct NormShape {
    pub(super) voxels: i64,
    pub(super) channels: i32,
    /// Channels to an access.
    pub(super) width: i32,
    /// Accesses of a voxel that a block makes.
    pub(super) tile: i32,
    /// Parts of an instance.
    pub(super) slices: i32,
}

/// Where the partial results of a norm lie: two floats for each instance, part and channel; and, forward, the number of
/// voxels of each part.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Parts {
    /// `[instances, parts, channels, 2]`: mean and sum of squared deviations, or sums of g and g xhat.
    pub(in crate::ops) partial: DevPtr,
    /// `[instances, parts]`.
    pub(in crate::ops) counts: DevPtr,
    /// Parts of an instance.
    pub(in crate::ops) parts: usize,
}

impl Parts {
    /// Those of a norm of `x`, at `memory`.
    pub(in crate::ops) fn at(memory: DevPtr, x: Shape, parts: usize) -> Parts {
        let results = 8 * x.dims()[0] * parts * x.channels();
        Parts { partial: memory, counts: memory.offset(results), parts }
    }

    /// Bytes of them.
    pub(in crate::ops) fn len(x: Shape, parts: usize) -> usize {
        4 * x.dims()[0] * parts * (2 * x.channels() + 1)
    }
}

impl NormShape {
    /// The cut of `x`, and its grid.
    pub(super) fn new(x: Shape) -> (NormShape, [u32; 3]) {
        let (n, channels) = (x.dims()[0], x.channels());
        let voxels = x.len() / (n * channels);
        let width = if channels % 8 == 0 { 8 } else { 1 };
        let groups = channels / width;
        let tile = groups.div_ceil(groups.div_ceil(TILE_CHANNELS / width));
        let tiles = groups.div_ceil(tile);
        assert!(n.max(tiles) < 1 << 16, "{x} has more instances or channels than a grid can have");
        let accesses = voxels * tile;
        let slices = if accesses <= SMALL_ACCESSES {
            1
        } else {
            SLICES
                .min(BLOCKS.div_ceil(n * tiles))
                .min(accesses.div_ceil(SLICE_ACCESSES))
                .min(voxels)
        };
        let shape = NormShape {
            voxels: voxels as i64,
            channels: channels as i32,
            width: width as i32,
            tile: tile as i32,
            slices: slices as i32,
        };
        (shape, [slices as u32, tiles as u32, n as u32])
    }

    pub(super) fn is_small(&self, pass: Pass, instances: usize) -> bool {
        match pass {
            Pass::Forward => self.slices == 1,
            Pass::Backward => {
                self.voxels * i64::from(self.tile) <= SMALL_ACCESSES as i64
                    && instances <= SMALL_INSTANCES
            }
        }
    }
}

/// Whether one launch does all of a pass over `x`.
pub(in crate::ops) fn is_small(x: Shape, pass: Pass) -> bool {
    NormShape::new(x).0.is_small(pass, x.dims()[0])
}
