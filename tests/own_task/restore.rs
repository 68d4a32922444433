//! Task "restore", an example with a target per voxel: the intensities of view 0 from its dense representation, on the
//! blocks that a chequerboard selects.

use spatialssl::Error;
use spatialssl::error::Result;
use spatialssl::model::Weights;
use spatialssl::ops::{Conv3d, MaskedMse};
use spatialssl::pretext::{Inputs, Output, Recorded, Samples, Target, Task, ViewSizes};
use spatialssl::report::{
    CaseObservation, Description, Figure, Guess, HALF, ImageBudget, Measured, Observable, Picture,
    Plot, Shape, Term, figure, mean, points, usable, validation_plot,
};
use spatialssl::run::rows::Row;
use spatialssl::tape::{Init, Tape};

/// Edge of a block in voxels.
const BLOCK: usize = 4;

const TERMS: [Term; 1] = [Term {
    name: "restore",
    weight: 0.0,
    heading: "Restored intensities",
    measure: "squared error, normalised intensities",
}];

const FIGURES: [Figure; 1] = [Figure {
    label: "restore, share of the variance that is missed",
    short: "missed variance",
    unit: " %",
    scale: 100.0,
    decimals: 0,
    guess: Guess::Fixed(1.0),
    ..Figure::hidden("restore_missed")
}];

const DESCRIPTION: Description = Description {
    name: "restore",
    heading: "Intensities from the representation",
    colour: "s6",
    terms: &TERMS,
    figures: &FIGURES,
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Restore;

impl Task for Restore {
    fn targets(&self, views: &ViewSizes) -> Vec<Target> {
        let [d, h, w] = views.size.map(|n| n / BLOCK);
        vec![Target::new("chequerboard", &[d, h, w], move |_, out| {
            let places =
                (0..d).flat_map(|z| (0..h).flat_map(move |y| (0..w).map(move |x| z + y + x)));
            out.extend(places.map(|sum| (sum % 2) as f32));
        })]
    }

    fn record(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        inputs: &Inputs<'_>,
    ) -> Result<Recorded> {
        let ([dense, _], [image, _]) = (&inputs.dense.values[..], inputs.images) else {
            let what = "needs view 0 by itself, tasks.gradient_views = \"first\"".to_string();
            return Err(Error::Shape { op: "restore", what });
        };
        let channels = inputs.dense.channels(tape);
        let init = Init::Uniform { bound: 1.0 / (channels as f64).sqrt() };
        let w = weights.get(tape, "restore_head.weight", &[1, 1, 1, 1, channels], init);
        let b = weights.get(tape, "restore_head.bias", &[1], init);
        let point = Conv3d { stride: [1; 3], padding: [0; 3], bias: true, normed: false };
        let restored = tape.record("restore_head", point, &[*dense, w, b])?;
        let loss = tape.record_all(
            "loss.restore",
            MaskedMse { block: [BLOCK; 3] },
            &[restored, *image, inputs.targets[0]],
        )?;
        let output = |name, id| Output { name, id, samples: Samples::First };
        Ok(Recorded {
            losses: vec![loss[0]],
            outputs: vec![output("restore.restored", restored), output("restore.image", *image)],
        })
    }

    fn head(&self) -> &'static str {
        "restore_head."
    }
}

/// Intensities and what they are restored as, of all voxels of all draws.
fn voxels(cases: &[CaseObservation]) -> Vec<[f64; 2]> {
    let draws = cases.iter().flat_map(|case| &case.draws);
    let of_draw = draws
        .flat_map(|draw| draw.output("restore.image").iter().zip(draw.output("restore.restored")));
    of_draw.map(|(&image, &restored)| [image, restored]).collect()
}

impl Observable for Restore {
    fn description(&self) -> &'static Description {
        &DESCRIPTION
    }

    fn measure(&self, cases: &[CaseObservation]) -> Measured {
        let all = voxels(cases);
        let centre = mean(all.iter().map(|v| v[0]));
        let missed = mean(all.iter().map(|v| (v[1] - v[0]).powi(2)));
        Measured {
            values: vec![missed / mean(all.iter().map(|v| (v[0] - centre).powi(2)))],
            counted: all.len(),
            broken: all.iter().filter(|v| !usable(v[1])).count(),
        }
    }

    fn sentence(&self, figures: &Row) -> String {
        let missed = 100.0 * figures.get("restore_missed");
        if usable(missed) {
            format!("{missed:.0} % of the variance is missed.")
        } else {
            String::new()
        }
    }

    fn curves(&self, validations: &[Row]) -> Vec<Picture> {
        let mut plot = validation_plot("Restored, missed", "share of the variance", &[0.0]);
        plot.add_labelled("guess", "the mean: 1", Shape::Level(1.0));
        plot.add_labelled("s6", "restored", Shape::Path(points(validations, "restore_missed")));
        vec![plot.draw()]
    }

    fn panel(&self, cases: &[CaseObservation], _images: &mut ImageBudget) -> String {
        let all = voxels(cases);
        if all.is_empty() {
            return "<p class=\"absent\">No voxel was observed.</p>".to_string();
        }
        let mut plot = Plot::new("Voxels", ["intensity", "restored"], [HALF[0], 0.0]).square();
        plot.add_labelled("s6", "voxel", Shape::Dots(all));
        plot.add_labelled("ink", "restored = true", Shape::Identity);
        figure("halves", &[plot.draw()], "One dot is one voxel. On the line = right.")
    }
}
