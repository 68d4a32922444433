//! Predicted against true vectors: arrows in the three planes, angles, routes.

use crate::pretext::vector::{PREDICTION, closure_mm};
use crate::report::{
    CaseObservation, HALF, PairVector, Picture, Plane, Plot, Shape, THIRD, angle_deg, figure, mean,
    median, name, norm, number, plane_axes, thin_evenly, usable,
};

/// Most pairs shown as arrows: one colour each.
const MOST_ARROWS: usize = 5;
const COLOURS: [&str; MOST_ARROWS] = ["s1", "s2", "s4", "s5", "s6"];

type Pair<'a> = (&'a CaseObservation, PairVector);

/// The section of the vector head.
pub(super) fn panel(cases: &[CaseObservation]) -> String {
    let of_case = |case| pairs_of(case).map(move |pair| (case, pair));
    let all: Vec<Pair> = cases.iter().flat_map(of_case).collect();
    if all.is_empty() {
        return "<p class=\"absent\">No pair of views was observed, so there are no predicted vectors.</p>".to_string();
    }
    let shown = choose(&all);
    let planes = [
        ("Coronal plane, from behind", Plane::Coronal),
        ("Axial plane, from above", Plane::Axial),
        ("Sagittal plane, from the right", Plane::Sagittal),
    ];
    let arrows = planes.map(|(heading, plane)| projection(heading, plane, &shown));
    let angles: Vec<f64> =
        all.iter().filter_map(|(_, g)| angle_deg(g.predicted_mm, g.truth_mm)).collect();
    let without = all.len() - angles.len();
    let mut caption = "How far the predicted direction is from the true one, over all pairs. Bars at the left = right; \
        bars along the dashed curve = no better than a random direction. An absolute head closes every route by construction; only a pairwise one can fail to."
        .to_string();
    if without > 0 {
        caption.push_str(&format!(" {without} of the vectors have no direction and are left out."));
    }
    figure(
        "thirds",
        &arrows,
        "From view i (at the origin) to view j. Grey: the true way; colour: the predicted one; \
        the dotted line between their tips is the error. Colour on grey = right. The pairs were chosen because \
        their true directions differ, not for how well they are predicted.",
    ) + &table(&shown)
        + &figure("halves", &[histogram(&angles), closures(cases)], &caption)
}

fn pairs_of(case: &CaseObservation) -> impl Iterator<Item = PairVector> {
    case.draws.iter().flat_map(|draw| draw.vectors(PREDICTION))
}

/// A few pairs `i < j` whose true directions differ: the longest, then always the one that is farthest in
/// direction from those already chosen, among the longer half.
fn choose<'a>(all: &[Pair<'a>]) -> Vec<Pair<'a>> {
    let forward: Vec<Pair> = all
        .iter()
        .copied()
        .filter(|(_, g)| g.i < g.j && usable(norm(g.truth_mm)) && usable(norm(g.predicted_mm)))
        .collect();
    let mut candidates = thin_evenly(&forward, 400);
    candidates.sort_by(|a, b| norm(b.1.truth_mm).total_cmp(&norm(a.1.truth_mm)));
    candidates.truncate(candidates.len().div_ceil(2).max(MOST_ARROWS));
    let mut chosen: Vec<Pair> = Vec::new();
    while chosen.len() < MOST_ARROWS && !candidates.is_empty() {
        let nearest = |c: &Pair| {
            let angles = chosen.iter().filter_map(|d| angle_deg(c.1.truth_mm, d.1.truth_mm));
            angles.fold(f64::INFINITY, f64::min)
        };
        let mut best = 0;
        for k in 1..candidates.len() {
            if nearest(&candidates[k]) > nearest(&candidates[best]) {
                best = k;
            }
        }
        chosen.push(candidates.remove(best));
    }
    chosen
}

fn projection(heading: &str, plane: Plane, pairs: &[Pair]) -> Picture {
    let [row, column, _] = plane_axes(plane);
    let flat = |v: [f64; 3]| [v[column], v[row]];
    let reach = pairs
        .iter()
        .flat_map(|(_, g)| [flat(g.truth_mm), flat(g.predicted_mm)])
        .flatten()
        .fold(1.0, |m: f64, v| m.max(v.abs()));
    let (titles, edges) = match plane {
        Plane::Axial => (["x, mm", "y, mm"], ["left", "right", "posterior", "anterior"]),
        Plane::Coronal => (["x, mm", "z, mm"], ["left", "right", "inferior", "superior"]),
        Plane::Sagittal => (["y, mm", "z, mm"], ["posterior", "anterior", "inferior", "superior"]),
    };
    let mut plot = Plot::new(heading, titles, [THIRD[0], 0.0])
        .square()
        .include(&[-reach, reach], &[-reach, reach])
        .edges(edges);
    for (k, (_, g)) in pairs.iter().enumerate() {
        let shape = Shape::Arrow([0.0; 2], flat(g.truth_mm));
        if k == 0 { plot.add_labelled("truth", "true", shape) } else { plot.add("truth", shape) }
    }
    for (k, (_, g)) in pairs.iter().enumerate() {
        let (truth, predicted) = (flat(g.truth_mm), flat(g.predicted_mm));
        plot.add("tie", Shape::Line(vec![truth, predicted]));
        let shape = Shape::Arrow([0.0; 2], predicted);
        if k == 0 {
            plot.add_labelled(COLOURS[k], "predicted, one colour per pair", shape);
        } else {
            plot.add(COLOURS[k], shape);
        }
    }
    for (k, (_, g)) in pairs.iter().enumerate() {
        plot.add("ink", Shape::Note(flat(g.truth_mm), (k + 1).to_string()));
    }
    plot.draw()
}

