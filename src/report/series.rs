//! The marks of a plot: lines, dots, bars, arrows, and how too many points become fewer.

use crate::report::frame::Frame;

/// What a series looks like; coordinates are values, not pixels.
#[derive(Clone, Debug)]
pub enum Shape {
    /// A line through points.
    Line(Vec<[f64; 2]>),
    /// A line with a small dot at every point, for few points.
    Path(Vec<[f64; 2]>),
    /// Separate points.
    Dots(Vec<[f64; 2]>),
    /// Bars `[from, to, height]`.
    Bars(Vec<[f64; 3]>),
    /// A horizontal line.
    Level(f64),
    /// A vertical line.
    Upright(f64),
    /// The line of equal coordinates.
    Identity,
    /// An arrow from the first point to the second.
    Arrow([f64; 2], [f64; 2]),
    /// Text beside a point, kept clear of other such text.
    Note([f64; 2], String),
}

/// One series with its looks.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// What it looks like and where.
    pub(super) shape: Shape,
    /// Class of the style sheet that colours it.
    pub(super) class: String,
    /// Its line in the legend.
    pub(super) label: Option<&'static str>,
}

impl Series {
    /// Points that make a plot worth drawing.
    pub(super) fn points(&self) -> &[[f64; 2]] {
        match &self.shape {
            Shape::Line(points) | Shape::Path(points) | Shape::Dots(points) => points,
            Shape::Bars(bars) if !bars.is_empty() => &[[0.0; 2]],
            Shape::Arrow(..) => &[[0.0; 2]],
            _ => &[],
        }
    }

    /// Points the axes must reach; NaN stands for no wish.
    pub(super) fn extent(&self) -> Vec<[f64; 2]> {
        match &self.shape {
            Shape::Line(points) | Shape::Path(points) | Shape::Dots(points) => points.clone(),
            Shape::Bars(bars) => bars.iter().flat_map(|b| [[b[0], 0.0], [b[1], b[2]]]).collect(),
            Shape::Level(y) => vec![[f64::NAN, *y]],
            Shape::Upright(x) => vec![[*x, f64::NAN]],
            Shape::Arrow(from, to) => vec![*from, *to],
            Shape::Identity | Shape::Note(..) => Vec::new(),
        }
    }

    pub(super) fn draw(&self, frame: &Frame, svg: &mut String) {
        let class = self.class.as_str();
        match &self.shape {
            Shape::Line(points) => svg.push_str(&polyline(frame, points, class)),
            Shape::Path(points) => {
                svg.push_str(&polyline(frame, points, class));
                if points.len() <= 60 {
                    svg.push_str(&dots(frame, points, class, 2.4));
                }
            }
            Shape::Dots(points) => svg.push_str(&dots(frame, points, class, 2.6)),
            Shape::Bars(bars) => {
                for b in bars {
                    let corners = (frame.point([b[0], b[2]]), frame.point([b[1], 0.0]));
                    let (Some([x0, y0]), Some([x1, y1])) = corners else { continue };
                    svg.push_str(&format!(
                        "<rect class=\"bar {class}\" x=\"{x0:.1}\" y=\"{y0:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                        (x1 - x0 - 1.0).max(0.5),
                        (y1 - y0).max(0.0),
                    ));
                }
            }
            Shape::Level(value) => {
                if let Some(y) = frame.y(*value) {
                    let (left, right) = (frame.left, frame.right());
                    svg.push_str(&stroke(class, &format!("M{left:.1} {y:.1}H{right:.1}")));
                }
            }
            Shape::Upright(value) => {
                if let Some(x) = frame.x(*value) {
                    let (top, bottom) = (frame.top, frame.bottom());
                    svg.push_str(&stroke(class, &format!("M{x:.1} {top:.1}V{bottom:.1}")));
                }
            }
            Shape::Identity => {
                let ends = frame.x.ends.map(|v| frame.point([v, v]));
                if let [Some([x0, y0]), Some([x1, y1])] = ends {
                    svg.push_str(&stroke(class, &format!("M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}")));
                }
            }
            Shape::Arrow(from, to) => {
                if let (Some(from), Some(to)) = (frame.point(*from), frame.point(*to)) {
                    svg.push_str(&arrow(class, from, to));
                }
            }
            Shape::Note(..) => {}
        }
    }

    /// The sample of the series in the legend, 18 pixels wide.
    pub(super) fn swatch(&self, x: f64, y: f64) -> String {
        let class = self.class.as_str();
        let middle = x + 9.0;
        match &self.shape {
            Shape::Dots(_) => {
                format!(
                    "<circle class=\"dot solid {class}\" cx=\"{middle:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"
                )
            }
            Shape::Bars(_) => format!(
                "<rect class=\"bar {class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"10\"/>",
                x + 3.0,
                y - 5.0
            ),
            Shape::Arrow(..) => arrow(class, [x, y], [x + 18.0, y]),
            Shape::Path(_) => format!(
                "{}<circle class=\"dot solid {class}\" cx=\"{middle:.1}\" cy=\"{y:.1}\" r=\"2.4\"/>",
                stroke(class, &format!("M{x:.1} {y:.1}h18"))
            ),
            _ => stroke(class, &format!("M{x:.1} {y:.1}h18")),
        }
    }
}

