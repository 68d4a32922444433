//! Which voxels of the labelled cases the classifier sees, and their features.

use crate::probe::maps::Maps;
use crate::random::philox::{Purpose, SampleKey};

/// Voxels of each class taken from a labelled case, at most, and of the background.
pub(super) const PER_CLASS: usize = 1500;
pub(super) const BACKGROUND: usize = 4000;
/// Numbers that the features of all sampled voxels may be: 1 GiB.
const NUMBERS: usize = 1 << 28;

/// How many voxels are taken of each class of each labelled case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    pub background: usize,
    pub class: usize,
}

impl Quota {
    /// The usual numbers, or fewer in proportion if `cases` of `classes` classes with `width` features would not fit.
    pub(super) fn new(cases: usize, classes: usize, width: usize) -> Quota {
        let rows = cases * (BACKGROUND + classes.saturating_sub(1) * PER_CLASS);
        let share = (NUMBERS as f64 / (rows * width).max(1) as f64).min(1.0);
        let part = |n: usize| ((n as f64 * share) as usize).max(1);
        Quota { background: part(BACKGROUND), class: part(PER_CLASS) }
    }
}

/// Draws `count` of `from` without replacement, all if there are no more.
pub(super) fn draw(mut from: Vec<usize>, count: usize, key: SampleKey) -> Vec<usize> {
    let mut stream = key.shared(Purpose::ProbeVoxels);
    let count = count.min(from.len());
    for i in 0..count {
        let other = i + stream.below(from.len() - i);
        from.swap(i, other);
    }
    from.truncate(count);
    from
}

/// Voxels of one case, by class: at most the quota of each. `classes`: of each voxel, its class.
pub(super) fn pick(
    classes: &[u16],
    count: usize,
    quota: Quota,
    seed: u64,
    case: usize,
) -> Vec<usize> {
    let mut all: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (voxel, &class) in classes.iter().enumerate() {
        all[usize::from(class)].push(voxel);
    }
    let wanted = |class: usize| if class == 0 { quota.background } else { quota.class };
    let of = |(class, voxels): (usize, Vec<usize>)| {
        let key = SampleKey { seed, step: case as u64, sample: class as u32 };
        draw(voxels, wanted(class), key)
    };
    all.into_iter().enumerate().flat_map(of).collect()
}

/// Sampled voxels of all labelled cases.
pub(super) struct Samples {
    /// Features of a voxel.
    pub width: usize,
    /// `[voxels, width]`; after [`Samples::standardise`] of mean 0 and deviation 1 in each column.
    pub rows: Vec<f32>,
    /// Class of each.
    pub classes: Vec<u16>,
    /// Mean and deviation of each column, once they are taken off.
    pub scale: Vec<[f64; 2]>,
}

impl Samples {
    pub(super) fn new(width: usize) -> Samples {
        Samples { width, rows: Vec::new(), classes: Vec::new(), scale: Vec::new() }
    }

    /// Adds voxels of a case.
    pub(super) fn add(&mut self, maps: &Maps, voxels: &[usize], classes: &[u16]) {
        self.rows.extend(maps.rows(voxels));
        self.classes.extend(voxels.iter().map(|&v| classes[v]));
    }

    /// Takes mean and standard deviation (of the sample, n - 1, and 1e-6) off each column.
    pub(super) fn standardise(&mut self) {
        let count = self.classes.len() as f64;
        let mut sums = vec![[0.0f64; 2]; self.width];
        for row in self.rows.chunks_exact(self.width) {
            sums.iter_mut().zip(row).for_each(|(sum, &v)| sum[0] += f64::from(v));
        }
        sums.iter_mut().for_each(|sum| sum[0] /= count);
        for row in self.rows.chunks_exact(self.width) {
            for (sum, &v) in sums.iter_mut().zip(row) {
                sum[1] += (f64::from(v) - sum[0]).powi(2);
            }
        }
        sums.iter_mut().for_each(|sum| sum[1] = (sum[1] / (count - 1.0).max(1.0)).sqrt() + 1e-6);
        self.scale = sums;
        standardise(&mut self.rows, &self.scale);
    }
}

