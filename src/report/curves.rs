//! Curves over training steps: losses, validations, gradients, time.

use crate::report::data::{StepPoint, ValidationPoint};
use crate::report::figures::smooth;
use crate::report::page::{HALF, THIRD, figure};
use crate::report::plot::{Picture, Plot};
use crate::report::scale::Scale;
use crate::report::series::Shape;

type OfStep = fn(&StepPoint) -> f64;
type OfValidation = fn(&ValidationPoint) -> f64;

fn points<T>(from: &[T], step: impl Fn(&T) -> u64, value: impl Fn(&T) -> f64) -> Vec<[f64; 2]> {
    from.iter().map(|p| [step(p) as f64, value(p)]).collect()
}

/// A curve with its raw values pale and their moving mean on top.
fn raw_and_smooth(
    heading: &str,
    unit: &str,
    size: [f64; 2],
    class: &'static str,
    points: Vec<[f64; 2]>,
) -> Picture {
    let scale = Scale::suited(points.iter().map(|p| p[1]));
    let unit = match scale {
        Scale::Linear => unit.to_string(),
        Scale::Log => format!("{unit}, log scale"),
        Scale::Symlog => format!("{unit}, log scale beyond 1"),
    };
    let mut plot = Plot::new(heading, ["training step", &unit], size)
        .y_scale(scale)
        .tight()
        .include(&[0.0], &[]);
    add_raw_and_smooth(&mut plot, ["each step", "moving mean"], class, points);
    plot.draw()
}

