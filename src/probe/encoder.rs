//! One encoder: features of the labelled cases, classifiers, and what these find in the test cases.

use crate::dataset::LabelledCase;
use crate::error::Result;
use crate::probe::cases::Cases;
use crate::probe::classifier::{Linear, STEPS, Training};
use crate::probe::extract::Extractor;
use crate::probe::maps::Maps;
use crate::probe::neighbours::References;
use crate::probe::samples::{Quota, Samples, class_weights, draw, pick, standardise};
use crate::probe::score::{Counts, Dice};
use crate::random::philox::SampleKey;
use crate::session::Target;

/// Sampled voxels that nearest neighbours are looked for among, at most.
const REFERENCES: usize = 8000;
/// Voxels of a test case that nearest neighbours are looked for.
pub(super) const QUERIES: usize = 4000;
/// Apart from the numbers of classes: addresses of the draws of queries and references.
const QUERY_DRAW: u32 = u32::MAX;
const REFERENCE_DRAW: u32 = u32::MAX - 1;

/// What the classifiers of one encoder found, by the last map and by all maps.
pub(super) struct Probed {
    /// Linear classifiers.
    pub linear: [Dice; 2],
    /// Nearest neighbours.
    pub neighbours: [Dice; 2],
    /// Voxels sampled of each class.
    pub sampled: Vec<u64>,
    /// Numbers of features.
    pub features: [usize; 2],
    /// Voxels asked for of each class of each labelled case.
    pub quota: Quota,
    /// Voxels that nearest neighbours were looked for among.
    pub references: usize,
    /// The window, if a volume did not fit in memory.
    pub window: Option<[usize; 3]>,
    /// Classes of the first test case, by the linear classifier of all maps.
    pub first: Vec<u16>,
}

/// What a probe of one encoder depends on beside its features, and who watches it.
pub(super) struct Watched<'a> {
    /// Seed of voxels and batches.
    pub seed: u64,
    /// Where classifiers are trained.
    pub target: Target,
    /// Takes a line for each thing done.
    pub note: &'a mut dyn FnMut(&str),
    /// Whether to give up; once true it stays true.
    pub stopped: &'a dyn Fn() -> bool,
}

/// Samples of the labelled cases, and how rows of features are made up.
struct Labelled {
    samples: Samples,
    quota: Quota,
    /// First column of the last map, and of all maps.
    starts: [usize; 2],
}

/// Classifies the test cases by the last map and by all maps of an encoder. `what` names it in notes. None if it was
/// told to stop, which it asks between cases and between steps of the classifiers.
///
/// # Errors
/// As [`Cases::read`] and [`Extractor::maps`].
pub(super) fn probe_encoder(
    mut extractor: Extractor<'_>,
    cases: &Cases,
    what: &str,
    watched: &mut Watched<'_>,
) -> Result<Option<Probed>> {
    let (count, seed, stopped) = (cases.classes.len(), watched.seed, watched.stopped);
    let Labelled { samples, quota, starts } = sample(&mut extractor, cases, what, watched)?;
    let sampled = per_class(&samples.classes, count);
    let voxels: Vec<u64> = cases.classes.iter().map(|class| class.voxels[0]).collect();
    let weights = class_weights(&voxels, &sampled);
    let (class_weights, target) = (&weights[..], watched.target);
    let training = Training { class_weights, seed, target, steps: STEPS, stopped };
    let [last, all] = starts.map(|start| Linear::train(&samples, start..samples.width, &training));
    let classifiers = [last?, all?];
    if stopped() {
        return Ok(None);
    }
    (watched.note)(&format!("{what}: classifiers trained on {} voxels", samples.classes.len()));
    let mut counts = [Vec::new(), Vec::new()];
    let (mut first, mut queries) = (Vec::new(), Vec::new());
    for (number, case) in cases.test.iter().enumerate() {
        if stopped() {
            return Ok(None);
        }
        let voxels = cases.read(case)?;
        let maps = extractor.maps(&voxels.volume)?;
        for ((counts, classifier), map) in
            counts.iter_mut().zip(&classifiers).zip([maps.maps.len() - 1, 0])
        {
            let predicted = classifier.classify(&maps, map);
            counts.push(Counts::new(&predicted, &voxels.classes, count));
            if number == 0 && map == 0 {
                first = predicted;
            }
        }
        queries.push(query(&maps, &samples, &voxels.classes, seed, number));
        note(watched, what, "test", case);
    }
    let references = references(&samples, seed);
    let neighbours =
        starts.map(|start| by_neighbours(&references, start, &weights, &queries, stopped));
    if stopped() {
        return Ok(None);
    }
    Ok(Some(Probed {
        linear: counts.map(|counts| Dice::new(&counts)),
        neighbours,
        sampled,
        features: starts.map(|start| samples.width - start),
        quota,
        references: references.classes.len(),
        window: extractor.window,
        first,
    }))
}

