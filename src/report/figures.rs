//! Figures computed from observations: errors, agreement, angles, collapse. The validation rows of a run and its report show these.

use crate::report::data::{CaseObservation, Draw, PairGap, PairSimilarity};
use crate::report::text::usable;

/// Below this standard deviation over views the features of the gap head count as constant; a trained head has about 0.5.
const COLLAPSE_FEATURE_STD: f64 = 1e-3;
/// At or above this cosine of distant boxes, and within [`COLLAPSE_MARGIN`] of the adjacent one, all boxes
/// count as alike.
const COLLAPSE_COSINE: f64 = 0.95;
/// See [`COLLAPSE_COSINE`].
const COLLAPSE_MARGIN: f64 = 0.02;
/// Below this share of the spread of true gaps the predicted ones count as constant.
const COLLAPSE_SPREAD: f64 = 0.01;

/// What a set of predictions is worth; a figure without data is NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// Ordered pairs of different views counted.
    pub(crate) pairs: usize,
    /// Pairs with a prediction or cosine that is not finite; it is in no figure.
    pub(crate) broken: usize,
    /// Unordered pairs with a similarity counted.
    pub(crate) similarities: usize,
    /// Mean absolute error of the gap head, mean over axes.
    pub(crate) gap_mae_mm: f64,
    /// The same of the guess 0.
    pub(crate) gap_baseline_mm: f64,
    /// Coefficient of determination of the gap, all axes pooled.
    pub(crate) gap_r2: f64,
    /// Root mean square length of the gap head's predictions.
    pub(crate) predicted_spread_mm: f64,
    /// Root mean square length of the true gaps.
    pub(crate) true_spread_mm: f64,
    /// Mean angle between the vector head's prediction and the truth, degrees; a prediction without a direction is 90 degrees off.
    pub(crate) direction_error_deg: f64,
    /// Mean absolute error of the vector head, mean over axes.
    pub(crate) vector_mae_mm: f64,
    /// Mean closure error of the routes.
    pub(crate) route_closure_mm: f64,
    /// Share of pairs whose adjacent boxes are more alike than the distant ones.
    pub(crate) similarity_accuracy: f64,
    /// Mean cosine of adjacent boxes.
    pub(crate) adjacent_cosine: f64,
    /// Mean cosine of distant boxes.
    pub(crate) distant_cosine: f64,
}

/// The figures of `cases` taken together, every pair with the same weight.
pub(crate) fn summarise(cases: &[CaseObservation]) -> Figures {
    let pairs: Vec<&PairGap> = gaps(cases).map(|(_, g)| g).collect();
    let alike: Vec<&PairSimilarity> = similarities(cases).collect();
    let per_axis = |of: &dyn Fn(&PairGap) -> [f64; 3]| {
        mean(pairs.iter().flat_map(|g| {
            let (value, truth) = (of(g), g.truth_mm);
            (0..3).map(move |a| (value[a] - truth[a]).abs())
        }))
    };
    let (predicted, truth): (Vec<f64>, Vec<f64>) =
        pairs.iter().flat_map(|g| (0..3).map(|a| (g.gap_mm[a], g.truth_mm[a]))).unzip();
    let right = |s: &&PairSimilarity| f64::from(u8::from(s.adjacent_cosine > s.distant_cosine));
    let finite =
        |g: &&&PairGap| [g.truth_mm, g.gap_mm, g.vector_mm].iter().flatten().all(|&v| usable(v));
    let every = draws(cases).map(|d| d.similarities.len()).sum::<usize>();
    Figures {
        broken: pairs.len() - pairs.iter().filter(finite).count() + every - alike.len(),
        pairs: pairs.len(),
        similarities: alike.len(),
        gap_mae_mm: per_axis(&|g| g.gap_mm),
        gap_baseline_mm: per_axis(&|_| [0.0; 3]),
        gap_r2: r_squared(&predicted, &truth),
        predicted_spread_mm: mean(pairs.iter().map(|g| norm(g.gap_mm).powi(2))).sqrt(),
        true_spread_mm: mean(pairs.iter().map(|g| norm(g.truth_mm).powi(2))).sqrt(),
        direction_error_deg: mean(pairs.iter().filter_map(|g| angle_deg(g.vector_mm, g.truth_mm))),
        vector_mae_mm: per_axis(&|g| g.vector_mm),
        route_closure_mm: mean(draws(cases).map(|d| d.route_closure_mm)),
        similarity_accuracy: mean(alike.iter().map(right)),
        adjacent_cosine: mean(alike.iter().map(|s| s.adjacent_cosine)),
        distant_cosine: mean(alike.iter().map(|s| s.distant_cosine)),
    }
}

fn draws(cases: &[CaseObservation]) -> impl Iterator<Item = &Draw> {
    cases.iter().flat_map(|c| c.draws.iter())
}

/// Every ordered pair of different views, with its case.
pub(super) fn gaps(
    cases: &[CaseObservation],
) -> impl Iterator<Item = (&CaseObservation, &PairGap)> {
    let of_case =
        |c| draws(std::slice::from_ref(c)).flat_map(move |d| d.gaps.iter().map(move |g| (c, g)));
    cases.iter().flat_map(of_case).filter(|(_, g)| g.i != g.j)
}