fn add_raw_and_smooth(
    plot: &mut Plot,
    labels: [&'static str; 2],
    class: &'static str,
    points: Vec<[f64; 2]>,
) {
    let mean = smooth(&points);
    if mean.is_empty() {
        plot.add_labelled(class, labels[0], Shape::Path(points));
        return;
    }
    plot.add_labelled("raw", labels[0], Shape::Line(points));
    plot.add_labelled(class, labels[1], Shape::Line(mean));
}

/// Total loss, learning rate and the six terms.
pub(super) fn losses(steps: &[StepPoint]) -> String {
    let of = |value: OfStep| points(steps, |s| s.step, value);
    let mut rate = Plot::new("Learning rate", ["training step", "learning rate"], HALF)
        .tight()
        .include(&[0.0], &[0.0]);
    rate.add("s3", Shape::Line(of(|s| s.lr)));
    let first =
        [raw_and_smooth("Total loss", "weighted sum", HALF, "s1", of(|s| s.loss)), rate.draw()];
    let terms: [(&str, &str, &'static str, OfStep); 6] = [
        ("Gap, per axis", "squared error", "s1", |s| s.gap_axis),
        ("Gap, distance", "squared error", "s1", |s| s.gap_norm),
        ("Similarity, adjacent", "minus mean cosine", "s2", |s| s.sim_adjacent),
        ("Similarity, distant", "mean cosine", "s2", |s| s.sim_distant),
        ("Vector", "smooth L1 error", "s4", |s| s.vector),
        ("Vector, routes", "smooth L1 error", "s4", |s| s.route),
    ];
    let six = terms.map(|(heading, unit, class, value)| {
        raw_and_smooth(heading, unit, THIRD, class, of(value))
    });
    let absent = "No training steps were recorded, so there are no loss curves.";
    if steps.is_empty() {
        return format!("<p class=\"absent\">{absent}</p>");
    }
    figure(
        "halves",
        &first,
        "The pale line is each step, the strong line its moving mean. \
        A loss that falls and then flattens is what to expect; one that rises for long is diverging.",
    ) + &figure(
        "thirds",
        &six,
        "The six terms before weighting, in normalised units (gap and vector) \
        or as cosines (similarity). Lower is better in every panel. The adjacent term ends at \u{2212}1 when near \
        sides look the same; if the distant term climbs to +1 with it, everything looks the same, which is a collapse.",
    )
}

/// Errors on held-out volumes during training.
pub(super) fn validations(all: &[ValidationPoint]) -> String {
    if all.is_empty() {
        return "<p class=\"absent\">No validation was run during training, so there are no validation curves.</p>"
            .to_string();
    }
    let of = |value: OfValidation| points(all, |v| v.step, value);
    let plot = |heading: &str, unit: &str, low_high: &[f64]| {
        Plot::new(heading, ["training step", unit], HALF).tight().include(&[0.0], low_high)
    };
    let mut mm = plot("Errors in millimetres", "mm, lower is better", &[0.0]);
    mm.add_labelled("guess", "gap, guessing zero", Shape::Line(of(|v| v.gap_baseline_mm)));
    mm.add_labelled("s1", "gap head", Shape::Path(of(|v| v.gap_mae_mm)));
    mm.add_labelled("s4", "vector head", Shape::Path(of(|v| v.vector_mae_mm)));
    mm.add_labelled("s3", "route closure", Shape::Path(of(|v| v.route_closure_mm)));
    let mut angle = plot("Direction of the vector head", "degrees, lower is better", &[0.0]);
    angle.add_labelled("guess", "random direction: 90\u{b0}", Shape::Level(90.0));
    angle.add_labelled("s4", "mean angle to the truth", Shape::Path(of(|v| v.direction_error_deg)));
    let mut r2 = plot("Gap, explained variance", "R\u{b2}, higher is better", &[1.0]);
    r2.add_labelled("guess", "guessing the mean: 0", Shape::Level(0.0));
    r2.add_labelled("s1", "gap head", Shape::Path(of(|v| v.gap_r2)));
    let mut hits = plot("Similarity, right order", "% of pairs, higher is better", &[0.0, 100.0]);
    hits.add_labelled("guess", "chance: 50 %", Shape::Level(50.0));
    hits.add_labelled(
        "s2",
        "adjacent above distant",
        Shape::Path(of(|v| 100.0 * v.similarity_accuracy)),
    );
    let mut cosines = plot("Similarity, cosines", "mean cosine", &[0.0, 1.0]);
    cosines.add_labelled("s2", "adjacent boxes", Shape::Path(of(|v| v.adjacent_cosine)));
    cosines.add_labelled("s1 dash", "distant boxes", Shape::Path(of(|v| v.distant_cosine)));
    let mut spread = plot("Spread of the gap features", "standard deviation", &[0.0]);
    spread.add("s3", Shape::Path(of(|v| v.feature_std)));
    let caption = "Measured on held-out volumes. The dashed grey line is what a guess without any learning \
        reaches; a curve on it has learnt nothing. The two cosines should stay apart, and the spread should \
        stay away from zero: both together at 1, or no spread, is a collapse.";
    figure("halves", &[mm, angle, r2, hits, cosines, spread].map(Plot::draw), caption)
}

/// Gradient norms, total and by task.
pub(super) fn gradients(steps: &[StepPoint]) -> String {
    if steps.is_empty() {
        return "<p class=\"absent\">No training steps were recorded, so there are no gradient norms.</p>".to_string();
    }
    let measured: Vec<(u64, [f64; 3])> =
        steps.iter().filter_map(|s| Some((s.step, s.task_grad_norms?))).collect();
    let task = |k: usize| points(&measured, |m| m.0, |m| m.1[k]);
    let scale = Scale::suited(measured.iter().flat_map(|m| m.1).filter(|&v| v > 0.0));
    let unit = if scale == Scale::Log { "gradient norm, log scale" } else { "gradient norm" };
    let mut tasks =
        Plot::new("By task, at the dense representation", ["training step", unit], HALF)
            .y_scale(scale)
            .tight()
            .include(&[0.0], if scale == Scale::Log { &[] } else { &[0.0] });
    for (k, class, label) in
        [(0, "s1", "gap"), (1, "s2 dash", "similarity"), (2, "s4 dash2", "vector")]
    {
        let raw = task(k);
        let mean = smooth(&raw);
        tasks.add_labelled(class, label, Shape::Line(if mean.is_empty() { raw } else { mean }));
    }
    let all = points(steps, |s| s.step, |s| s.grad_norm);
    let total = raw_and_smooth("All parameters, before clipping", "gradient norm", HALF, "s3", all);
    figure(
        "halves",
        &[tasks.draw(), total],
        "How hard each task pulls at the representation it shares with the \
        others (moving mean). Curves within a factor of ten of each other share it; a task far above the others \
        decides alone, and its weight should be lowered.",
    )
}

/// Time per step and the part spent waiting for data.
pub(super) fn timing(steps: &[StepPoint]) -> String {
    if steps.is_empty() {
        return "<p class=\"absent\">No training steps were recorded, so there are no timings.</p>"
            .to_string();
    }
    let whole = points(steps, |s| s.step, |s| s.step_ms);
    let wait = points(steps, |s| s.step, |s| s.data_ms);
    let mut waiting = Plot::new("Waiting for data", ["training step", "ms"], HALF)
        .tight()
        .include(&[0.0], &[0.0]);
    add_raw_and_smooth(&mut waiting, ["each step", "moving mean"], "s6", wait);
    figure(
        "halves",
        &[raw_and_smooth("Time per step", "ms", HALF, "s1", whole), waiting.draw()],
        "Wall-clock time. The wait is part of the step; as long as it stays near zero, reading and \
        augmenting volumes does not slow training down.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_recorded_is_a_sentence() {
        for html in [losses(&[]), validations(&[]), gradients(&[]), timing(&[])] {
            assert!(
                html.starts_with("<p class=\"absent\">No ") && !html.contains("<svg"),
                "{html}"
            );
        }
    }

    #[test]
    fn one_step_and_one_validation_are_drawn() {
        let steps = [StepPoint { step: 3, loss: 2.0, ..StepPoint::default() }];
        assert_eq!(losses(&steps).matches("<svg").count(), 8);
        assert_eq!(gradients(&steps).matches("<svg").count(), 1);
        assert!(gradients(&steps).contains("was not measured"));
        assert_eq!(validations(&[ValidationPoint::default()]).matches("<svg").count(), 6);
    }

    #[test]
    fn values_that_are_not_finite_are_counted() {
        let step = |step, loss| StepPoint { step, loss, ..StepPoint::default() };
        let html = losses(&[step(0, f64::NAN), step(1, 1.0), step(2, f64::INFINITY)]);
        assert!(html.contains("2 values that are not finite"), "{html}");
    }
}
