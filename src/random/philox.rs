//! Counter-based random numbers: the same numbers for the same address, in any order, on any processor.
//!
//! Nothing here has hidden state: a number is a function of (seed, step, sample, view, purpose, position), so that
//! a run resumes by its step number alone and any number of threads, or a kernel, draws the same.
//!
//! The address of a block of four 32-bit words is the contract with a kernel that draws on a device:
//!
//! | word | bits | holds |
//! |---|---|---|
//! | `key[0]` | 0..32 | seed, low half |
//! | `key[1]` | 0..32 | seed, high half |
//! | `counter[0]` | 0..32 | block number within the stream |
//! | `counter[1]` | 0..32 | step, bits 0..32 |
//! | `counter[2]` | 0..32 | sample within the batch |
//! | `counter[3]` | 0..8 | [`Purpose`] |
//! | `counter[3]` | 8..16 | view |
//! | `counter[3]` | 16..32 | step, bits 32..48 |
//!
//! Word `w` of a stream is word `w % 4` of block `w / 4`; normal number `i` of a stream is made from block `i / 4`
//! ([`Stream::normals`]).
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10).

use crate::random::elementary::{ln, sin_cos_turn};

/// The Philox4x32-10 bijection of a 128-bit counter under a 64-bit key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The generator of this key.
    pub fn new(key: [u32; 2]) -> Self {
        Philox { key }
    }

    /// Four random words for this counter.
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        let [mut k0, mut k1] = self.key;
        let [mut c0, mut c1, mut c2, mut c3] = counter;
        for _ in 0..10 {
            let p0 = u64::from(c0) * 0xD251_1F53;
            let p1 = u64::from(c2) * 0xCD9E_8D57;
            (c0, c1, c2, c3) =
                ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
        }
        [c0, c1, c2, c3]
    }
}

/// What a stream of random numbers is for. The number is part of the address: never reuse or reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Order of the volumes within an epoch; the step is the epoch.
    VolumeOrder = 0,
    /// Starts of the training views.
    Start = 1,
    /// Starts of the validation views; the step is the volume, the sample is the draw.
    ValidationStart = 2,
    /// Whether and how far to rotate.
    Rotation = 3,
    /// Whether and how much to scale.
    Scaling = 4,
    /// Which axes to mirror.
    Mirror = 5,
    /// Whether there is noise, and how much.
    Noise = 6,
    /// The noise itself, one normal number per voxel.
    NoiseField = 7,
    /// Whether and how much to blur.
    Blur = 8,
    /// Whether and how much to change the brightness.
    Brightness = 9,
    /// Whether and how much to change the contrast.
    Contrast = 10,
    /// Whether and how much to lower the resolution.
    LowResolution = 11,
    /// Whether there is a gamma change of the inverted view, and which.
    GammaInverted = 12,
    /// Whether there is a gamma change, and which.
    Gamma = 13,
    /// Start values of the weights; the sample is the number of the tensor.
    Weights = 14,
    /// How many blocks of a view are hidden, and which.
    Hiding = 15,
    /// Which voxels a probe looks at; the step is the case, the sample is the class.
    ProbeVoxels = 16,
    /// Batches of a probe's classifier.
    ProbeBatch = 17,
}

/// Address of the random numbers of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    /// Seed of the run.
    pub seed: u64,
    /// Step of the run, below 2^48.
    pub step: u64,
    /// Position in the batch.
    pub sample: u32,
}

impl SampleKey {
    /// The stream of one purpose, shared by the views of the sample.
    pub fn shared(self, purpose: Purpose) -> Stream {
        self.view(0, purpose)
    }

    /// The stream of one view and purpose.
    ///
    /// # Panics
    /// If the view is 256 or more, or the step 2^48 or more: the address would not be unique.
    pub fn view(self, view: usize, purpose: Purpose) -> Stream {
        assert!(view < 256, "the counter has 8 bits for the view, got view {view}");
        assert!(
            self.step < 1 << 48,
            "the counter has 48 bits for the step, got step {}",
            self.step
        );
        let tail = purpose as u32 | (view as u32) << 8 | ((self.step >> 32) as u32) << 16;
        Stream {
            philox: Philox::new([self.seed as u32, (self.seed >> 32) as u32]),
            address: [self.step as u32, self.sample, tail],
            next_word: 0,
            block: [0; 4],
        }
    }
}

