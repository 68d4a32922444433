//! Where the time of a training step goes: per kernel on a GPU, per operation on the CPU, beside what the device can do at most.

use std::collections::BTreeMap;
use std::time::Instant;

use super::config::Config;
use super::session::{Model, Target};
use crate::backend::cuda::{Queue, Timed};
use crate::driver::{Counts, DevPtr, Kernel, counts};
use crate::error::Result;
use crate::model::start;
use crate::ops::Pass;
use crate::tape::{CudaStep, Executor, Init, Step, Tape};

/// Steps before the first that is measured.
const WARM_UP: usize = 2;

/// What was measured of one kernel, or of one operation in one pass.
#[derive(Clone, Debug, Default)]
pub struct ProfileRow {
    /// The kernel's name, or the operation's with its pass.
    pub name: String,
    /// Launches in a step.
    pub calls: f64,
    /// Milliseconds in a step.
    pub ms: f64,
    /// Additions and multiplications in a step.
    pub flops: f64,
    /// Bytes that have to be moved in a step at least.
    pub bytes: f64,
    /// Counts per step, where the driver counts.
    pub counts: Option<Counts>,
}

/// What a device can do at most, measured in the same run.
#[derive(Clone, Copy, Debug)]
pub struct Roofs {
    /// Tensor-core FLOP per second.
    pub flops: f64,
    /// Bytes per second of a copy in device memory, read and written.
    pub bytes: f64,
}

/// A measured step.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What computed it.
    pub device: String,
    /// Steps measured.
    pub steps: usize,
    /// Milliseconds of a step as training runs it.
    pub step_ms: f64,
    /// Bytes of memory in all.
    pub memory: usize,
    /// The roofs; none on the CPU and where the driver counts instead of computing in parallel.
    pub roofs: Option<Roofs>,
    /// Rows, the longest first.
    pub rows: Vec<ProfileRow>,
}

impl ProfileRow {
    /// Share of the nearer roof: of the time that the roofs would take at least.
    pub fn share(&self, roofs: Roofs) -> Option<f64> {
        let least_ms = (self.flops / roofs.flops).max(self.bytes / roofs.bytes) * 1e3;
        (least_ms > 0.0 && self.ms > 0.0).then(|| least_ms / self.ms)
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
    let (device, roofs, mut rows) = match &mut model.step {
        Executor::Cpu { step, .. } => {
            let threads = rayon::current_num_threads();
            (format!("CPU, {threads} threads"), None, cpu_rows(tape, step, steps))
        }
        Executor::Cuda(step) => {
            let rows = cuda_rows(step, steps)?;
            let is_counted = rows.iter().any(|row| row.counts.is_some());
            let roofs = if is_counted { None } else { Some(measure_roofs(step.queue())?) };
            (step.queue().device.name.clone(), roofs, rows)
        }
    };
    rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok(Profile { device, steps, step_ms, memory, roofs, rows })
}

/// Random views, gaps within one unit, boxes at the corner: every step does the work of a training step.
fn feed(model: &mut Model, config: &Config) -> Result<()> {
    let Model { program, step, .. } = model;
    let mut ids = program.images.clone();
    ids.push(program.target);
    for (k, id) in ids.into_iter().enumerate() {
        let len = program.tape.shape(id).len();
        step.write(id, &start(config.run.seed, k as u32, Init::Normal { std: 1.0 }, len))?;
    }
    let mut scalars = [0.0f32; crate::ops::SCALARS];
    scalars.fill(1e-4);
    step.write(program.update.scalars, &scalars)
}

/// Milliseconds of a step, submitted and collected as in training.
fn whole_steps(step: &mut Executor, steps: usize) -> Result<f64> {
    let mut run = |count: usize| -> Result<f64> {
        let begun = Instant::now();
        for _ in 0..count {
            step.submit()?;
            if !step.has_room() {
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
            let written = record.writes.iter().flatten().map(|(id, _)| *id);
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

/// One row per kernel.
fn cuda_rows(step: &mut CudaStep, steps: usize) -> Result<Vec<ProfileRow>> {
    let all = 0..step.len();
    step.run_range(all.clone())?;
    let before = counted(step);
    step.queue().begin_timing();
    for _ in 0..steps {
        step.run_range(all.clone())?;
    }
    let timed = step.queue().end_timing()?;
    let mut rows: BTreeMap<String, ProfileRow> = BTreeMap::new();
    for Timed { launch, ms, flops, bytes } in timed {
        let name = launch.kernel.name;
        let row = rows.entry(name.to_string()).or_default();
        row.name = name.to_string();
        row.calls += 1.0;
        row.ms += ms;
        row.flops += flops as f64;
        row.bytes += bytes as f64;
    }
    for (name, after) in counted(step) {
        let (Some(row), Some(old)) = (rows.get_mut(name), before.get(name)) else { continue };
        row.counts = Some(after.since(old, steps as u64));
    }
    Ok(per_step(rows, steps))
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

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct CopyParams {
    x: DevPtr,
    y: DevPtr,
    len: i64,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct MmaParams {
    out: DevPtr,
    turns: i64,
}

static COPY: Kernel = Kernel::new::<CopyParams>("roofline_copy", 256);
static MMA: Kernel = Kernel::new::<MmaParams>("roofline_mma_bf16", 256);

/// Measures a copy of 256 MiB and a loop of tensor-core products, the best of five each.
fn measure_roofs(queue: &Queue) -> Result<Roofs> {
    const BYTES: usize = 256 << 20;
    const BLOCKS: u32 = 2048;
    const TURNS: i64 = 2048;
    let device = &queue.device;
    device.load([&COPY, &MMA])?;
    let (x, y) = (device.alloc(BYTES)?, device.alloc(BYTES)?);
    device.zero(&x, 0, BYTES)?;
    let copy = CopyParams { x: x.ptr(), y: y.ptr(), len: (BYTES / 16) as i64 };
    let mma = MmaParams { out: y.ptr(), turns: TURNS };
    queue.begin_timing();
    queue.begin_run()?;
    for _ in 0..6 {
        queue.launch(&COPY, [4096, 1, 1], &copy)?;
        queue.launch(&MMA, [BLOCKS, 1, 1], &mma)?;
    }
    let times = queue.end_timing()?;
    // The first of each also loads the kernel.
    let best = |which: usize| {
        let later = times.iter().skip(2 + which).step_by(2).map(|t| t.ms);
        later.fold(f64::INFINITY, f64::min) / 1e3
    };
    // 8 warps a block, 8 products a warp and turn, 4096 FLOP a product.
    let flops = f64::from(BLOCKS) * 8.0 * TURNS as f64 * 8.0 * 4096.0;
    Ok(Roofs { flops: flops / best(1), bytes: 2.0 * BYTES as f64 / best(0) })
}
