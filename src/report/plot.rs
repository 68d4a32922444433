//! A plot as hand-written SVG: declare the series, get the picture and how many points could not be shown.
//!
//! Colours come from the classes `s1` to `s6`, `ink` and `truth` of the page's style sheet, so that the same
//! picture serves light, dark and print.

use crate::report::frame::Frame;
use crate::report::scale::{Axis, Scale};
use crate::report::series::{Series, Shape, thin_evenly, thin_line};
use crate::report::text::{escape, number};

/// Most points a scatter shows; more are subsampled evenly.
pub(super) const MAX_DOTS: usize = 2000;
/// Most points a line shows; more are reduced to the extremes of each bucket.
pub(super) const MAX_LINE: usize = 800;

/// Width of a character of tick labels and legends, in pixels, on the generous side.
const CHAR: f64 = 6.3;
const TICK: f64 = 4.0;

/// A plot under construction.
#[derive(Clone, Debug)]
pub struct Plot {
    heading: String,
    titles: [String; 2],
    scales: [Scale; 2],
    size: [f64; 2],
    square: bool,
    tight: bool,
    series: Vec<Series>,
    include: [Vec<f64>; 2],
    corners: [&'static str; 4],
}

/// A finished plot.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Heading of the plot, escaped.
    pub heading: String,
    /// The SVG element; empty if there was nothing to show.
    pub svg: String,
    /// Points left out because they are not finite or not on the scale.
    pub dropped: usize,
    /// Whether there were more dots than a scatter shows.
    pub thinned: bool,
}

impl Plot {
    /// An empty plot of `size` pixels (width, height) with axis titles (x, y), units included.
    pub fn new(heading: &str, titles: [&str; 2], size: [f64; 2]) -> Self {
        Plot {
            heading: heading.to_string(),
            titles: titles.map(str::to_string),
            scales: [Scale::Linear; 2],
            size,
            square: false,
            tight: false,
            series: Vec::new(),
            include: [Vec::new(), Vec::new()],
            corners: [""; 4],
        }
    }

    /// Sets the scale of the y axis.
    pub fn y_scale(mut self, scale: Scale) -> Self {
        self.scales[1] = scale;
        self
    }

    /// Gives both axes the same ends and the plot area equal sides; the height follows from the width.
    pub fn square(mut self) -> Self {
        self.square = true;
        self
    }

    /// Ends the x axis at the data instead of at the next round number.
    pub fn tight(mut self) -> Self {
        self.tight = true;
        self
    }

    /// Makes the axes reach these values at least.
    pub fn include(mut self, x: &[f64], y: &[f64]) -> Self {
        self.include[0].extend_from_slice(x);
        self.include[1].extend_from_slice(y);
        self
    }

