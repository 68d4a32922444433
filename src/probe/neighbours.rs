//! The class of a voxel by the classes of the voxels whose features are nearest.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

/// Neighbours that vote.
pub(super) const NEIGHBOURS: usize = 7;
/// Voxels whose nearest are looked for together, so that they stay in the cache.
const BLOCK: usize = 32;
/// Partial sums of a product of rows.
const LANES: usize = 16;

/// Rows of features with a class each.
pub(super) struct References<'a> {
    /// `[voxels, width]`.
    pub rows: &'a [f32],
    /// Class of each.
    pub classes: &'a [u16],
    /// What the voice of a voxel of each class counts.
    pub votes: &'a [f32],
    /// Numbers of a row.
    pub width: usize,
    /// Which of them are compared.
    pub columns: Range<usize>,
}

/// A neighbour: how near it is (larger is nearer), and its number.
type Near = (f32, u32);

impl References<'_> {
    /// Classes of `queries`, rows of the same width: the class with the most votes among the [`NEIGHBOURS`] nearest by
    /// Euclidean distance. Of equal distances the first counts, of equal votes the first class.
    pub(super) fn classify(&self, queries: &[f32]) -> Vec<u16> {
        let half_norms: Vec<f32> =
            self.rows.chunks_exact(self.width).map(|r| self.half(r)).collect();
        let mut out = vec![0; queries.len() / self.width];
        out.par_chunks_mut(BLOCK).zip(queries.par_chunks(BLOCK * self.width)).for_each(
            |(out, queries)| {
                let mut nearest = [[(f32::NEG_INFINITY, 0); NEIGHBOURS]; BLOCK];
                let (rows, columns) = (self.rows, (self.columns.start, self.columns.end));
                search(rows, &half_norms, queries, self.width, columns, &mut nearest);
                for (out, nearest) in out.iter_mut().zip(&nearest) {
                    *out = self.vote(nearest);
                }
            },
        );
        out
    }

    fn half(&self, row: &[f32]) -> f32 {
        (row[self.columns.clone()].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 2.0) as f32
    }

    fn vote(&self, nearest: &[Near]) -> u16 {
        let mut votes = vec![0.0; self.votes.len()];
        for &(near, number) in nearest.iter().filter(|(near, _)| *near > f32::NEG_INFINITY) {
            debug_assert!(!near.is_nan());
            let class = usize::from(self.classes[number as usize]);
            votes[class] += self.votes[class];
        }
        let first = |best: usize, c: usize| if votes[c] > votes[best] { c } else { best };
        (1..votes.len()).fold(0, first) as u16
    }
}

/// The nearest references of a block of queries: those of the largest `q . r - |r|^2 / 2`, which is `|q|^2 / 2` less
/// half of the squared distance.
#[multiversion(targets = "simd")]
fn search(
    rows: &[f32],
    half_norms: &[f32],
    queries: &[f32],
    width: usize,
    columns: (usize, usize),
    nearest: &mut [[Near; NEIGHBOURS]; BLOCK],
) {
    let (from, to) = columns;
    for (number, (row, half)) in rows.chunks_exact(width).zip(half_norms).enumerate() {
        for (query, nearest) in queries.chunks_exact(width).zip(nearest.iter_mut()) {
            let near = dot(&query[from..to], &row[from..to]) - half;
            if near > nearest[NEIGHBOURS - 1].0 {
                let mut place = NEIGHBOURS - 1;
                while place > 0 && near > nearest[place - 1].0 {
                    nearest[place] = nearest[place - 1];
                    place -= 1;
                }
                nearest[place] = (near, number as u32);
            }
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_vote() {
        // Two features of which the second is compared, and 20 columns to pass more than one register.
        let width = 21;
        let row = |class: u16, i: usize| -> Vec<f32> {
            let mut row = vec![f32::from(class) * 2.0; width];
            row[0] = 1e3 * i as f32; // not compared
            row[1 + i % 20] += 0.5;
            row
        };
        let classes: Vec<u16> = (0..40).map(|i| (i % 2) as u16).collect();
        let rows: Vec<f32> = classes.iter().enumerate().flat_map(|(i, &c)| row(c, i)).collect();
        let votes = [1.0, 1.0];
        let references =
            References { rows: &rows, classes: &classes, votes: &votes, width, columns: 1..width };
        // More queries than a block.
        let wanted: Vec<u16> = (0..70).map(|i| (i % 3 == 0) as u16).collect();
        let queries: Vec<f32> = wanted.iter().flat_map(|&c| row(c, 3)).collect();
        assert_eq!(references.classify(&queries), wanted);
    }

    #[test]
    fn votes_count_by_class_and_few_references_are_enough() {
        // The query lies by three of class 0 and one of class 1, whose voice counts four.
        let (rows, classes) = ([0.0, 0.1, 0.2, 0.3], [0, 0, 0, 1]);
        let vote = |votes: &[f32]| {
            let references =
                References { rows: &rows, classes: &classes, votes, width: 1, columns: 0..1 };
            references.classify(&[0.1])
        };
        assert_eq!(vote(&[1.0, 1.0]), [0]);
        assert_eq!(vote(&[1.0, 4.0]), [1]);
        // Only the seven nearest count.
        let rows: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let classes: Vec<u16> = (0..20).map(|i| u16::from(i >= 7)).collect();
        let votes = [1.0, 1.0];
        let references =
            References { rows: &rows, classes: &classes, votes: &votes, width: 1, columns: 0..1 };
        assert_eq!(references.classify(&[0.0, 19.0, 6.1]), [0, 1, 0]);
    }
}
