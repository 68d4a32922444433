//! Means, agreement and angles of what was observed; values that are not finite count nowhere.

use crate::report::data::PairVector;
use crate::report::text::usable;

impl PairVector {
    /// Whether truth and prediction can be counted.
    pub fn is_usable(&self) -> bool {
        self.truth_mm.iter().chain(&self.predicted_mm).all(|&v| usable(v))
    }

    /// Absolute error on each axis.
    pub fn errors_mm(&self) -> [f64; 3] {
        std::array::from_fn(|a| (self.predicted_mm[a] - self.truth_mm[a]).abs())
    }
}

/// What a person calls the axes (z, y, x).
pub const AXES: [&str; 3] = ["bottom-top", "back-front", "left-right"];

/// Errors of vectors along one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AxisErrors {
    /// Mean absolute error, mm.
    pub mae_mm: f64,
    /// Coefficient of determination.
    pub r2: f64,
    /// Mean absolute error of guessing zero, mm.
    pub zero_mm: f64,
}

/// The errors of `pairs` along each axis, (z, y, x).
pub fn axis_errors(pairs: &[PairVector]) -> [AxisErrors; 3] {
    std::array::from_fn(|a| {
        let (predicted, truth): (Vec<f64>, Vec<f64>) =
            pairs.iter().map(|p| (p.predicted_mm[a], p.truth_mm[a])).unzip();
        AxisErrors {
            mae_mm: mean(pairs.iter().map(|p| p.errors_mm()[a])),
            r2: r_squared(&predicted, &truth),
            zero_mm: mean(truth.iter().map(|t| t.abs())),
        }
    })
}

/// Mean of the finite values; NaN if there are none.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for v in values.filter(|&v| usable(v)) {
        sum += v;
        count += 1.0;
    }
    sum / count
}

/// Median of the finite values (the upper one of two); NaN if there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|&v| usable(v)).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Coefficient of determination, `1 - sum (p - t)^2 / sum (t - mean t)^2` over pairs of finite values; NaN
/// where the truth does not vary.
pub fn r_squared(predicted: &[f64], truth: &[f64]) -> f64 {
    let both: Vec<(f64, f64)> = predicted
        .iter()
        .zip(truth)
        .map(|(&p, &t)| (p, t))
        .filter(|(p, t)| usable(*p) && usable(*t))
        .collect();
    let centre = mean(both.iter().map(|b| b.1));
    let residual: f64 = both.iter().map(|(p, t)| (p - t).powi(2)).sum();
    let total: f64 = both.iter().map(|(_, t)| (t - centre).powi(2)).sum();
    if total > 0.0 { 1.0 - residual / total } else { f64::NAN }
}

/// Euclidean length.
pub fn norm(v: [f64; 3]) -> f64 {
    v.iter().map(|c| c * c).sum::<f64>().sqrt()
}

/// The angle in degrees between a vector and the one it should be: 90 if it has no direction, `None` if the true one
/// has none or a number is not finite.
pub fn angle_deg(predicted: [f64; 3], truth: [f64; 3]) -> Option<f64> {
    let lengths = norm(predicted) * norm(truth);
    let dot: f64 = predicted.iter().zip(truth).map(|(x, y)| x * y).sum();
    (norm(truth) > 0.0 && usable(dot))
        .then(|| (dot / lengths.max(1e-12)).clamp(-1.0, 1.0).acos().to_degrees())
}

/// Centred moving mean over a fortieth of the points, at no more than 400 of them; empty for fewer than 40
/// points, where there is nothing to smooth. Points that are not finite are skipped.
pub(super) fn smooth(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    const MOST: usize = 400;
    let kept: Vec<[f64; 2]> = points.iter().copied().filter(|p| usable(p[1])).collect();
    if kept.len() < 40 {
        return Vec::new();
    }
    let (n, half) = (kept.len(), kept.len() / 80);
    let m = n.min(MOST);
    (0..m)
        .map(|k| k * (n - 1) / (m - 1))
        .map(|c| {
            // The window shrinks at the ends, so that it stays centred.
            let reach = half.min(c).min(n - 1 - c);
            let window = &kept[c - reach..=c + reach];
            [kept[c][0], mean(window.iter().map(|p| p[1]))]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_and_angles_by_hand() {
        // Truth 1, 2, 3 about its mean 2: total 2; residual 0.25.
        assert_eq!(r_squared(&[1.5, 2.0, 3.0], &[1.0, 2.0, 3.0]), 1.0 - 0.25 / 2.0);
        assert!(r_squared(&[1.0], &[1.0]).is_nan());
        assert!((angle_deg([1.0, 0.0, 0.0], [1.0, 1.0, 0.0]).unwrap() - 45.0).abs() < 1e-9);
        assert_eq!(angle_deg([0.0; 3], [1.0, 0.0, 0.0]), Some(90.0));
        assert_eq!(angle_deg([1.0, 0.0, 0.0], [0.0; 3]), None);
        assert_eq!(angle_deg([f64::NAN; 3], [1.0, 0.0, 0.0]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0, f64::NAN]), 2.0);
        assert!(median(&[]).is_nan() && mean([f64::NAN].into_iter()).is_nan());
        assert_eq!(norm([2.0, 3.0, 6.0]), 7.0);
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_skips_gaps() {
        let line: Vec<[f64; 2]> = (0..1000)
            .map(|k| [f64::from(k), if k == 500 { f64::NAN } else { 2.0 * f64::from(k) }])
            .collect();
        let smooth = smooth(&line);
        assert_eq!(smooth.len(), 400);
        // The gap at 500 shifts windows of 25 points by at most one step, 2 units.
        assert!(smooth.iter().all(|p| (p[1] - 2.0 * p[0]).abs() <= 2.0));
        assert!(super::smooth(&line[..39]).is_empty());
    }
}
