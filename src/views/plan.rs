//! The plan of one sample: where its views lie and what augmentation does to them.
//!
//! A plan is a function of (seed, step, sample) and the extent of the volume, and is made before any voxel is
//! touched; [`crate::views::batch::Batch`] carries it out.

use serde::Serialize;

use crate::image::Volume;
use crate::random::philox::{Purpose, SampleKey};
use crate::views::augment::{AugmentOptions, Intensity};
use crate::views::geometry;
use crate::views::geometry::{MAX_VIEWS, OffsetRule, SUB_VIEWS};
use crate::views::pose::{Geometry, Pose};

/// How views are cut and how gaps are measured. Axis order (z, y, x).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ViewOptions {
    /// Views per sample, V.
    pub count: usize,
    /// Extent of a view in voxels, S.
    pub size: [usize; 3],
    /// Extent of a sub-view in voxels, s.
    pub sub_size: [usize; 3],
    /// Samples per batch, N.
    pub batch: usize,
    /// How far sub-views are shifted from the middle of their view.
    pub offset_rule: OffsetRule,
    /// Unit of the gap targets in voxels, per axis; one for the data set.
    pub gap_divisor: [f32; 3],
}

impl ViewOptions {
    /// # Panics
    /// If the tasks cannot work with the options: a configuration that was checked has none of these.
    pub fn assert_usable(&self) {
        assert!(geometry::sizes_fit(self.size, self.sub_size), "sizes of views: {self:?}");
        assert!((2..=MAX_VIEWS).contains(&self.count), "views of a sample: {self:?}");
        assert!(self.batch > 0, "samples of a batch: {self:?}");
        let units = self.gap_divisor.iter();
        assert!(units.clone().all(|&d| d.is_finite() && d > 0.0), "unit of gaps: {self:?}");
    }

    /// Voxels of one view.
    pub fn view_len(&self) -> usize {
        self.size.iter().product()
    }
}

/// Everything about one sample but its voxels. Places are voxels of the augmented frame unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SamplePlan {
    /// Number of the volume in the list of training or validation volumes.
    pub volume: usize,
    /// Where the random numbers of this sample are.
    #[serde(skip)]
    pub key: SampleKey,
    /// The augmented frame and its map to the voxels of the volume.
    pub geometry: Geometry,
    /// First voxel of each view, `[V]`.
    pub starts: Vec<[usize; 3]>,
    /// Centre of each view, `[V]`.
    pub centres: Vec<[i32; 3]>,
    /// Gap matrix in voxels, `[V][V]`.
    pub gap_voxels: Vec<[i32; 3]>,
    /// Gap matrix in units of the divisor, `[V][V]`: the target.
    pub gap: Vec<[f32; 3]>,
    /// First voxel of each sub-view inside its owning view, `[P][4]`; owners are [`geometry::owners`].
    pub boxes: Vec<[[i32; 3]; SUB_VIEWS]>,
    /// Intensity changes of each view, `[V]`.
    pub intensity: Vec<Intensity>,
}

impl SamplePlan {
    /// The plan of a training sample.
    ///
    /// Starts are uniform integers in `[0, L - S]` per axis, `L` the extent of the augmented frame, drawn view by view
    /// in the order (z, y, x). `volume` is the number of the volume with this extent and spacing (millimetres).
    pub fn training(
        key: SampleKey,
        volume: usize,
        scan: &Volume,
        views: &ViewOptions,
        augment: &AugmentOptions,
    ) -> SamplePlan {
        let intensity = (0..views.count).map(|v| augment.draw_intensity(key, v)).collect();
        let pose = augment.draw_pose(key);
        SamplePlan::new(key, Purpose::Start, volume, scan, views, pose, intensity)
    }

    /// The plan of validation sample `draw` of a volume: no augmentation, the same views in every run of this seed.
    pub fn validation(
        seed: u64,
        volume: usize,
        draw: u32,
        scan: &Volume,
        views: &ViewOptions,
    ) -> SamplePlan {
        let key = SampleKey { seed, step: volume as u64, sample: draw };
        let intensity = vec![Intensity::default(); views.count];
        SamplePlan::new(
            key,
            Purpose::ValidationStart,
            volume,
            scan,
            views,
            Pose::IDENTITY,
            intensity,
        )
    }

