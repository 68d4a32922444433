//! Task "similarity": the sides of two views that face each other look alike, those that face away do not.

mod panel;
mod rank;

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{CosineLoss, SpreadLoss, SubView};
use crate::pretext::heads::conv_gelu;
use crate::pretext::task::{Inputs, Output, Recorded, Samples, Target, Task, ViewSizes};
use crate::report::{
    CaseObservation, Description, Draw, Figure, Guess, ImageBudget, Measured, Observable, Picture,
    Scene, Shape, Slice, Term, mean, number, points, usable, validation_plot,
};
use crate::run::rows::Row;
use crate::tape::Tape;
use crate::views::geometry::SUB_VIEWS;

/// At or above this cosine of distant boxes, and within [`COLLAPSE_MARGIN`] of the adjacent one, all boxes
/// count as alike.
const COLLAPSE_COSINE: f64 = 0.95;
/// See [`COLLAPSE_COSINE`].
const COLLAPSE_MARGIN: f64 = 0.02;
/// Below this effective rank of the embeddings of boxes they count as one number. Two opposite vectors have 1.
const COLLAPSE_RANK: f64 = 1.5;
/// By how much adjacent boxes must be more alike to count as told apart.
const MARGIN: f64 = 0.1;

/// Outputs: cosine of each pair's adjacent and distant boxes, `[N, P]`.
const ADJACENT: &str = "similarity.adjacent";
const DISTANT: &str = "similarity.distant";
/// Output: embeddings of the boxes of each pair, `[4, N, P, d, h, w, C]`.
const EMBEDDINGS: &str = "similarity.embeddings";

const TERMS: [Term; 3] = [
    Term {
        name: "sim_adjacent",
        weight: 0.1,
        heading: "Similarity, adjacent",
        measure: "minus mean cosine",
    },
    Term {
        name: "sim_distant",
        weight: 0.1,
        heading: "Similarity, distant",
        measure: "mean cosine",
    },
    // Ours: with the paper's two terms alone the best embedding is a sign, see docs/measurements/learning.md.
    Term {
        name: "sim_spread",
        weight: 0.4,
        heading: "Similarity, spread",
        measure: "mean squared cosine",
    },
];

const FIGURES: [Figure; 5] = [
    // Share of pairs whose adjacent boxes are more alike than the distant ones.
    Figure {
        label: "similarity, adjacent above distant",
        short: "similarity accuracy",
        unit: " %",
        scale: 100.0,
        decimals: 1,
        higher_is_better: true,
        guess: Guess::Fixed(0.5),
        ..Figure::hidden("similarity_accuracy")
    },
    // The same where the cosines differ by more than MARGIN.
    Figure {
        label: "similarity, adjacent above distant by 0.1",
        short: "by 0.1",
        unit: " %",
        scale: 100.0,
        decimals: 1,
        higher_is_better: true,
        ..Figure::hidden("similarity_accuracy_margin")
    },
    // In how many directions the embeddings of all boxes lie, see `rank`.
    Figure {
        label: "similarity, effective rank of the embeddings",
        short: "effective rank",
        decimals: 1,
        higher_is_better: true,
        guess: Guess::Fixed(1.0),
        ..Figure::hidden("similarity_rank")
    },
    Figure {
        label: "similarity, cosine of adjacent boxes",
        higher_is_better: true,
        ..Figure::hidden("adjacent_cosine")
    },
    Figure { label: "similarity, cosine of distant boxes", ..Figure::hidden("distant_cosine") },
];

const DESCRIPTION: Description = Description {
    name: "similarity",
    heading: "Near sides alike, far sides unlike",
    colour: "s2",
    terms: &TERMS,
    figures: &FIGURES,
};

/// The similarity task.
#[derive(Clone, Debug)]
pub struct Similarity;

impl Task for Similarity {
    /// The boxes `[P, 4, 3]` as [`SubView`] takes them.
    fn targets(&self, views: &ViewSizes) -> Vec<Target> {
        vec![Target::new("boxes", &[views.pairs(), SUB_VIEWS, 3], |plan, out| {
            out.extend(plan.boxes.as_flattened().as_flattened().iter().map(|&b| b as f32));
        })]
    }

