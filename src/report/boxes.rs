//! Slices with the boxes of the similarity task drawn on them, and how alike the boxes are.

use super::data::{CaseObservation, Draw, Mark, MarkKind, PairSimilarity, Plane, Slice};
use super::page::{THIRD, figure, name};
use super::plot::Plot;
use super::series::{Shape, thin_evenly};
use super::text::{data_uri, direction, escape, number};

/// Most pairs shown with images.
const MOST_PAIRS: usize = 8;
/// Most volumes shown with the positions of their views.
const MOST_MAPS: usize = 3;
/// Characters of images a page may hold.
const IMAGE_BUDGET: usize = 1_900_000;
/// Width of an image in pixels of the page.
const WIDTH: f64 = 250.0;

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

/// Cosine of the distant boxes against that of the adjacent ones.
fn cosines(draws: &[(&CaseObservation, &Draw)]) -> String {
    let points: Vec<[f64; 2]> = draws
        .iter()
        .flat_map(|(_, d)| d.similarities.iter())
        .map(|s| [s.distant_cosine, s.adjacent_cosine])
        .collect();
    if points.is_empty() {
        return "<p class=\"absent\">No similarity of boxes was observed.</p>\n".to_string();
    }
    let titles = ["cosine of the distant boxes", "cosine of the adjacent boxes"];
    let mut plot = Plot::new("Adjacent against distant", titles, [THIRD[0] + 40.0, 0.0]).square();
    plot.add_labelled("s2", "pair of views", Shape::Dots(points));
    plot.add_labelled("ink", "equal", Shape::Identity);
    figure(
        "single",
        &[plot.draw()],
        "One dot is one pair of views. Above the line = right: the sides of two views \
        that face each other look more alike to the model than the sides that face away. All dots in the top \
        right corner: everything looks the same.",
    )
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
        let images: Vec<(String, &Slice)> = draw
            .slices
            .iter()
            .map(|s| (format!("{}, {} plane", case.name, plane_word(s.plane)), s))
            .collect();
        let Some(row) = image_row(&images, budget) else { break };
        out.push_str(&format!("<div class=\"pair\"><p>{}</p>{row}</div>\n", name(&case.name)));
    }
    if out.is_empty() {
        return out;
    }
    format!(
        "<h3>Where the views lie</h3>\n<figure>{out}<figcaption>Slices through the centre of the volume with the numbered \
         views of one draw. Solid: the slice cuts the view; dashed: the view lies in front of it or behind. \
         R and L are the patient's right and left.</figcaption></figure>\n"
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
        let Some(row) = image_row(&images, budget) else { break };
        out.push_str(&format!(
            "<div class=\"pair\"><p>{}</p>{row}</div>\n",
            pair_words(case, draw, pair)
        ));
        shown += 1;
    }
    format!(
        "<h3>The boxes of some pairs</h3>\n<figure>{out}<figcaption><span class=\"key adjacent\"></span>A: adjacent box, \
         the side that faces the other view. <span class=\"key distant\"></span>D: distant box, the side that faces \
         away. <span class=\"key hidden\"></span>dashed: the box lies above or below the slice. The two images at the \
         left are cut through the adjacent boxes, the two at the right through the distant ones; the cosine is \
         between the two boxes of the same letter. Right = high for A, low for D. {shown} of {} pairs are \
         shown, evenly chosen.</figcaption></figure>\n",
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
            number(super::stats::norm(g.truth_mm), 0)
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
fn image_row(images: &[(String, &Slice)], budget: &mut usize) -> Option<String> {
    let mut out = "<div class=\"images\">".to_string();
    for (label, slice) in images {
        let label = escape(label);
        match data_uri(slice) {
            Some(uri) => {
                *budget = budget.checked_sub(uri.len())?;
                out.push_str(&format!(
                    "<div>{}<span class=\"small\">{label}</span></div>",
                    image(slice, &uri, &label)
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
    let mut out = format!(
        "<svg class=\"image\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.1}\" width=\"{WIDTH}\" \
         height=\"{height:.1}\" role=\"img\" aria-label=\"{label}\"><title>{label}</title>\
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
    let middle = height / 2.0 + 4.0;
    for (letter, x, y) in [
        (left, 8.0, middle),
        (right, WIDTH - 8.0, middle),
        (bottom, WIDTH / 2.0, height - 5.0),
        (top, WIDTH / 2.0, 13.0),
    ] {
        out.push_str(&format!(
            "<text text-anchor=\"middle\" x=\"{x:.1}\" y=\"{y:.1}\">{letter}</text>"
        ));
    }
    out.push_str("</svg>");
    out
}

fn rectangle(mark: &Mark, [sx, sy]: [f64; 2]) -> String {
    let (class, letter) = match mark.kind {
        MarkKind::Adjacent => ("adjacent".to_string(), "A".to_string()),
        MarkKind::Distant => ("distant".to_string(), "D".to_string()),
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
        // 250 pixels for 10 columns, 500 for 10 rows that are twice as high.
        assert!(svg.contains("viewBox=\"0 0 250 500.0\""), "{svg}");
        assert!(
            svg.contains(
                "mark distant hidden\" x=\"50.0\" y=\"50.0\" width=\"100.0\" height=\"250.0\""
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
        assert!(image_row(&images, &mut budget).is_some());
        assert!(image_row(&images, &mut budget).is_none());
    }
}
