//! Task "gap": how far apart two views are.

mod panel;

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{GapAxisLoss, GapNormLoss, Pairwise, PairwiseKind};
use crate::pretext::heads::{LinearInit, linear, uniform};
use crate::pretext::task::{
    Inputs, Output, Recorded, Samples, Target, Task, ViewSizes, gap_target,
};
use crate::pretext::trunk::{Trunk, TrunkWidths};
use crate::report::{
    AXES, CaseObservation, Description, Figure, Guess, ImageBudget, Measured, Observable,
    PairVector, Picture, Shape, Term, against_guess, axis_errors, mean, norm, number, points,
    r_squared, unlearnt_axes, usable, validation_plot,
};
use crate::run::rows::Row;
use crate::tape::Tape;

/// Below this standard deviation over views the features of the gap head count as constant; a trained head has about
/// 0.5.
const COLLAPSE_FEATURE_STD: f64 = 1e-3;
/// Below this share of the spread of true gaps the predicted ones count as constant.
const COLLAPSE_SPREAD: f64 = 0.01;

/// Output: `P [N, V, V, 3]`, in units of the target.
const PREDICTION: &str = "gap.prediction";
/// Output: features before pairs are made, `[V, N, last width]`.
const FEATURES: &str = "gap.features";

const TERMS: [Term; 2] = [
    Term { name: "gap_axis", weight: 1.0, heading: "Gap, per axis", measure: "squared error" },
    Term { name: "gap_norm", weight: 1.0, heading: "Gap, distance", measure: "squared error" },
];

const FIGURES: [Figure; 15] = [
    // Mean absolute error, mean over axes.
    Figure {
        label: "gap, mean absolute error per axis",
        short: "gap error",
        unit: " mm",
        decimals: 1,
        guess: Guess::Figure("gap_baseline_mm"),
        ..Figure::hidden("gap_mae_mm")
    },
    // The same of the guess 0.
    Figure::hidden("gap_baseline_mm"),
    // Coefficient of determination, all axes pooled.
    Figure {
        label: "gap, R\u{b2}",
        higher_is_better: true,
        guess: Guess::Fixed(0.0),
        ..Figure::hidden("gap_r2")
    },
    // The same along each axis.
    Figure::axis_error("gap_mae_z_mm", "gap, error bottom-top", Guess::Figure("gap_baseline_z_mm")),
    Figure::hidden("gap_baseline_z_mm"),
    Figure::axis_r2("gap_r2_z", "gap, R\u{b2} bottom-top", "R\u{b2} bottom-top"),
    Figure::axis_error("gap_mae_y_mm", "gap, error back-front", Guess::Figure("gap_baseline_y_mm")),
    Figure::hidden("gap_baseline_y_mm"),
    Figure::axis_r2("gap_r2_y", "gap, R\u{b2} back-front", "R\u{b2} back-front"),
    Figure::axis_error("gap_mae_x_mm", "gap, error left-right", Guess::Figure("gap_baseline_x_mm")),
    Figure::hidden("gap_baseline_x_mm"),
    Figure::axis_r2("gap_r2_x", "gap, R\u{b2} left-right", "R\u{b2} left-right"),
    // Standard deviation of each feature over all views, mean over features.
    Figure::hidden("feature_std"),
    // Root mean square length of the predictions, and of the truth.
    Figure::hidden("gap_spread_mm"),
    Figure::hidden("gap_true_spread_mm"),
];

const DESCRIPTION: Description = Description {
    name: "gap",
    heading: "How far apart: the gap head",
    colour: "s1",
    terms: &TERMS,
    figures: &FIGURES,
};

/// The gap head: `P[i][j] = W (h_i - h_j) + b`.
#[derive(Clone, Debug)]
pub struct Gap {
    /// Leaves `b` out, so that `P[i][j] = -P[j][i]`.
    pub antisymmetric: bool,
    /// Widths of its trunk.
    pub trunk: TrunkWidths,
}

impl Task for Gap {
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
            Trunk { name: "gap_head", widths: self.trunk }.record(tape, weights, inputs.dense)?;
        let pairs = tape.record(
            "gap_head.pairs",
            Pairwise { kind: PairwiseKind::Difference },
            &[features],
        )?;
        let init = uniform(tape.shape(pairs).channels());
        let inits = LinearInit { weight: init, bias: (!self.antisymmetric).then_some(init) };
        let prediction = linear(tape, weights, "gap_head.proj_axis", pairs, inits)?;
        let axis = tape.record("loss.gap_axis", GapAxisLoss, &[prediction, target])?;
        let norm = tape.record("loss.gap_norm", GapNormLoss, &[prediction, target])?;
        Ok(Recorded {
            losses: vec![axis, norm],
            outputs: vec![
                Output { name: PREDICTION, id: prediction, samples: Samples::First },
                Output { name: FEATURES, id: features, samples: Samples::PerView },
            ],
        })
    }

    fn head(&self) -> &'static str {
        "gap_head."
    }
}

