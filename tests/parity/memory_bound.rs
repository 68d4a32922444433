//! Operations that go over memory, at sizes that the case table does not have: norms cut into slices, sums of many blocks, rows
//! that allow wide accesses and rows that do not.

use spatialssl::ops::{
    AvgPool, Axis, Concat, Gelu, GlobalPool, GradNorm, InstanceNorm, LeakyRelu, Op, Probe,
    ResidualAdd,
};

use crate::ORDERS;
use crate::common::cases::Case;
use crate::compare::{Numbers, check};

fn case(name: &str, op: impl Into<Op>, inputs: Vec<Vec<usize>>) -> Case {
    Case { name: format!("{name} {:?}", inputs[0]), op: op.into(), inputs, real: false }
}

/// Norms: several slices to an instance, a last slice that is not full, tiles of less than all channels, and instances too many
/// or too large for one launch.
fn norms() -> Vec<Case> {
    let sizes = [
        [1, 24, 23, 19, 8],  // 3 slices, 10,488 voxels
        [2, 21, 17, 13, 16], // wide, two accesses to a voxel
        [1, 15, 14, 13, 96], // two tiles of six accesses
        [1, 11, 13, 14, 19], // one by one
        [2, 13, 17, 15, 3],
        [5, 3, 5, 7, 16], // one slice, more instances than one block takes
        [6, 1, 2, 3, 17],
        [1, 41, 37, 29, 1], // one channel: 512 rows
        [1, 17, 19, 23, 8], // one slice, more voxels to a thread than one run
        [2, 3, 5, 4, 65],   // a last tile that is not full
        [2, 3, 5, 4, 72],
    ];
    let mut all = Vec::new();
    for (i, x) in sizes.iter().enumerate() {
        for (slope, residual) in [(Some(0.01), false), (Some(0.01), true), (None, i % 2 == 0)] {
            let (x, c) = (x.to_vec(), vec![x[4]]);
            let mut inputs = vec![x.clone(), c.clone(), c];
            if residual {
                inputs.push(x);
            }
            all.push(case("slices", InstanceNorm { slope, residual }, inputs));
        }
    }
    all
}

fn others() -> Vec<Case> {
    let mut all = Vec::new();
    for len in [2047, 2048, 2049, 70_003] {
        all.push(case("pieces", Gelu, vec![vec![len]]));
        all.push(case("pieces", LeakyRelu { slope: 0.25 }, vec![vec![len]]));
        all.push(case("pieces", ResidualAdd, vec![vec![len]; 2]));
        all.push(case("blocks", Probe, vec![vec![len]]));
        all.push(case("blocks", GradNorm { max_norm: Some(3.0) }, vec![vec![len], vec![9]]));
    }
    for c in [1, 8, 17, 48, 320] {
        all.push(case("slices", GlobalPool, vec![vec![2, 17, 16, 15, c]]));
        all.push(case("widths", AvgPool { window: [2, 1, 2] }, vec![vec![2, 5, 6, 7, c]]));
        let (low, high) = (vec![2, 3, 5, 4, c], vec![2, 3, 5, 4, 16]);
        all.push(case("widths", Concat { axis: Axis::Channel }, vec![low, high]));
        all.push(case("widths", Concat { axis: Axis::Batch }, vec![vec![3, c], vec![2, c]]));
    }
    all
}

#[test]
fn norms_in_slices_agree() {
    for (i, case) in norms().iter().enumerate() {
        check(case, Numbers::Normal(3), 1, ORDERS[i % 3]);
        check(case, Numbers::Normal(4), 2, ORDERS[(i + 1) % 3]);
    }
}

#[test]
fn memory_bound_operations_agree() {
    for (i, case) in others().iter().enumerate() {
        check(case, Numbers::Whole, 1, ORDERS[i % 3]);
        check(case, Numbers::Normal(3), 2, ORDERS[(i + 1) % 3]);
    }
}