/// Every pair whose two cosines are known.
fn similarities(cases: &[CaseObservation]) -> impl Iterator<Item = &PairSimilarity> {
    draws(cases)
        .flat_map(|d| d.similarities.iter())
        .filter(|s| usable(s.adjacent_cosine) && usable(s.distant_cosine))
}

/// Mean of the finite values; NaN if there are none.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for v in values.filter(|&v| usable(v)) {
        sum += v;
        count += 1.0;
    }
    sum / count
}

/// Median of the finite values (the upper one of two); NaN if there are none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|&v| usable(v)).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Coefficient of determination, `1 - sum (p - t)^2 / sum (t - mean t)^2` over pairs of finite values; NaN
/// where the truth does not vary.
pub(super) fn r_squared(predicted: &[f64], truth: &[f64]) -> f64 {
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
pub(crate) fn norm(v: [f64; 3]) -> f64 {
    v.iter().map(|c| c * c).sum::<f64>().sqrt()
}

/// The angle in degrees between a vector and the one it should be: 90 if it has no direction, `None` if the true one has none or a number
/// is not finite.
pub(super) fn angle_deg(predicted: [f64; 3], truth: [f64; 3]) -> Option<f64> {
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

/// Why the model seems to have collapsed: predictions that are no numbers, features or gaps that hardly vary, or, where the similarity task is
/// trained, boxes that all look alike; `None` if it does not. `feature_std`: of the gap head's features over views, NaN if unknown.
pub(crate) fn collapse(
    figures: &Figures,
    feature_std: f64,
    trains_similarity: bool,
) -> Option<String> {
    if figures.broken > 0 {
        let all = figures.pairs + figures.similarities;
        return Some(format!(
            "{} of {all} predictions are not finite, and are left out of all figures",
            figures.broken
        ));
    }
    if feature_std < COLLAPSE_FEATURE_STD {
        return Some(format!(
            "the features of the gap head hardly vary from view to view (standard deviation {feature_std:.1e}, alarm below {COLLAPSE_FEATURE_STD})"
        ));
    }
    let (predicted, truth) = (figures.predicted_spread_mm, figures.true_spread_mm);
    if predicted < COLLAPSE_SPREAD * truth {
        return Some(format!(
            "predicted gaps hardly vary ({predicted:.2} mm where true ones spread over {truth:.1} mm)"
        ));
    }
    let (adjacent, distant) = (figures.adjacent_cosine, figures.distant_cosine);
    let alike = distant >= COLLAPSE_COSINE && adjacent - distant < COLLAPSE_MARGIN;
    (trains_similarity && alike).then(|| {
        format!(
            "distant boxes are as alike as adjacent ones (cosines {distant:.3} and {adjacent:.3}): the similarity head has collapsed; \
             a smaller optim.lr or another run.seed may help"
        )
    })
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
    fn a_summary_by_hand() {
        let gap = |i, j, gap_mm| PairGap {
            i,
            j,
            truth_mm: [30.0, 0.0, -60.0],
            gap_mm,
            vector_mm: [0.0, 0.0, -60.0],
        };
        let alike = |adjacent_cosine, distant_cosine| PairSimilarity {
            adjacent_cosine,
            distant_cosine,
            ..PairSimilarity::default()
        };
        let draw = Draw {
            gaps: vec![gap(0, 0, [900.0; 3]), gap(0, 1, [27.0, 6.0, -60.0])],
            similarities: vec![alike(0.9, 0.1), alike(0.2, 0.3), alike(0.2, f64::NAN)],
            route_closure_mm: 4.0,
            ..Draw::default()
        };
        let s = summarise(&[CaseObservation { draws: vec![draw], ..CaseObservation::default() }]);
        assert_eq!((s.pairs, s.similarities, s.broken), (1, 2, 1));
        assert_eq!((s.gap_mae_mm, s.gap_baseline_mm, s.vector_mae_mm), (3.0, 30.0, 10.0));
        assert_eq!((s.similarity_accuracy, s.route_closure_mm), (0.5, 4.0));
        // cos = 60 / sqrt(30^2 + 60^2) = 2 / sqrt 5, an angle of atan(1/2).
        assert!((s.direction_error_deg - 0.5f64.atan().to_degrees()).abs() < 1e-9);
        assert!(summarise(&[]).gap_mae_mm.is_nan());
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

    #[test]
    fn collapse_is_seen_by_each_sign() {
        let healthy = Figures {
            adjacent_cosine: 0.9,
            distant_cosine: 0.4,
            predicted_spread_mm: 30.0,
            true_spread_mm: 60.0,
            ..summarise(&[])
        };
        let is_seen = |f: Figures, std| collapse(&f, std, true).is_some();
        assert!(
            !is_seen(healthy, 0.3)
                && !is_seen(healthy, f64::NAN)
                && !is_seen(summarise(&[]), f64::NAN)
        );
        assert!(is_seen(healthy, 1e-4));
        assert!(is_seen(Figures { broken: 1, ..healthy }, 0.3));
        assert!(is_seen(Figures { predicted_spread_mm: 0.5, ..healthy }, 0.3));
        let alike = Figures { adjacent_cosine: 0.96, distant_cosine: 0.95, ..healthy };
        assert!(is_seen(alike, f64::NAN) && collapse(&alike, 0.3, false).is_none());
    }
}
