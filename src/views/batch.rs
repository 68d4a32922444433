//! One batch: the views of its samples, in the layout the step reads, and the plans that the tasks' targets follow
//! from.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::Volume;
use crate::random::philox::Purpose;
use crate::views::intensity::{FilterScratch, apply};
use crate::views::plan::{SamplePlan, ViewOptions};
use crate::views::pose::sample_view;

/// Views and plans of the samples of one step. Buffers keep their memory from batch to batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The step this batch belongs to.
    pub step: u64,
    /// Voxels, `[V][N][Sz][Sy][Sx]`: all first views, then all second views.
    pub views: Vec<f32>,
    /// What was done to make each sample, and what its targets follow from, `[N]`.
    pub samples: Vec<SamplePlan>,
    /// The samples' volumes, `[N]`, if the views are cut elsewhere, by the plans; `views` is then empty.
    pub volumes: Vec<Arc<Volume>>,
}

/// Memory for the intermediate results of [`Batch::push`], kept between calls.
#[derive(Debug, Default)]
pub struct BatchScratch {
    block: Vec<f32>,
    filter: FilterScratch,
}

impl Batch {
    /// Empties the batch and makes room for the samples of `step`.
    pub fn begin(&mut self, step: u64, options: &ViewOptions) {
        self.step = step;
        self.views.resize(options.count * options.batch * options.view_len(), 0.0);
        self.samples.clear();
        self.volumes.clear();
    }

    /// Adds a sample whose views are cut elsewhere: its plan and its volume.
    ///
    /// # Errors
    /// [`Error::Data`] if the volume is malformed or not finite; the batch must then be begun again.
    ///
    /// # Panics
    /// If the batch is full.
    pub fn push_plan(
        &mut self,
        plan: SamplePlan,
        scan: Arc<Volume>,
        options: &ViewOptions,
    ) -> Result<()> {
        assert!(self.samples.len() < options.batch, "a batch holds {} samples", options.batch);
        check_volume(plan.volume, &scan)?;
        // Exponent bits, all set: what is_finite looks at, in a loop that vectorises.
        const EXPONENT: u16 = 0x7c00;
        let finite = |all: bool, v: &half::f16| all & (v.to_bits() & EXPONENT != EXPONENT);
        if !scan.voxels.iter().fold(true, finite) {
            return Err(unusable(plan.volume, "it holds values that are not finite"));
        }
        self.views.clear();
        self.volumes.push(scan);
        self.samples.push(plan);
        Ok(())
    }

    /// Carries out a plan on the volume it was made for, as the next sample of the batch.
    ///
    /// # Errors
    /// [`Error::Data`] if the volume is malformed or a view is not finite; the batch must then be begun again.
    ///
    /// # Panics
    /// If the batch is full, or was begun with other options.
    pub fn push(
        &mut self,
        plan: SamplePlan,
        scan: &Volume,
        options: &ViewOptions,
        scratch: &mut BatchScratch,
    ) -> Result<()> {
        let (n, len) = (self.samples.len(), options.view_len());
        assert!(n < options.batch, "a batch holds {} samples", options.batch);
        assert_eq!(self.views.len(), options.count * options.batch * len, "begin the batch first");
        check_volume(plan.volume, scan)?;
        for (v, &start) in plan.starts.iter().enumerate() {
            let view = &mut self.views[(v * options.batch + n) * len..][..len];
            sample_view(scan, &plan.geometry, start, options.size, view, &mut scratch.block);
            if !view.iter().fold(true, |finite, value| finite & value.is_finite()) {
                return Err(unusable(plan.volume, "it holds values that are not finite"));
            }
            let noise = plan.key.view(v, Purpose::NoiseField);
            apply(&plan.intensity[v], &noise, options.size, view, &mut scratch.filter);
        }
        self.samples.push(plan);
        Ok(())
    }

