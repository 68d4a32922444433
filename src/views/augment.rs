//! What augmentation may do, and the drawing of what it does to one sample.
//!
//! Names, rates and ranges are nnU-Net's. Pose is drawn once per sample, so that gaps between its views stay exact;
//! intensity once per view. Every kind of change has its own stream of random numbers: changing the rate of one
//! leaves the draws of all others as they were. Applying the changes is [`crate::views::intensity`]'s and
//! [`crate::views::pose`]'s work.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random::philox::{Purpose, SampleKey, Stream};
use crate::views::pose::Pose;

/// An axis of a volume oriented to RAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Inferior to superior.
    Z,
    /// Posterior to anterior.
    Y,
    /// Left to right.
    X,
}

/// Widest blur, in voxels: a device kernel holds the weights of four times as many (`kMaxRadius` of kernels/view.cu).
pub(crate) const MAX_BLUR_SIGMA: f32 = 10.0;

/// Section `[augment]` of the configuration: probabilities `*_p` and ranges `[low, high]` of each change.
///
/// Source: nnU-Net v2, its default trainer's transforms. Differs: no mirroring by default, since left and right are
/// among what the tasks learn; rates are per view (nnU-Net halves some of them again per channel).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentOptions {
    /// Off: views are cut unchanged.
    pub enabled: bool,
    /// Probability of a rotation of the volume.
    pub rotation_p: f32,
    /// Angle about each axis, drawn separately, in degrees.
    pub rotation_deg: [f32; 2],
    /// Probability of scaling the volume.
    pub scaling_p: f32,
    /// Length in the volume per length in the view, the same for all axes.
    pub scaling: [f32; 2],
    /// Axes that are mirrored, each with probability one half.
    pub mirror_axes: Vec<Axis>,
    /// Probability of adding Gaussian noise.
    pub noise_p: f32,
    /// Standard deviation of the noise, in units of the normalised volume. (nnU-Net names this range a variance and
    /// uses it as a standard deviation.)
    pub noise_std: [f32; 2],
    /// Probability of a Gaussian blur.
    pub blur_p: f32,
    /// Standard deviation of the blur for each axis, drawn separately, in voxels.
    pub blur_sigma: [f32; 2],
    /// Probability of multiplying the values.
    pub brightness_p: f32,
    /// The factor; below and above 1 equally often.
    pub brightness: [f32; 2],
    /// Probability of stretching the values about their mean, within the range they had.
    pub contrast_p: f32,
    /// The factor; below and above 1 equally often.
    pub contrast: [f32; 2],
    /// Probability of a lower resolution: fewer voxels by nearest neighbour, then back by trilinear interpolation.
    pub low_resolution_p: f32,
    /// Remaining fraction of the voxels along each axis.
    pub low_resolution: [f32; 2],
    /// Probability of a gamma change of the negated values.
    pub gamma_inverted_p: f32,
    /// Probability of a gamma change; mean and standard deviation are restored after either.
    pub gamma_p: f32,
    /// The exponent of both gamma changes; below and above 1 equally often.
    pub gamma: [f32; 2],
}

impl Default for AugmentOptions {
    fn default() -> Self {
        AugmentOptions {
            enabled: true,
            rotation_p: 0.2,
            rotation_deg: [-30.0, 30.0],
            scaling_p: 0.2,
            scaling: [0.7, 1.4],
            mirror_axes: Vec::new(),
            noise_p: 0.1,
            noise_std: [0.0, 0.1],
            blur_p: 0.2,
            blur_sigma: [0.5, 1.0],
            brightness_p: 0.15,
            brightness: [0.75, 1.25],
            contrast_p: 0.15,
            contrast: [0.75, 1.25],
            low_resolution_p: 0.25,
            low_resolution: [0.5, 1.0],
            gamma_inverted_p: 0.1,
            gamma_p: 0.3,
            gamma: [0.7, 1.5],
        }
    }
}

