//! Between the memory of a step and files, under nnU-Net's names.
//!
//! Weights for others are in PyTorch's layout. Checkpoints hold filters as they lie in memory, `[K, T, R, S, C]`, so
//! that saving copies nothing; their metadata say so.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::run::checkpoint;
use crate::run::checkpoint::{Loaded, SaveReport, TensorRef};
use crate::session::program::Program;
use crate::tape::{Executor, ValueId};
use crate::weights;
use crate::weights::{KEY_LAYOUT, LAYOUT, Tensor, from_torch, is_of_run, torch_dims};

/// Extents of `id` in a file of our layout or of PyTorch's.
fn dims_in(program: &Program, id: ValueId, ours: bool) -> Vec<usize> {
    let shape = program.tape.shape(id);
    if ours { shape.dims().to_vec() } else { torch_dims(shape) }
}

fn fill(
    program: &Program,
    step: &mut Executor,
    id: ValueId,
    data: &[f32],
    ours: bool,
) -> Result<()> {
    if ours {
        return step.write(id, data);
    }
    step.write(id, &from_torch(program.tape.shape(id), data))
}

/// Every value a run needs to go on, by the name its checkpoint gives it: parameters under their own names, the
/// averaged encoder under `ema.`, moments under `m.` and `v.`.
fn kept(program: &Program) -> Vec<(String, ValueId)> {
    let name = |id: ValueId| program.tape.get(id).name.clone();
    let mut all = Vec::new();
    for block in &program.groups {
        for (&param, &[m, v]) in block.params.iter().zip(&block.moments) {
            let param_name = name(param);
            all.push((param_name.clone(), param));
            all.push((format!("m.{param_name}"), m));
            all.push((format!("v.{param_name}"), v));
        }
    }
    all.extend(program.averages.iter().map(|&id| (name(id), id)));
    all
}

/// Writes a checkpoint with everything the run needs to go on bit for bit.
///
/// # Errors
/// [`crate::Error::Output`] if it cannot be written; older checkpoints are untouched.
pub(crate) fn save(
    program: &Program,
    step: &Executor,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<SaveReport> {
    let kept = kept(program);
    let data = kept.iter().map(|(_, id)| step.read(*id)).collect::<Result<Vec<_>>>()?;
    let refs: Vec<TensorRef<'_>> = kept
        .iter()
        .zip(&data)
        .map(|((name, id), data)| TensorRef {
            name,
            shape: program.tape.get(*id).shape.dims(),
            data,
        })
        .collect();
    let mut metadata = metadata.clone();
    metadata.insert(KEY_LAYOUT.into(), LAYOUT.into());
    checkpoint::save(path, &metadata, &refs)
}

/// Puts a checkpoint's tensors into the memory of the step.
///
/// # Errors
/// [`crate::Error::Checkpoint`] naming what is missing, extra, of another shape, or not finite.
pub(crate) fn restore(
    program: &Program,
    step: &mut Executor,
    path: &Path,
    loaded: &Loaded,
) -> Result<()> {
    let kept = kept(program);
    let expected: BTreeMap<String, Vec<usize>> =
        kept.iter().map(|(name, id)| (name.clone(), dims_in(program, *id, true))).collect();
    loaded.check_fit(path, &expected)?;
    loaded.check_finite(path)?;
    for (name, id) in &kept {
        fill(program, step, *id, &loaded.tensors[name].1, true)?;
    }
    Ok(())
}

/// Writes the trained encoder-decoder under nnU-Net's names.
///
/// # Errors
/// [`crate::Error::Output`] if it cannot be written.
pub(crate) fn save_weights(
    program: &Program,
    step: &Executor,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<SaveReport> {
    let tensors = program.groups[0].params.iter().map(|&id| {
        let name = program.tape.get(id).name.clone();
        Ok(Tensor::to_torch(name, program.tape.shape(id), &step.read(id)?))
    });
    weights::save(path, metadata, &tensors.collect::<Result<Vec<_>>>()?)
}

/// Puts weights of an encoder-decoder, as [`save_weights`] or a checkpoint holds them, into the trained and the
/// averaged encoder. Tensors of heads, moments and averages are passed over. Returns how many tensors were taken.
///
/// # Errors
/// [`crate::Error::Checkpoint`] if a tensor of the encoder is missing, of another shape, or not finite.
pub(crate) fn load_weights(program: &Program, step: &mut Executor, path: &Path) -> Result<usize> {
    let mut loaded = checkpoint::load_weights(path)?;
    let names: Vec<String> =
        program.groups[0].params.iter().map(|&id| program.tape.get(id).name.clone()).collect();
    loaded.tensors.retain(|name, _| names.contains(name) || !is_of_run(name));
    let ours = loaded.metadata.get(KEY_LAYOUT).is_some_and(|layout| layout == LAYOUT);
    let expected: BTreeMap<String, Vec<usize>> = names
        .iter()
        .zip(&program.groups[0].params)
        .map(|(name, &id)| (name.clone(), dims_in(program, id, ours)))
        .collect();
    loaded.check_fit(path, &expected)?;
    loaded.check_finite(path)?;
    for (name, (&id, &average)) in
        names.iter().zip(program.groups[0].params.iter().zip(&program.averages))
    {
        fill(program, step, id, &loaded.tensors[name].1, ours)?;
        fill(program, step, average, &loaded.tensors[name].1, ours)?;
    }
    Ok(names.len())
}

/// Copies the trained encoder into the averaged one: both start alike.
///
/// # Errors
/// [`crate::Error::Device`] if the device fails.
pub(crate) fn init_average(program: &Program, step: &mut Executor) -> Result<()> {
    let encoder = step.read(program.groups[0].packed)?.into_owned();
    step.write(program.average, &encoder)
}
