//! Task "place", an example on pooled features: where in the volume the middle between two views lies.

use spatialssl::error::Result;
use spatialssl::model::Weights;
use spatialssl::ops::{Linear, Pairwise, PairwiseKind, VectorLoss};
use spatialssl::pretext::{
    Inputs, Output, Recorded, Samples, Target, Task, Trunk, TrunkWidths, ViewSizes,
};
use spatialssl::report::{
    CaseObservation, Description, Figure, Guess, HALF, ImageBudget, Measured, Observable, Picture,
    Plot, Shape, Term, figure, mean, points, usable, validation_plot,
};
use spatialssl::run::rows::Row;
use spatialssl::tape::{Init, Tape};

const TERMS: [Term; 1] =
    [Term { name: "place", weight: 0.0, heading: "Place", measure: "smooth L1 error" }];

const FIGURES: [Figure; 2] = [
    Figure {
        label: "place, mean absolute error per axis",
        short: "place error",
        unit: " mm",
        decimals: 1,
        guess: Guess::Figure("place_baseline_mm"),
        ..Figure::hidden("place_mae_mm")
    },
    // The same of the guess "in the middle of the volume".
    Figure::hidden("place_baseline_mm"),
];

const DESCRIPTION: Description = Description {
    name: "place",
    heading: "Where in the volume",
    colour: "s5",
    terms: &TERMS,
    figures: &FIGURES,
};

/// Where the middle between two views lies, from the middle of the volume, in halves of its extent: `[V, V, 3]`.
#[derive(Clone, Debug)]
pub(crate) struct Place;

impl Task for Place {
    fn targets(&self, views: &ViewSizes) -> Vec<Target> {
        vec![Target::new("place", &[views.count, views.count, 3], |plan, out| {
            let (centres, frame) = (&plan.centres, plan.geometry.frame);
            for (i, j) in centres.iter().flat_map(|i| centres.iter().map(move |j| (i, j))) {
                out.extend((0..3).map(|a| (i[a] + j[a]) as f32 / frame[a] as f32 - 1.0));
            }
        })]
    }

    fn record(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        inputs: &Inputs<'_>,
    ) -> Result<Recorded> {
        let features = Trunk { name: "place_head", widths: TrunkWidths::Auto }.record(
            tape,
            weights,
            inputs.dense,
        )?;
        let kind = PairwiseKind::Concat;
        let pairs = tape.record("place_head.pairs", Pairwise { kind }, &[features])?;
        let width = tape.shape(pairs).channels();
        let init = Init::Uniform { bound: 1.0 / (width as f64).sqrt() };
        let w = weights.get(tape, "place_head.proj.weight", &[3, width], init);
        let b = weights.get(tape, "place_head.proj.bias", &[3], init);
        let prediction = tape.record("place_head.proj", Linear { bias: true }, &[pairs, w, b])?;
        let loss = tape.record("loss.place", VectorLoss, &[prediction, inputs.targets[0]])?;
        Ok(Recorded {
            losses: vec![loss],
            outputs: vec![Output {
                name: "place.prediction",
                id: prediction,
                samples: Samples::First,
            }],
        })
    }

    fn head(&self) -> &'static str {
        "place_head."
    }
}

/// True and predicted places of the views of all draws, in mm from the middle of their volume.
fn places(cases: &[CaseObservation]) -> Vec<[f64; 2]> {
    let mut all = Vec::new();
    for case in cases {
        for draw in case.draws.iter().filter(|draw| !draw.output("place.prediction").is_empty()) {
            for (v, centre) in draw.view_centres.iter().enumerate() {
                for (a, voxel) in centre.iter().enumerate() {
                    let half_mm = draw.frame_mm[a] / 2.0;
                    let at = 3 * (v * draw.views() + v) + a;
                    let predicted = draw.output("place.prediction")[at] * half_mm;
                    all.push([voxel * case.spacing_mm[a] - half_mm, predicted]);
                }
            }
        }
    }
    all
}

impl Observable for Place {
    fn description(&self) -> &'static Description {
        &DESCRIPTION
    }

    fn measure(&self, cases: &[CaseObservation]) -> Measured {
        let all = places(cases);
        Measured {
            values: vec![
                mean(all.iter().map(|[truth, predicted]| (predicted - truth).abs())),
                mean(all.iter().map(|[truth, _]| truth.abs())),
            ],
            counted: all.len(),
            broken: all.iter().filter(|pair| !usable(pair[1])).count(),
        }
    }

    fn sentence(&self, figures: &Row) -> String {
        let error = figures.get("place_mae_mm");
        if usable(error) { format!("Views are placed to {error:.1} mm.") } else { String::new() }
    }

    fn curves(&self, validations: &[Row]) -> Vec<Picture> {
        let mut plot = validation_plot("Place, error", "mm, lower is better", &[0.0]);
        plot.add_labelled(
            "guess",
            "the middle",
            Shape::Line(points(validations, "place_baseline_mm")),
        );
        plot.add_labelled("s5", "place head", Shape::Path(points(validations, "place_mae_mm")));
        vec![plot.draw()]
    }

    fn panel(&self, cases: &[CaseObservation], _images: &mut ImageBudget) -> String {
        let all = places(cases);
        if all.is_empty() {
            return "<p class=\"absent\">No place was observed.</p>".to_string();
        }
        let titles = ["true place, mm", "predicted place, mm"];
        let mut plot = Plot::new("Place on each axis", titles, [HALF[0], 0.0]).square();
        plot.add_labelled("s5", "view", Shape::Dots(all));
        plot.add_labelled("ink", "predicted = true", Shape::Identity);
        figure("halves", &[plot.draw()], "One dot is one axis of one view. On the line = right.")
    }
}
