//! How every value lies in device memory, from what the operations say of their operands.

use crate::backend::Write;
use crate::backend::cuda::Storage;
use crate::ops::Pass;
use crate::tape::{Record, Tape, ValueId};

/// Storage of every value that owns memory; members of a packed value count for it.
///
/// # Panics
/// If two operations want a value stored differently: one of their declarations is wrong.
pub(super) fn storages(tape: &Tape) -> Vec<Storage> {
    let mut found: Vec<Option<Storage>> = vec![None; tape.values.len()];
    let mut want = |id: ValueId, storage: Storage, op: &str| {
        let (root, _) = tape.root(id);
        let is_packed = root != id && tape.shape(root).len() != tape.shape(id).len();
        let slot = &mut found[root.index()];
        *slot = Some(match (*slot, storage) {
            (None, new) => new,
            (Some(old), new) if old == new => new,
            // A filter is read by its convolution and written, as a plain block, by the optimiser.
            (Some(Storage::FullAndHalf), Storage::Full)
            | (Some(Storage::Full), Storage::FullAndHalf) => Storage::FullAndHalf,
            (Some(old), new) => {
                let name = &tape.get(id).name;
                panic!(
                    "{op} wants {name} as {new:?}, others have it as {old:?} (packed: {is_packed})"
                )
            }
        });
    };
    for record in &tape.records {
        let name = record.op.rule().name();
        operands(record, |id, storage| want(id, storage, name));
    }
    found.into_iter().map(|s| s.unwrap_or(Storage::Full)).collect()
}

/// Calls `f` with every operand of a record and its storage.
fn operands(record: &Record, mut f: impl FnMut(ValueId, Storage)) {
    let rule = record.op.rule();
    match record.pass {
        Pass::Forward => {
            for (i, &id) in record.reads.iter().enumerate() {
                f(id, rule.storage(i));
            }
            for (i, write) in record.writes.iter().enumerate() {
                if let Some(Write { to: id, .. }) = write {
                    f(*id, rule.output_storage(i));
                }
            }
        }
        Pass::Backward => {
            let saved = rule.saved();
            let inputs = saved.inputs.iter().map(|&i| rule.storage(i));
            let outputs = saved.outputs.iter().map(|&o| rule.output_storage(o));
            let dy = std::iter::once(rule.output_storage(0).of_gradient());
            for (&id, storage) in record.reads.iter().zip(inputs.chain(outputs).chain(dy)) {
                f(id, storage);
            }
            for (i, write) in record.writes.iter().enumerate() {
                if let Some(Write { to: id, .. }) = write {
                    f(*id, rule.storage(i).of_gradient());
                }
            }
        }
    }
}