    /// Cut, head and losses.
    fn record(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        inputs: &Inputs<'_>,
    ) -> Result<Recorded> {
        let channels = inputs.dense.channels(tape);
        let mut cut_inputs = vec![inputs.targets[0]];
        cut_inputs.extend(&inputs.dense.values);
        let cut = SubView { views: inputs.dense.count, size: inputs.sizes.sub_size };
        let mut x = tape.record("sim_head.sub_views", cut, &cut_inputs)?;
        for k in 0..4 {
            let name = format!("sim_head.encoder.{k}");
            x = conv_gelu(tape, weights, &name, x, channels << (k + 1), 4)?;
        }
        let adjacent =
            tape.record_all("loss.sim_adjacent", CosineLoss { first: 0, factor: -1.0 }, &[x])?;
        let distant =
            tape.record_all("loss.sim_distant", CosineLoss { first: 2, factor: 1.0 }, &[x])?;
        let spread = SpreadLoss { samples: inputs.dense.batch(tape) };
        let spread = tape.record_all("loss.sim_spread", spread, &[x])?;
        Ok(Recorded {
            losses: vec![adjacent[0], distant[0], spread[0]],
            outputs: vec![
                Output { name: ADJACENT, id: adjacent[1], samples: Samples::First },
                Output { name: DISTANT, id: distant[1], samples: Samples::First },
                Output { name: EMBEDDINGS, id: x, samples: Samples::PerBox },
            ],
        })
    }

    fn head(&self) -> &'static str {
        "sim_head."
    }
}

/// A pair of views, `i < j`, and how alike their boxes are.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    /// Its number in the draw.
    number: usize,
    /// The views.
    views: [usize; 2],
    /// Mean cosine of the two adjacent boxes.
    adjacent: f64,
    /// Mean cosine of the two distant boxes.
    distant: f64,
}

impl Pair {
    fn is_finite(&self) -> bool {
        usable(self.adjacent) && usable(self.distant)
    }
}

/// The pairs of a draw.
fn pairs(draw: &Draw) -> impl Iterator<Item = Pair> {
    let cosines = draw.output(ADJACENT).iter().zip(draw.output(DISTANT));
    let views = crate::views::geometry::pairs(draw.views());
    views.zip(cosines).enumerate().map(|(number, (views, (&adjacent, &distant)))| Pair {
        number,
        views,
        adjacent,
        distant,
    })
}

