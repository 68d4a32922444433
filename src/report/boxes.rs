//! Slices with the boxes of the similarity task drawn on them, and how alike the boxes are.

use crate::report::data::{CaseObservation, Draw, Mark, MarkKind, PairSimilarity, Plane, Slice};
use crate::report::figures::norm;
use crate::report::page::{figure, name};
use crate::report::plot::{Picture, Plot};
use crate::report::series::{Shape, thin_evenly};
use crate::report::text::{data_uri, direction, escape, number};

/// Most pairs shown with images.
const MOST_PAIRS: usize = 8;
/// Most volumes shown with the positions of their views.
const MOST_MAPS: usize = 3;
/// Characters of images a page may hold.
const IMAGE_BUDGET: usize = 1_600_000;
/// Width of an image in pixels of the page.
const WIDTH: f64 = 230.0;
/// Margin around an image for the letters of orientation, in pixels.
const MARGIN: f64 = 15.0;

/// The section of the similarity task.
pub(super) fn similarity(cases: &[CaseObservation]) -> String {
    let draws: Vec<(&CaseObservation, &Draw)> =
        cases.iter().flat_map(|c| c.draws.iter().map(move |d| (c, d))).collect();
    let mut out = cosines(&draws);
    let mut budget = IMAGE_BUDGET;
    out.push_str(&maps(&draws, &mut budget));
    out.push_str(&pairs(&draws, &mut budget));
    out
}

/// The two cosines against each other, against the distance of the views, and their difference.
fn cosines(draws: &[(&CaseObservation, &Draw)]) -> String {
    const SQUARE: [f64; 2] = [340.0, 354.0];
    let all: Vec<(f64, &PairSimilarity)> = draws
        .iter()
        .flat_map(|(_, d)| d.similarities.iter().map(move |s| (distance(d, s), s)))
        .collect();
    if all.is_empty() {
        return "<p class=\"absent\">No similarity of boxes was observed.</p>\n".to_string();
    }
    let of = |value: fn(f64, &PairSimilarity) -> [f64; 2]| {
        all.iter().map(|(mm, s)| value(*mm, s)).collect()
    };
    let titles = ["cosine of the distant boxes", "cosine of the adjacent boxes"];
    let mut against = Plot::new("Adjacent against distant", titles, SQUARE).square();
    against.add_labelled(
        "s2",
        "pair of views",
        Shape::Dots(of(|_, s| [s.distant_cosine, s.adjacent_cosine])),
    );
    against.add_labelled("ink", "equal", Shape::Identity);
    let titles = ["true distance between the views, mm", "cosine"];
    let mut over = Plot::new("Cosines over distance", titles, SQUARE).include(&[0.0], &[0.0, 1.0]);
    over.add_labelled("s2", "adjacent boxes", Shape::Dots(of(|mm, s| [mm, s.adjacent_cosine])));
    over.add_labelled("s1", "distant boxes", Shape::Dots(of(|mm, s| [mm, s.distant_cosine])));
    let plots = [against.draw(), margins(&all, SQUARE), over.draw()];
    figure(
        "thirds",
        &plots,
        "One dot is one pair of views. Left, above the line = right: the sides of two views \
        that face each other look more alike to the model than the sides that face away; all dots in the top \
        right corner: everything looks the same. Middle: the same as a difference, right of zero = right. Right: \
        whether it depends on how far the views are apart.",
    )
}

/// True distance between the views of a pair in millimetres; NaN if the draw does not say.
fn distance(draw: &Draw, pair: &PairSimilarity) -> f64 {
    let gap = draw.gaps.iter().find(|g| (g.i, g.j) == (pair.i, pair.j));
    gap.map_or(f64::NAN, |g| norm(g.truth_mm))
}

/// Share of pairs by the adjacent minus the distant cosine, in bins of 0.1 from -2 to 2.
fn margins(all: &[(f64, &PairSimilarity)], size: [f64; 2]) -> Picture {
    let mut counts = [0usize; 40];
    let differences = all.iter().map(|(_, s)| s.adjacent_cosine - s.distant_cosine);
    let known: Vec<f64> = differences.filter(|d| (-2.001..=2.001).contains(d)).collect();
    for d in &known {
        counts[(((d + 2.0) * 10.0 + 1e-9) as usize).min(39)] += 1;
    }
    let bars = (0..40)
        .filter(|&k| counts[k] > 0)
        .map(|k| {
            let from = k as f64 / 10.0 - 2.0;
            [from, from + 0.1, 100.0 * counts[k] as f64 / known.len() as f64]
        })
        .collect();
    let titles = ["adjacent minus distant cosine", "% of pairs"];
    let mut plot = Plot::new("Difference of the cosines", titles, size).include(&[-0.5, 0.5], &[]);
    plot.add_labelled("s2", "pairs of views", Shape::Bars(bars));
    plot.add_labelled("ink", "equal", Shape::Upright(0.0));
    plot.draw()
}

