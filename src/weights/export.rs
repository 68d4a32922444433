//! Weights of a run for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result, escape};
use crate::run::Ui;
use crate::run::checkpoint::{KEY_CONFIG, KEY_STEP};
use crate::weights::chosen::{config_of, pick};
use crate::weights::encoder::encoder_shapes;
use crate::weights::tensors::{KEY_LAYOUT, LAYOUT, Tensor, is_of_run, save};

/// Writes the encoder-decoder's weights of a run as safetensors under nnU-Net's names. Returns the number of bytes.
///
/// # Errors
/// [`Error::Checkpoint`] if there is no valid checkpoint, or it holds another network than its configuration describes;
/// [`Error::Output`] if the file cannot be written.
pub fn export(run: &Path, checkpoint: Option<&Path>, out: &Path, ui: &mut dyn Ui) -> Result<u64> {
    let (path, mut loaded) = pick(run, checkpoint, ui)?;
    let config = config_of(&path, &loaded)?;
    ui.note(&format!("checkpoint {}", escape(&path)));
    let encoder = encoder_shapes(&config.model.encoder()?)?;
    loaded.tensors.retain(|name, _| !is_of_run(name));
    let ours = loaded.metadata.get(KEY_LAYOUT).is_some_and(|layout| layout == LAYOUT);
    if !ours {
        return Err(Error::checkpoint(
            path,
            "is no checkpoint of a run: its filters are in another order",
        ));
    }
    let wanted = encoder.iter().map(|(name, shape)| (name.clone(), shape.dims().to_vec()));
    loaded.check_fit(&path, &wanted.collect())?;
    loaded.check_finite(&path)?;
    let tensors: Vec<Tensor> = encoder
        .into_iter()
        .map(|(name, shape)| {
            let data = &loaded.tensors[&name].1;
            Tensor::to_torch(name, shape, data)
        })
        .collect();
    let metadata = BTreeMap::from([
        (KEY_STEP.to_string(), loaded.step().unwrap_or(0).to_string()),
        (KEY_CONFIG.to_string(), config.to_toml()?),
    ]);
    Ok(save(out, &metadata, &tensors)?.bytes)
}