/// Takes the mean and deviation of each column off rows.
pub(super) fn standardise(rows: &mut [f32], scale: &[[f64; 2]]) {
    for row in rows.chunks_exact_mut(scale.len()) {
        for (v, &[mean, deviation]) in row.iter_mut().zip(scale) {
            *v = ((f64::from(*v) - mean) / deviation) as f32;
        }
    }
}

/// Weight of each class in the loss: the root of its share among all voxels of the labelled cases over its share among
/// the sampled ones, which may be 1000 at most before the root is taken; 0 for a class that was not sampled.
pub(super) fn class_weights(voxels: &[u64], sampled: &[u64]) -> Vec<f32> {
    let share = |of: &[u64], c: usize| of[c] as f64 / of.iter().sum::<u64>().max(1) as f64;
    let weight = |c: usize| {
        let ratio = share(voxels, c) / share(sampled, c);
        if sampled[c] == 0 { 0.0 } else { ratio.min(1e3).sqrt() as f32 }
    };
    (0..voxels.len()).map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voxels_are_drawn_without_replacement_and_by_seed() {
        let key = |seed| SampleKey { seed, step: 0, sample: 0 };
        let drawn = draw((10..40).collect(), 12, key(1));
        let distinct: std::collections::BTreeSet<usize> = drawn.iter().copied().collect();
        assert_eq!(distinct.len(), 12);
        assert!(distinct.iter().all(|v| (10..40).contains(v)));
        assert_eq!(drawn, draw((10..40).collect(), 12, key(1)));
        assert_ne!(drawn, draw((10..40).collect(), 12, key(2)));
        let mut all = draw((0..9).collect(), 20, key(1));
        all.sort_unstable();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn a_draw_is_uniform() {
        let mut counts = [0u32; 6];
        for seed in 0..3000 {
            let key = SampleKey { seed, step: 0, sample: 0 };
            draw((0..6).collect(), 2, key).iter().for_each(|&v| counts[v] += 1);
        }
        // Binomial: mean 1000, deviation sqrt(3000 / 3 * 2 / 3) = 26; five deviations.
        assert!(counts.iter().all(|&n| n.abs_diff(1000) < 130), "{counts:?}");
    }

    #[test]
    fn each_class_gives_at_most_its_quota() {
        let classes: Vec<u16> = (0..60).map(|i| [0, 0, 0, 1, 1, 2][i % 6]).collect();
        let voxels = pick(&classes, 4, Quota { background: 20, class: 15 }, 5, 0);
        let of = |class: u16| voxels.iter().filter(|&&v| classes[v] == class).count();
        assert_eq!([of(0), of(1), of(2), of(3)], [20, 15, 10, 0]);
        assert_ne!(voxels, pick(&classes, 4, Quota { background: 20, class: 15 }, 5, 1));
        assert_eq!(Quota::new(4, 8, 240), Quota { background: 4000, class: 1500 });
        let scaled = Quota::new(100, 100, 1000);
        assert!(
            scaled.class < 1500 && 100 * (99 * scaled.class + scaled.background) * 1000 <= NUMBERS
        );
    }

    #[test]
    fn columns_get_mean_0_and_deviation_1() {
        let mut samples = Samples {
            width: 2,
            rows: vec![1.0, 5.0, 3.0, 5.0, 5.0, 5.0],
            classes: vec![0, 1, 0],
            scale: Vec::new(),
        };
        samples.standardise();
        let want = [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        // The deviation is 2 + 1e-6.
        let close = samples.rows.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close, "{:?}", samples.rows);
    }

    #[test]
    fn weights_are_roots_of_capped_ratios() {
        // Shares 0.9, 0.1, 0 among all, 0.5, 0.5, 0 among the sampled.
        let weights = class_weights(&[900, 100, 0], &[50, 50, 0]);
        assert!((weights[0] - 1.8f32.sqrt()).abs() < 1e-6, "{weights:?}");
        assert!((weights[1] - 0.2f32.sqrt()).abs() < 1e-6 && weights[2] == 0.0, "{weights:?}");
        let capped = class_weights(&[10_000_000, 1], &[1, 9_999]);
        assert!((capped[0] - 1e3f32.sqrt()).abs() < 1e-4, "{capped:?}");
    }
}
