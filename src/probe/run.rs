//! A probe from its options to its files.

use std::path::PathBuf;
use std::time::Instant;

use crate::dataset::{LabelledCase, LabelledSet};
use crate::error::{Error, Result, escape};
use crate::files::atomic::{output_error, write_atomic};
use crate::files::utc_now;
use crate::probe::cases::{Cases, Preparation};
use crate::probe::encoder::{QUERIES, Watched, probe_encoder};
use crate::probe::extract::Extractor;
use crate::probe::options::ProbeOptions;
use crate::probe::page::{Shown, page};
use crate::probe::results::{KindDice, Results};
use crate::probe::source::{Source, random};
use crate::run::Ui;

/// Probes weights and a random encoder of the same shape, and writes `probe.json` and `probe.html` into the folder
/// asked for. Returns the figures and the page's path.
///
/// # Errors
/// Any kind of [`Error`] but [`Error::Unhealthy`] and [`Error::Stopped`].
pub fn probe(options: &ProbeOptions, ui: &mut dyn Ui) -> Result<(Results, PathBuf)> {
    let begun = Instant::now();
    if options.labelled == 0 || options.test == 0 {
        return Err(Error::config("--labelled and --test", "need one case each at least"));
    }
    let set = LabelledSet::open(&options.data)?;
    set.warnings.iter().for_each(|warning| ui.warn(warning));
    let source = Source::open(options.run.as_deref(), options.weights.as_deref(), ui)?;
    let preparation = Preparation::of(&source.config)?;
    let cases = Cases::choose(&set, [options.labelled, options.test], preparation, ui)?;
    let names = [&cases.labelled, &cases.test].map(|of| names(of));
    for (kind, names) in ["labelled", "test"].iter().zip(&names) {
        ui.note(&format!("{kind} cases ({}): {}", names.len(), names.join(", ")));
    }
    let random = random(&source.network, options.seed)?;
    let mut probe_one = |what, tensors| {
        let ProbeOptions { seed, target, memory, .. } = *options;
        let extractor = Extractor::new(&source.network, tensors, target, memory);
        let note = &mut |text: &str| ui.note(text);
        let mut watched = Watched { seed, target, note, stopped: &|| false };
        let probed = probe_encoder(extractor, &cases, what, &mut watched)?;
        Ok::<_, Error>(probed.unwrap_or_else(|| panic!("nothing stops a probe of its own")))
    };
    let own = probe_one("run", &source.tensors)?;
    let other = probe_one("random", &random)?;
    let dice = std::array::from_fn(|k| KindDice {
        linear: [&own, &other].map(|probed| probed.linear[k].clone()),
        neighbours: [&own, &other].map(|probed| probed.neighbours[k].clone()),
    });
    let mut classes = cases.classes.clone();
    classes.iter_mut().zip(&own.sampled).for_each(|(class, &n)| class.sampled = n);
    let results = Results {
        weights: source.path.clone(),
        step: source.step,
        data: options.data.clone(),
        cases: names,
        classes,
        spacing_mm: cases.spacing_mm(),
        seed: options.seed,
        features: own.features,
        quota: own.quota,
        neighbour_voxels: [own.references, QUERIES],
        window: own.window,
        dice,
        created: utc_now(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    let voxels = cases.read(&cases.test[0])?;
    let shown = Shown { voxels: &voxels, predicted: [&own.first, &other.first] };
    let path = write(&results, &page(&results, &shown, &options.command), options)?;
    Ok((results, path))
}

fn names(cases: &[LabelledCase]) -> Vec<String> {
    cases.iter().map(|case| escape(case.name.as_ref())).collect()
}

/// Writes both files; returns the page's path.
fn write(results: &Results, page: &str, options: &ProbeOptions) -> Result<PathBuf> {
    let out = &options.out;
    std::fs::create_dir_all(out).map_err(|e| output_error(out, &e))?;
    let json = format!("{:#}\n", results.json());
    write_atomic(&out.join("probe.json"), |file| file.write_all(json.as_bytes()))?;
    let path = out.join("probe.html");
    write_atomic(&path, |file| file.write_all(page.as_bytes()))?;
    Ok(path)
}
