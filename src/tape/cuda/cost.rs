//! What the launches of a record have to do at least, for whoever measures: FLOP, and bytes of device memory.
//!
//! An operation launches one kernel, or several whose names say their part: `fwd`, `dgrad` and `wgrad` do the products
//! of a convolution once each; `stats` only reads activations; `sum` and `finish` beside others add up scratch, which
//! is no operand and counts as nothing.

use crate::backend::Write;
use crate::backend::cuda::Storage;
use crate::ops::Pass;
use crate::tape::{Record, Tape, ValueId};

/// Sizes of the operands of a record.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pass: Pass,
    /// FLOP of one product.
    flops: u64,
    /// Bytes of each operand read, filters as the bf16 copy that is read.
    reads: Vec<u64>,
    /// Bytes of each operand written; twice where it is added to.
    writes: Vec<u64>,
}

impl Work {
    pub(super) fn new(tape: &Tape, record: &Record, storages: &[Storage]) -> Work {
        let len = |id: ValueId| tape.shape(id).len() as u64;
        let storage = |id: ValueId| storages[tape.root(id).0.index()];
        let read = |&id: &ValueId| match (storage(id), tape.shape(id).ndhwc()) {
            (Storage::Half, _) | (Storage::FullAndHalf, Some(_)) => 2 * len(id),
            _ => 4 * len(id),
        };
        let written = |write: &Option<Write<ValueId>>| {
            write.map_or(0, |Write { to: id, add }| {
                let half_copy = if storage(id) == Storage::FullAndHalf { 2 } else { 0 };
                let element = storage(id).element_len() as u64;
                len(id) * (element * (1 + u64::from(add)) + half_copy)
            })
        };
        Work {
            pass: record.pass,
            flops: record.op.rule().flops(&record.shapes),
            reads: record.reads.iter().map(read).collect(),
            writes: record.writes.iter().map(written).collect(),
        }
    }

    /// FLOP and bytes of launch number `at` of the record's launches, whose kernels are `names`.
    pub(super) fn of(&self, names: &[&str], at: usize) -> (u64, u64) {
        let name = names[at];
        let alike = names.iter().filter(|other| **other == name).count() as u64;
        let is_main = |name: &str| ["fwd", "dgrad", "wgrad"].iter().any(|p| name.contains(p));
        let read = |i: usize| self.reads.get(i).copied().unwrap_or(0);
        let write = |i: usize| self.writes.get(i).copied().unwrap_or(0);
        let all = self.reads.iter().chain(&self.writes).sum::<u64>() / alike;
        if self.flops > 0 && names.len() > 1 {
            let flops = self.flops / alike;
            return match self.pass {
                Pass::Forward if is_main(name) => (flops, all),
                Pass::Backward if name.contains("wgrad") => {
                    (flops, (read(0) + read(2) + write(1)) / alike)
                }
                Pass::Backward if is_main(name) => (flops, (read(1) + read(2) + write(0)) / alike),
                Pass::Backward if name.contains("bias") => (0, read(2) + write(2)),
                _ => (0, 0),
            };
        }
        if name.contains("stats") {
            return (0, self.reads.iter().sum());
        }
        let helps = ["finish", "sum_splits", "sum_rows"].iter().any(|part| name.contains(part));
        if helps && names.len() > 1 { (0, 0) } else { (self.flops, all) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_count_once_and_sums_of_scratch_not_at_all() {
        let work = Work {
            pass: Pass::Backward,
            flops: 100,
            reads: vec![1, 2, 4],
            writes: vec![8, 16, 32],
        };
        let names = ["c_spatial_dgrad", "c_zstream_wgrad", "c_sum_splits", "c_bias_grad"];
        let each: Vec<(u64, u64)> = (0..4).map(|at| work.of(&names, at)).collect();
        assert_eq!(each, [(100, 14), (100, 21), (0, 0), (0, 36)]);
        let work = Work { pass: Pass::Forward, flops: 0, reads: vec![4, 1], writes: vec![4] };
        assert_eq!(work.of(&["norm_stats", "norm_apply"], 0), (0, 5));
        assert_eq!(work.of(&["norm_stats", "norm_apply"], 1), (0, 9));
        // One launch for each input of a concatenation: each does its share.
        assert_eq!(work.of(&["concat", "concat", "concat"], 2), (0, 3));
    }
}