    fn new(
        key: SampleKey,
        purpose: Purpose,
        volume: usize,
        scan: &Volume,
        views: &ViewOptions,
        pose: Pose,
        intensity: Vec<Intensity>,
    ) -> SamplePlan {
        let geometry = Geometry::new(scan.extent, scan.spacing_mm, views.size, pose);
        let mut stream = key.shared(purpose);
        let mut start =
            || std::array::from_fn(|a| stream.below(geometry.frame[a] - views.size[a] + 1));
        let starts: Vec<[usize; 3]> = (0..views.count).map(|_| start()).collect();
        let centres: Vec<[i32; 3]> =
            starts.iter().map(|&s| geometry::centre(s, views.size)).collect();
        let gap_voxels = geometry::gap_matrix(&centres);
        let offsets = geometry::offsets(
            &gap_voxels,
            views.count,
            views.size,
            views.sub_size,
            views.offset_rule,
        );
        SamplePlan {
            volume,
            key,
            gap: geometry::normed_gap_matrix(&centres, views.gap_divisor),
            boxes: geometry::boxes(&offsets, views.count, views.size, views.sub_size),
            geometry,
            starts,
            centres,
            gap_voxels,
            intensity,
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::views::pose::sample_view;

    fn options(size: [usize; 3]) -> ViewOptions {
        ViewOptions {
            count: 3,
            size,
            sub_size: [2; 3],
            batch: 2,
            offset_rule: OffsetRule::Ray,
            gap_divisor: [10.0, 20.0, 30.0],
        }
    }

    fn scan(extent: [usize; 3], spacing_mm: [f64; 3]) -> Volume {
        let n: usize = extent.iter().product();
        let voxels = (0..n).map(|i| f16::from_f32((i % 1999) as f32 / 16.0)).collect();
        Volume { extent, spacing_mm, fill: -7.0, voxels }
    }

    fn key(step: u64) -> SampleKey {
        SampleKey { seed: 3, step, sample: 0 }
    }

    fn view(scan: &Volume, geometry: &Geometry, start: [usize; 3], size: [usize; 3]) -> Vec<f32> {
        let mut out = vec![f32::NAN; size.iter().product()];
        sample_view(scan, geometry, start, size, &mut out, &mut Vec::new());
        out
    }

    #[test]
    fn starts_are_uniform_and_reach_every_position() {
        let (scan, views) = (scan([9, 5, 14], [1.0; 3]), options([4, 4, 4]));
        let augment = AugmentOptions::default();
        let places = [6, 2, 11];
        let mut counts = [vec![0u32; 6], vec![0; 2], vec![0; 11]];
        let mut joint = vec![0u32; 6 * 2 * 11];
        let samples = 100_000u32;
        for step in 0..u64::from(samples) {
            let plan = SamplePlan::training(key(step), 0, &scan, &views, &augment);
            for s in &plan.starts {
                (0..3).for_each(|a| counts[a][s[a]] += 1);
                joint[(s[0] * 2 + s[1]) * 11 + s[2]] += 1;
            }
        }
        let draws = f64::from(samples) * 3.0;
        let check = |counts: &[u32]| {
            let mean = draws / counts.len() as f64;
            let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - mean).powi(2) / mean).sum();
            let freedom = counts.len() as f64 - 1.0;
            // 6 standard deviations: p about 1e-6 or less for these degrees of freedom.
            assert!(chi2 < freedom + 6.0 * (2.0 * freedom).sqrt() + 12.0, "{chi2} at {freedom}");
            assert!(counts.iter().all(|&c| c > 0));
        };
        counts.iter().zip(places).for_each(|(c, n)| {
            assert_eq!(c.len(), n);
            check(c);
        });
        check(&joint);
    }

