//! Where the weights come from that are looked at: a run, a weight file, or a seed.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result, escape};
use crate::model::{ResEncUNet, Weights, initial_values};
use crate::run::Ui;
use crate::run::checkpoint::{self, Loaded};
use crate::tape::Tape;
use crate::weights::{config_of, encoder_shapes, encoder_tensors, pick};

/// Files of a run in its folder: its configuration, and the weights of a finished one.
const RUN_CONFIG: &str = "config.toml";
const RUN_WEIGHTS: &str = "weights.safetensors";

/// A network with its weights, and how its volumes are prepared.
pub(super) struct Source {
    /// The configuration it was trained with.
    pub config: Config,
    /// The network.
    pub network: ResEncUNet,
    /// Its tensors, in the order it asks for them.
    pub tensors: Vec<Vec<f32>>,
    /// The file they are from.
    pub path: PathBuf,
    /// Finished steps, if the file says so.
    pub step: Option<u64>,
}

impl Source {
    /// The weights of `weights` if it is given, else of the newest valid checkpoint of `run`, else of the run's
    /// `weights.safetensors`. The configuration is the run's if one is given, else that in the file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there are no valid weights or they are of another network; [`Error::Config`] if nothing
    /// says which network and preparation they belong to.
    pub(super) fn open(
        run: Option<&Path>,
        weights: Option<&Path>,
        ui: &mut dyn Ui,
    ) -> Result<Source> {
        let (path, loaded) = load(run, weights, ui)?;
        let config = match (run, weights) {
            (Some(run), Some(_)) => config_in(run)?,
            _ if loaded.config().is_none() => {
                let why = "the file does not say of which network the weights are, nor how volumes were prepared\n  \
                           add --run RUN, the folder of the run that they were trained in";
                return Err(Error::checkpoint(path, why));
            }
            _ => config_of(&path, &loaded)?,
        };
        ui.note(&format!("weights {}", escape(&path)));
        let network = config.model.encoder()?;
        let step = loaded.step();
        let tensors = encoder_tensors(&encoder_shapes(&network)?, &path, loaded)?;
        Ok(Source { config, network, tensors, path, step })
    }
}

/// The configuration of a run.
fn config_in(run: &Path) -> Result<Config> {
    let path = run.join(RUN_CONFIG);
    let refuse = |why: String| Error::config("--run", format!("{}: {why}", escape(&path)));
    let text = std::fs::read_to_string(&path).map_err(|e| refuse(e.to_string()))?;
    Config::of_run(&text).map_err(refuse)
}

fn load(run: Option<&Path>, weights: Option<&Path>, ui: &mut dyn Ui) -> Result<(PathBuf, Loaded)> {
    match (run, weights) {
        (_, Some(path)) => Ok((path.to_path_buf(), checkpoint::load_weights(path)?)),
        (Some(run), None) => pick(run, None, ui).or_else(|error| {
            let path = run.join(RUN_WEIGHTS);
            if !path.is_file() {
                return Err(error);
            }
            let loaded = checkpoint::load_weights(&path)?;
            Ok((path, loaded))
        }),
        (None, None) => Err(Error::config("--run", "give --run RUN or --weights FILE")),
    }
}

/// The tensors that training would start from with this seed.
///
/// # Errors
/// None in practice: the network was recorded before.
pub(super) fn random(network: &ResEncUNet, seed: u64) -> Result<Vec<Vec<f32>>> {
    let (mut tape, mut weights) = (Tape::default(), Weights::trained());
    let [d, h, w] = network.total_stride();
    let image = tape.input("image", &[1, d, h, w, network.in_channels]);
    network.record(&mut tape, &mut weights, image)?;
    Ok(initial_values(&tape, seed).map(|(_, values)| values).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Model, Target};

    #[test]
    fn random_weights_are_those_that_training_starts_from() {
        let mut config = Config::default();
        config.model.features = vec![8, 16];
        config.model.blocks = vec![1, 1];
        config.model.preset = crate::config::Preset::Custom;
        config.views.size = [16; 3];
        config.run.seed = 11;
        let model = Model::new(&config, Target::Cpu).unwrap();
        let network = config.model.encoder().unwrap();
        let random = random(&network, 11).unwrap();
        let params = &model.program.groups[0].params;
        assert_eq!(params.len(), random.len());
        for (&id, values) in params.iter().zip(&random) {
            assert_eq!(*model.step.read(id).unwrap(), values[..]);
        }
    }
}
