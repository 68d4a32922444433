//! Which cases of a data set are labelled ones and which test ones, and their volumes with a class for each voxel.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::dataset::{LabelledCase, LabelledSet, PrepareOptions};
use crate::error::{Error, Result, escape};
use crate::image::{Spacing, Volume};
use crate::probe::results::Class;
use crate::run::Ui;

/// More classes than any atlas of the body has.
const CLASSES_MAX: usize = 1000;

/// How the images of a run are prepared.
pub(super) struct Preparation {
    options: PrepareOptions,
    /// The common spacing; none: each volume's own.
    pub spacing_mm: Option<[f64; 3]>,
}

/// A volume and the class of each of its voxels.
pub(super) struct CaseVoxels {
    pub volume: Volume,
    pub classes: Vec<u16>,
}

/// The cases of a probe, labelled ones first.
pub(super) struct Cases {
    pub labelled: Vec<LabelledCase>,
    pub test: Vec<LabelledCase>,
    /// The background, then the others by value.
    pub classes: Vec<Class>,
    preparation: Preparation,
}

impl Preparation {
    /// As the configuration says.
    ///
    /// # Errors
    /// [`Error::Config`] if the spacing was left to be found from the training volumes and not written back.
    pub(super) fn of(config: &Config) -> Result<Preparation> {
        let data = &config.data;
        let options = PrepareOptions {
            spacing: data.spacing,
            normalize: data.normalize,
            ct_window: data.ct_window.map(|v| v as f32),
        };
        let spacing_mm = match data.spacing {
            Spacing::Mm(mm) => Some(mm),
            Spacing::Native => None,
            Spacing::Median => {
                let why = "is the median of the training volumes, which the configuration does not hold\n  \
                           use a checkpoint or weights that `spatialssl train` wrote: there it is a number";
                return Err(Error::config("data.spacing", why));
            }
        };
        Ok(Preparation { options, spacing_mm })
    }
}

impl Cases {
    /// Takes the first `labelled` and the last `test` cases of a set, reads all their labels, and lists the classes.
    ///
    /// # Errors
    /// [`Error::Config`] if there are fewer cases; [`Error::Data`] if a file cannot be used, or the labels hold one
    /// class only or too many.
    pub(super) fn choose(
        set: &LabelledSet,
        [labelled, test]: [usize; 2],
        preparation: Preparation,
        ui: &mut dyn Ui,
    ) -> Result<Cases> {
        let count = set.cases.len();
        if labelled + test > count {
            let why = format!(
                "the data set has {count} cases, asked for are {labelled} labelled and {test} test cases, \
                 and none may be both\n  \
                 lower --labelled or --test"
            );
            return Err(Error::config("--labelled and --test", why));
        }
        let (labelled, test) = (set.cases[..labelled].to_vec(), set.cases[count - test..].to_vec());
        let mut cases = Cases { labelled, test, classes: Vec::new(), preparation };
        cases.classes = cases.list_classes(set, ui)?;
        Ok(cases)
    }

    /// Values of all labels with their numbers of voxels.
    fn list_classes(&self, set: &LabelledSet, ui: &mut dyn Ui) -> Result<Vec<Class>> {
        let mut voxels: BTreeMap<u16, [u64; 2]> = BTreeMap::new();
        for (which, cases) in [&self.labelled, &self.test].into_iter().enumerate() {
            for case in cases {
                let read = case.read(&self.preparation.options, self.preparation.spacing_mm)?;
                read.warnings.iter().for_each(|w| ui.warn(&format!("{}: {w}", case.name)));
                read.labels.iter().for_each(|&v| voxels.entry(v).or_default()[which] += 1);
                if voxels.len() > CLASSES_MAX {
                    let why = format!(
                        "more than {CLASSES_MAX} different labels up to this file\n  are these label images?"
                    );
                    return Err(Error::data(&case.labels, why));
                }
            }
        }
        let labelled = voxels.iter().filter(|(_, n)| n[0] > 0).map(|(&value, _)| value);
        let labelled: Vec<u16> = labelled.collect();
        if let ([only], Some(case)) = (&labelled[..], self.labelled.first()) {
            let why = format!(
                "all voxels of the {} labelled cases have the label {only}, and a classifier needs two classes\n  \
                 take other or more cases with --labelled",
                self.labelled.len()
            );
            return Err(Error::data(&case.labels, why));
        }
        voxels.entry(0).or_default();
        let unseen: Vec<String> = voxels
            .iter()
            .filter(|(value, n)| n[0] == 0 && **value != 0)
            .map(|(value, _)| value.to_string())
            .collect();
        if !unseen.is_empty() {
            let values = unseen.join(", ");
            ui.warn(&format!(
                "labels of test cases that no labelled case has, so their Dice is 0: {values}"
            ));
        }
        let class = |(value, voxels): (u16, [u64; 2])| {
            let named = set.names.get(&value).map(|n| escape(n.as_ref()));
            let name = named.unwrap_or_else(|| format!("label {value}"));
            Class { value, name, voxels, sampled: 0 }
        };
        Ok(voxels.into_iter().map(class).collect())
    }

    /// Reads a case.
    ///
    /// # Errors
    /// [`Error::Data`] if it can no longer be read.
    pub(super) fn read(&self, case: &LabelledCase) -> Result<CaseVoxels> {
        let read = case.read(&self.preparation.options, self.preparation.spacing_mm)?;
        let changed = || Error::data(&case.labels, "the file changed while it was used");
        let class = |value: &u16| {
            let at = self.classes.binary_search_by_key(value, |class| class.value);
            at.map(|at| at as u16).map_err(|_| changed())
        };
        let classes = read.labels.iter().map(class).collect::<Result<_>>()?;
        Ok(CaseVoxels { volume: read.volume, classes })
    }

    /// The spacing that cases are compared at, (z, y, x), mm; none: their own.
    pub(super) fn spacing_mm(&self) -> Option<[f64; 3]> {
        self.preparation.spacing_mm
    }
}
