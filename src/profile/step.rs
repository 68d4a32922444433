//! Where the time of a training step goes: per kernel on a GPU, per operation on the CPU, beside what the device can do
//! at most.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::backend::cuda::{Repeats, Timed};
use crate::config::Config;
use crate::driver::{Counts, Device, counts};
use crate::error::Result;
use crate::image::Volume;
use crate::model::initial_value;
use crate::ops::{Pass, SCALARS, scalar};
use crate::profile::roofs::{Effort, Least, Roof, Roofs, measure_roofs, wgmma_roof};
use crate::session::{Model, Target, view_options};
use crate::tape::{CudaStep, Executor, Init, Step, Tape};
use crate::views::SamplePlan;

/// Steps before the first that is measured.
const WARM_UP: usize = 2;

/// What was measured of one kernel, or of one operation in one pass.
#[derive(Clone, Debug, Default)]
pub struct ProfileRow {
    /// The kernel's name, or the operation's with its pass.
    pub name: String,
    /// Launches in a step.
    pub calls: f64,
    /// Milliseconds in a step: on a GPU of launches repeated in a row, whose data stays in the cache if it fits. 0 if
    /// `lost`.
    pub ms: f64,
    /// The same with nothing in the cache before each launch, where that was measured.
    pub cold_ms: Option<f64>,
    /// Launches in a row of which the time of one was taken: the fewest.
    pub repeats: Option<usize>,
    /// Why there is no time, if one of its launches could not be timed.
    pub lost: Option<String>,
    /// Additions and multiplications in a step.
    pub flops: f64,
    /// Bytes that have to be moved in a step at least.
    pub bytes: f64,
    /// Counts per step, where the driver counts.
    pub counts: Option<Counts>,
}

/// A measured step.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// What computed it.
    pub device: String,
    /// Steps measured.
    pub steps: usize,
    /// Milliseconds of a step as training runs it.
    pub step_ms: f64,
    /// Launches of the graph that a step replays, if it does.
    pub graph_nodes: Option<usize>,
    /// Bytes of memory in all.
    pub memory: usize,
    /// The roofs; none on the CPU and where the driver counts instead of computing in parallel.
    pub roofs: Option<Roofs>,
    /// Rows, the longest first.
    pub rows: Vec<ProfileRow>,
    /// What else could not be measured, and why.
    pub notes: Vec<String>,
}

/// A share of a roof: of the time that the roof takes at least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// The roof.
    pub roof: Roof,
    /// The part, 1 for a kernel that cannot be faster.
    pub part: f64,
}

impl ProfileRow {
    /// Share of the nearer roof of memory and `mma.sync`.
    pub fn share(&self, roofs: &Roofs) -> Option<Share> {
        self.share_of(roofs.nearer(self.flops, self.bytes))
    }

    /// Share of the nearer roof of memory and `wgmma`, on devices that have it.
    pub fn share_by_wgmma(&self, roofs: &Roofs) -> Option<Share> {
        self.share_of(roofs.nearer_by_wgmma(self.flops, self.bytes)?)
    }

    /// What comes from the cache says nothing about memory: there the cold time counts, where there is one.
    fn share_of(&self, least: Least) -> Option<Share> {
        let cold = self.cold_ms.filter(|_| least.roof == Roof::Memory);
        let ms = cold.unwrap_or(self.ms);
        (least.ms > 0.0 && ms > 0.0).then(|| Share { roof: least.roof, part: least.ms / ms })
    }
}

impl Profile {
    /// Milliseconds of all rows together.
    pub fn rows_ms(&self) -> f64 {
        self.rows.iter().map(|row| row.ms).sum()
    }

    /// The same from an empty cache, if every row that has a time has that too.
    pub fn rows_cold_ms(&self) -> Option<f64> {
        self.rows.iter().filter(|row| row.lost.is_none()).map(|row| row.cold_ms).sum()
    }
}

/// Measures `steps` training steps of the program that `config` describes, on random numbers.
///
/// # Errors
/// [`crate::Error::Config`] if sizes do not fit, [`crate::Error::Device`] if the device fails.
pub fn profile(config: &Config, target: Target, steps: usize) -> Result<Profile> {
    let mut model = Model::new(config, target)?;
    feed(&mut model, config)?;
    let steps = steps.max(1);
    let step_ms = whole_steps(&mut model.step, steps)?;
    let (plan, unit) = model.step.plan();
    let (tape, memory) = (&model.program.tape, plan.len * unit);
    let mut measured = Profile { steps, step_ms, memory, ..Profile::default() };
    match &mut model.step {
        Executor::Cpu { step, .. } => {
            let threads = rayon::current_num_threads();
            measured.device = format!("CPU, {threads} threads");
            measured.rows = cpu_rows(tape, step, steps);
        }
        Executor::Cuda(step) => on_device(step, &mut measured)?,
    }
    measured.rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok(measured)
}