fn table(pairs: &[Pair]) -> String {
    let mut out = "<div class=\"wide\"><table><thead><tr><th>arrow</th><th>volume</th><th>views</th>\
        <th class=\"n\">true vector, mm</th><th class=\"n\">predicted vector, mm</th><th class=\"n\">angle</th>\
        <th class=\"n\">length error, mm</th></tr></thead><tbody>\n"
        .to_string();
    let three = |v: [f64; 3]| v.map(|c| number(c, 0)).join(", ");
    for (k, (case, g)) in pairs.iter().enumerate() {
        out.push_str(&format!(
            "<tr><td>{}</td><td class=\"name\">{}</td><td>{} to {}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}\u{b0}</td><td class=\"n\">{}</td></tr>\n",
            k + 1,
            name(&case.name),
            g.i,
            g.j,
            three(g.truth_mm),
            three(g.predicted_mm),
            number(angle_deg(g.predicted_mm, g.truth_mm).unwrap_or(f64::NAN), 0),
            number(norm(g.predicted_mm) - norm(g.truth_mm), 1),
        ));
    }
    out.push_str(
        "</tbody></table></div>\n<p class=\"small\">Vectors are (superior, anterior, right).</p>\n",
    );
    out
}

/// Share of pairs per ten degrees, against what random directions give: `(cos a - cos b) / 2`.
fn histogram(angles: &[f64]) -> Picture {
    const BINS: usize = 18;
    let mut counts = [0usize; BINS];
    for angle in angles {
        counts[((angle / 10.0) as usize).min(BINS - 1)] += 1;
    }
    let edge = |k: usize| 10.0 * k as f64;
    let percent = |count: usize| 100.0 * count as f64 / angles.len() as f64;
    let bars = if angles.is_empty() {
        Vec::new()
    } else {
        (0..BINS).map(|k| [edge(k), edge(k + 1), percent(counts[k])]).collect()
    };
    let random = (0..BINS)
        .map(|k| {
            let share = edge(k).to_radians().cos() - edge(k + 1).to_radians().cos();
            [edge(k) + 5.0, 50.0 * share]
        })
        .collect();
    let titles = ["angle between predicted and true vector, degrees", "% of pairs"];
    let heading = format!("Direction error, median {}\u{b0}", number(median(angles), 0));
    let mut plot = Plot::new(&heading, titles, HALF).tight().include(&[0.0, 180.0], &[0.0]);
    if !angles.is_empty() {
        plot.add_labelled("s4", "vector head", Shape::Bars(bars));
        plot.add_labelled("guess", "random directions", Shape::Line(random));
        plot.add_labelled("ink", "median", Shape::Upright(median(angles)));
    }
    plot.draw()
}

/// Closure error of the routes of every draw against the mean length of its true gaps.
fn closures(cases: &[CaseObservation]) -> Picture {
    let points = cases
        .iter()
        .flat_map(|c| &c.draws)
        .map(|draw| {
            let lengths = draw.vectors(PREDICTION).map(|pair| norm(pair.truth_mm));
            [mean(lengths), closure_mm(draw)]
        })
        .collect();
    let titles = ["mean true distance between the views of a draw, mm", "closure error, mm"];
    let mut plot = Plot::new("Closure of the routes (zero = right)", titles, HALF)
        .include(&[0.0], &[0.0, 1.0]);
    plot.add_labelled("s4", "draw of views", Shape::Dots(points));
    plot.draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_pairs_point_different_ways() {
        let case = CaseObservation::default();
        let gap = |truth_mm| PairVector { i: 0, j: 1, truth_mm, predicted_mm: truth_mm };
        // Nine near copies of one direction, and one opposite to it.
        let mut gaps: Vec<PairVector> = (0..9).map(|k| gap([100.0, f64::from(k), 0.0])).collect();
        gaps.push(gap([-101.0, 0.0, 0.0]));
        let all: Vec<Pair> = gaps.iter().map(|&g| (&case, g)).collect();
        let chosen = choose(&all);
        assert_eq!(chosen.len(), MOST_ARROWS);
        let first_two: Vec<f64> = chosen[..2].iter().map(|c| c.1.truth_mm[0].signum()).collect();
        assert!(first_two.contains(&1.0) && first_two.contains(&-1.0));
        assert!(choose(&[]).is_empty());
    }

    #[test]
    fn the_histogram_counts_every_angle_once() {
        let svg = histogram(&[0.0, 9.9, 10.0, 180.0]).svg;
        // Heights of 50, 25 and 25 % and fifteen empty bins.
        assert_eq!(svg.matches("height=\"0.0\"").count(), 15);
        assert!(histogram(&[]).svg.is_empty());
    }
}