impl Observable for Similarity {
    fn description(&self) -> &'static Description {
        &DESCRIPTION
    }

    fn measure(&self, cases: &[CaseObservation]) -> Measured {
        let all: Vec<Pair> = cases.iter().flat_map(|c| &c.draws).flat_map(pairs).collect();
        let known: Vec<&Pair> = all.iter().filter(|pair| pair.is_finite()).collect();
        let right_by = |margin: f64| {
            mean(
                known.iter().map(|pair| f64::from(u8::from(pair.adjacent > pair.distant + margin))),
            )
        };
        let draws = cases.iter().flat_map(|case| &case.draws);
        let embeddings = draws.flat_map(|draw| {
            let values = draw.output(EMBEDDINGS);
            let boxes = SUB_VIEWS * draw.boxes.len().max(1);
            values.chunks_exact((values.len() / boxes).max(1))
        });
        Measured {
            values: vec![
                right_by(0.0),
                right_by(MARGIN),
                rank::effective_rank(embeddings),
                mean(known.iter().map(|pair| pair.adjacent)),
                mean(known.iter().map(|pair| pair.distant)),
            ],
            counted: all.len(),
            broken: all.len() - known.len(),
        }
    }

    fn collapse(&self, figures: &Row) -> Option<String> {
        let (adjacent, distant) = (figures.get("adjacent_cosine"), figures.get("distant_cosine"));
        if distant >= COLLAPSE_COSINE && adjacent - distant < COLLAPSE_MARGIN {
            return Some(format!(
                "distant boxes are as alike as adjacent ones (cosines {distant:.3} and {adjacent:.3}): the similarity head has collapsed; \
                 tasks.sim_spread keeps embeddings apart"
            ));
        }
        let rank = figures.get("similarity_rank");
        (rank < COLLAPSE_RANK).then(|| {
            format!(
                "the embeddings of boxes all lie on one line (effective rank {rank:.2}, alarm below {COLLAPSE_RANK}): the similarity head tells \
                 two kinds of boxes, not places; tasks.sim_spread keeps embeddings apart"
            )
        })
    }

    fn sentence(&self, figures: &Row) -> String {
        let share = figures.get("similarity_accuracy");
        if !usable(share) {
            return String::new();
        }
        let clearly = figures.get("similarity_accuracy_margin");
        let clearly = if usable(clearly) {
            format!(", clearly so (cosines differ by {MARGIN}) in {} %", number(100.0 * clearly, 0))
        } else {
            String::new()
        };
        format!(
            "Near sides are more alike than far sides in <strong>{} %</strong> of the pairs (chance: 50 %){clearly}.",
            number(100.0 * share, 0)
        )
    }

    fn curves(&self, validations: &[Row]) -> Vec<Picture> {
        let of = |name: &str| points(validations, name);
        let mut hits = validation_plot(
            "Similarity, right order",
            "% of pairs, higher is better",
            &[0.0, 100.0],
        );
        let percent = of("similarity_accuracy").into_iter().map(|p| [p[0], 100.0 * p[1]]);
        let by_margin = of("similarity_accuracy_margin").into_iter().map(|p| [p[0], 100.0 * p[1]]);
        hits.add_labelled("guess", "chance: 50 %", Shape::Level(50.0));
        hits.add_labelled("s2", "adjacent above distant", Shape::Path(percent.collect()));
        hits.add_labelled("s4", "by 0.1 or more", Shape::Path(by_margin.collect()));
        let mut cosines = validation_plot("Similarity, cosines", "mean cosine", &[0.0, 1.0]);
        cosines.add_labelled("s2", "adjacent boxes", Shape::Path(of("adjacent_cosine")));
        cosines.add_labelled("s1 dash", "distant boxes", Shape::Path(of("distant_cosine")));
        let mut ranks = validation_plot(
            "Similarity, directions of the embeddings",
            "effective rank, higher is better",
            &[1.0],
        );
        ranks.add_labelled("guess", "all on one line: 1", Shape::Level(1.0));
        ranks.add_labelled("s2", "effective rank", Shape::Path(of("similarity_rank")));
        [hits, cosines, ranks].map(|plot| plot.draw()).into()
    }

    /// Of every pair four axial slices, as the panel finds them.
    fn pictures(&self, draw: &Draw, scene: &Scene<'_>) -> Vec<Slice> {
        pairs(draw).flat_map(|pair| panel::cut(&pair, &draw.boxes[pair.number], scene)).collect()
    }

    fn panel(&self, cases: &[CaseObservation], images: &mut ImageBudget) -> String {
        panel::panel(cases, images)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn case(cosines: &[[f64; 2]]) -> CaseObservation {
        let of = |k: usize| cosines.iter().map(|c| c[k]).collect::<Vec<f64>>();
        let draw = Draw {
            view_centres: vec![[0.0; 3]; 3],
            outputs: BTreeMap::from([(ADJACENT, of(0)), (DISTANT, of(1))]),
            ..Draw::default()
        };
        CaseObservation { draws: vec![draw], ..CaseObservation::default() }
    }

    fn figures(cosines: &[[f64; 2]]) -> Row {
        crate::report::summarise(&[&Similarity], &[case(cosines)], 0).row
    }

    #[test]
    fn figures_by_hand() {
        let row = figures(&[[0.9, 0.1], [0.2, 0.3], [0.2, f64::NAN]]);
        assert_eq!(row.get("similarity_accuracy"), 0.5);
        assert!((row.get("adjacent_cosine") - 0.55).abs() < 1e-12);
        assert!((row.get("distant_cosine") - 0.2).abs() < 1e-12);
        // Of 0.05, 0.2 and -0.1 one difference is above the margin.
        let row = figures(&[[0.35, 0.3], [0.5, 0.3], [0.2, 0.3]]);
        assert_eq!(row.get("similarity_accuracy_margin"), 1.0 / 3.0);
        assert_eq!(row.get("similarity_accuracy"), 2.0 / 3.0);
        let measured = Similarity.measure(&[case(&[[0.2, f64::NAN], [0.5, 0.5]])]);
        assert_eq!((measured.counted, measured.broken, measured.values[0]), (2, 1, 0.0));
    }

    #[test]
    fn boxes_that_all_look_alike_raise_the_alarm() {
        let alarm = |cosines| Similarity.collapse(&figures(&[cosines])).is_some();
        assert!(alarm([0.99, 0.99]) && alarm([0.96, 0.95]));
        assert!(!alarm([0.99, 0.9]) && !alarm([f64::NAN; 2]));
    }

    /// A case whose only pair of views has these embeddings of its four boxes.
    fn embedded(embeddings: [[f64; 2]; 4]) -> CaseObservation {
        let mut case = case(&[[0.9, 0.1]]);
        case.draws[0].boxes = vec![[[0; 3]; SUB_VIEWS]];
        case.draws[0].outputs.insert(EMBEDDINGS, embeddings.as_flattened().to_vec());
        case
    }

    #[test]
    fn a_collapse_to_one_dimension_raises_the_alarm() {
        let found = |embeddings| {
            let row = crate::report::summarise(&[&Similarity], &[embedded(embeddings)], 0).row;
            (row.get("similarity_rank"), Similarity.collapse(&row))
        };
        // Adjacent and distant are told apart by a sign alone.
        let (rank, alarm) = found([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [3.0, 6.0]]);
        assert!((rank - 1.0).abs() < 1e-12 && alarm.unwrap().contains("on one line"));
        let (rank, alarm) = found([[1.0, 0.0], [2.0, 0.0], [0.0, -2.0], [0.0, 6.0]]);
        assert!((rank - 2.0).abs() < 1e-12 && alarm.is_none());
    }
}
