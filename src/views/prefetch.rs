//! Makes batches ahead of the training loop on other threads.
//!
//! The batch of step `k` is a function of (seed, k) alone: which thread makes it, how many there are and where a run
//! was resumed change nothing, and there is no state to save.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::image::Volume;
use crate::random::philox::{Purpose, SampleKey};
use crate::views::augment::AugmentOptions;
use crate::views::batch::{Batch, BatchScratch, unusable};
use crate::views::plan::{SamplePlan, ViewOptions};

/// Gives the volume of a number in the list of training volumes. Called from several threads.
pub type VolumeSource = Arc<dyn Fn(usize) -> Result<Arc<Volume>> + Send + Sync>;

/// What batches are made of, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefetchOptions {
    /// Number of training volumes.
    pub volumes: usize,
    /// How views are cut.
    pub views: ViewOptions,
    /// What is done to them.
    pub augment: AugmentOptions,
    /// Seed of the run.
    pub seed: u64,
    /// The first step to make a batch for.
    pub first_step: u64,
    /// Threads that make batches, at least 1.
    pub threads: usize,
    /// Most batches made or being made before they are asked for, at least 1.
    pub depth: usize,
    /// Whether views are cut elsewhere: batches then hold plans and volumes.
    pub plans_only: bool,
}

/// A volume that a batch to come needs.
#[derive(Clone, Debug)]
pub struct Upcoming {
    /// The step of the batch.
    pub step: u64,
    /// The volume's number in the list of training volumes.
    pub number: usize,
    /// The volume.
    pub volume: Arc<Volume>,
}

/// A running supply of batches in the order of the steps. Dropping it ends its threads.
pub struct Prefetch {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    wait_ms: f64,
}

struct Shared {
    options: PrefetchOptions,
    source: VolumeSource,
    state: Mutex<State>,
    /// Signalled when a batch is ready.
    ready: Condvar,
    /// Signalled when there is room for another batch, or the work ends.
    capacity: Condvar,
}

struct State {
    /// The next step that no thread works on.
    unclaimed: u64,
    /// The next step to hand out.
    next_step: u64,
    done: BTreeMap<u64, Result<Batch>>,
    spare: Vec<Batch>,
    stop: bool,
}

