//! Which blocks of a view are hidden from the network.

use crate::random::philox::{Purpose, SampleKey};

/// How blocks of views are hidden.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hiding {
    /// Extent of a block in voxels, (z, y, x); it divides that of a view.
    pub block: [usize; 3],
    /// Least and largest share of the blocks, each share between them as likely.
    pub share: [f64; 2],
}

impl Hiding {
    /// Blocks along each axis of a view of extent `size`.
    pub fn cells(&self, size: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|a| size[a] / self.block[a])
    }

    /// Appends 1 for each of `count` blocks that is hidden in view `view` of the sample at `key`, 0 for the others: at
    /// least one of each, if there are two.
    ///
    /// Source: Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S: every choice of so many is equally likely.
    pub fn append(&self, key: SampleKey, view: usize, count: usize, out: &mut Vec<f32>) {
        let mut stream = key.view(view, Purpose::Hiding);
        let [low, high] = self.share;
        let share = low + (high - low) * stream.uniform_f64();
        let hidden = (share * count as f64).round() as usize;
        let mut wanted = hidden.clamp(1, count.saturating_sub(1).max(1));
        for left in (1..=count).rev() {
            let is_hidden = stream.below(left) < wanted;
            wanted -= usize::from(is_hidden);
            out.push(f32::from(u8::from(is_hidden)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDING: Hiding = Hiding { block: [8; 3], share: [0.6, 0.75] };

    fn mask(step: u64, view: usize, count: usize) -> Vec<f32> {
        let mut out = Vec::new();
        HIDING.append(SampleKey { seed: 3, step, sample: 1 }, view, count, &mut out);
        out
    }

    #[test]
    fn so_many_blocks_are_hidden_and_each_equally_often() {
        let mut hidden = [0u32; 64];
        let mut least = f32::INFINITY;
        let mut most = 0.0f32;
        for step in 0..2000 {
            let mask = mask(step, 0, 64);
            assert!(mask.len() == 64 && mask.iter().all(|&m| m == 0.0 || m == 1.0));
            let sum: f32 = mask.iter().sum();
            (least, most) = (least.min(sum), most.max(sum));
            hidden.iter_mut().zip(&mask).for_each(|(h, &m)| *h += m as u32);
        }
        // 0.6 and 0.75 of 64.
        assert_eq!((least, most), (38.0, 48.0));
        // Binomial about 0.675: mean 1350, deviation 21; five deviations.
        assert!(hidden.iter().all(|&h| h.abs_diff(1350) < 105), "{hidden:?}");
    }

    #[test]
    fn views_and_steps_differ_and_one_block_of_two_is_left() {
        assert_eq!(mask(4, 0, 64), mask(4, 0, 64));
        assert_ne!(mask(4, 0, 64), mask(4, 1, 64));
        assert_ne!(mask(4, 0, 64), mask(5, 0, 64));
        assert_eq!(mask(4, 0, 2).iter().sum::<f32>(), 1.0);
        assert_eq!(mask(4, 0, 1), [1.0]);
    }

    #[test]
    fn blocks_fill_a_view() {
        assert_eq!(HIDING.cells([16, 32, 40]), [2, 4, 5]);
    }
}