/// What is done to the intensities of one view, in the order of the fields. `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Intensity {
    /// Standard deviation of the added noise.
    pub noise_std: Option<f32>,
    /// Standard deviation of the blur along (z, y, x), in voxels.
    pub blur_sigma: Option<[f32; 3]>,
    /// Factor of the values.
    pub brightness: Option<f32>,
    /// Factor of the differences from the mean.
    pub contrast: Option<f32>,
    /// Remaining fraction of the voxels per axis.
    pub low_resolution: Option<f32>,
    /// Exponent applied to the negated values.
    pub gamma_inverted: Option<f32>,
    /// Exponent applied to the values.
    pub gamma: Option<f32>,
}

impl Intensity {
    /// Voxels left of `n` along an axis at the lower resolution; `n` without one.
    pub fn low_extent(&self, n: usize) -> usize {
        let zoom = self.low_resolution.unwrap_or(1.0);
        ((n as f32 * zoom).round() as usize).clamp(1, n.max(1))
    }
}

impl AugmentOptions {
    /// Refuses probabilities and ranges that mean nothing.
    ///
    /// # Errors
    /// [`Error::Config`] with the key, the value and the values allowed.
    pub fn check(&self) -> Result<()> {
        let rates = [
            ("rotation_p", self.rotation_p),
            ("scaling_p", self.scaling_p),
            ("noise_p", self.noise_p),
            ("blur_p", self.blur_p),
            ("brightness_p", self.brightness_p),
            ("contrast_p", self.contrast_p),
            ("low_resolution_p", self.low_resolution_p),
            ("gamma_inverted_p", self.gamma_inverted_p),
            ("gamma_p", self.gamma_p),
        ];
        for (key, p) in rates {
            if !(0.0..=1.0).contains(&p) {
                let why = format!("{p} is not a probability: use a number from 0 to 1");
                return Err(Error::config(format!("augment.{key}"), why));
            }
        }
        let ranges = [
            ("rotation_deg", self.rotation_deg, [-180.0, 180.0]),
            ("scaling", self.scaling, [0.1, 10.0]),
            ("noise_std", self.noise_std, [0.0, 100.0]),
            ("blur_sigma", self.blur_sigma, [0.0, MAX_BLUR_SIGMA]),
            ("brightness", self.brightness, [0.0, 100.0]),
            ("contrast", self.contrast, [0.0, 100.0]),
            ("low_resolution", self.low_resolution, [0.05, 1.0]),
            ("gamma", self.gamma, [0.1, 10.0]),
        ];
        for (key, [low, high], [least, most]) in ranges {
            if !(least <= low && low <= high && high <= most) {
                let why = format!(
                    "[{low}, {high}] is not a usable range: two numbers from {least} to {most}, the lower first"
                );
                return Err(Error::config(format!("augment.{key}"), why));
            }
        }
        Ok(())
    }

    /// The pose of one sample.
    pub fn draw_pose(&self, key: SampleKey) -> Pose {
        let mut pose = Pose::IDENTITY;
        if !self.enabled {
            return pose;
        }
        let mut rotation = key.shared(Purpose::Rotation);
        if rotation.chance(self.rotation_p) {
            pose.rotation_deg = std::array::from_fn(|_| rotation.between(self.rotation_deg));
        }
        let mut scaling = key.shared(Purpose::Scaling);
        if scaling.chance(self.scaling_p) {
            pose.scaling = scaling.between(self.scaling);
        }
        let mut mirror = key.shared(Purpose::Mirror);
        let coins: [bool; 3] = std::array::from_fn(|_| mirror.chance(0.5));
        for (at, axis) in [Axis::Z, Axis::Y, Axis::X].iter().enumerate() {
            pose.mirror[at] = coins[at] && self.mirror_axes.contains(axis);
        }
        pose
    }

