//! Task "vector": in which direction another view lies, by any route.

mod panel;

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{Pairwise, PairwiseKind, RouteLoss, VectorLoss};
use crate::pretext::heads::{LinearInit, linear, uniform};
use crate::pretext::task::{
    Inputs, Output, Recorded, Samples, Target, Task, ViewSizes, gap_target,
};
use crate::pretext::trunk::{Trunk, TrunkWidths};
use crate::report::{
    CaseObservation, Description, Draw, Figure, Guess, ImageBudget, Measured, Observable,
    PairVector, Picture, Shape, Term, angle_deg, axis_errors, mean, norm, number, points,
    unlearnt_axes, usable, validation_plot,
};
use crate::run::rows::Row;
use crate::tape::{Init, Tape};
use crate::views::geometry::routes;

/// Output: `D [N, V, V, 3]`, in units of the target.
const PREDICTION: &str = "vector.prediction";

const TERMS: [Term; 2] = [
    Term { name: "vector", weight: 1.0, heading: "Vector", measure: "smooth L1 error" },
    Term { name: "route", weight: 1.0, heading: "Vector, routes", measure: "smooth L1 error" },
];

const FIGURES: [Figure; 9] = [
    // Mean angle to the truth; a prediction without a direction is 90 degrees off.
    Figure {
        label: "vector, direction error",
        short: "direction error",
        unit: "\u{b0}",
        decimals: 1,
        guess: Guess::Fixed(90.0),
        ..Figure::hidden("direction_error_deg")
    },
    // Mean absolute error, mean over axes; guessing zero errs as the gap does.
    Figure {
        label: "vector, mean absolute error per axis",
        unit: " mm",
        decimals: 1,
        guess: Guess::Figure("gap_baseline_mm"),
        ..Figure::hidden("vector_mae_mm")
    },
    // The same along each axis.
    Figure::axis_error(
        "vector_mae_z_mm",
        "vector, error bottom-top",
        Guess::Figure("gap_baseline_z_mm"),
    ),
    Figure::axis_r2("vector_r2_z", "vector, R\u{b2} bottom-top", ""),
    Figure::axis_error(
        "vector_mae_y_mm",
        "vector, error back-front",
        Guess::Figure("gap_baseline_y_mm"),
    ),
    Figure::axis_r2("vector_r2_y", "vector, R\u{b2} back-front", ""),
    Figure::axis_error(
        "vector_mae_x_mm",
        "vector, error left-right",
        Guess::Figure("gap_baseline_x_mm"),
    ),
    Figure::axis_r2("vector_r2_x", "vector, R\u{b2} left-right", ""),
    // Mean length of the sum of predicted vectors along every route and back to its start.
    Figure {
        label: "vector, closure of a route",
        unit: " mm",
        decimals: 2,
        ..Figure::hidden("route_closure_mm")
    },
];

const DESCRIPTION: Description = Description {
    name: "vector",
    heading: "Which way: the vector head",
    colour: "s4",
    terms: &TERMS,
    figures: &FIGURES,
};

/// How the vector of a pair is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VectorHead {
    /// `q_v = W h_v + b`, `D[i][j] = q_i - q_j`: routes telescope (the authors').
    Absolute,
    /// `D[i][j] = W [h_i; h_j] + b`: routes are a constraint of their own (ours).
    Pairwise,
}

/// The vector task.
#[derive(Clone, Debug)]
pub struct Vector {
    /// Kind of head.
    pub head: VectorHead,
    /// Widths of its trunk.
    pub trunk: TrunkWidths,
}

impl Task for Vector {
    fn targets(&self, views: &ViewSizes) -> Vec<Target> {
        vec![gap_target(views)]
    }

    fn record(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        inputs: &Inputs<'_>,
    ) -> Result<Recorded> {
        let target = inputs.targets[0];
        let features =
            Trunk { name: "vec_head", widths: self.trunk }.record(tape, weights, inputs.dense)?;
        let init = uniform(tape.shape(features).channels());
        let prediction = match self.head {
            VectorHead::Absolute => {
                // The authors initialise this weight with ones: three equal outputs, which steps of the learning rate's
                // size take hundreds of steps to part (docs/measurements/learning.md).
                let ones = self.trunk == TrunkWidths::Authors;
                let weight = if ones { Init::Constant(1.0) } else { init };
                let inits = LinearInit { weight, bias: Some(init) };
                let places = linear(tape, weights, "vec_head.proj_abs_loc", features, inits)?;
                tape.record(
                    "vec_head.pairs",
                    Pairwise { kind: PairwiseKind::Difference },
                    &[places],
                )?
            }
            VectorHead::Pairwise => {
                let pairs = tape.record(
                    "vec_head.pairs",
                    Pairwise { kind: PairwiseKind::Concat },
                    &[features],
                )?;
                let init = uniform(tape.shape(pairs).channels());
                let inits = LinearInit { weight: init, bias: Some(init) };
                linear(tape, weights, "vec_head.proj_pair", pairs, inits)?
            }
        };
        let vector = tape.record("loss.vector", VectorLoss, &[prediction, target])?;
        let route = tape.record("loss.route", RouteLoss, &[prediction, target])?;
        Ok(Recorded {
            losses: vec![vector, route],
            outputs: vec![Output { name: PREDICTION, id: prediction, samples: Samples::First }],
        })
    }

    fn head(&self) -> &'static str {
        "vec_head."
    }
}