impl Observable for Gap {
    fn description(&self) -> &'static Description {
        &DESCRIPTION
    }

    fn measure(&self, cases: &[CaseObservation]) -> Measured {
        let pairs = pairs(cases);
        let (predicted, truth): (Vec<f64>, Vec<f64>) =
            pairs.iter().flat_map(|p| (0..3).map(|a| (p.predicted_mm[a], p.truth_mm[a]))).unzip();
        let spread = |of: &dyn Fn(&PairVector) -> [f64; 3]| {
            mean(pairs.iter().map(|p| norm(of(p)).powi(2))).sqrt()
        };
        let mut values = vec![
            mean(pairs.iter().flat_map(PairVector::errors_mm)),
            mean(pairs.iter().flat_map(|p| p.truth_mm.map(f64::abs))),
            r_squared(&predicted, &truth),
        ];
        values.extend(axis_errors(&pairs).iter().flat_map(|e| [e.mae_mm, e.zero_mm, e.r2]));
        values.extend([feature_std(cases), spread(&|p| p.predicted_mm), spread(&|p| p.truth_mm)]);
        Measured {
            values,
            counted: pairs.len(),
            broken: pairs.iter().filter(|p| !p.is_usable()).count(),
        }
    }

    fn collapse(&self, figures: &Row) -> Option<String> {
        let std = figures.get("feature_std");
        if std < COLLAPSE_FEATURE_STD {
            return Some(format!(
                "the features of the gap head hardly vary from view to view (standard deviation {std:.1e}, alarm below {COLLAPSE_FEATURE_STD})"
            ));
        }
        let (predicted, truth) = (figures.get("gap_spread_mm"), figures.get("gap_true_spread_mm"));
        (predicted < COLLAPSE_SPREAD * truth).then(|| {
            format!("predicted gaps hardly vary ({predicted:.2} mm where true ones spread over {truth:.1} mm)")
        })
    }

    fn sentence(&self, figures: &Row) -> String {
        if self.gain(figures).is_none() {
            return String::new();
        }
        let (error, guess) = (figures.get("gap_mae_mm"), figures.get("gap_baseline_mm"));
        format!(
            "The gap head errs by <strong>{} mm</strong> per axis; guessing zero errs by {} mm, so that is <strong>{}</strong>.",
            number(error, 1),
            number(guess, 1),
            against_guess(error, guess)
        )
    }

    fn gain(&self, figures: &Row) -> Option<f64> {
        let (error, guess) = (figures.get("gap_mae_mm"), figures.get("gap_baseline_mm"));
        (usable(error) && usable(guess) && guess > 0.0).then(|| 1.0 - error / guess)
    }

    fn unlearnt(&self, figures: &Row) -> Vec<String> {
        unlearnt_axes(figures, "the gap", ["gap_r2_z", "gap_r2_y", "gap_r2_x"])
    }

    fn curves(&self, validations: &[Row]) -> Vec<Picture> {
        let of = |name: &str| points(validations, name);
        let mut mm = validation_plot("Gap, error", "mm, lower is better", &[0.0]);
        mm.add_labelled("guess", "guessing zero", Shape::Line(of("gap_baseline_mm")));
        mm.add_labelled("s1", "gap head", Shape::Path(of("gap_mae_mm")));
        let mut r2 =
            validation_plot("Gap, explained variance", "R\u{b2}, higher is better", &[1.0]);
        r2.add_labelled("guess", "guessing the mean: 0", Shape::Level(0.0));
        r2.add_labelled("s1", "all axes", Shape::Path(of("gap_r2")));
        r2.add_labelled("s2", AXES[0], Shape::Path(of("gap_r2_z")));
        r2.add_labelled("s3", AXES[1], Shape::Path(of("gap_r2_y")));
        r2.add_labelled("s4", AXES[2], Shape::Path(of("gap_r2_x")));
        let mut spread =
            validation_plot("Gap, spread of the features", "standard deviation", &[0.0]);
        spread.add("s3", Shape::Path(of("feature_std")));
        [mm, r2, spread].map(|plot| plot.draw()).into()
    }

    fn panel(&self, cases: &[CaseObservation], _images: &mut ImageBudget) -> String {
        panel::panel(&pairs(cases))
    }
}

/// Every ordered pair of different views.
fn pairs(cases: &[CaseObservation]) -> Vec<PairVector> {
    cases.iter().flat_map(|case| &case.draws).flat_map(|draw| draw.vectors(PREDICTION)).collect()
}