/// A sequence of random numbers at one address, read in order or by position.
#[derive(Clone, Debug)]
pub struct Stream {
    philox: Philox,
    /// Words 1 to 3 of the counter.
    address: [u32; 3],
    next_word: u32,
    block: [u32; 4],
}

impl Stream {
    /// Key, and words 1 to 3 of the counter: what a kernel needs to draw the same.
    pub fn address(&self) -> ([u32; 2], [u32; 3]) {
        (self.philox.key, self.address)
    }

    /// Block number `index` of this stream, whatever was read before.
    pub fn block_at(&self, index: u32) -> [u32; 4] {
        let [c1, c2, c3] = self.address;
        self.philox.block([index, c1, c2, c3])
    }

    /// The next 32 random bits.
    ///
    /// # Panics
    /// In debug builds, after 2^32 words.
    pub fn next_u32(&mut self) -> u32 {
        let lane = (self.next_word % 4) as usize;
        if lane == 0 {
            self.block = self.block_at(self.next_word / 4);
        }
        self.next_word += 1;
        self.block[lane]
    }

    /// The next 64 random bits: two words, the low one first.
    pub fn next_u64(&mut self) -> u64 {
        let low = u64::from(self.next_u32());
        low | u64::from(self.next_u32()) << 32
    }

    /// Uniform in `[0, 1)`: a multiple of 2^-24, from one word.
    pub fn uniform_f32(&mut self) -> f32 {
        unit_f32(self.next_u32())
    }