/// Dice of the nearest neighbours in the columns from `start` on, of the test cases' `queries`; of some of them if it
/// was told to stop.
fn by_neighbours(
    references: &Samples,
    start: usize,
    votes: &[f32],
    queries: &[(Vec<f32>, Vec<u16>)],
    stopped: &dyn Fn() -> bool,
) -> Dice {
    let near = References {
        rows: &references.rows,
        classes: &references.classes,
        votes,
        width: references.width,
        columns: start..references.width,
    };
    let going = queries.iter().take_while(|_| !stopped());
    let counts = going.map(|(rows, truth)| Counts::new(&near.classify(rows), truth, votes.len()));
    Dice::new(&counts.collect::<Vec<_>>())
}

fn note(watched: &mut Watched<'_>, what: &str, kind: &str, case: &LabelledCase) {
    let name = crate::error::escape(case.name.as_ref());
    (watched.note)(&format!("{what}: features of {kind} case {name}"));
}

/// Features of voxels of the labelled cases, standardised; of some of them if it was told to stop.
fn sample(
    extractor: &mut Extractor<'_>,
    cases: &Cases,
    what: &str,
    watched: &mut Watched<'_>,
) -> Result<Labelled> {
    let mut made: Option<Labelled> = None;
    for (number, case) in cases.labelled.iter().enumerate() {
        let voxels = cases.read(case)?;
        let maps = extractor.maps(&voxels.volume)?;
        let labelled = made.get_or_insert_with(|| Labelled {
            samples: Samples::new(maps.width()),
            quota: Quota::new(cases.labelled.len(), cases.classes.len(), maps.width()),
            starts: [maps.columns(maps.maps.len() - 1).start, 0],
        });
        let (count, seed) = (cases.classes.len(), watched.seed);
        let picked = pick(&voxels.classes, count, labelled.quota, seed, number);
        labelled.samples.add(&maps, &picked, &voxels.classes);
        note(watched, what, "labelled", case);
        if (watched.stopped)() {
            break;
        }
    }
    let Some(mut labelled) = made else { panic!("there is a labelled case at least") };
    labelled.samples.standardise();
    Ok(labelled)
}

/// Standardised features and classes of some voxels of a test case.
fn query(
    maps: &Maps,
    samples: &Samples,
    classes: &[u16],
    seed: u64,
    case: usize,
) -> (Vec<f32>, Vec<u16>) {
    let key = SampleKey { seed, step: case as u64, sample: QUERY_DRAW };
    let voxels = draw((0..classes.len()).collect(), QUERIES, key);
    let mut rows = maps.rows(&voxels);
    standardise(&mut rows, &samples.scale);
    (rows, voxels.iter().map(|&v| classes[v]).collect())
}

/// Some of the sampled voxels.
fn references(samples: &Samples, seed: u64) -> Samples {
    let key = SampleKey { seed, step: 0, sample: REFERENCE_DRAW };
    let chosen = draw((0..samples.classes.len()).collect(), REFERENCES, key);
    let mut some = Samples::new(samples.width);
    for i in chosen {
        some.rows.extend_from_slice(&samples.rows[i * samples.width..][..samples.width]);
        some.classes.push(samples.classes[i]);
    }
    some
}

/// Number of voxels of each class.
fn per_class(classes: &[u16], count: usize) -> Vec<u64> {
    let mut counts = vec![0; count];
    classes.iter().for_each(|&class| counts[usize::from(class)] += 1);
    counts
}
