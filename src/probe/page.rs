//! The page of a probe: its figures, and slices of a test case with true and predicted classes.

use crate::probe::cases::CaseVoxels;
use crate::probe::neighbours::NEIGHBOURS;
use crate::probe::results::{KINDS, Results};
use crate::probe::score::Dice;
use crate::report;
use crate::report::{Plane, colour_image, document, escape, number, plane_axes};

/// Width of a picture on the page, in pixels.
const WIDTH: f64 = 300.0;
/// Share of a class's colour in a voxel.
const TINT: f64 = 0.55;
/// Classes whose colours are explained.
const MOST_NAMED: usize = 40;

/// What the pictures show.
pub(super) struct Shown<'a> {
    /// The first test case.
    pub voxels: &'a CaseVoxels,
    /// Its classes by all maps of the weights probed, and of the random ones.
    pub predicted: [&'a [u16]; 2],
}

/// The whole page.
pub(super) fn page(results: &Results, shown: &Shown<'_>, command: &str) -> String {
    let title = "Anatomy in frozen features";
    let mut out = format!(
        "<header>\n<h1>{title}</h1>\n<p class=\"meta\">{}</p>\n</header>\n",
        about(results)
    );
    out += &format!(
        "<section>\n<h2>Dice</h2>\n{}\n<p class=\"small\">Linear classifiers of frozen features, trained on \
         voxels of {} labelled cases, tested on all voxels of {} others; beside them the same on a random encoder of the \
         same shape, and the {} nearest of {} sampled voxels, tested on {} voxels of each case. Last map: the {} channels of the last \
         decoder stage; all maps: {} channels, each map brought to full resolution.</p>\n</section>\n",
        table(results),
        results.cases[0].len(),
        results.cases[1].len(),
        NEIGHBOURS,
        results.neighbour_voxels[0],
        results.neighbour_voxels[1],
        results.features[0],
        results.features[1],
    );
    let case = results.cases[1].first().map(|name| report::name(name)).unwrap_or_default();
    out += &format!(
        "<section>\n<h2>Test case {case}</h2>\n{}{}</section>\n",
        pictures(shown),
        key(results)
    );
    out += &format!("<section>\n<h2>Command</h2>\n<pre>{}</pre>\n</section>\n", escape(command));
    document(title, &out)
}

fn about(results: &Results) -> String {
    let step = results.step.map_or(String::new(), |step| format!(" after step {step}"));
    let spacing =
        results.spacing_mm.map_or("own spacing of each volume".to_string(), |[z, y, x]| {
            format!("{z:.2} x {y:.2} x {x:.2} mm (z, y, x)")
        });
    format!(
        "{}{step}; data {}; {spacing}; seed {}; {}; {} s",
        escape(&results.weights.to_string_lossy()),
        escape(&results.data.to_string_lossy()),
        results.seed,
        escape(&results.created),
        number(results.seconds, 0),
    )
}

fn table(results: &Results) -> String {
    let mut out = "<div class=\"wide\"><table>\n<tr><th></th>".to_string();
    KINDS.iter().for_each(|kind| out += &format!("<th colspan=\"4\">{kind}</th>"));
    out += "</tr>\n<tr><th>class</th>";
    for _ in KINDS {
        for method in ["run", "random", "run, kNN", "random, kNN"] {
            out += &format!("<th class=\"n\">{method}</th>");
        }
    }
    out += "</tr>\n";
    let mut row = |name: &str, of: &dyn Fn(&Dice) -> Option<f64>| {
        out += &format!("<tr><td class=\"name\">{}</td>", report::name(name));
        for kind in &results.dice {
            for dice in kind.linear.iter().chain(&kind.neighbours) {
                let value = number(of(dice).unwrap_or(f64::NAN), 3);
                out += &format!("<td class=\"n\">{value}</td>");
            }
        }
        out += "</tr>\n";
    };
    for (c, class) in results.classes[1..].iter().enumerate() {
        row(&class.name, &|dice| dice.classes.get(c).copied().flatten());
    }
    row("mean", &|dice| dice.mean);
    out + "</table></div>"
}

