//! Curves over training steps: losses, validations, gradients, time.

use crate::report::observable::Observable;
use crate::report::page::{HALF, THIRD, figure};
use crate::report::plot::{Picture, Plot};
use crate::report::scale::Scale;
use crate::report::series::Shape;
use crate::report::statistics::smooth;
use crate::run::rows::Row;

/// The values of `name` over the steps of `rows`, as points of a curve.
pub fn points(rows: &[Row], name: &str) -> Vec<[f64; 2]> {
    rows.iter().map(|row| [row.step as f64, row.get(name)]).collect()
}

/// A curve with its raw values pale and their moving mean on top.
fn raw_and_smooth(
    heading: &str,
    unit: &str,
    size: [f64; 2],
    class: &str,
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
    class: &str,
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

/// Total loss, learning rate and the terms of all tasks.
pub(super) fn losses(tasks: &[&dyn Observable], steps: &[Row]) -> String {
    if steps.is_empty() {
        return "<p class=\"absent\">No training steps were recorded, so there are no loss curves.</p>".to_string();
    }
    let of = |name: &str| points(steps, name);
    let mut rate = Plot::new("Learning rate", ["training step", "learning rate"], HALF)
        .tight()
        .include(&[0.0], &[0.0]);
    rate.add("s3", Shape::Line(of("lr")));
    let first = [raw_and_smooth("Total loss", "weighted sum", HALF, "s1", of("loss")), rate.draw()];
    let terms = tasks
        .iter()
        .flat_map(|task| task.terms().iter().map(|term| (term, task.description().colour)));
    let each: Vec<Picture> = terms
        .map(|(term, class)| {
            raw_and_smooth(term.heading, term.measure, THIRD, class, of(term.name))
        })
        .collect();
    figure(
        "halves",
        &first,
        "The pale line is each step, the strong line its moving mean. \
        A loss that falls and then flattens is what to expect; one that rises for long is diverging.",
    ) + &figure(
        "thirds",
        &each,
        "The terms before weighting, lengths in units of the targets. Lower is better in every panel.",
    )
}

/// Figures on held-out volumes during training.
pub(super) fn validations(tasks: &[&dyn Observable], all: &[Row]) -> String {
    if all.is_empty() {
        return "<p class=\"absent\">No validation was run during training, so there are no validation curves.</p>"
            .to_string();
    }
    let plots: Vec<Picture> = tasks.iter().flat_map(|task| task.curves(all)).collect();
    let caption = "Measured on held-out volumes. The dashed grey line is what a guess without any learning \
        reaches; a curve on it has learnt nothing. Cosines that meet at 1, an effective rank near 1, or a spread near \
        zero, are a collapse.";
    figure("halves", &plots, caption)
}

/// Mean Dice of frozen features on labelled volumes during training, beside a random encoder.
pub(super) fn probes(all: &[Row]) -> String {
    let plot = |heading: &str, name: &str, random: &str| {
        let mut plot = validation_plot(heading, "mean Dice", &[0.0]);
        plot.add_labelled("s1", "encoder", Shape::Path(points(all, name)));
        plot.add_labelled("guess", "random encoder", Shape::Line(points(all, random)));
        plot.draw()
    };
    let plots = [
        plot("By the last map", "dice_last_map", "random_dice_last_map"),
        plot("By all maps", "dice_all_maps", "random_dice_all_maps"),
    ];
    let caption = "Linear classifiers of the frozen features of voxels, on the labelled data set of \
        <code>run.probe_data</code>. The dashed grey line is the same on a random encoder of the same shape: a curve on it \
        holds no more anatomy than random filters of the image do.";
    figure("halves", &plots, caption)
}

/// An empty plot of half the page's width over the steps of validations, with what it measures and values that it must
/// reach.
pub fn validation_plot(heading: &str, measure: &str, reach: &[f64]) -> Plot {
    Plot::new(heading, ["training step", measure], HALF).tight().include(&[0.0], reach)
}

/// Gradient norms, total and by task.
pub(super) fn gradients(tasks: &[&dyn Observable], steps: &[Row]) -> String {
    if steps.is_empty() {
        return "<p class=\"absent\">No training steps were recorded, so there are no gradient norms.</p>".to_string();
    }
    let curves: Vec<Vec<[f64; 2]>> = tasks
        .iter()
        .map(|task| {
            let all = points(steps, &format!("grad_{}", task.name()));
            all.into_iter().filter(|p| !p[1].is_nan()).collect()
        })
        .collect();
    let scale = Scale::suited(curves.iter().flatten().map(|p| p[1]).filter(|&v| v > 0.0));
    let unit = if scale == Scale::Log { "gradient norm, log scale" } else { "gradient norm" };
    let mut plot = Plot::new("By task, at the dense representation", ["training step", unit], HALF)
        .y_scale(scale)
        .tight()
        .include(&[0.0], if scale == Scale::Log { &[] } else { &[0.0] });
    // Told apart without colour, too.
    let dashes = ["", " dash", " dash2"].iter().cycle();
    for ((task, raw), dash) in tasks.iter().zip(curves).zip(dashes) {
        let mean = smooth(&raw);
        let class = format!("{}{dash}", task.description().colour);
        let line = Shape::Line(if mean.is_empty() { raw } else { mean });
        plot.add_labelled(&class, task.name(), line);
    }
    let all = points(steps, "grad_norm");
    let total = raw_and_smooth("All parameters, before clipping", "gradient norm", HALF, "s3", all);
    figure(
        "halves",
        &[plot.draw(), total],
        "How hard each task pulls at the representation it shares with the \
        others (moving mean). Curves within a factor of ten of each other share it; a task far above the others \
        decides alone, and its weight should be lowered.",
    )
}

/// Time per step and the part spent waiting for data.
pub(super) fn timing(steps: &[Row]) -> String {
    if steps.is_empty() {
        return "<p class=\"absent\">No training steps were recorded, so there are no timings.</p>"
            .to_string();
    }
    let whole = points(steps, "step_ms");
    let wait = points(steps, "data_ms");
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
        for html in [losses(&[], &[]), validations(&[], &[]), gradients(&[], &[]), timing(&[])] {
            assert!(
                html.starts_with("<p class=\"absent\">No ") && !html.contains("<svg"),
                "{html}"
            );
        }
    }

    #[test]
    fn probes_stand_beside_the_random_encoder() {
        let row = |step, dice| {
            let row = Row::new(step).with("dice_last_map", dice).with("dice_all_maps", dice);
            row.with("random_dice_last_map", 0.25).with("random_dice_all_maps", 0.5)
        };
        let html = probes(&[row(100, 0.5), row(200, 0.75)]);
        assert_eq!(
            html.matches("class=\"line s1\" d=").count(),
            4,
            "two curves, two legends: {html}"
        );
        assert_eq!(html.matches("class=\"line guess\" d=").count(), 4, "{html}");
        assert!(!html.contains("not measured"), "{html}");
    }

    #[test]
    fn values_that_are_not_finite_are_counted() {
        let step = |step, loss| Row::new(step).with("loss", loss).with("lr", 1.0);
        let steps = [step(0, f64::NAN), step(1, 1.0), step(2, f64::INFINITY)];
        let html = losses(&[], &steps);
        assert!(html.contains("2 values that are not finite"), "{html}");
        assert_eq!(html.matches("<svg").count(), 2);
    }
}