    /// The voxels of all views, `[V][N][Sz][Sy][Sx]`; none if they are cut elsewhere.
    pub fn voxels(&self) -> Option<&[f32]> {
        self.volumes.is_empty().then_some(&self.views)
    }

    /// Voxels of view `v` of sample `n`, x fastest.
    ///
    /// # Panics
    /// If there is no such view.
    pub fn view(&self, v: usize, n: usize, options: &ViewOptions) -> &[f32] {
        assert!(v < options.count && n < options.batch, "there is no view {v} of sample {n}");
        &self.views[(v * options.batch + n) * options.view_len()..][..options.view_len()]
    }
}

/// Refuses volumes whose sizes contradict each other.
fn check_volume(number: usize, scan: &Volume) -> Result<()> {
    let [z, y, x] = scan.extent;
    let places = z.checked_mul(y).and_then(|n| n.checked_mul(x));
    if places != Some(scan.voxels.len()) || scan.voxels.is_empty() {
        let what =
            format!("extent {:?} does not fit its {} voxels", scan.extent, scan.voxels.len());
        return Err(unusable(number, &what));
    }
    if scan.extent.iter().any(|&n| n > 1 << 24) {
        return Err(unusable(
            number,
            &format!("extent {:?} is beyond 2^24 voxels on an axis", scan.extent),
        ));
    }
    if scan.spacing_mm.iter().any(|&s| !(s.is_finite() && s > 0.0)) {
        let what = format!("spacing {:?} mm is not three positive numbers", scan.spacing_mm);
        return Err(unusable(number, &what));
    }
    Ok(())
}