/// Rows and roofs on a device. What may make it unusable comes last.
fn on_device(step: &mut CudaStep, measured: &mut Profile) -> Result<()> {
    measured.device = step.queue().device.name.clone();
    measured.graph_nodes = step.graph_nodes();
    measured.rows = cuda_rows(step, &mut measured.notes)?;
    if measured.rows.iter().any(|row| row.counts.is_some()) {
        return Ok(());
    }
    let device = &step.queue().device;
    match measure_roofs(device, Effort::FULL) {
        Ok(roofs) => {
            let wgmma = wgmma_roof(device, Effort::FULL);
            measured.roofs = Some(Roofs { wgmma, ..roofs });
        }
        Err(why) => measured.notes.push(format!("the roofs were not measured: {why}")),
    }
    Ok(())
}

/// Random views, and the targets of views of an empty volume: every step does the work of a training step.
fn feed(model: &mut Model, config: &Config) -> Result<()> {
    let Model { program, step, .. } = model;
    for (k, &id) in program.images.iter().enumerate() {
        let len = program.tape.shape(id).len();
        step.write(id, &initial_value(config.run.seed, k as u32, Init::Normal { std: 1.0 }, len))?;
    }
    let mut views = view_options(config, [1.0; 3]);
    // A unit that follows from data is not known here.
    views.gap_divisor = views.gap_divisor.map(|unit| if unit > 0.0 { unit } else { 32.0 });
    let extent = views.size.map(|n| n + 32);
    let voxels = vec![half::f16::ZERO; extent.iter().product()];
    let volume = Volume { extent, spacing_mm: [1.0; 3], fill: 0.0, voxels };
    let sample = |n| SamplePlan::validation(config.run.seed, 0, n as u32, &volume, &views);
    let samples: Vec<SamplePlan> = (0..views.batch).map(sample).collect();
    for (target, id) in &program.targets {
        let mut values = Vec::new();
        target.fill(&samples, &mut values);
        step.write(*id, &values)?;
    }
    // A small step of an optimiser that has run for a while: the weights stay near their start however many steps are
    // measured.
    let mut scalars = [1e-4f32; SCALARS];
    (scalars[scalar::BIAS1], scalars[scalar::BIAS2]) = (1.0, 1.0);
    step.write(program.update.scalars, &scalars)
}

/// Milliseconds of a step, submitted and collected as in training.
fn whole_steps(step: &mut Executor, steps: usize) -> Result<f64> {
    let mut run = |count: usize| -> Result<f64> {
        let begun = Instant::now();
        for _ in 0..count {
            step.submit()?;
            if !step.can_submit() {
                step.collect()?;
            }
        }
        while step.collect()? {}
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    };
    run(WARM_UP + 1)?;
    Ok(run(steps)? / steps as f64)
}

/// One row per operation and pass, each record timed on its own.
fn cpu_rows(tape: &Tape, step: &mut Step<f32>, steps: usize) -> Vec<ProfileRow> {
    let mut rows: BTreeMap<String, ProfileRow> = BTreeMap::new();
    for _ in 0..steps {
        for (at, record) in tape.records().iter().enumerate() {
            let begun = Instant::now();
            step.run_range(at..at + 1);
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            let pass = if record.pass == Pass::Forward { "forward" } else { "backward" };
            let name = format!("{} {pass}", record.op.rule().name());
            let written = record.writes.iter().flatten().map(|write| write.to);
            let operands = record.reads.iter().copied().chain(written);
            let row = rows.entry(name.clone()).or_default();
            row.name = name;
            row.calls += 1.0;
            row.ms += ms;
            row.flops += record.flops() as f64;
            row.bytes += operands.map(|id| 4.0 * tape.shape(id).len() as f64).sum::<f64>();
        }
    }
    per_step(rows, steps)
}

/// Milliseconds that the repeats of a launch last at least, launches in a row at most, runs of them: by estimate 3 to 6
/// ms for each launch of a step, captures included, so 3 s for 470 of them, and ten runs of the step for those that are
/// longer.
const REPEATS: Repeats = Repeats { least_ms: 0.3, most: 256, samples: 3, flush: 0 };

/// How launches are repeated on `device`: two caches full are overwritten before each that is to start cold. A driver
/// that counts runs each once, so that its counts are those of a step.
fn repeats(device: &Device, counts: bool) -> Result<Option<Repeats>> {
    let flush = 2 * device.properties()?.l2_len;
    Ok((!counts).then_some(Repeats { flush, ..REPEATS }))
}

/// One row per kernel, of one step in which each launch is timed. If a launch fails those behind it are missing, and
/// noted.
fn cuda_rows(step: &mut CudaStep, notes: &mut Vec<String>) -> Result<Vec<ProfileRow>> {
    let all = 0..step.len();
    let before = counted(step);
    let repeats = repeats(&step.queue().device, !before.is_empty())?;
    step.queue().begin_timing(repeats);
    let ran = step.run_range(all);
    let timed = step.queue().end_timing();
    if let Err(why) = ran {
        notes.push(format!(
            "launches from number {} of the step on were not timed: {why}",
            timed.len()
        ));
    }
    let mut rows = by_kernel(timed);
    for (name, after) in counted(step) {
        let (Some(row), Some(old)) = (rows.get_mut(name), before.get(name)) else { continue };
        row.counts = Some(after.since(old, 1));
    }
    Ok(rows.into_values().collect())
}

