//! The tensors of the encoder-decoder, picked out of a file.

use std::path::Path;

use crate::error::Result;
use crate::model::{ResEncUNet, Weights};
use crate::run::checkpoint::Loaded;
use crate::shape::Shape;
use crate::tape::Tape;
use crate::weights::tensors::{KEY_LAYOUT, LAYOUT, from_torch, is_of_run, torch_dims};

/// Names and shapes of the encoder-decoder's tensors, in the order the network asks for them: recorded alone, without
/// gradients.
pub(crate) fn encoder_shapes(network: &ResEncUNet) -> Result<Vec<(String, Shape)>> {
    let (mut tape, mut weights) = (Tape::default(), Weights::trained());
    let [d, h, w] = network.total_stride();
    let image = tape.input("image", &[1, d, h, w, network.in_channels]);
    network.record(&mut tape, &mut weights, image)?;
    let shapes = weights.ids().iter().map(|&id| tape.shape(id));
    Ok(weights.names().iter().cloned().zip(shapes).collect())
}

/// The encoder-decoder's tensors in the layout of memory, in the order of `encoder`, which says their names and shapes.
/// Tensors of heads, moments and averages are passed over. `path` is only named in messages.
///
/// # Errors
/// [`crate::Error::Checkpoint`] if a tensor is missing, of another shape, or not finite.
pub(crate) fn encoder_tensors(
    encoder: &[(String, Shape)],
    path: &Path,
    mut loaded: Loaded,
) -> Result<Vec<Vec<f32>>> {
    loaded.tensors.retain(|name, _| encoder.iter().any(|(n, _)| n == name) || !is_of_run(name));
    let ours = loaded.metadata.get(KEY_LAYOUT).is_some_and(|layout| layout == LAYOUT);
    let dims = |shape: Shape| if ours { shape.dims().to_vec() } else { torch_dims(shape) };
    let wanted = encoder.iter().map(|(name, shape)| (name.clone(), dims(*shape)));
    loaded.check_fit(path, &wanted.collect())?;
    loaded.check_finite(path)?;
    let tensor = |(name, shape): &(String, Shape)| {
        let (_, data) = loaded.tensors.remove(name).unwrap_or_default();
        if ours { data } else { from_torch(*shape, &data) }
    };
    Ok(encoder.iter().map(tensor).collect())
}