/// The error for volume `number` of the list.
pub(super) fn unusable(number: usize, what: &str) -> Error {
    Error::data(format!("volume number {number} of the list"), what)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::random::philox::SampleKey;
    use crate::views::augment::AugmentOptions;
    use crate::views::geometry;
    use crate::views::geometry::OffsetRule;
    use crate::views::pose::Pose;

    fn options() -> ViewOptions {
        ViewOptions {
            count: 3,
            size: [8, 6, 10],
            sub_size: [4, 2, 4],
            batch: 2,
            offset_rule: OffsetRule::Ray,
            gap_divisor: [16.0; 3],
        }
    }

    fn scan() -> Volume {
        let voxels = (0..20 * 24 * 22).map(|i| f16::from_f32((i % 2011) as f32 / 8.0)).collect();
        Volume { extent: [20, 24, 22], spacing_mm: [2.0, 1.0, 1.0], fill: 0.0, voxels }
    }

    fn all_on() -> AugmentOptions {
        AugmentOptions {
            rotation_p: 1.0,
            scaling_p: 1.0,
            noise_p: 1.0,
            blur_p: 1.0,
            brightness_p: 1.0,
            contrast_p: 1.0,
            low_resolution_p: 1.0,
            gamma_inverted_p: 1.0,
            gamma_p: 1.0,
            ..AugmentOptions::default()
        }
    }

    fn make(augment: &AugmentOptions, batch: &mut Batch) {
        let (scan, options) = (scan(), options());
        batch.begin(6, &options);
        for sample in 0..2 {
            let key = SampleKey { seed: 1, step: 6, sample };
            let plan = SamplePlan::training(key, 5, &scan, &options, augment);
            batch.push(plan, &scan, &options, &mut BatchScratch::default()).unwrap();
        }
    }

    #[test]
    fn layout_is_views_then_samples() {
        let (scan, options) = (scan(), options());
        let mut batch = Batch::default();
        make(&AugmentOptions { enabled: false, ..AugmentOptions::default() }, &mut batch);
        assert_eq!((batch.views.len(), batch.samples.len()), (3 * 2 * 480, 2));
        for (n, plan) in batch.samples.iter().enumerate() {
            for v in 0..3 {
                let [z, y, x] = plan.starts[v];
                let first = scan.voxels[(z * 24 + y) * 22 + x].to_f32();
                assert_eq!(batch.views[(v * 2 + n) * 480], first);
                assert_eq!(batch.view(v, n, &options)[0], first);
            }
            let gap: Vec<f32> =
                (0..3).map(|a| (plan.centres[2][a] - plan.centres[1][a]) as f32 / 16.0).collect();
            assert_eq!(plan.gap[5][..], gap);
            let offsets = geometry::offsets(
                &plan.gap_voxels,
                3,
                options.size,
                options.sub_size,
                OffsetRule::Ray,
            );
            // Pair (0, 2), third box: view 0, distant.
            let start: Vec<i32> = (0..3)
                .map(|a| ((options.size[a] - options.sub_size[a]) / 2) as i32 - offsets[2][a])
                .collect();
            assert_eq!(plan.boxes[1][2][..], start);
        }
    }

    #[test]
    fn a_used_batch_gives_the_same_bits_as_a_new_one() {
        let (mut fresh, mut used) = (Batch::default(), Batch::default());
        make(&all_on(), &mut fresh);
        make(&AugmentOptions::default(), &mut used);
        let memory = used.views.as_ptr();
        make(&all_on(), &mut used);
        assert_eq!(used, fresh);
        assert_eq!(used.views.as_ptr(), memory);
        assert!(fresh.views.iter().all(|v| v.is_finite()));
    }

    /// Two views that overlap see the same voxels at the same places, whatever the pose.
    #[test]
    fn gaps_are_exact_in_the_augmented_frame() {
        let (scan, options) = (scan(), options());
        let pose =
            Pose { rotation_deg: [25.0, -10.0, 15.0], scaling: 1.2, mirror: [false, false, true] };
        let mut plan = SamplePlan::validation(1, 0, 0, &scan, &options);
        plan.geometry =
            crate::views::pose::Geometry::new(scan.extent, scan.spacing_mm, options.size, pose);
        plan.starts = vec![[5, 9, 4], [7, 8, 7], [5, 9, 4]];
        let mut batch = Batch::default();
        batch.begin(0, &options);
        batch.push(plan, &scan, &options, &mut BatchScratch::default()).unwrap();
        let (a, b) = (batch.view(0, 0, &options), batch.view(1, 0, &options));
        let mut compared = 0;
        for (i, &value) in a.iter().enumerate() {
            let (z, y, x) = ((i / 60) as i32 - 2, (i / 10 % 6) as i32 + 1, (i % 10) as i32 - 3);
            if (0..8).contains(&z) && (0..6).contains(&y) && (0..10).contains(&x) {
                let other = b[((z * 6 + y) * 10 + x) as usize];
                // Places differ by rounding, 2e-6 voxels, and neighbours by up to 250.
                assert!((value - other).abs() < 1e-2, "{value} {other}");
                compared += 1;
            }
        }
        assert_eq!(compared, 6 * 5 * 7);
    }

    #[test]
    fn malformed_volumes_are_refused_by_number() {
        let options = options();
        let refuse = |scan: Volume| {
            let mut batch = Batch::default();
            batch.begin(0, &options);
            let plan = SamplePlan::validation(1, 17, 0, &scan, &options);
            let error =
                batch.push(plan, &scan, &options, &mut BatchScratch::default()).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            error.to_string()
        };
        let short = Volume { voxels: vec![f16::ONE; 3], ..scan() };
        assert!(refuse(short).contains("volume number 17"));
        let flat = Volume { spacing_mm: [1.0, 0.0, 1.0], ..scan() };
        assert!(refuse(flat).contains("spacing [1.0, 0.0, 1.0]"));
        let none = Volume { extent: [0; 3], voxels: Vec::new(), ..scan() };
        assert!(refuse(none).contains("extent [0, 0, 0]"));
        let broken = Volume { voxels: vec![f16::NAN; 20 * 24 * 22], ..scan() };
        assert!(refuse(broken).contains("not finite"));
    }
}
