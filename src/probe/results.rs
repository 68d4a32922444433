//! What a probe found: as a table for a terminal, as JSON.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::error::escape;
use crate::probe::classifier::{BATCH, RATE, RULE, STEPS};
use crate::probe::neighbours::NEIGHBOURS;
use crate::probe::samples::Quota;
use crate::probe::score::Dice;

/// A class of the labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its value in the label images.
    pub value: u16,
    /// Its name, or the value in words.
    pub name: String,
    /// Its voxels in the labelled cases, and in the test cases.
    pub voxels: [u64; 2],
    /// Its voxels that the classifier was trained on.
    pub sampled: u64,
}

/// Dice by one kind of features.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KindDice {
    /// Linear classifier, features of the weights that were probed and of the random ones, over all voxels.
    pub linear: [Dice; 2],
    /// Nearest neighbours alike, over a sample of the voxels.
    pub neighbours: [Dice; 2],
}

/// Figures of a probe and all that they depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// The weights' file.
    pub weights: PathBuf,
    /// Finished steps of the run, if the file says so.
    pub step: Option<u64>,
    /// The data set.
    pub data: PathBuf,
    /// Names of the labelled cases and of the test cases.
    pub cases: [Vec<String>; 2],
    /// The background, then the others by value.
    pub classes: Vec<Class>,
    /// Voxel size of the grid that was compared on, (z, y, x), mm; none: each volume's own.
    pub spacing_mm: Option<[f64; 3]>,
    /// Seed of the random weights, of voxels and batches.
    pub seed: u64,
    /// Features of the last map and of all maps.
    pub features: [usize; 2],
    /// Voxels taken at most of the background and of a class of each labelled case.
    pub(super) quota: Quota,
    /// Reference voxels of the nearest neighbours in all, voxels of each test case they were looked for.
    pub neighbour_voxels: [usize; 2],
    /// The window, if a volume did not fit in memory, (z, y, x).
    pub window: Option<[usize; 3]>,
    /// By the last map and by all maps.
    pub dice: [KindDice; 2],
    /// When it was done, UTC.
    pub created: String,
    /// How long it took.
    pub seconds: f64,
}

/// Names of the two kinds of features.
pub(super) const KINDS: [&str; 2] = ["last map", "all maps"];

impl Results {
    /// Classes as rows; of each kind of features the four methods as columns; the mean at the foot.
    pub fn table(&self) -> String {
        let methods = ["run", "random", "run kNN", "rand kNN"];
        let names = self.classes[1..].iter().map(|class| class.name.as_str());
        let width = names.clone().chain(["class"]).map(|n| n.chars().count()).max().unwrap_or(5);
        let width = width.min(32);
        let mut text = format!("{:width$}", "");
        KINDS.iter().for_each(|kind| text += &format!(" | {kind:^35}"));
        text += &format!("\n{:width$}", "class");
        for _ in KINDS {
            text += " |";
            methods.iter().for_each(|method| text += &format!(" {method:>8}"));
        }
        let rule = "-".repeat(width + 2 * 38);
        text += &format!("\n{rule}\n");
        for (c, name) in names.enumerate() {
            let name: String = name.chars().take(width).collect();
            text += &self.row(&name, width, &|dice| dice.classes.get(c).copied().flatten());
        }
        text += &format!("{rule}\n");
        text += &self.row("mean", width, &|dice| dice.mean);
        text
    }

    fn row(&self, name: &str, width: usize, of: &dyn Fn(&Dice) -> Option<f64>) -> String {
        let mut text = format!("{name:width$}");
        for kind in &self.dice {
            text += " |";
            for dice in kind.linear.iter().chain(&kind.neighbours) {
                text += &of(dice).map_or(format!(" {:>8}", "-"), |v| format!(" {v:>8.3}"));
            }
        }
        text + "\n"
    }

    /// Everything, to be read by other programs.
    pub fn json(&self) -> Value {
        let class = |c: &Class| {
            json!({
                "value": c.value,
                "name": c.name,
                "voxels_labelled": c.voxels[0],
                "voxels_test": c.voxels[1],
                "voxels_sampled": c.sampled,
            })
        };
        let dice = |d: &Dice| json!({"mean": d.mean, "classes": d.classes, "cases": d.cases});
        let kind = |k: usize| {
            let KindDice { linear, neighbours } = &self.dice[k];
            json!({
                "features": self.features[k],
                "run": dice(&linear[0]),
                "random": dice(&linear[1]),
                "run_neighbours": dice(&neighbours[0]),
                "random_neighbours": dice(&neighbours[1]),
            })
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "created": self.created,
            "weights": escape(&self.weights),
            "step": self.step,
            "data": escape(&self.data),
            "labelled": self.cases[0],
            "test": self.cases[1],
            "spacing_mm": self.spacing_mm,
            "window": self.window,
            "seed": self.seed,
            "classes": self.classes.iter().map(class).collect::<Vec<_>>(),
            "classifier": {
                "steps": STEPS,
                "batch": BATCH,
                "lr": RATE,
                "weight_decay": RULE.weight_decay,
                "voxels_of_background": self.quota.background,
                "voxels_of_class": self.quota.class,
                "test_voxels": "all",
            },
            "neighbours": {
                "k": NEIGHBOURS,
                "distance": "euclidean, standardised features",
                "references": self.neighbour_voxels[0],
                "test_voxels_per_case": self.neighbour_voxels[1],
            },
            "dice": {"last_map": kind(0), "all_maps": kind(1)},
            "seconds": self.seconds,
        })
    }
}
