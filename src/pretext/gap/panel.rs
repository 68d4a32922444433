//! Predicted against true gaps, as distances and per axis.

use crate::report::{
    HALF, PairVector, Picture, Plot, Shape, THIRD, figure, mean, norm, number, r_squared,
};

/// The section of the gap head.
pub(super) fn panel(pairs: &[PairVector]) -> String {
    if pairs.is_empty() {
        return "<p class=\"absent\">No pair of views was observed, so there are no predicted distances.</p>".to_string();
    }
    let lengths: Vec<[f64; 2]> =
        pairs.iter().map(|g| [norm(g.truth_mm), norm(g.predicted_mm)]).collect();
    let distance = scatter("Distance between two views", lengths.clone(), HALF[0], false);
    let axes: [(&str, usize); 3] =
        [("z, superior positive", 0), ("y, anterior positive", 1), ("x, right positive", 2)];
    let of_axis =
        |a: usize| pairs.iter().map(|g| [g.truth_mm[a], g.predicted_mm[a]]).collect::<Vec<_>>();
    let three = axes.map(|(heading, a)| scatter(heading, of_axis(a), THIRD[0], true));
    let rows = [("distance", lengths)]
        .into_iter()
        .chain(axes.map(|(heading, a)| (heading, of_axis(a))))
        .map(|(heading, points)| row(heading, &points));
    let table = format!(
        "<div><table><thead><tr><th>gap head</th><th class=\"n\">mean absolute error</th><th class=\"n\">mean error</th>\
         <th class=\"n\">R\u{b2}</th></tr></thead><tbody>{}</tbody></table>\
         <p class=\"small\">{} ordered pairs of views. The mean error is signed: predicted minus true.</p></div>",
        rows.collect::<String>(),
        pairs.len(),
    );
    let caption = "One dot is one ordered pair of views. On the line = right. Below the line: predicted too short; \
        a flat cloud at zero: nothing learnt.";
    let below = "The same gaps along each axis of the body, with their sign. On the line = right; in the wrong \
        quadrant = the wrong side. A steady tilt below the line means that the head is too cautious.";
    figure("halves", &[distance], caption).replacen(
        "</div>\n</div>",
        &format!("</div>\n{table}\n</div>"),
        1,
    ) + &figure("thirds", &three, below)
}

fn scatter(heading: &str, points: Vec<[f64; 2]>, width: f64, signed: bool) -> Picture {
    let zero: &[f64] = if signed { &[] } else { &[0.0] };
    let what = if signed {
        ["true gap, mm", "predicted gap, mm"]
    } else {
        ["true distance, mm", "predicted distance, mm"]
    };
    let mut plot = Plot::new(heading, what, [width, 0.0]).square().include(zero, zero);
    plot.add_labelled("s1", "pair of views", Shape::Dots(points));
    plot.add_labelled("ink", "predicted = true", Shape::Identity);
    plot.draw()
}

fn row(heading: &str, points: &[[f64; 2]]) -> String {
    let (truth, predicted): (Vec<f64>, Vec<f64>) = points.iter().map(|p| (p[0], p[1])).unzip();
    format!(
        "<tr><td>{heading}</td><td class=\"n\">{} mm</td><td class=\"n\">{} mm</td><td class=\"n\">{}</td></tr>",
        number(mean(points.iter().map(|p| (p[1] - p[0]).abs())), 1),
        number(mean(points.iter().map(|p| p[1] - p[0])), 1),
        number(r_squared(&predicted, &truth), 3),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_beside_the_plot_agrees_with_hand_figures() {
        let pair = |j, truth_mm, predicted_mm| PairVector { i: 0, j, truth_mm, predicted_mm };
        let html = panel(&[
            pair(1, [0.0, 30.0, 40.0], [0.0, 30.0, 0.0]),
            pair(2, [0.0, 0.0, 10.0], [0.0, 0.0, 20.0]),
        ]);
        assert_eq!(html.matches("<svg").count(), 4);
        // Distances 50 and 10 predicted as 30 and 20: errors 20 and 10, mean -5; 1 - 500 / 800.
        let found = "<td>distance</td><td class=\"n\">15.0 mm</td><td class=\"n\">\u{2212}5.0 mm</td><td class=\"n\">0.375</td>";
        assert!(html.contains(found), "{html}");
        // Along z nothing varies, so there is nothing to explain.
        assert!(html.contains("0.0 mm</td><td class=\"n\">\u{2013}</td>"), "{html}");
        assert!(html.find("<table>").unwrap() < html.find("<figcaption>").unwrap());
    }
}
