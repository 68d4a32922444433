//! Between the memory of a step and files, under nnU-Net's names.
//!
//! Weights for others are in PyTorch's layout. Checkpoints hold filters as they lie in memory, `[K, T, R, S, C]`, so that
//! saving copies nothing; their metadata say so.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::run::checkpoint;
use crate::run::checkpoint::{Loaded, SaveReport, TensorRef};
use crate::session::program::Program;
use crate::shape::Shape;
use crate::tape::{Executor, ValueId};

/// A tensor on its way to a file.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    data: Vec<f32>,
}

/// Extents in PyTorch's order: filters `[K, T, R, S, C]` become `[K, C, T, R, S]`, everything else stays.
fn torch_dims(shape: Shape) -> Vec<usize> {
    match shape.ndhwc() {
        Some([k, t, r, s, c]) => vec![k, c, t, r, s],
        None => shape.dims().to_vec(),
    }
}

/// Calls `f(ours, theirs)` with the place of every element in our layout and in PyTorch's.
fn for_each_place(shape: Shape, mut f: impl FnMut(usize, usize)) {
    let Some([k, t, r, s, c]) = shape.ndhwc() else {
        return (0..shape.len()).for_each(|i| f(i, i));
    };
    let taps = t * r * s;
    for filter in 0..k {
        for tap in 0..taps {
            for channel in 0..c {
                f((filter * taps + tap) * c + channel, (filter * c + channel) * taps + tap);
            }
        }
    }
}

fn tensor(program: &Program, step: &Executor, id: ValueId, name: String) -> Result<Tensor> {
    let shape = program.tape.shape(id);
    let from = step.read(id)?;
    let mut data = vec![0.0; from.len()];
    for_each_place(shape, |ours, theirs| data[theirs] = from[ours]);
    Ok(Tensor { name, shape: torch_dims(shape), data })
}

/// The metadata key that tells a checkpoint's filters from PyTorch's.
const KEY_LAYOUT: &str = "filter_layout";
const LAYOUT: &str = "KTRSC";

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
    let mut values = vec![0.0; data.len()];
    for_each_place(program.tape.shape(id), |place, theirs| values[place] = data[theirs]);
    step.write(id, &values)
}

/// Every value a run needs to go on, by the name its checkpoint gives it: parameters under their own names, the
/// averaged encoder under `ema.`, moments under `m.` and `v.`.
fn kept(program: &Program) -> Vec<(String, ValueId)> {
    let name = |id: ValueId| program.tape.get(id).name.clone();
    let mut all = Vec::new();
    for block in &program.blocks {
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
/// [`Error::Output`] if it cannot be written; older checkpoints are untouched.
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
/// [`Error::Checkpoint`] naming what is missing, extra, of another shape, or not finite.
pub(crate) fn restore(
    program: &Program,
    step: &mut Executor,
    path: &Path,
    loaded: &Loaded,
) -> Result<()> {
    let kept = kept(program);
    let wanted: BTreeMap<String, Vec<usize>> =
        kept.iter().map(|(name, id)| (name.clone(), dims_in(program, *id, true))).collect();
    loaded.check_fit(path, &wanted)?;
    finite(path, loaded)?;
    for (name, id) in &kept {
        fill(program, step, *id, &loaded.tensors[name].1, true)?;
    }
    Ok(())
}

fn finite(path: &Path, loaded: &Loaded) -> Result<()> {
    match loaded.first_not_finite() {
        Some(name) => Err(Error::checkpoint(
            path,
            format!("{name} holds NaN or infinity\n  use an earlier checkpoint"),
        )),
        None => Ok(()),
    }
}

/// Writes the trained encoder-decoder under nnU-Net's names.
///
/// # Errors
/// [`Error::Output`] if it cannot be written.
pub(crate) fn save_weights(
    program: &Program,
    step: &Executor,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<SaveReport> {
    let tensors: Vec<Tensor> = program.blocks[0]
        .params
        .iter()
        .map(|&id| tensor(program, step, id, program.tape.get(id).name.clone()))
        .collect::<Result<_>>()?;
    let refs: Vec<TensorRef<'_>> = tensors
        .iter()
        .map(|t| TensorRef { name: &t.name, shape: &t.shape, data: &t.data })
        .collect();
    checkpoint::save_weights(path, metadata, &refs)
}

/// Puts weights of an encoder-decoder, as [`save_weights`] or a checkpoint holds them, into the trained and the averaged
/// encoder. Tensors of heads, moments and averages are passed over. Returns how many tensors were taken.
///
/// # Errors
/// [`Error::Checkpoint`] if a tensor of the encoder is missing, of another shape, or not finite.
pub(crate) fn load_weights(program: &Program, step: &mut Executor, path: &Path) -> Result<usize> {
    let mut loaded = checkpoint::load_weights(path)?;
    let names: Vec<String> =
        program.blocks[0].params.iter().map(|&id| program.tape.get(id).name.clone()).collect();
    loaded.tensors.retain(|name, _| names.contains(name) || !is_of_run(name));
    let ours = loaded.metadata.get(KEY_LAYOUT).is_some_and(|layout| layout == LAYOUT);
    let wanted: BTreeMap<String, Vec<usize>> = names
        .iter()
        .zip(&program.blocks[0].params)
        .map(|(name, &id)| (name.clone(), dims_in(program, id, ours)))
        .collect();
    loaded.check_fit(path, &wanted)?;
    finite(path, &loaded)?;
    for (name, (&id, &average)) in
        names.iter().zip(program.blocks[0].params.iter().zip(&program.averages))
    {
        fill(program, step, id, &loaded.tensors[name].1, ours)?;
        fill(program, step, average, &loaded.tensors[name].1, ours)?;
    }
    Ok(names.len())
}

/// Whether a tensor belongs to a run's state beside the encoder.
fn is_of_run(name: &str) -> bool {
    ["m.", "v.", "ema.", "gap_head.", "sim_head.", "vec_head.", "decoder.seg_layers."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Copies the trained encoder into the averaged one: both start alike.
///
/// # Errors
/// [`Error::Device`] if the device fails.
pub(crate) fn start_average(program: &Program, step: &mut Executor) -> Result<()> {
    let encoder = step.read(program.blocks[0].packed)?.into_owned();
    step.write(program.average, &encoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_go_to_pytorch_order_and_back() {
        let shape = Shape::new(&[2, 1, 2, 1, 3]);
        assert_eq!(torch_dims(shape), [2, 3, 1, 2, 1]);
        let ours: Vec<usize> = (0..12).collect();
        let mut theirs = vec![0; 12];
        for_each_place(shape, |a, b| theirs[b] = ours[a]);
        assert_eq!(theirs, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        let vector = Shape::new(&[5]);
        assert_eq!(torch_dims(vector), [5]);
        for_each_place(vector, |a, b| assert_eq!(a, b));
    }
}