    #[test]
    fn a_plan_is_a_function_of_its_key() {
        let (scan, views) = (scan([30, 20, 25], [1.0; 3]), options([8, 8, 8]));
        let augment = AugmentOptions { rotation_p: 1.0, ..AugmentOptions::default() };
        let plan = |key| SamplePlan::training(key, 4, &scan, &views, &augment);
        assert_eq!(plan(key(9)), plan(key(9)));
        assert_ne!(plan(key(9)).starts, plan(key(10)).starts);
        assert_ne!(plan(key(9)).starts, plan(SampleKey { sample: 1, ..key(9) }).starts);
        let off = AugmentOptions { enabled: false, ..augment.clone() };
        assert_eq!(
            SamplePlan::training(key(9), 4, &scan, &views, &off).starts,
            plan(key(9)).starts
        );
        let fixed = SamplePlan::validation(3, 4, 1, &scan, &views);
        assert_eq!(fixed, SamplePlan::validation(3, 4, 1, &scan, &views));
        assert_eq!(fixed.geometry.pose, Pose::IDENTITY);
        assert_ne!(fixed.starts, SamplePlan::validation(3, 5, 1, &scan, &views).starts);
        let c = &fixed.centres;
        assert_eq!(fixed.gap_voxels[1], std::array::from_fn(|a| c[1][a] - c[0][a]));
        assert_eq!(fixed.gap[1][2], c[1][2] as f32 / 30.0 - c[0][2] as f32 / 30.0);
    }

    #[test]
    fn identity_copies_voxels_exactly() {
        let scan = scan([11, 13, 17], [3.0, 0.7, 0.9]);
        let geometry = Geometry::new(scan.extent, scan.spacing_mm, [4, 6, 8], Pose::IDENTITY);
        let (start, size) = ([5, 2, 9], [4, 6, 8]);
        let found = view(&scan, &geometry, start, size);
        for (i, &value) in found.iter().enumerate() {
            let (z, y, x) = (i / 48 + 5, i / 8 % 6 + 2, i % 8 + 9);
            assert_eq!(value, scan.voxels[(z * 13 + y) * 17 + x].to_f32());
        }
    }

    #[test]
    fn mirroring_moves_voxels_exactly() {
        let scan = scan([11, 13, 17], [3.0, 0.7, 0.9]);
        let pose = Pose { mirror: [false, true, true], ..Pose::IDENTITY };
        let geometry = Geometry::new(scan.extent, scan.spacing_mm, [4; 3], pose);
        assert!(geometry.to_source.shift().is_none());
        let found = view(&scan, &geometry, [5, 2, 0], [4, 6, 8]);
        for (i, &value) in found.iter().enumerate() {
            let (z, y, x) = (i / 48 + 5, 12 - (i / 8 % 6 + 2), 16 - i % 8);
            assert_eq!(value, scan.voxels[(z * 13 + y) * 17 + x].to_f32());
        }
    }

    #[test]
    fn a_small_volume_is_padded_on_both_sides_with_its_fill() {
        let scan = scan([3, 8, 5], [1.0; 3]);
        let views = options([6, 4, 8]);
        let off = AugmentOptions { enabled: false, ..AugmentOptions::default() };
        for step in 0..50 {
            let plan = SamplePlan::training(key(step), 0, &scan, &views, &off);
            assert_eq!(plan.geometry.frame, [6, 8, 8]);
            assert!(plan.starts.iter().all(|s| s[0] == 0 && s[1] <= 4 && s[2] == 0));
            let found = view(&scan, &plan.geometry, plan.starts[0], views.size);
            for (i, &value) in found.iter().enumerate() {
                let (z, y, x) = (i / 32, i / 8 % 4 + plan.starts[0][1], i % 8);
                let inside = (1..4).contains(&z) && (1..6).contains(&x);
                let expected =
                    if inside { scan.voxels[((z - 1) * 8 + y) * 5 + x - 1].to_f32() } else { -7.0 };
                assert_eq!(value, expected, "{z} {y} {x}");
            }
        }
    }

