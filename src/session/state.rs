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
use crate::weights::{KEY_LAYOUT, LAYOUT, Tensor};

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
    let expected: BTreeMap<String, Vec<usize>> = kept
        .iter()
        .map(|(name, id)| (name.clone(), program.tape.shape(*id).dims().to_vec()))
        .collect();
    loaded.check_fit(path, &expected)?;
    loaded.check_finite(path)?;
    for (name, id) in &kept {
        step.write(*id, &loaded.tensors[name].1)?;
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
    let params = &program.groups[0].params;
    let shape = |&id: &ValueId| (program.tape.get(id).name.clone(), program.tape.shape(id));
    let encoder: Vec<_> = params.iter().map(shape).collect();
    let tensors = weights::encoder_tensors(&encoder, path, checkpoint::load_weights(path)?)?;
    for (data, (&id, &average)) in tensors.iter().zip(params.iter().zip(&program.averages)) {
        step.write(id, data)?;
        step.write(average, data)?;
    }
    Ok(tensors.len())
}

/// Copies the trained encoder into the averaged one: both start alike.
///
/// # Errors
/// [`crate::Error::Device`] if the device fails.
pub(crate) fn init_average(program: &Program, step: &mut Executor) -> Result<()> {
    let encoder = step.read(program.groups[0].packed)?.into_owned();
    step.write(program.average, &encoder)
}