/// Sums over the launches of each kernel. A row of which a launch has no time has none.
fn by_kernel(timed: Vec<Timed>) -> BTreeMap<&'static str, ProfileRow> {
    let mut rows: BTreeMap<&'static str, ProfileRow> = BTreeMap::new();
    for Timed { launch, time, flops, bytes } in timed {
        let name = launch.kernel.name;
        let new = || ProfileRow { name: name.into(), cold_ms: Some(0.0), ..ProfileRow::default() };
        let row = rows.entry(name).or_insert_with(new);
        row.calls += 1.0;
        row.flops += flops as f64;
        row.bytes += bytes as f64;
        match time {
            Ok(time) => {
                row.ms += time.ms;
                row.cold_ms = row.cold_ms.zip(time.cold_ms).map(|(sum, ms)| sum + ms);
                row.repeats = Some(row.repeats.map_or(time.repeats, |n| n.min(time.repeats)));
            }
            Err(why) => row.lost = row.lost.take().or(Some(why.to_string())),
        }
    }
    for row in rows.values_mut().filter(|row| row.lost.is_some()) {
        (row.ms, row.cold_ms, row.repeats) = (0.0, None, None);
    }
    rows
}

/// Counts of all kernels of the step, from a driver that counts.
fn counted(step: &CudaStep) -> BTreeMap<&'static str, Counts> {
    let names = step.kernels().map(|kernel| kernel.name);
    names.filter_map(|name| counts(name).map(|found| (name, found))).collect()
}

fn per_step(rows: BTreeMap<String, ProfileRow>, steps: usize) -> Vec<ProfileRow> {
    let steps = steps as f64;
    let scaled = |row: ProfileRow| ProfileRow {
        calls: row.calls / steps,
        ms: row.ms / steps,
        flops: row.flops / steps,
        bytes: row.bytes / steps,
        ..row
    };
    rows.into_values().map(scaled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::Time;
    use crate::driver::{Kernel, Launch};
    use crate::error::Error;

    static FIRST: Kernel = Kernel::new::<u32>("first", 32);
    static SECOND: Kernel = Kernel::new::<u32>("second", 32);

    fn timed(kernel: &'static Kernel, time: Result<Time>) -> Timed {
        Timed { launch: Launch { kernel, grid: [1; 3] }, time, flops: 10, bytes: 20 }
    }

    #[test]
    fn a_launch_without_a_time_loses_its_row_only() {
        let time = |ms, repeats| Ok(Time { ms, repeats, cold_ms: Some(2.0 * ms) });
        let full = || Err(Error::Device("no memory".into()));
        let list = [
            timed(&FIRST, time(0.5, 8)),
            timed(&SECOND, time(0.25, 1)),
            timed(&SECOND, full()),
            timed(&FIRST, time(0.25, 4)),
        ];
        let rows = by_kernel(list.into());
        let (first, second) = (&rows["first"], &rows["second"]);
        assert_eq!((first.calls, first.ms, first.cold_ms), (2.0, 0.75, Some(1.5)));
        assert_eq!((first.flops, first.bytes, first.repeats), (20.0, 40.0, Some(4)));
        assert_eq!((second.calls, second.ms, second.cold_ms), (2.0, 0.0, None));
        assert!(second.lost.as_ref().unwrap().contains("no memory") && first.lost.is_none());
        let all = Profile { rows: rows.into_values().collect(), ..Profile::default() };
        assert_eq!((all.rows_ms(), all.rows_cold_ms()), (0.75, Some(1.5)));
    }

    #[test]
    fn memory_is_judged_by_the_cold_time_and_products_by_the_other() {
        let roofs = Roofs { bytes: 1e12, mma: 100e12, wgmma: None };
        // 1 GFLOP takes 10 us at least, 20 MB take 20 us at least: memory is the nearer roof.
        let row = ProfileRow { ms: 0.04, flops: 1e9, bytes: 20e6, ..ProfileRow::default() };
        let part = |row: &ProfileRow, roof| {
            let share = row.share(&roofs).unwrap();
            assert_eq!(share.roof, roof);
            share.part
        };
        assert!((part(&row, Roof::Memory) - 0.5).abs() < 1e-12);
        let cold = ProfileRow { cold_ms: Some(0.08), ..row };
        assert!((part(&cold, Roof::Memory) - 0.25).abs() < 1e-12);
        let products = ProfileRow { flops: 2e9, bytes: 1.0, ..cold };
        assert!((part(&products, Roof::Mma) - 0.5).abs() < 1e-12);
        assert!(ProfileRow { ms: 1.0, ..Default::default() }.share(&roofs).is_none());
    }
}