fn stroke(class: &str, path: &str) -> String {
    format!("<path class=\"line {class}\" d=\"{path}\"/>")
}

fn polyline(frame: &Frame, points: &[[f64; 2]], class: &str) -> String {
    let mut path = String::new();
    for [x, y] in points.iter().filter_map(|p| frame.point(*p)) {
        let letter = if path.is_empty() { 'M' } else { 'L' };
        path.push_str(&format!("{letter}{x:.1} {y:.1}"));
    }
    if points.len() == 1 {
        return dots(frame, points, class, 3.0);
    }
    stroke(class, &path)
}

fn dots(frame: &Frame, points: &[[f64; 2]], class: &str, radius: f64) -> String {
    let mut out = format!("<g class=\"dot {class}\">");
    for [x, y] in points.iter().filter_map(|p| frame.point(*p)) {
        out.push_str(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"));
    }
    out.push_str("</g>");
    out
}

/// An arrow in pixels; one too short for a head is a dot.
fn arrow(class: &str, from: [f64; 2], to: [f64; 2]) -> String {
    let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
    let length = dx.hypot(dy);
    if length < 1.0 {
        return format!(
            "<circle class=\"dot solid {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"/>",
            to[0], to[1]
        );
    }
    let (ux, uy) = (dx / length, dy / length);
    let head = length.min(8.0);
    let (bx, by) = (to[0] - ux * head, to[1] - uy * head);
    let side = head * 0.42;
    format!(
        "{}<path class=\"head {class}\" d=\"M{:.1} {:.1}L{:.1} {:.1}L{:.1} {:.1}Z\"/>",
        stroke(class, &format!("M{:.1} {:.1}L{bx:.1} {by:.1}", from[0], from[1])),
        to[0],
        to[1],
        bx - uy * side,
        by + ux * side,
        bx + uy * side,
        by - ux * side,
    )
}

/// At most `most` of `points`, evenly spaced in order, the first and the last among them.
pub fn thin_evenly<T: Clone>(points: &[T], most: usize) -> Vec<T> {
    let n = points.len();
    if n <= most {
        return points.to_vec();
    }
    if most < 2 {
        return points[..most].to_vec();
    }
    (0..most).map(|k| points[k * (n - 1) / (most - 1)].clone()).collect()
}

/// At most `most` of `points`: the lowest and the highest of each bucket, in order, so that spikes stay.
pub(super) fn thin_line(points: &[[f64; 2]], most: usize) -> Vec<[f64; 2]> {
    let n = points.len();
    if n <= most {
        return points.to_vec();
    }
    let buckets = (most / 2).max(1);
    let mut out = Vec::with_capacity(2 * buckets);
    for k in 0..buckets {
        let bucket = &points[k * n / buckets..(k + 1) * n / buckets];
        let by_height = |a: &&[f64; 2], b: &&[f64; 2]| a[1].total_cmp(&b[1]);
        let (low, high) = (bucket.iter().min_by(by_height), bucket.iter().max_by(by_height));
        if let (Some(&low), Some(&high)) = (low, high) {
            let ordered = if low[0] <= high[0] { [low, high] } else { [high, low] };
            out.push(ordered[0]);
            if ordered[1] != ordered[0] {
                out.push(ordered[1]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_ends_and_the_spikes() {
        let all: Vec<usize> = (0..=100).collect();
        assert_eq!(thin_evenly(&all, 5), [0, 25, 50, 75, 100]);
        assert_eq!(thin_evenly(&all[..3], 5), [0, 1, 2]);
        assert_eq!(thin_evenly(&all, 1), [0]);
        let mut line: Vec<[f64; 2]> = (0..10_000).map(|k| [f64::from(k), 1.0]).collect();
        line[4321][1] = 99.0;
        line[8765][1] = -99.0;
        let thin = thin_line(&line, 800);
        assert!(thin.len() <= 800);
        assert!(thin.contains(&[4321.0, 99.0]) && thin.contains(&[8765.0, -99.0]));
        assert!(thin.windows(2).all(|w| w[0][0] < w[1][0]));
    }

    #[test]
    fn an_arrow_points_from_the_first_to_the_second() {
        let svg = arrow("s1", [0.0, 0.0], [20.0, 0.0]);
        assert!(
            svg.contains("d=\"M0.0 0.0L12.0 0.0\"") && svg.contains("d=\"M20.0 0.0L12.0"),
            "{svg}"
        );
        assert!(arrow("s1", [5.0, 5.0], [5.0, 5.0]).starts_with("<circle"));
    }
}