/// Standard deviation of each feature over all views, mean over features; NaN without views.
fn feature_std(cases: &[CaseObservation]) -> f64 {
    let draws = cases.iter().flat_map(|case| &case.draws);
    let views: Vec<&[f64]> = draws
        .flat_map(|draw| {
            let features = draw.output(FEATURES);
            features.chunks_exact((features.len() / draw.views().max(1)).max(1))
        })
        .collect();
    let (count, width) = (views.len() as f64, views.first().map_or(0, |view| view.len()));
    let std = |k: usize| {
        let mean = views.iter().map(|f| f[k]).sum::<f64>() / count;
        (views.iter().map(|f| (f[k] - mean).powi(2)).sum::<f64>() / count).sqrt()
    };
    (0..width).map(std).sum::<f64>() / width as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::Draw;

    const GAP: Gap = Gap { antisymmetric: false, trunk: TrunkWidths::Auto };

    /// Two views whose gap is known, the prediction `scale` times that; the diagonal says 100, and counts nowhere.
    fn case(scale: f64) -> CaseObservation {
        let truth = [3.0, -4.0, 0.0];
        let back = truth.map(|x: f64| -x);
        let mut prediction = vec![100.0; 12];
        for a in 0..3 {
            (prediction[3 + a], prediction[6 + a]) =
                (scale * truth[a] / 2.0, scale * back[a] / 2.0);
        }
        let draw = Draw {
            view_centres: vec![[0.0; 3], truth],
            gaps_mm: vec![[0.0; 3], truth, back, [0.0; 3]],
            unit_mm: [2.0; 3],
            outputs: BTreeMap::from([
                (PREDICTION, prediction),
                (FEATURES, vec![1.0, 0.0, 3.0, 4.0]),
            ]),
            ..Draw::default()
        };
        CaseObservation { draws: vec![draw], ..CaseObservation::default() }
    }

    fn figures(case: CaseObservation) -> Row {
        crate::report::summarise(&[&GAP], &[case], 7).row
    }

    #[test]
    fn figures_of_known_predictions() {
        let row = figures(case(0.5));
        assert_eq!(row.step, 7);
        assert!((row.get("gap_baseline_mm") - 7.0 / 3.0).abs() < 1e-12);
        assert!((row.get("gap_mae_mm") - 3.5 / 3.0).abs() < 1e-12);
        assert!((row.get("gap_r2") - 0.75).abs() < 1e-12);
        // Half of 3, 4 and 0 mm on the axes z, y, x; along x the truth does not vary.
        assert_eq!(
            ["gap_mae_z_mm", "gap_mae_y_mm", "gap_mae_x_mm"].map(|name| row.get(name)),
            [1.5, 2.0, 0.0]
        );
        assert_eq!(
            ["gap_baseline_z_mm", "gap_baseline_y_mm"].map(|name| row.get(name)),
            [3.0, 4.0]
        );
        assert_eq!(["gap_r2_z", "gap_r2_y"].map(|name| row.get(name)), [0.75, 0.75]);
        assert!(row.get("gap_r2_x").is_nan());
        assert_eq!((row.get("gap_spread_mm"), row.get("gap_true_spread_mm")), (2.5, 5.0));
        // Features 1 and 3, 0 and 4.
        assert_eq!(row.get("feature_std"), 1.5);
        assert_eq!(GAP.measure(&[case(0.5)]).counted, 2);
        assert!((GAP.gain(&row).unwrap() - 0.5).abs() < 1e-12);
        assert!(GAP.measure(&[]).values.iter().all(|v| v.is_nan()));
    }

    #[test]
    fn an_axis_that_is_lost_is_named() {
        assert!(GAP.unlearnt(&figures(case(0.5))).is_empty());
        let mut lost = case(0.5);
        let prediction = lost.draws[0].outputs.get_mut(PREDICTION).unwrap();
        // Along z the wrong way, for all that the other axes say.
        prediction.iter_mut().step_by(3).for_each(|z| *z = -*z);
        assert_eq!(GAP.unlearnt(&figures(lost)), ["the gap along bottom-top (R\u{b2} -1.25)"]);
    }

    #[test]
    fn constant_predictions_and_features_raise_the_alarm() {
        let alarm = |row: &Row| GAP.collapse(row);
        let healthy = figures(case(0.5));
        assert!(alarm(&healthy).is_none() && alarm(&Row::new(0)).is_none());
        assert!(alarm(&figures(case(0.001))).unwrap().contains("predicted gaps hardly vary"));
        assert!(alarm(&healthy.with("feature_std", 1e-4)).unwrap().contains("features"));
    }

    #[test]
    fn a_prediction_that_is_not_finite_is_counted_and_left_out() {
        let mut bad = case(0.5);
        bad.draws[0].outputs.get_mut(PREDICTION).unwrap()[4] = f64::NAN;
        let measured = GAP.measure(&[bad]);
        assert_eq!((measured.counted, measured.broken), (2, 1));
        assert!(measured.values[0].is_finite());
    }
}