/// Volumes with the positions of their views.
fn maps(draws: &[(&CaseObservation, &Draw)], budget: &mut usize) -> String {
    let mut with: Vec<&(&CaseObservation, &Draw)> = Vec::new();
    for entry in draws.iter().filter(|(_, d)| !d.slices.is_empty()) {
        // One draw per volume is enough to see how views lie.
        if with.last().is_none_or(|last| !std::ptr::eq(last.0, entry.0)) {
            with.push(entry);
        }
    }
    let mut out = String::new();
    for (case, draw) in thin_evenly(&with, MOST_MAPS) {
        let images: Vec<(String, &Slice)> =
            draw.slices.iter().map(|s| (format!("{} plane", plane_word(s.plane)), s)).collect();
        let Some(row) = image_row(&case.name, &images, budget) else { break };
        out.push_str(&format!("<div class=\"pair\"><p>{}</p>{row}</div>\n", name(&case.name)));
    }
    if out.is_empty() {
        return out;
    }
    format!(
        "<h3>Where the views lie</h3>\n<figure class=\"long\"><figcaption>Slices through the centre of the volume with the numbered \
         views of one draw. Solid: the slice cuts the view; dashed: the view lies in front of it or behind. \
         R, L, A, P, S, I: the patient's right, left, front, back, top and bottom.</figcaption>\n{out}</figure>\n"
    )
}

/// Pairs of views with their boxes.
fn pairs(draws: &[(&CaseObservation, &Draw)], budget: &mut usize) -> String {
    let all: Vec<(&CaseObservation, &Draw, &PairSimilarity)> = draws
        .iter()
        .flat_map(|&(c, d)| d.similarities.iter().map(move |s| (c, d, s)))
        .filter(|(_, _, s)| s.slices.is_some())
        .collect();
    if all.is_empty() {
        return "<p class=\"absent\">No slices of views were supplied, so the boxes are not drawn.</p>".to_string();
    }
    let mut shown = 0;
    let mut out = String::new();
    for (case, draw, pair) in thin_evenly(&all, MOST_PAIRS) {
        let Some(slices) = &pair.slices else { continue };
        let label = |view: usize, what: &str, cosine: f64| {
            format!("view {view}, {what}, cosine {}", number(cosine, 2))
        };
        let (near, far) = (pair.adjacent_cosine, pair.distant_cosine);
        let images = [
            (label(pair.i, "adjacent", near), &slices.adjacent[0]),
            (label(pair.j, "adjacent", near), &slices.adjacent[1]),
            (label(pair.i, "distant", far), &slices.distant[0]),
            (label(pair.j, "distant", far), &slices.distant[1]),
        ];
        let Some(row) = image_row(&case.name, &images, budget) else { break };
        out.push_str(&format!(
            "<div class=\"pair\"><p>{}</p>{row}</div>\n",
            pair_words(case, draw, pair)
        ));
        shown += 1;
    }
    format!(
        "<h3>The boxes of some pairs</h3>\n<figure class=\"long\"><figcaption><span class=\"key adjacent\"></span>adj.: adjacent box, \
         the side that faces the other view. <span class=\"key distant\"></span>dist.: distant box, the side that faces \
         away. <span class=\"key hidden\"></span>dashed: the box lies above or below the slice. The two images at the \
         left are cut through the adjacent boxes, the two at the right through the distant ones; the cosine is \
         between the two boxes of the same name. Right = high for adjacent, low for distant. {shown} of {} pairs are \
         shown, evenly chosen.</figcaption>\n{out}</figure>\n",
        all.len()
    )
}

fn pair_words(case: &CaseObservation, draw: &Draw, pair: &PairSimilarity) -> String {
    let gap = draw.gaps.iter().find(|g| (g.i, g.j) == (pair.i, pair.j));
    let way = gap.map_or(String::new(), |g| {
        format!(
            " lies {} of view {} ({} mm)",
            direction(g.truth_mm),
            pair.i,
            number(norm(g.truth_mm), 0)
        )
    });
    let order =
        if pair.adjacent_cosine > pair.distant_cosine { "right order" } else { "wrong order" };
    format!(
        "{}: view {}{way}. Cosine adjacent <strong>{}</strong>, distant <strong>{}</strong>: {order}.",
        name(&case.name),
        pair.j,
        number(pair.adjacent_cosine, 2),
        number(pair.distant_cosine, 2),
    )
}

fn plane_word(plane: Plane) -> &'static str {
    match plane {
        Plane::Axial => "axial",
        Plane::Coronal => "coronal",
        Plane::Sagittal => "sagittal",
    }
}