    /// The intensity changes of one view.
    pub fn draw_intensity(&self, key: SampleKey, view: usize) -> Intensity {
        if !self.enabled {
            return Intensity::default();
        }
        let gate = |purpose, p: f32| {
            let mut stream = key.view(view, purpose);
            stream.chance(p).then_some(stream)
        };
        Intensity {
            noise_std: gate(Purpose::Noise, self.noise_p).map(|mut s| s.between(self.noise_std)),
            blur_sigma: gate(Purpose::Blur, self.blur_p)
                .map(|mut s| std::array::from_fn(|_| s.between(self.blur_sigma))),
            brightness: gate(Purpose::Brightness, self.brightness_p)
                .map(|s| around_one(s, self.brightness)),
            contrast: gate(Purpose::Contrast, self.contrast_p)
                .map(|s| around_one(s, self.contrast)),
            low_resolution: gate(Purpose::LowResolution, self.low_resolution_p)
                .map(|mut s| s.between(self.low_resolution)),
            gamma_inverted: gate(Purpose::GammaInverted, self.gamma_inverted_p)
                .map(|s| around_one(s, self.gamma)),
            gamma: gate(Purpose::Gamma, self.gamma_p).map(|s| around_one(s, self.gamma)),
        }
    }
}

/// Uniform in the part of the range below 1 or in the part above, each with probability one half; in the whole
/// range where it lies on one side.
fn around_one(mut stream: Stream, [low, high]: [f32; 2]) -> f32 {
    let below = stream.chance(0.5);
    let range = match (low < 1.0 && high > 1.0, below) {
        (false, _) => [low, high],
        (true, true) => [low, 1.0],
        (true, false) => [1.0, high],
    };
    stream.between(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a rate and the first two moments of what was drawn, within 4 standard errors.
    ///
    /// `moments`: expected mean and variance of one draw.
    fn check_draws(name: &str, rate: f64, moments: [f64; 2], all: &[Option<f32>]) {
        let n = all.len() as f64;
        let drawn: Vec<f64> = all.iter().flatten().map(|&x| f64::from(x)).collect();
        let found = drawn.len() as f64 / n;
        assert!(
            (found - rate).abs() < 4.0 * (rate * (1.0 - rate) / n).sqrt(),
            "{name}: rate {found}"
        );
        let [mean, variance] = moments;
        let k = drawn.len() as f64;
        let found = drawn.iter().sum::<f64>() / k;
        assert!(
            (found - mean).abs() < 4.0 * (variance / k).sqrt(),
            "{name}: mean {found}, not {mean}"
        );
        // A variable within a range of width w has a fourth central moment below variance w^2.
        let found = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / k;
        let width =
            drawn.iter().cloned().fold(0.0, f64::max) - drawn.iter().cloned().fold(1e9, f64::min);
        assert!(
            (found - variance).abs() < 4.0 * width * (variance / k).sqrt(),
            "{name}: variance {found}"
        );
    }

    fn uniform(low: f64, high: f64) -> [f64; 2] {
        [(low + high) / 2.0, (high - low).powi(2) / 12.0]
    }

    /// Mean and variance of the even mixture of two uniform numbers.
    fn either(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
        [(a[0] + b[0]) / 2.0, (a[1] + b[1]) / 2.0 + ((a[0] - b[0]) / 2.0).powi(2)]
    }

    #[test]
    fn rates_and_ranges_are_the_ones_asked_for() {
        let options = AugmentOptions::default();
        let key = |step| SampleKey { seed: 5, step, sample: 1 };
        let draws: Vec<Intensity> =
            (0..100_000).map(|s| options.draw_intensity(key(s), 2)).collect();
        let of =
            |get: &dyn Fn(&Intensity) -> Option<f32>| draws.iter().map(get).collect::<Vec<_>>();
        check_draws("noise", 0.1, uniform(0.0, 0.1), &of(&|i| i.noise_std));
        for axis in 0..3 {
            check_draws("blur", 0.2, uniform(0.5, 1.0), &of(&|i| i.blur_sigma.map(|s| s[axis])));
        }
        let factor = either(uniform(0.75, 1.0), uniform(1.0, 1.25));
        check_draws("brightness", 0.15, factor, &of(&|i| i.brightness));
        check_draws("contrast", 0.15, factor, &of(&|i| i.contrast));
        check_draws("low resolution", 0.25, uniform(0.5, 1.0), &of(&|i| i.low_resolution));
        let gamma = either(uniform(0.7, 1.0), uniform(1.0, 1.5));
        check_draws("inverted gamma", 0.1, gamma, &of(&|i| i.gamma_inverted));
        check_draws("gamma", 0.3, gamma, &of(&|i| i.gamma));
        let both = draws.iter().filter(|i| i.gamma.is_some() && i.blur_sigma.is_some()).count();
        assert!(
            (both as f64 / 1e5 - 0.06).abs() < 4.0 * (0.06f64 * 0.94 / 1e5).sqrt(),
            "kinds are independent"
        );
    }

    #[test]
    fn poses_have_the_rates_and_ranges_asked_for() {
        let options =
            AugmentOptions { mirror_axes: vec![Axis::X, Axis::Z], ..AugmentOptions::default() };
        let key = |step| SampleKey { seed: 5, step, sample: 0 };
        let draws: Vec<Pose> = (0..100_000).map(|s| options.draw_pose(key(s))).collect();
        for axis in 0..3 {
            let angle = |p: &Pose| Some(p.rotation_deg[axis]).filter(|&a| a != 0.0);
            let angles: Vec<_> = draws.iter().map(angle).collect();
            check_draws("rotation", 0.2, uniform(-30.0, 30.0), &angles);
            let flips = draws.iter().filter(|p| p.mirror[axis]).count() as f64 / 1e5;
            let expected = [0.5, 0.0, 0.5][axis];
            assert!((flips - expected).abs() < 4.0 * (0.25f64 / 1e5).sqrt());
        }
        let scales: Vec<_> = draws.iter().map(|p| Some(p.scaling).filter(|&s| s != 1.0)).collect();
        check_draws("scaling", 0.2, uniform(0.7, 1.4), &scales);
    }

    #[test]
    fn nothing_is_drawn_when_off() {
        let off = AugmentOptions {
            enabled: false,
            gamma_p: 1.0,
            rotation_p: 1.0,
            ..AugmentOptions::default()
        };
        let key = SampleKey { seed: 1, step: 2, sample: 3 };
        assert_eq!(off.draw_pose(key), Pose::IDENTITY);
        assert_eq!(off.draw_intensity(key, 0), Intensity::default());
    }

    #[test]
    fn options_read_partial_tables_and_refuse_unknown_keys() {
        let read: AugmentOptions = toml::from_str("blur_p = 0.5\nmirror_axes = [\"x\"]").unwrap();
        assert_eq!(read.blur_p, 0.5);
        assert_eq!(read.mirror_axes, [Axis::X]);
        assert_eq!(read.gamma, [0.7, 1.5]);
        assert!(toml::from_str::<AugmentOptions>("blurr_p = 0.5").is_err());
        let back: AugmentOptions = toml::from_str(&toml::to_string(&read).unwrap()).unwrap();
        assert_eq!(back, read);
    }

    #[test]
    fn options_that_mean_nothing_are_refused_by_key() {
        assert!(AugmentOptions::default().check().is_ok());
        let key = |o: AugmentOptions| o.check().unwrap_err().to_string();
        let base = AugmentOptions::default;
        assert!(key(AugmentOptions { blur_p: 1.5, ..base() }).starts_with("augment.blur_p: 1.5"));
        assert!(
            key(AugmentOptions { gamma_p: f32::NAN, ..base() }).starts_with("augment.gamma_p: NaN")
        );
        assert!(
            key(AugmentOptions { scaling: [0.0, 1.0], ..base() })
                .starts_with("augment.scaling: [0, 1]")
        );
        assert!(
            key(AugmentOptions { gamma: [1.5, 0.7], ..base() })
                .starts_with("augment.gamma: [1.5, 0.7]")
        );
        assert!(key(AugmentOptions { noise_std: [0.0, f32::NAN], ..base() }).contains("NaN"));
    }
}