/// Three planes, each with the true classes, those by the weights probed and by the random ones.
fn pictures(shown: &Shown<'_>) -> String {
    let (volume, truth) = (&shown.voxels.volume, &shown.voxels.classes);
    let window = volume.grey_window();
    let at = fullest(truth, volume.extent);
    let mut out = String::new();
    for plane in [Plane::Axial, Plane::Coronal, Plane::Sagittal] {
        out += "<div class=\"thirds\">\n";
        for (label, classes) in [
            ("labels", &truth[..]),
            ("run, all maps", shown.predicted[0]),
            ("random, all maps", shown.predicted[1]),
        ] {
            let [row, column, through] = plane_axes(plane);
            let (height, width) = (volume.extent[row], volume.extent[column]);
            let mut pixels = Vec::with_capacity(3 * width * height);
            for r in (0..height).rev() {
                for c in 0..width {
                    let mut index = [0; 3];
                    (index[row], index[column], index[through]) = (r, c, at[through]);
                    let voxel =
                        (index[0] * volume.extent[1] + index[1]) * volume.extent[2] + index[2];
                    pixels.extend(pixel(volume.voxels[voxel].to_f32(), window, classes[voxel]));
                }
            }
            let mm = [volume.spacing_mm[row], volume.spacing_mm[column]];
            let label = format!("{label}, {}", plane.word());
            let image = colour_image([height, width], &pixels, mm, WIDTH, &label);
            let absent = || format!("<p class=\"absent\">{label}: the image cannot be shown.</p>");
            out += &image.unwrap_or_else(absent);
        }
        out += "</div>\n";
    }
    out
}

/// Of each axis the slice with most voxels that are not background.
fn fullest(classes: &[u16], extent: [usize; 3]) -> [usize; 3] {
    let mut counts: [Vec<u32>; 3] = extent.map(|n| vec![0; n]);
    for (i, _) in classes.iter().enumerate().filter(|(_, class)| **class > 0) {
        let at = [i / (extent[1] * extent[2]), i / extent[2] % extent[1], i % extent[2]];
        counts.iter_mut().zip(at).for_each(|(counts, at)| counts[at] += 1);
    }
    counts.map(|counts| {
        (0..counts.len()).fold(0, |best, i| if counts[i] > counts[best] { i } else { best })
    })
}

/// A grey value with the colour of a class; the background has none.
fn pixel(value: f32, [black, white]: [f32; 2], class: u16) -> [u8; 3] {
    let grey = ((value - black) / (white - black).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
    let grey = f64::from(grey) * 255.0;
    if class == 0 {
        return [grey as u8; 3];
    }
    colour(class).map(|c| (f64::from(c) * TINT + grey * (1.0 - TINT)) as u8)
}

/// Colours far apart for neighbouring numbers: hues by the golden angle, in turns of two lightnesses.
fn colour(class: u16) -> [u8; 3] {
    let hue = f64::from(class) * 137.508 / 60.0;
    let light = if class.is_multiple_of(2) { 1.0 } else { 0.78 };
    [5.0, 3.0, 1.0].map(|n| {
        let k = (n + hue) % 6.0;
        let value = 1.0 - 0.8 * k.min(4.0 - k).clamp(0.0, 1.0);
        (value * light * 255.0) as u8
    })
}

fn key(results: &Results) -> String {
    let named = results.classes[1..].iter().take(MOST_NAMED).enumerate().map(|(i, class)| {
        let [r, g, b] = colour(i as u16 + 1);
        format!(
            "<span><span class=\"key\" style=\"border-color: rgb({r} {g} {b})\"></span>{}</span>",
            report::name(&class.name)
        )
    });
    format!("<p class=\"small\">{}</p>\n", named.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_slices_are_shown() {
        let mut classes = vec![0u16; 2 * 3 * 4];
        for (z, y, x) in [(1, 2, 3), (1, 2, 0), (1, 0, 3), (0, 2, 3)] {
            classes[(z * 3 + y) * 4 + x] = 1;
        }
        assert_eq!(fullest(&classes, [2, 3, 4]), [1, 2, 3]);
        assert_eq!(fullest(&[0; 24], [2, 3, 4]), [0, 0, 0]);
    }

    #[test]
    fn background_is_grey_and_classes_differ() {
        assert_eq!(pixel(0.5, [0.0, 1.0], 0), [127; 3]);
        assert_eq!(pixel(9.0, [0.0, 1.0], 0), [255; 3]);
        let colours: std::collections::BTreeSet<_> = (1..40).map(colour).collect();
        assert_eq!(colours.len(), 39);
    }
}
