//! Slices on the page: grey images with rectangles, and the positions of the views in their volumes.

use crate::report::data::{CaseObservation, Draw, Mark, MarkKind, Plane, Slice};
use crate::report::series::thin_evenly;
use crate::report::text::{data_uri, escape, name, png_uri};

/// Most volumes shown with the positions of their views.
const MOST_MAPS: usize = 3;
/// Characters of images a page may hold.
const PAGE: usize = 1_600_000;
/// Width of an image in pixels of the page.
const WIDTH: f64 = 230.0;
/// Margin around an image for the letters of orientation, in pixels.
const MARGIN: f64 = 15.0;

/// What is left of the characters that the images of a page may take.
#[derive(Debug)]
pub struct ImageBudget {
    left: usize,
}

impl Default for ImageBudget {
    fn default() -> Self {
        ImageBudget { left: PAGE }
    }
}

/// Volumes with the positions of their views, one draw each.
pub(super) fn maps<'a>(cases: &'a [CaseObservation], budget: &mut ImageBudget) -> String {
    let first = |case: &'a CaseObservation| {
        case.draws.iter().find(|draw| !draw.slices.is_empty()).map(|draw| (case, draw))
    };
    let with: Vec<(&'a CaseObservation, &'a Draw)> = cases.iter().filter_map(first).collect();
    let mut out = String::new();
    for (case, draw) in thin_evenly(&with, MOST_MAPS) {
        let images: Vec<(String, &Slice)> =
            draw.slices.iter().map(|s| (format!("{} plane", s.plane.word()), s)).collect();
        let Some(row) = image_row(&case.name, &images, budget) else { break };
        out.push_str(&format!("<div class=\"pair\"><p>{}</p>{row}</div>\n", name(&case.name)));
    }
    if out.is_empty() {
        return "<p class=\"absent\">No slices of volumes were supplied, so the views are not drawn.</p>".to_string();
    }
    format!(
        "<figure class=\"long\"><figcaption>Slices through the centre of the volume with the numbered \
         views of one draw. Solid: the slice cuts the view; dashed: the view lies in front of it or behind. \
         R, L, A, P, S, I: the patient's right, left, front, back, top and bottom.</figcaption>\n{out}</figure>\n"
    )
}

/// Images of a volume side by side with their labels; `None` once the budget of the page is spent.
pub fn image_row(
    volume: &str,
    images: &[(String, &Slice)],
    budget: &mut ImageBudget,
) -> Option<String> {
    let mut out = "<div class=\"images\">".to_string();
    for (label, slice) in images {
        let label = escape(label);
        match data_uri(slice) {
            Some(uri) => {
                budget.left = budget.left.checked_sub(uri.len())?;
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

/// A colour image with its label below, `width` pixels of the page wide; none if its size is 0 or too large for a page.
/// `size`: height and width in pixels, `pixels` red, green and blue of each, `pixel_mm` height and width of one.
pub fn colour_image(
    size: [usize; 2],
    pixels: &[u8],
    pixel_mm: [f64; 2],
    width: f64,
    label: &str,
) -> Option<String> {
    let uri = png_uri(png::ColorType::Rgb, size, pixels)?;
    let [high, wide] = [0, 1].map(|a| size[a] as f64 * pixel_mm[a]);
    let (label, height) = (escape(label), width * (high / wide).clamp(0.2, 3.0));
    Some(format!(
        "<div><svg class=\"image\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.1}\" \
         role=\"img\" aria-label=\"{label}\"><title>{label}</title><image href=\"{uri}\" width=\"{width}\" \
         height=\"{height:.1}\" preserveAspectRatio=\"none\"/></svg><span class=\"small\">{label}</span></div>\n"
    ))
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
        let mut budget = ImageBudget { left: data_uri(&slice).unwrap().len() };
        assert!(image_row("v", &images, &mut budget).is_some());
        assert!(image_row("v", &images, &mut budget).is_none());
    }
}