    /// Words at the left, right, bottom and top inner edges of the plot area.
    pub fn edges(mut self, words: [&'static str; 4]) -> Self {
        self.corners = words;
        self
    }

    /// Adds a series without a line in the legend.
    pub fn add(&mut self, class: &str, shape: Shape) {
        self.series.push(Series { shape, class: class.to_string(), label: None });
    }

    /// Adds a series with a line in the legend.
    pub fn add_labelled(&mut self, class: &str, label: &'static str, shape: Shape) {
        self.series.push(Series { shape, class: class.to_string(), label: Some(label) });
    }

    /// Draws the plot. Without a point that can be shown the picture is empty.
    pub fn draw(mut self) -> Picture {
        let (dropped, thinned) = self.drop_unplaced();
        if self.series.iter().all(|s| s.points().is_empty()) {
            return Picture {
                heading: escape(&self.heading),
                svg: String::new(),
                dropped,
                thinned: false,
            };
        }
        let legend = self.legend();
        let frame = self.frame(legend.1);
        let height = frame.bottom() + 38.0;
        let width = self.size[0];
        let title = escape(&self.heading);
        let mut svg = format!(
            "<svg class=\"plot\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.0}\" \
             width=\"{width}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{title}: {} against {}\">\
             <title>{title}</title><text class=\"heading\" x=\"0\" y=\"13\">{title}</text>",
            escape(&self.titles[1]),
            escape(&self.titles[0]),
        );
        svg.push_str(&legend.0);
        self.draw_axes(&frame, &mut svg);
        for series in &self.series {
            series.draw(&frame, &mut svg);
        }
        self.draw_notes(&frame, &mut svg);
        svg.push_str("</svg>");
        Picture { heading: title, svg, dropped, thinned }
    }

    /// Removes what the scales cannot show and thins what is too much; returns how many points could not be
    /// shown, and whether dots were thinned.
    fn drop_unplaced(&mut self) -> (usize, bool) {
        let scales = self.scales;
        let shown =
            |p: &[f64; 2]| scales[0].place(p[0]).is_some() && scales[1].place(p[1]).is_some();
        let (mut dropped, mut thinned) = (0, false);
        for series in &mut self.series {
            match &mut series.shape {
                Shape::Line(points) | Shape::Path(points) | Shape::Dots(points) => {
                    let before = points.len();
                    points.retain(shown);
                    dropped += before - points.len();
                }
                _ => {}
            }
            match &mut series.shape {
                Shape::Line(points) | Shape::Path(points) => *points = thin_line(points, MAX_LINE),
                Shape::Dots(points) => {
                    thinned |= points.len() > MAX_DOTS;
                    *points = thin_evenly(points, MAX_DOTS);
                }
                _ => {}
            }
        }
        (dropped, thinned)
    }

    fn frame(&self, legend_rows: usize) -> Frame {
        let values = |axis: usize| {
            let points = self.series.iter().flat_map(move |s| s.extent());
            let own = points.map(move |p| p[axis]).filter(|v| !v.is_nan());
            own.chain(self.include[axis].iter().copied())
        };
        let [width, height] = self.size;
        let wanted = |pixels: f64, each: f64| ((pixels / each) as usize).clamp(3, 8);
        let y_ticks = if self.square { wanted(width, 75.0) } else { wanted(height, 45.0) };
        let (x, y) = if self.square {
            let both = Axis::fit(self.scales[0], values(0).chain(values(1)), y_ticks);
            (both.clone(), both)
        } else {
            let mut x = Axis::fit(self.scales[0], values(0), wanted(width, 75.0));
            if self.tight {
                x.trim(
                    values(0).fold(f64::INFINITY, f64::min),
                    values(0).fold(f64::NEG_INFINITY, f64::max),
                );
            }
            (x, Axis::fit(self.scales[1], values(1), y_ticks))
        };
        let widest = y.labels.iter().map(|l| l.chars().count()).max().unwrap_or(1) as f64;
        let left = 18.0 + widest * CHAR + TICK + 4.0;
        let top = 26.0 + legend_rows as f64 * 17.0;
        let area = width - left - 16.0;
        let height = if self.square { area } else { (height - top - 38.0).max(40.0) };
        Frame { left, top, width: area, height, x, y }
    }

    fn draw_axes(&self, frame: &Frame, svg: &mut String) {
        let (left, right, bottom) = (frame.left, frame.right(), frame.bottom());
        for (value, label) in frame.x.ticks.iter().zip(&frame.x.labels) {
            let Some(x) = frame.x(*value) else { continue };
            svg.push_str(&format!(
                "<path class=\"grid\" d=\"M{x:.1} {:.1}V{:.1}\"/>\
                 <text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>",
                frame.top,
                bottom + TICK,
                bottom + 16.0,
            ));
        }
        for (value, label) in frame.y.ticks.iter().zip(&frame.y.labels) {
            let Some(y) = frame.y(*value) else { continue };
            svg.push_str(&format!(
                "<path class=\"grid\" d=\"M{:.1} {y:.1}H{right:.1}\"/>\
                 <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                left - TICK,
                left - TICK - 3.0,
                y + 3.8,
            ));
        }
        let (across, down) = (left + frame.width / 2.0, frame.top + frame.height / 2.0);
        svg.push_str(&format!(
            "<path class=\"axis\" d=\"M{left:.1} {:.1}V{bottom:.1}H{right:.1}\"/>\
             <text class=\"label\" text-anchor=\"middle\" x=\"{across:.1}\" y=\"{:.1}\">{}</text>\
             <text class=\"label\" text-anchor=\"middle\" transform=\"translate(11 {down:.1}) rotate(-90)\">{}</text>",
            frame.top,
            bottom + 33.0,
            escape(&self.titles[0]),
            escape(&self.titles[1]),
        ));
        let places = [
            (left + 5.0, down - 4.0, "start"),
            (right - 5.0, down - 4.0, "end"),
            (across + 4.0, bottom - 5.0, "start"),
            (across + 4.0, frame.top + 11.0, "start"),
        ];
        for (word, (x, y, anchor)) in self.corners.iter().zip(places) {
            if !word.is_empty() {
                svg.push_str(&format!(
                    "<text class=\"edge\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{word}</text>"
                ));
            }
        }
    }

    /// The legend and the number of its rows.
    fn legend(&self) -> (String, usize) {
        let (mut out, mut x, mut row) = (String::new(), 2.0, 0);
        for series in &self.series {
            let Some(label) = series.label else { continue };
            let needs = 24.0 + label.chars().count() as f64 * CHAR + 12.0;
            if x > 2.0 && x + needs - 12.0 > self.size[0] {
                (x, row) = (2.0, row + 1);
            }
            let y = 31.0 + row as f64 * 17.0;
            out.push_str(&series.swatch(x, y));
            let label = escape(label);
            let (at, base) = (x + 23.0, y + 4.0);
            out.push_str(&format!(
                "<text class=\"tick\" x=\"{at:.1}\" y=\"{base:.1}\">{label}</text>"
            ));
            x += needs;
        }
        let rows = if out.is_empty() { 0 } else { row + 1 };
        (out, rows)
    }

    /// Places each note at the first of eight positions around its point that is free.
    fn draw_notes(&self, frame: &Frame, svg: &mut String) {
        let mut taken: Vec<[f64; 2]> = Vec::new();
        for series in &self.series {
            let Shape::Note(point, text) = &series.shape else { continue };
            let Some([x, y]) = frame.point(*point) else { continue };
            // Away from the middle first: arrows come from there.
            let middle = [(frame.left + frame.right()) / 2.0, (frame.top + frame.bottom()) / 2.0];
            let outward = (middle[1] - y).atan2(x - middle[0]);
            let around = (0..16).map(|k| {
                let reach = if k < 8 { 11.0 } else { 20.0 };
                let turn = outward + f64::from(k % 8) * std::f64::consts::FRAC_PI_4;
                [x + reach * turn.cos(), y - reach * turn.sin()]
            });
            let inside = |p: &[f64; 2]| {
                (frame.left + 6.0..frame.right() - 6.0).contains(&p[0])
                    && (frame.top + 6.0..frame.bottom() - 6.0).contains(&p[1])
            };
            let free = |p: &[f64; 2]| {
                inside(p) && taken.iter().all(|t| (t[0] - p[0]).hypot(t[1] - p[1]) > 13.0)
            };
            let place = around.clone().find(free).unwrap_or([x + 11.0, y]);
            taken.push(place);
            svg.push_str(&format!(
                "<text class=\"note {}\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                series.class,
                place[0],
                place[1] + 4.0,
                escape(text),
            ));
        }
    }
}

/// A caption's closing words about points that were left out; empty if there were none.
pub(super) fn dropped_note(dropped: usize) -> String {
    match dropped {
        0 => String::new(),
        1 => " One value that is not a finite number on this scale is left out.".to_string(),
        n => format!(
            " {} values that are not finite numbers on this scale are left out.",
            number(n as f64, 0)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_land_on_known_pixels() {
        let mut plot = Plot::new("t", ["x", "y"], [200.0, 164.0]);
        plot.add("s1", Shape::Line(vec![[0.0, 0.0], [5.0, 10.0], [10.0, 5.0]]));
        let svg = plot.draw().svg;
        // Widest label "10": left = 18 + 2 * 6.3 + 4 + 4 = 38.6; right = 200 - 16 = 184.
        // top = 26; bottom = 164 - 38 = 126.
        assert!(
            svg.contains("<path class=\"line s1\" d=\"M38.6 126.0L111.3 26.0L184.0 76.0\"/>"),
            "{svg}"
        );
        assert!(svg.contains("x=\"38.6\" y=\"142.0\">0</text>"), "{svg}");
        assert!(svg.contains("x=\"31.6\" y=\"29.8\">10</text>"), "{svg}");
    }

    #[test]
    fn a_square_plot_has_one_scale_and_a_diagonal() {
        let mut plot = Plot::new("t", ["x", "y"], [200.0, 0.0]).square();
        plot.add("s1", Shape::Dots(vec![[0.0, 10.0]]));
        plot.add("truth", Shape::Identity);
        let svg = plot.draw().svg;
        // The area is 200 - 38.6 - 16 = 145.4 wide and high: 26 to 171.4.
        assert!(svg.contains("<circle cx=\"38.6\" cy=\"26.0\" r=\"2.6\"/>"), "{svg}");
        assert!(svg.contains("d=\"M38.6 171.4L184.0 26.0\""), "{svg}");
    }

    #[test]
    fn what_cannot_be_shown_is_dropped_and_counted() {
        let mut plot = Plot::new("t", ["x", "y"], [200.0, 150.0]).y_scale(Scale::Log);
        let points =
            vec![[0.0, 1.0], [1.0, f64::NAN], [2.0, -3.0], [f64::INFINITY, 2.0], [4.0, 5.0]];
        plot.add("s1", Shape::Path(points));
        let picture = plot.draw();
        assert_eq!(picture.dropped, 3);
        assert_eq!(picture.svg.matches("<circle").count(), 2);
        assert!(!picture.svg.contains("NaN") && !picture.svg.contains("inf"));
        assert!(dropped_note(3).starts_with(" 3 values"));
    }

    #[test]
    fn nothing_to_show_is_no_picture() {
        let mut plot = Plot::new("t", ["x", "y"], [200.0, 150.0]);
        plot.add("s1", Shape::Line(vec![[f64::NAN, 1.0]]));
        plot.add("truth", Shape::Level(3.0));
        let picture = plot.draw();
        assert_eq!((picture.svg.as_str(), picture.dropped), ("", 1));
    }

    #[test]
    fn one_point_and_equal_values_are_drawn_inside() {
        for points in [vec![[3.0, 7.0]], vec![[1.0, 2.0]; 5]] {
            let mut plot = Plot::new("t", ["x", "y"], [200.0, 150.0]);
            plot.add("s1", Shape::Line(points.clone()));
            plot.add("s2", Shape::Dots(points));
            let svg = plot.draw().svg;
            assert!(svg.contains("<circle") && !svg.contains("NaN"), "{svg}");
        }
    }

    #[test]
    fn notes_keep_clear_of_each_other() {
        let mut plot = Plot::new("t", ["x", "y"], [300.0, 0.0]).square().include(&[-1.0, 1.0], &[]);
        plot.add("s1", Shape::Dots(vec![[0.0, 0.0]]));
        for text in ["1", "2", "3"] {
            plot.add("s1", Shape::Note([0.0, 0.0], text.to_string()));
        }
        let svg = plot.draw().svg;
        let places: std::collections::BTreeSet<&str> = svg
            .split("class=\"note s1\" text-anchor=\"middle\" ")
            .skip(1)
            .filter_map(|rest| rest.split('>').next())
            .collect();
        assert_eq!(places.len(), 3, "{places:?}");
    }

    #[test]
    fn headings_and_titles_are_escaped() {
        let mut plot = Plot::new("<b>\"", ["a & b", "<y>"], [200.0, 150.0]);
        plot.add_labelled("s1", "p < q", Shape::Dots(vec![[1.0, 1.0]]));
        let svg = plot.draw().svg;
        assert!(
            svg.contains("&lt;b&gt;&quot;")
                && svg.contains("a &amp; b")
                && svg.contains("p &lt; q")
        );
        assert!(!svg.contains("<b>") && !svg.contains("<y>"));
    }
}