impl Prefetch {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Config`] without volumes, or when a thread cannot be started.
    ///
    /// # Panics
    /// If the options make no batches.
    pub fn start(source: VolumeSource, options: PrefetchOptions) -> Result<Prefetch> {
        options.views.assert_usable();
        assert!(options.threads > 0 && options.depth > 0, "no batches are made: {options:?}");
        let first = options.first_step;
        assert!(first < 1 << 47, "random numbers are addressed by less than 2^47 steps");
        if options.volumes == 0 {
            return Err(Error::config("data", "there are no training volumes: list at least one"));
        }
        let threads = options.threads;
        let state = State {
            unclaimed: first,
            next_step: first,
            done: BTreeMap::new(),
            spare: Vec::new(),
            stop: false,
        };
        let shared = Arc::new(Shared {
            options,
            source,
            state: Mutex::new(state),
            ready: Condvar::new(),
            capacity: Condvar::new(),
        });
        let mut prefetch = Prefetch { shared, workers: Vec::new(), wait_ms: 0.0 };
        for number in 0..threads {
            let shared = Arc::clone(&prefetch.shared);
            let builder = std::thread::Builder::new().name(format!("batch-{number}"));
            let worker = builder.spawn(move || shared.work()).map_err(|e| {
                let why =
                    format!("thread {number} of {threads} cannot be started: {e}\n  use fewer");
                Error::config("data.loader_threads", why)
            })?;
            prefetch.workers.push(worker);
        }
        Ok(prefetch)
    }

    /// The batch of the next step, waiting for it if need be.
    ///
    /// # Errors
    /// What went wrong while it was made, a panic included, naming the volume. The step is then spent: the next call
    /// gives the batch of the step after.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let asked = Instant::now();
        let mut state = self.shared.lock();
        let batch = loop {
            let next_step = state.next_step;
            match state.done.remove(&next_step) {
                Some(batch) => break batch,
                None => {
                    state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
            }
        };
        state.next_step += 1;
        drop(state);
        self.shared.capacity.notify_one();
        self.wait_ms = asked.elapsed().as_secs_f64() * 1e3;
        batch
    }

    /// Volumes of the batches without views that are ready now, in order. How many there are depends on time.
    pub fn upcoming(&self) -> Vec<Upcoming> {
        let state = self.shared.lock();
        let ready = (state.next_step..).map_while(|step| state.done.get(&step)).flatten();
        ready
            .flat_map(|batch| {
                let pairs = batch.samples.iter().zip(&batch.volumes);
                pairs.map(|(plan, volume)| Upcoming {
                    step: batch.step,
                    number: plan.volume,
                    volume: Arc::clone(volume),
                })
            })
            .collect()
    }

    /// Gives back a used batch, so that its memory serves another.
    pub fn recycle(&mut self, batch: Batch) {
        let mut state = self.shared.lock();
        if state.spare.len() < self.shared.options.depth {
            state.spare.push(batch);
        }
    }

    /// How long the last call of [`Prefetch::next_batch`] waited, in milliseconds.
    pub fn wait_ms(&self) -> f64 {
        self.wait_ms
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.capacity.notify_all();
        for worker in self.workers.drain(..) {
            // A panic of a worker was reported as the error of its step.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The state; a panic elsewhere leaves it consistent, since no step of ours can fail while holding it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes batches until told to stop.
    fn work(&self) {
        let mut order = VolumeOrder::new(self.options.seed, self.options.volumes);
        let mut scratch = BatchScratch::default();
        while let Some((step, mut batch)) = self.claim() {
            let mut current = 0;
            let make = || self.make(step, &mut batch, &mut order, &mut scratch, &mut current);
            let result = match catch_unwind(AssertUnwindSafe(make)) {
                Ok(made) => made.map(|()| batch),
                Err(panic) => {
                    // What the panic interrupted may be half done.
                    order = VolumeOrder::new(self.options.seed, self.options.volumes);
                    scratch = BatchScratch::default();
                    let what =
                        format!("internal error at step {step}: {}", panic_text(panic.as_ref()));
                    Err(unusable(current, &what))
                }
            };
            self.lock().done.insert(step, result);
            self.ready.notify_all();
        }
    }

    /// Waits for room, then takes the next step and a batch to fill; `None` when the work ends.
    fn claim(&self) -> Option<(u64, Batch)> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            if state.unclaimed - state.next_step < self.options.depth as u64 {
                let step = state.unclaimed;
                state.unclaimed += 1;
                return Some((step, state.spare.pop().unwrap_or_default()));
            }
            state = self.capacity.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes the batch of a step; `current` is the volume being worked on.
    fn make(
        &self,
        step: u64,
        batch: &mut Batch,
        order: &mut VolumeOrder,
        scratch: &mut BatchScratch,
        current: &mut usize,
    ) -> Result<()> {
        let PrefetchOptions { views, augment, seed, .. } = &self.options;
        batch.begin(step, views);
        for sample in 0..views.batch {
            *current = order.volume(u128::from(step) * views.batch as u128 + sample as u128);
            let scan = (self.source)(*current).map_err(|e| match e {
                Error::Data { .. } => e,
                other => unusable(*current, &other.to_string()),
            })?;
            let key = SampleKey { seed: *seed, step, sample: sample as u32 };
            let plan = SamplePlan::training(key, *current, &scan, views, augment);
            if self.options.plans_only {
                batch.push_plan(plan, scan, views)?;
            } else {
                batch.push(plan, &scan, views, scratch)?;
            }
        }
        Ok(())
    }
}

/// The order volumes are used in: one seeded permutation per epoch, all of them once each.
struct VolumeOrder {
    seed: u64,
    epoch: Option<u64>,
    table: Vec<usize>,
}

impl VolumeOrder {
    fn new(seed: u64, volumes: usize) -> Self {
        VolumeOrder { seed, epoch: None, table: vec![0; volumes] }
    }

    /// The volume of the sample with this running number over the whole run.
    fn volume(&mut self, sample: u128) -> usize {
        let volumes = self.table.len();
        // The low 48 bits of an epoch number are its address; no run comes near 2^48 epochs.
        let epoch = (sample / volumes as u128) as u64 & ((1 << 48) - 1);
        if self.epoch != Some(epoch) {
            self.table.iter_mut().enumerate().for_each(|(i, v)| *v = i);
            let mut stream =
                SampleKey { seed: self.seed, step: epoch, sample: 0 }.shared(Purpose::VolumeOrder);
            for i in (1..volumes).rev() {
                self.table.swap(i, stream.below(i + 1));
            }
            self.epoch = Some(epoch);
        }
        self.table[(sample % volumes as u128) as usize]
    }
}

/// The message of a panic.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use half::f16;

    use super::*;
    use crate::views::geometry::OffsetRule;

    fn options(threads: usize, first_step: u64) -> PrefetchOptions {
        let views = ViewOptions {
            count: 3,
            size: [8; 3],
            sub_size: [4; 3],
            batch: 2,
            offset_rule: OffsetRule::Ray,
            gap_divisor: [16.0; 3],
        };
        let augment = AugmentOptions {
            rotation_p: 0.5,
            noise_p: 0.5,
            blur_p: 0.5,
            low_resolution_p: 0.5,
            gamma_p: 0.5,
            ..AugmentOptions::default()
        };
        PrefetchOptions {
            volumes: 7,
            views,
            augment,
            seed: 42,
            first_step,
            threads,
            depth: 4,
            plans_only: false,
        }
    }

    fn volume(number: usize) -> Volume {
        let extent = [12 + number, 14, 10];
        let n = extent.iter().product();
        let voxels =
            (0..n).map(|i| f16::from_f32(((i * (number + 3)) % 97) as f32 / 8.0)).collect();
        Volume { extent, spacing_mm: [2.0, 1.0, 1.0], fill: 0.0, voxels }
    }

    fn source() -> VolumeSource {
        Arc::new(|number| Ok(Arc::new(volume(number))))
    }

    fn batches(options: PrefetchOptions, count: usize) -> Vec<Batch> {
        let mut prefetch = Prefetch::start(source(), options).unwrap();
        let take = |_| {
            let batch = prefetch.next_batch().unwrap();
            prefetch.recycle(batch.clone());
            batch
        };
        (0..count).map(take).collect()
    }

    #[test]
    fn threads_and_resuming_change_no_bit() {
        let one = batches(options(1, 0), 12);
        assert_eq!(one.iter().map(|b| b.step).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
        assert_eq!(batches(options(3, 0), 12), one);
        assert_eq!(batches(options(2, 5), 7), one[5..]);
        assert_eq!(batches(PrefetchOptions { depth: 1, ..options(3, 11) }, 1), one[11..]);
        let plans = batches(PrefetchOptions { plans_only: true, ..options(2, 5) }, 7);
        for (plan, whole) in plans.iter().zip(&one[5..]) {
            assert_eq!(plan.samples, whole.samples);
            assert!(plan.views.is_empty() && whole.volumes.is_empty());
            let volumes: Vec<Volume> = plan.samples.iter().map(|s| volume(s.volume)).collect();
            assert_eq!(plan.volumes.iter().map(|v| (**v).clone()).collect::<Vec<_>>(), volumes);
        }
        assert_ne!(batches(PrefetchOptions { seed: 43, ..options(1, 0) }, 1), one[..1]);
    }

    #[test]
    fn volumes_of_batches_to_come_are_those_of_the_next_batches() {
        let failing: VolumeSource = Arc::new(|number| match number {
            4 => Err(Error::data("scan-4.nii.gz", "truncated")),
            _ => Ok(Arc::new(volume(number))),
        });
        let plans = PrefetchOptions { plans_only: true, ..options(3, 0) };
        let mut prefetch = Prefetch::start(failing, plans).unwrap();
        for step in 0..8u64 {
            // All that may be made ahead is made.
            while prefetch.shared.lock().done.len() < 4 {
                std::thread::yield_now();
            }
            let upcoming = prefetch.upcoming();
            assert!(upcoming.iter().all(|u| *u.volume == volume(u.number)));
            let mut order = VolumeOrder::new(42, 7);
            let mut pair = |s: u64| [2 * s, 2 * s + 1].map(|n| (s, order.volume(u128::from(n))));
            let steps = (step..step + 4).map(&mut pair);
            let good = steps.filter(|two| two.iter().all(|(_, number)| *number != 4));
            assert!(upcoming.iter().map(|u| (u.step, u.number)).eq(good.flatten()), "{step}");
            let _ = prefetch.next_batch();
        }
        let whole = Prefetch::start(source(), options(1, 0)).unwrap();
        while whole.shared.lock().done.len() < 4 {
            std::thread::yield_now();
        }
        assert!(whole.upcoming().is_empty(), "views are there: nobody needs the volumes");
    }

    #[test]
    fn volumes_are_used_equally_often_in_a_changing_order() {
        let made = batches(options(2, 0), 21);
        let order: Vec<usize> =
            made.iter().flat_map(|b| b.samples.iter().map(|s| s.volume)).collect();
        let mut epochs: Vec<Vec<usize>> = order.chunks(7).map(<[usize]>::to_vec).collect();
        assert!(epochs.windows(2).any(|two| two[0] != two[1]));
        epochs.iter_mut().for_each(|epoch| epoch.sort_unstable());
        assert!(epochs.iter().all(|epoch| epoch[..] == [0, 1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn every_volume_comes_first_equally_often() {
        let mut order = VolumeOrder::new(9, 5);
        let mut first = [0u32; 5];
        (0..20_000u128).for_each(|epoch| first[order.volume(epoch * 5)] += 1);
        let chi2: f64 = first.iter().map(|&c| (f64::from(c) - 4000.0).powi(2) / 4000.0).sum();
        // Four degrees of freedom: p < 1e-6 beyond 33.4.
        assert!(chi2 < 33.4, "{chi2}");
    }

    #[test]
    fn errors_name_the_volume_and_do_not_end_the_supply() {
        let failing: VolumeSource = Arc::new(|number| match number {
            2 => Err(Error::Device("the disk is gone".into())),
            4 => Err(Error::data("scan-4.nii.gz", "truncated")),
            5 => panic!("a bug at {number}"),
            _ => Ok(Arc::new(volume(number))),
        });
        let mut prefetch = Prefetch::start(failing, options(3, 0)).unwrap();
        let (mut good, mut messages) = (0, Vec::new());
        for _ in 0..21 {
            match prefetch.next_batch() {
                Ok(batch) => {
                    assert!(batch.samples.iter().all(|s| ![2, 4, 5].contains(&s.volume)));
                    good += 1;
                }
                Err(e) => messages.push(e.to_string()),
            }
        }
        let has = |parts: [&str; 2]| messages.iter().any(|m| parts.iter().all(|p| m.contains(p)));
        assert!(has(["volume number 2", "the disk is gone"]), "{messages:?}");
        assert!(has(["scan-4.nii.gz", "truncated"]), "{messages:?}");
        assert!(has(["volume number 5", "a bug at 5"]), "{messages:?}");
        assert!(good > 0);
    }

    #[test]
    fn work_ahead_is_bounded_and_ends_with_the_supply() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let source: VolumeSource = Arc::new(move |number| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(Arc::new(volume(number)))
        });
        let mut prefetch = Prefetch::start(source, options(3, 0)).unwrap();
        let first = prefetch.next_batch().unwrap();
        assert_eq!(first.step, 0);
        assert!(prefetch.wait_ms() > 0.0);
        std::thread::sleep(std::time::Duration::from_millis(100));
        // Four steps ahead of step 1, two samples each, and step 0 itself.
        assert!(calls.load(Ordering::SeqCst) <= 10);
        drop(prefetch);
        assert_eq!(Arc::strong_count(&calls), 1, "all threads have ended");
    }

    #[test]
    fn a_data_set_without_volumes_is_refused() {
        let made = Prefetch::start(source(), PrefetchOptions { volumes: 0, ..options(1, 0) });
        let said = made.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.starts_with("data: there are no"), "{said}");
    }
}
