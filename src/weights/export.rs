//! Weights of a run for other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result, escape};
use crate::model::Weights;
use crate::run::checkpoint::{KEY_CONFIG, KEY_STEP, Loaded};
use crate::run::folder::CHECKPOINTS;
use crate::run::retention::latest_valid;
use crate::run::{Ui, checkpoint};
use crate::shape::Shape;
use crate::tape::Tape;
use crate::weights::tensors::{KEY_LAYOUT, LAYOUT, Tensor, is_of_run, save};

/// The checkpoint a command works on: the one named, or the run's newest valid one.
pub(crate) fn pick(run: &Path, named: Option<&Path>, ui: &mut dyn Ui) -> Result<(PathBuf, Loaded)> {
    if let Some(path) = named {
        return Ok((path.to_path_buf(), checkpoint::load(path)?));
    }
    let folder = run.join(CHECKPOINTS);
    let latest = latest_valid(&folder)?;
    for (path, why) in &latest.rejected {
        ui.warn(&format!("{} is not valid and is passed over: {why}", escape(path)));
    }
    latest.found.ok_or_else(|| {
        let why =
            "holds no valid checkpoint\n  is this a run folder? `spatialssl train --out` makes one";
        Error::checkpoint(folder, why)
    })
}

/// The configuration a checkpoint was written with.
pub(crate) fn config_of(path: &Path, loaded: &Loaded) -> Result<Config> {
    let text = loaded.config().unwrap_or_default();
    let refuse = |why: String| {
        Error::checkpoint(path, format!("its configuration cannot be read by this version: {why}"))
    };
    let mut config: Config = toml::from_str(text).map_err(|e| refuse(e.message().to_string()))?;
    config.check().map_err(|e| refuse(e.to_string()))?;
    Ok(config)
}

/// Names and shapes of the encoder-decoder's tensors, in the order the network asks for them: recorded alone, without gradients.
fn encoder(config: &Config) -> Result<Vec<(String, Shape)>> {
    let network = config.model.encoder()?;
    let (mut tape, mut weights) = (Tape::default(), Weights::trained());
    let [d, h, w] = config.views.size;
    let image = tape.input("image", &[1, d, h, w, network.in_channels]);
    network.record(&mut tape, &mut weights, image)?;
    let shapes = weights.ids().iter().map(|&id| tape.shape(id));
    Ok(weights.names().iter().cloned().zip(shapes).collect())
}

/// Writes the encoder-decoder's weights of a run as safetensors under nnU-Net's names. Returns the number of bytes.
///
/// # Errors
/// [`Error::Checkpoint`] if there is no valid checkpoint, or it holds another network than its configuration describes;
/// [`Error::Output`] if the file cannot be written.
pub fn export(run: &Path, checkpoint: Option<&Path>, out: &Path, ui: &mut dyn Ui) -> Result<u64> {
    let (path, mut loaded) = pick(run, checkpoint, ui)?;
    let config = config_of(&path, &loaded)?;
    ui.note(&format!("checkpoint {}", escape(&path)));
    let encoder = encoder(&config)?;
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
