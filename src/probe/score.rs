//! Dice: how far predicted and true voxels of a class overlap.

/// Voxels of each class in one case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    overlap: Vec<u64>,
    both: Vec<u64>,
}

impl Counts {
    /// Compares predicted with true classes.
    pub(super) fn new(predicted: &[u16], truth: &[u16], classes: usize) -> Counts {
        let mut counts = Counts { overlap: vec![0; classes], both: vec![0; classes] };
        for (&p, &t) in predicted.iter().zip(truth) {
            counts.both[usize::from(p)] += 1;
            counts.both[usize::from(t)] += 1;
            counts.overlap[usize::from(p)] += u64::from(p == t);
        }
        counts
    }

    /// `2 overlap / (predicted + true)` of a class; none if it is neither predicted nor there.
    pub(super) fn dice(&self, class: usize) -> Option<f64> {
        let both = self.both[class];
        (both > 0).then(|| 2.0 * self.overlap[class] as f64 / both as f64)
    }
}

/// Dice of all test cases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dice {
    /// Of each case, of each class but the background; none where the class is neither predicted nor there.
    pub cases: Vec<Vec<Option<f64>>>,
    /// Mean over the cases, of each class but the background.
    pub classes: Vec<Option<f64>>,
    /// Mean over the classes.
    pub mean: Option<f64>,
}

impl Dice {
    pub(super) fn new(counts: &[Counts]) -> Dice {
        let classes = counts.first().map_or(0, |c| c.both.len());
        let of = |c: &Counts| (1..classes).map(|class| c.dice(class)).collect();
        let cases: Vec<Vec<Option<f64>>> = counts.iter().map(of).collect();
        let over_cases = |class: usize| mean(cases.iter().map(|case| case[class]));
        let classes: Vec<_> = (0..classes.saturating_sub(1)).map(over_cases).collect();
        let mean = mean(classes.iter().copied());
        Dice { cases, classes, mean }
    }
}

/// Mean of those that are there.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = values.flatten().fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_is_the_overlap_over_the_mean_size() {
        let counts = Counts::new(&[0, 1, 1, 2, 0], &[0, 1, 2, 2, 1], 4);
        // Class 1: predicted 2, true 2, both 1. Class 2: predicted 1, true 2, both 1.
        assert_eq!([1, 2, 3].map(|c| counts.dice(c)), [Some(0.5), Some(2.0 / 3.0), None]);
    }

    #[test]
    fn means_leave_out_what_is_not_there() {
        let first = Counts::new(&[0, 1, 2, 2], &[0, 1, 2, 2], 4);
        let second = Counts::new(&[0, 1, 1, 1], &[1, 0, 0, 0], 4);
        let dice = Dice::new(&[first, second]);
        assert_eq!(dice.classes, [Some(0.5), Some(1.0), None]);
        assert_eq!(dice.mean, Some(0.75));
        assert_eq!(Dice::new(&[]).mean, None);
    }
}