    /// Uniform in `[0, 1)`: a multiple of 2^-53, from two words.
    pub fn uniform_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[low, high)`, from one word; `low` if both are equal.
    pub fn between(&mut self, [low, high]: [f32; 2]) -> f32 {
        (low + (high - low) * self.uniform_f32()).min(high)
    }

    /// Whether an event of this probability happens, from one word.
    pub fn chance(&mut self, probability: f32) -> bool {
        self.uniform_f32() < probability
    }

    /// Uniform integer in `[0, n)`, always from two words: the high half of a 64-bit number times `n`. No value is
    /// more likely than another by more than `n / 2^64`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "there is no integer below 0");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Four independent standard normal numbers from block `index`, in `f32` (Box-Muller).
    ///
    /// With words `w` of the block, for `p` in 0, 1: `r = sqrt(-2 ln u)`, `u = (floor(w[2p] / 2^8) + 1) 2^-24`,
    /// `t = floor(w[2p+1] / 2^8) 2^-24` turns; number `2p` is `r cos t`, number `2p + 1` is `r sin t`.
    /// The largest magnitude is 5.77.
    pub fn normals(&self, index: u32) -> [f32; 4] {
        let w = self.block_at(index);
        let pair = |length: u32, turn: u32| {
            let u = ((length >> 8) + 1) as f32 * UNIT_F32;
            let r = (-2.0 * ln(u)).sqrt();
            let (sin, cos) = sin_cos_turn(unit_f32(turn));
            [r * cos, r * sin]
        };
        let ([a, b], [c, d]) = (pair(w[0], w[1]), pair(w[2], w[3]));
        [a, b, c, d]
    }

    /// Normal number `voxel` of this stream: lane `voxel % 4` of [`Stream::normals`] of block `voxel / 4`.
    pub fn normal_at(&self, voxel: u32) -> f32 {
        self.normals(voxel / 4)[(voxel % 4) as usize]
    }
}

/// 2^-24.
const UNIT_F32: f32 = 1.0 / (1u32 << 24) as f32;

/// The upper 24 bits of a word as a number in `[0, 1)`.
fn unit_f32(word: u32) -> f32 {
    (word >> 8) as f32 * UNIT_F32
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SampleKey = SampleKey { seed: 7, step: 11, sample: 3 };

    // The known-answer vectors of the authors' Random123 library.
    #[test]
    fn known_answers() {
        let zero = Philox::new([0; 2]).block([0; 4]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox::new([u32::MAX; 2]).block([u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = Philox::new([0xa409_3822, 0x299f_31d0]).block([
            0x243f_6a88,
            0x85a3_08d3,
            0x1319_8a2e,
            0x0370_7344,
        ]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn the_address_is_laid_out_as_documented() {
        let key =
            SampleKey { seed: 0x0123_4567_89ab_cdef, step: 0xdcba_8765_4321, sample: 0x1111_2222 };
        let stream = key.view(0xee, Purpose::Gamma);
        let philox = Philox::new([0x89ab_cdef, 0x0123_4567]);
        let counter = [5, 0x8765_4321, 0x1111_2222, 0xdcba_ee0d];
        assert_eq!(stream.block_at(5), philox.block(counter));
    }

    #[test]
    fn streams_read_blocks_in_order_and_differ_by_address() {
        let mut stream = KEY.view(1, Purpose::Start);
        let words: Vec<u32> = (0..8).map(|_| stream.next_u32()).collect();
        assert_eq!(words, [stream.block_at(0), stream.block_at(1)].concat());
        let others = [
            SampleKey { seed: 8, ..KEY }.view(1, Purpose::Start),
            SampleKey { seed: 7 | 1 << 40, ..KEY }.view(1, Purpose::Start),
            SampleKey { step: 12, ..KEY }.view(1, Purpose::Start),
            SampleKey { step: 11 | 1 << 40, ..KEY }.view(1, Purpose::Start),
            SampleKey { sample: 4, ..KEY }.view(1, Purpose::Start),
            KEY.view(2, Purpose::Start),
            KEY.view(1, Purpose::Noise),
        ];
        for other in others {
            assert_ne!(other.block_at(0), stream.block_at(0));
        }
    }

    #[test]
    fn integers_are_uniform_and_reach_every_value() {
        let mut stream = KEY.shared(Purpose::Start);
        for n in [1, 2, 7, 100] {
            let draws = 100_000;
            let mut counts = vec![0u32; n];
            (0..draws).for_each(|_| counts[stream.below(n)] += 1);
            let mean = f64::from(draws) / n as f64;
            let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - mean).powi(2) / mean).sum();
            // Mean n - 1, standard deviation sqrt(2 (n - 1)); 6 of them stay below p = 1e-6 for these n.
            let freedom = n as f64 - 1.0;
            assert!(
                (chi2 - freedom).abs() <= 6.0 * (2.0 * freedom).sqrt().max(1.0),
                "n {n}: {chi2}"
            );
        }
    }

    #[test]
    fn uniforms_have_the_right_moments_and_range() {
        let mut stream = KEY.shared(Purpose::Start);
        let n = 100_000;
        let draws: Vec<f64> = (0..n)
            .map(
                |i| if i % 2 == 0 { f64::from(stream.uniform_f32()) } else { stream.uniform_f64() },
            )
            .collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 4.0 * (1.0 / 12f64 / f64::from(n)).sqrt(), "{mean}");
        let square = draws.iter().map(|u| u * u).sum::<f64>() / f64::from(n);
        assert!((square - 1.0 / 3.0).abs() < 4.0 * (4.0 / 45f64 / f64::from(n)).sqrt(), "{square}");
        assert_eq!(stream.between([2.5, 2.5]), 2.5);
    }

    #[test]
    fn normals_have_the_right_moments_and_address() {
        let stream = KEY.view(2, Purpose::NoiseField);
        let blocks = 50_000;
        let draws: Vec<f64> = (0..blocks).flat_map(|b| stream.normals(b).map(f64::from)).collect();
        let n = draws.len() as f64;
        let moment = |k: i32| draws.iter().map(|x| x.powi(k)).sum::<f64>() / n;
        // Variances of x, x^2, x^3, x^4 of a standard normal: 1, 2, 15, 96.
        for (k, expected, variance) in
            [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0f64)]
        {
            let found = moment(k);
            assert!((found - expected).abs() < 4.0 * (variance / n).sqrt(), "moment {k}: {found}");
        }
        // Lanes of a block and neighbouring blocks are uncorrelated.
        for lag in [1, 2, 3, 4] {
            let product = draws.iter().zip(&draws[lag..]).map(|(a, b)| a * b).sum::<f64>() / n;
            assert!(product.abs() < 4.0 / n.sqrt(), "lag {lag}: {product}");
        }
        assert_eq!(f64::from(stream.normal_at(4 * 123 + 2)), draws[4 * 123 + 2]);
    }
}