    /// A ramp along each axis is reproduced by trilinear sampling, so a view of it reads the place it was taken from.
    #[test]
    fn voxels_come_from_where_the_map_says_in_every_view() {
        let extent = [40, 44, 48];
        let pose =
            Pose { rotation_deg: [20.0, -11.0, 7.0], scaling: 0.9, mirror: [true, false, false] };
        let spacing_mm = [2.0, 1.0, 0.8];
        let geometry = Geometry::new(extent, spacing_mm, [8; 3], pose);
        for axis in 0..3 {
            let at = |i: usize| [i / (44 * 48), i / 48 % 44, i % 48][axis] as f32;
            let voxels = (0..40 * 44 * 48).map(|i| f16::from_f32(at(i))).collect();
            let ramp = Volume { extent, spacing_mm, fill: 0.0, voxels };
            for start in [[16, 18, 20], [13, 16, 24], [20, 15, 17]] {
                for (i, &value) in view(&ramp, &geometry, start, [8; 3]).iter().enumerate() {
                    let place = [start[0] + i / 64, start[1] + i / 8 % 8, start[2] + i % 8];
                    let expected = geometry.to_source.apply(place.map(|p| p as f64))[axis];
                    // Places and values of this size round by at most 4e-6 in a handful of f32 operations.
                    assert!((f64::from(value) - expected).abs() < 2e-5, "{value} {expected}");
                }
            }
        }
    }

    #[test]
    fn poses_turn_the_volume_about_its_centre_in_millimetres() {
        let extent = [21, 31, 41];
        let spacing_mm = [4.0, 1.0, 2.0];
        let pose =
            Pose { rotation_deg: [30.0, -20.0, 10.0], scaling: 1.3, mirror: [false, true, false] };
        let map = Geometry::new(extent, spacing_mm, [8; 3], pose).to_source;
        let centre = map.apply([10.0, 15.0, 20.0]);
        for (found, expected) in centre.iter().zip([10.0, 15.0, 20.0]) {
            assert!((found - expected).abs() < 1e-12);
        }
        for step in [[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [2.0, -1.0, 5.0]] {
            let place = map.apply([10.0 + step[0], 15.0 + step[1], 20.0 + step[2]]);
            let length =
                |d: [f64; 3]| (0..3).map(|a| (d[a] * spacing_mm[a]).powi(2)).sum::<f64>().sqrt();
            let moved = length(std::array::from_fn(|a| place[a] - centre[a]));
            assert!((moved / length(step) - f64::from(1.3f32)).abs() < 1e-12);
        }
        let quarter = Pose { rotation_deg: [90.0, 0.0, 0.0], ..Pose::IDENTITY };
        let map = Geometry::new(extent, [1.0; 3], [8; 3], quarter).to_source;
        // About z only y and x change; the place right of the centre comes from in front of it.
        let place = map.apply([10.0, 15.0, 25.0]);
        assert!((place[0] - 10.0).abs() < 1e-12 && (place[1] - 20.0).abs() < 1e-12, "{place:?}");
        assert!((place[2] - 20.0).abs() < 1e-12, "{place:?}");
    }

    #[test]
    fn what_lies_outside_is_fill_and_a_constant_stays_constant() {
        let extent = [12, 10, 14];
        let voxels = vec![f16::from_f32(2.5); 12 * 10 * 14];
        let mut scan = Volume { extent, spacing_mm: [1.0; 3], fill: 2.5, voxels };
        let pose = Pose { rotation_deg: [30.0, 30.0, -30.0], scaling: 1.4, mirror: [false; 3] };
        let geometry = Geometry::new(extent, scan.spacing_mm, [8; 3], pose);
        assert!(view(&scan, &geometry, [0, 0, 0], extent).iter().all(|&v| v == 2.5));
        scan.fill = -1.0;
        let found = view(&scan, &geometry, [0, 0, 0], extent);
        assert_eq!(found[0], -1.0, "a corner of a volume turned and shrunk lies outside");
        assert!(found.contains(&2.5) && found.iter().all(|v| (-1.0..=2.5).contains(v)));
        let far = Geometry {
            to_source: crate::views::pose::AffineMap { matrix: [[1e30, 0.5, 0.0, 3e38]; 3] },
            ..geometry
        };
        assert!(view(&scan, &far, [0, 0, 0], [4; 3]).iter().all(|&v| v == -1.0));
    }
}