impl Observable for Vector {
    fn description(&self) -> &'static Description {
        &DESCRIPTION
    }

    fn measure(&self, cases: &[CaseObservation]) -> Measured {
        let draws = || cases.iter().flat_map(|case| &case.draws);
        let pairs: Vec<PairVector> = draws().flat_map(|draw| draw.vectors(PREDICTION)).collect();
        let mut values = vec![
            mean(pairs.iter().filter_map(|p| angle_deg(p.predicted_mm, p.truth_mm))),
            mean(pairs.iter().flat_map(PairVector::errors_mm)),
        ];
        values.extend(axis_errors(&pairs).iter().flat_map(|e| [e.mae_mm, e.r2]));
        values.push(mean(draws().map(closure_mm)));
        Measured {
            values,
            counted: pairs.len(),
            broken: pairs.iter().filter(|p| !p.is_usable()).count(),
        }
    }

    fn sentence(&self, figures: &Row) -> String {
        let angle = figures.get("direction_error_deg");
        if !usable(angle) {
            return String::new();
        }
        format!(
            "The vector head points <strong>{}\u{b0}</strong> off the true direction (a random one: 90\u{b0}).",
            number(angle, 0)
        )
    }

    fn unlearnt(&self, figures: &Row) -> Vec<String> {
        unlearnt_axes(figures, "the vector", ["vector_r2_z", "vector_r2_y", "vector_r2_x"])
    }

    fn curves(&self, validations: &[Row]) -> Vec<Picture> {
        let of = |name: &str| points(validations, name);
        let mut mm = validation_plot("Vector, error", "mm, lower is better", &[0.0]);
        mm.add_labelled("guess", "guessing zero", Shape::Line(of("gap_baseline_mm")));
        mm.add_labelled("s4", "vector head", Shape::Path(of("vector_mae_mm")));
        mm.add_labelled("s3", "route closure", Shape::Path(of("route_closure_mm")));
        let mut angle = validation_plot("Vector, direction", "degrees, lower is better", &[0.0]);
        angle.add_labelled("guess", "random direction: 90\u{b0}", Shape::Level(90.0));
        angle.add_labelled("s4", "mean angle to the truth", Shape::Path(of("direction_error_deg")));
        [mm, angle].map(|plot| plot.draw()).into()
    }

    fn panel(&self, cases: &[CaseObservation], _images: &mut ImageBudget) -> String {
        panel::panel(cases)
    }
}

/// Mean length of the sum of predicted vectors along every route of a draw and back to its start; NaN without
/// predictions.
fn closure_mm(draw: &Draw) -> f64 {
    let views = draw.views();
    let mut vectors = vec![[f64::NAN; 3]; views * views];
    for pair in draw.vectors(PREDICTION) {
        vectors[pair.i * views + pair.j] = pair.predicted_mm;
    }
    let all = routes(views);
    let length = |route: &Vec<usize>| {
        let back = route.iter().cycle().skip(1);
        let mut sum = [0.0; 3];
        for (&from, &to) in route.iter().zip(back) {
            for (sum, d) in sum.iter_mut().zip(vectors[from * views + to]) {
                *sum += d;
            }
        }
        norm(sum)
    };
    all.iter().map(length).sum::<f64>() / all.len() as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const VECTOR: Vector = Vector { head: VectorHead::Absolute, trunk: TrunkWidths::Auto };

    /// Views at `at`, which predict the truth but for what `change` does.
    fn draw(at: &[[f64; 3]], change: impl Fn(usize, [f64; 3]) -> [f64; 3]) -> Draw {
        let (mut gaps_mm, mut prediction) = (Vec::new(), Vec::new());
        for from in at {
            for to in at {
                let gap: [f64; 3] = std::array::from_fn(|a| to[a] - from[a]);
                prediction.extend(change(gaps_mm.len(), gap));
                gaps_mm.push(gap);
            }
        }
        Draw {
            view_centres: at.to_vec(),
            gaps_mm,
            unit_mm: [1.0; 3],
            outputs: BTreeMap::from([(PREDICTION, prediction)]),
            ..Draw::default()
        }
    }

    fn measured(draw: Draw) -> Measured {
        VECTOR.measure(&[CaseObservation { draws: vec![draw], ..CaseObservation::default() }])
    }

    #[test]
    fn angles_and_errors_by_hand() {
        let at = [[0.0; 3], [30.0, 0.0, -60.0]];
        // cos = 60 / sqrt(30^2 + 60^2) = 2 / sqrt 5, an angle of atan(1/2).
        let flat = measured(draw(&at, |_, gap| [0.0, gap[1], gap[2]]));
        assert!((flat.values[0] - 0.5f64.atan().to_degrees()).abs() < 1e-9);
        assert_eq!((flat.values[1], flat.counted, flat.broken), (10.0, 2, 0));
        let away = measured(draw(&at, |_, gap| gap.map(|x| -x)));
        assert!((away.values[0] - 180.0).abs() < 1e-5);
        let none = measured(draw(&at, |_, _| [0.0; 3]));
        assert!((none.values[0] - 90.0).abs() < 1e-9);
        assert_eq!(measured(draw(&at, |_, _| [f64::NAN; 3])).broken, 2);
        assert!(VECTOR.measure(&[]).values.iter().all(|v| v.is_nan()));
    }

    #[test]
    fn antisymmetric_vectors_close_every_route() {
        let at = [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [4.0, -1.0, 0.5]];
        assert!(closure_mm(&draw(&at, |_, gap| gap)) < 1e-12);
        // Three of the six routes pass from 0 to 1, and only those are open.
        let open = |k, gap: [f64; 3]| if k == 1 { [gap[0] + 3.0, gap[1], gap[2]] } else { gap };
        assert!((closure_mm(&draw(&at, open)) - 1.5).abs() < 1e-12);
    }
}
