//! Probes of a run while it trains: as the command's, with its default options, of weights that are in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::config::Config;
use crate::dataset::LabelledSet;
use crate::error::{Error, Result, escape};
use crate::model::ResEncUNet;
use crate::probe::cases::{Cases, Preparation};
use crate::probe::encoder::{Watched, probe_encoder};
use crate::probe::extract::Extractor;
use crate::probe::options::{LABELLED, MEMORY_GIB, SEED, TEST};
use crate::probe::source::random;
use crate::run::Ui;
use crate::session::Target;

/// The key that names the data set.
const KEY: &str = "run.probe_data";

/// Mean Dice of one encoder: by the linear classifiers of the last map and of all maps, and by the nearest neighbours
/// alike; NaN where no class was there to be found.
pub(crate) type Figures = [f64; 4];

/// A labelled data set, and the network whose weights are probed on it.
pub(crate) struct RunProbe {
    cases: Cases,
    network: ResEncUNet,
    target: Target,
    /// All that the figures of the random encoder depend on.
    of: Value,
}

impl RunProbe {
    /// The cases of `run.probe_data`, without their voxels; none if the key is empty.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Config`] if it is no data set that a probe can use.
    pub(crate) fn find(config: &Config) -> Result<Option<LabelledSet>> {
        if config.run.probe_data.is_empty() {
            return Ok(None);
        }
        let folder = PathBuf::from(&config.run.probe_data);
        let set = LabelledSet::open(&folder).map_err(|error| match error {
            Error::Data { path, what } => {
                let why =
                    format!("{what}\n  the folder is that of {KEY}; without it nothing is probed");
                Error::data(path, why)
            }
            other => other,
        })?;
        let (found, needed) = (set.cases.len(), (LABELLED + TEST) as usize);
        if found < needed {
            let why = format!(
                "{} has {found} cases, needed are {needed}: {LABELLED} whose labels a classifier is trained on, and \
                 {TEST} others that it is tested on\n  \
                 name a larger data set, or probe the finished run with `spatialssl probe --labelled N --test N`",
                escape(&folder)
            );
            return Err(Error::config(KEY, why));
        }
        Ok(Some(set))
    }

    /// Reads the labels of the cases. `config`: that of the run, with its spacing found.
    ///
    /// # Errors
    /// [`Error::Data`] naming a file that cannot be used.
    pub(crate) fn new(
        set: &LabelledSet,
        config: &Config,
        target: Target,
        ui: &mut dyn Ui,
    ) -> Result<RunProbe> {
        set.warnings.iter().for_each(|warning| ui.warn(warning));
        let counts = [LABELLED as usize, TEST as usize];
        let cases = Cases::choose(set, counts, Preparation::of(config)?, ui)?;
        let of = depends_on(&cases, config, target)?;
        Ok(RunProbe { cases, network: config.model.encoder()?, target, of })
    }

    /// Probes `tensors`, in the order the network asks for them; none if it was told to stop.
    ///
    /// # Errors
    /// As `spatialssl probe`.
    pub(crate) fn figures(
        &self,
        tensors: &[Vec<f32>],
        stopped: &dyn Fn() -> bool,
    ) -> Result<Option<Figures>> {
        let memory = (MEMORY_GIB * f64::from(1 << 30)) as usize;
        let extractor = Extractor::new(&self.network, tensors, self.target, memory);
        let mut watched = Watched { seed: SEED, target: self.target, note: &mut |_| {}, stopped };
        let probed = probe_encoder(extractor, &self.cases, "run", &mut watched)?;
        Ok(probed.map(|probed| {
            let [[a, b], [c, d]] = [&probed.linear, &probed.neighbours]
                .map(|kinds| [&kinds[0], &kinds[1]].map(|dice| dice.mean.unwrap_or(f64::NAN)));
            [a, b, c, d]
        }))
    }

    /// The same of the random encoder.
    ///
    /// # Errors
    /// As `spatialssl probe`.
    pub(crate) fn random_figures(&self, stopped: &dyn Fn() -> bool) -> Result<Option<Figures>> {
        self.figures(&random(&self.network, SEED)?, stopped)
    }

    /// All that the figures of the random encoder depend on: as long as it stays the same, so do they.
    pub(crate) fn depends_on(&self) -> &Value {
        &self.of
    }
}

/// Program, processor, network, preparation, and the files with size and time of change.
fn depends_on(cases: &Cases, config: &Config, target: Target) -> Result<Value> {
    let file = |path: &Path| {
        let meta = fs::metadata(path).map_err(|e| Error::data(path, e.to_string()))?;
        let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(json!([escape(path), meta.len(), changed.map(|since| since.as_nanos() as u64)]))
    };
    let all = cases.labelled.iter().chain(&cases.test);
    let files = all.flat_map(|case| [&case.image, &case.labels]).map(|path| file(path));
    let data = &config.data;
    let settings = (&config.model, data.spacing, data.normalize, data.ct_window);
    let settings = serde_json::to_value(settings)
        .map_err(|e| Error::config("configuration", format!("has no JSON form: {e}")))?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": if target == Target::Cpu { "cpu" } else { "cuda" },
        "settings": settings,
        "files": files.collect::<Result<Vec<_>>>()?,
    }))
}
