//! Named tensors in PyTorch's layout.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::pretext::{TaskOptions, all_tasks};
use crate::run::checkpoint;
use crate::run::checkpoint::{SaveReport, TensorRef};
use crate::shape::Shape;

/// The metadata key that tells a checkpoint's filters from PyTorch's.
pub(crate) const KEY_LAYOUT: &str = "filter_layout";
/// Its value where filters lie as in memory.
pub(crate) const LAYOUT: &str = "KTRSC";

/// A tensor on its way to a file.
pub(crate) struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Extents in PyTorch's order.
    pub shape: Vec<usize>,
    /// Elements, the last extent fastest.
    pub data: Vec<f32>,
}

impl Tensor {
    /// A value of our layout in PyTorch's.
    pub(crate) fn to_torch(name: String, shape: Shape, from: &[f32]) -> Tensor {
        let mut data = vec![0.0; from.len()];
        for_each_place(shape, |ours, theirs| data[theirs] = from[ours]);
        Tensor { name, shape: torch_dims(shape), data }
    }
}

/// Elements of PyTorch's layout in ours.
pub(crate) fn from_torch(shape: Shape, data: &[f32]) -> Vec<f32> {
    let mut values = vec![0.0; data.len()];
    for_each_place(shape, |ours, theirs| values[ours] = data[theirs]);
    values
}

/// Extents in PyTorch's order: filters `[K, T, R, S, C]` become `[K, C, T, R, S]`, everything else stays.
pub(crate) fn torch_dims(shape: Shape) -> Vec<usize> {
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

/// Whether a tensor belongs to a run's state beside the encoder: moments, averages, heads of tasks, or of a
/// segmentation.
pub(crate) fn is_of_run(name: &str) -> bool {
    let heads = all_tasks(&TaskOptions::default());
    let heads = heads.iter().map(|task| task.head());
    ["m.", "v.", "ema.", "decoder.seg_layers."]
        .into_iter()
        .chain(heads)
        .any(|prefix| name.starts_with(prefix))
}

/// Writes tensors as safetensors, without what makes a file a checkpoint.
///
/// # Errors
/// [`crate::Error::Output`] if the file cannot be written.
pub(crate) fn save(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[Tensor],
) -> Result<SaveReport> {
    let refs: Vec<TensorRef<'_>> = tensors
        .iter()
        .map(|t| TensorRef { name: &t.name, shape: &t.shape, data: &t.data })
        .collect();
    checkpoint::save_weights(path, metadata, &refs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_go_to_pytorch_order_and_back() {
        let filter = Shape::new(&[2, 1, 2, 1, 3]);
        let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let there = Tensor::to_torch("w".into(), filter, &data);
        assert_eq!(from_torch(filter, &there.data), data);
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