/// Images side by side with their labels; `None` once the budget of the page is spent.
fn image_row(volume: &str, images: &[(String, &Slice)], budget: &mut usize) -> Option<String> {
    let mut out = "<div class=\"images\">".to_string();
    for (label, slice) in images {
        let label = escape(label);
        match data_uri(slice) {
            Some(uri) => {
                *budget = budget.checked_sub(uri.len())?;
                out.push_str(&format!(
                    "<div>{}<span class=\"small\">{label}</span></div>",
                    image(slice, &uri, &format!("{}: {label}", name(volume)))
                ));
            }
            None => out
                .push_str(&format!("<p class=\"absent\">{label}: the image cannot be shown.</p>")),
        }
    }
    out.push_str("</div>");
    Some(out)
}

/// One image with its marks. `label` is escaped already.
fn image(slice: &Slice, uri: &str, label: &str) -> String {
    let [down, across] = slice.pixel_mm.map(|mm| if mm > 0.0 && mm < 1e6 { mm } else { 1.0 });
    let aspect = (slice.height as f64 * down / (slice.width as f64 * across)).clamp(0.2, 3.0);
    let height = WIDTH * aspect;
    let scale = [WIDTH / slice.width as f64, height / slice.height as f64];
    // The letters of orientation stand in the margin, so that they hide nothing.
    let (wide, high) = (WIDTH + 2.0 * MARGIN, height + 2.0 * MARGIN);
    let mut out = format!(
        "<svg class=\"image\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-{MARGIN} -{MARGIN} {wide} {high:.1}\" \
         width=\"{wide}\" height=\"{high:.1}\" role=\"img\" aria-label=\"{label}\"><title>{label}</title>\
         <image href=\"{uri}\" width=\"{WIDTH}\" height=\"{height:.1}\" preserveAspectRatio=\"none\"/>"
    );
    for mark in &slice.marks {
        out.push_str(&rectangle(mark, scale));
    }
    let [left, right, bottom, top] = match slice.plane {
        Plane::Axial => ["L", "R", "P", "A"],
        Plane::Coronal => ["L", "R", "I", "S"],
        Plane::Sagittal => ["P", "A", "I", "S"],
    };
    for (letter, x, y) in [
        (left, -8.0, height / 2.0 + 4.0),
        (right, WIDTH + 8.0, height / 2.0 + 4.0),
        (bottom, WIDTH / 2.0, height + 12.0),
        (top, WIDTH / 2.0, -5.0),
    ] {
        out.push_str(&format!(
            "<text class=\"side\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{y:.1}\">{letter}</text>"
        ));
    }
    out.push_str("</svg>");
    out
}

fn rectangle(mark: &Mark, [sx, sy]: [f64; 2]) -> String {
    let (class, letter) = match mark.kind {
        MarkKind::Adjacent => ("adjacent".to_string(), "adj.".to_string()),
        MarkKind::Distant => ("distant".to_string(), "dist.".to_string()),
        MarkKind::View(v) => (format!("v{}", v % 6), v.to_string()),
    };
    let hidden = if mark.cut { "" } else { " hidden" };
    let place = format!(
        "x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"",
        mark.x * sx,
        mark.y * sy,
        mark.width * sx,
        mark.height * sy
    );
    format!(
        "<rect class=\"halo\" {place}/><rect class=\"mark {class}{hidden}\" {place}/>\
         <text class=\"letter\" x=\"{:.1}\" y=\"{:.1}\">{letter}</text>",
        mark.x * sx + 5.0,
        mark.y * sy + 15.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_lands_on_its_pixels() {
        let mark =
            Mark { kind: MarkKind::Distant, x: 2.0, y: 1.0, width: 4.0, height: 5.0, cut: false };
        let pixels = vec![0; 100];
        let slice = Slice {
            plane: Plane::Axial,
            width: 10,
            height: 10,
            pixel_mm: [2.0, 1.0],
            pixels,
            marks: vec![mark],
        };
        let svg = image(&slice, "data:,", "l");
        // 230 pixels for 10 columns, 460 for 10 rows that are twice as high, a margin of 15.
        assert!(svg.contains("viewBox=\"-15 -15 260 490.0\""), "{svg}");
        assert!(
            svg.contains(
                "mark distant hidden\" x=\"46.0\" y=\"46.0\" width=\"92.0\" height=\"230.0\""
            ),
            "{svg}"
        );
    }

    #[test]
    fn the_budget_ends_the_images() {
        let pixels = vec![7; 64];
        let slice = Slice {
            plane: Plane::Axial,
            width: 8,
            height: 8,
            pixel_mm: [1.0; 2],
            pixels,
            marks: vec![],
        };
        let images = [("a".to_string(), &slice)];
        let mut budget = data_uri(&slice).unwrap().len();
        assert!(image_row("v", &images, &mut budget).is_some());
        assert!(image_row("v", &images, &mut budget).is_none());
    }
}
