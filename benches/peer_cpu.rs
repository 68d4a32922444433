//! Our side of the comparison with PyTorch on the CPU: four convolutions and the whole training step, one JSON
//! object per line. `benches/peers/run.sh` runs both sides and prints the table.
//!
//! `cargo bench --bench peer_cpu -- profile` prints instead where the time of a step goes, with the name of an
//! operation behind it (as its file is named) only that operation's share.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use spatialssl::backend::cpu::conv;

use spatialssl::backend::{ConvGeometry, ConvPass};
use spatialssl::config::GradientViews;
use spatialssl::model::{ResEncUNet, Stage, initialise};
use spatialssl::ops::{AdamW, Pass, scalar};
use spatialssl::pretext::{TaskOptions, chosen_tasks};
use spatialssl::session::{Program, ProgramOptions};
use spatialssl::tape::{Record, Step, Tape, ValueId};
use spatialssl::views::Hiding;

#[path = "peers/profile.rs"]
mod profile;

/// Weight of the new parameters in the average: any value between 0 and 1 costs the same.
const EMA: f32 = 0.5;
/// Timed runs of a convolution, after three to warm up.
const CONV_RUNS: usize = 15;
/// Timed steps, after two to warm up.
const STEP_RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            convolutions()?;
            whole_step()
        }
        ["convs"] => convolutions(),
        ["step"] => whole_step(),
        // `cargo bench -- --test` only asks whether every bench starts.
        ["--test"] => Ok(()),
        ["profile"] => profile::run(),
        ["profile", op] => profile::one(op),
        // `cargo bench conv3d` gives every bench the name of what to measure: nothing here.
        _ => Ok(writeln!(
            std::io::stderr(),
            "peer_cpu: nothing measured; arguments: none, `convs`, `step`, or `profile [OPERATION]`"
        )?),
    }
}

/// Reproducible numbers, uniform in [-1, 1).
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Noise(seed)
    }

    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn fill(&mut self, out: &mut [f32], scale: f32) {
        for value in out {
            *value = self.next() * scale;
        }
    }

    pub(crate) fn vec(&mut self, len: usize, scale: f32) -> Vec<f32> {
        let mut out = vec![0.0; len];
        self.fill(&mut out, scale);
        out
    }
}

/// Milliseconds of `runs` calls of `f` after `warm` calls to warm up.
pub(crate) fn times_ms(warm: usize, runs: usize, mut f: impl FnMut()) -> Vec<f64> {
    for _ in 0..warm {
        f();
    }
    let mut seen: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    seen.sort_by(f64::total_cmp);
    seen
}

/// One line of output: sorted times of `pass` of `case`.
fn emit(case: &str, pass: &str, flop: f64, seen: &[f64]) -> Result<(), Box<dyn Error>> {
    let (median, min) = (seen[seen.len() / 2], seen[0]);
    let line = serde_json::json!({
        "case": case, "pass": pass, "median_ms": median, "min_ms": min, "gflop": flop / 1e9,
    });
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// A convolution 3x3x3 with padding 1 on one cube of `edge` voxels.
fn layer(in_channels: usize, out_channels: usize, edge: usize, stride: usize) -> ConvGeometry {
    ConvGeometry {
        batch: 1,
        input: [edge; 3],
        in_channels,
        out_channels,
        filter: [3; 3],
        stride: [stride; 3],
        padding: [1; 3],
    }
}

fn convolutions() -> Result<(), Box<dyn Error>> {
    let layers = [
        ("32->32 k3 @64^3", layer(32, 32, 64, 1)),
        ("64->64 k3 @32^3", layer(64, 64, 32, 1)),
        ("128->128 k3 @16^3", layer(128, 128, 16, 1)),
        ("32->64 k3 s2 @64^3", layer(32, 64, 64, 2)),
    ];
    let mut noise = Noise::new(1);
    for (name, g) in layers {
        let (x, w) = (noise.vec(g.input_len(), 1.0), noise.vec(g.filter_len(), 0.05));
        let (dy, bias) = (noise.vec(g.output_len(), 1.0), noise.vec(g.out_channels, 1.0));
        let (mut y, mut dx) = (vec![0.0; g.output_len()], vec![0.0; g.input_len()]);
        let (mut dw, mut db) = (vec![0.0; g.filter_len()], vec![0.0; g.out_channels]);
        let passes = [ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad];
        let longest = passes.map(|pass| conv::workspace_len(&g, pass)).into_iter().max();
        let mut work = vec![0.0; longest.unwrap_or(0)];
        // A filter is applied at every output voxel; the padding is counted as PyTorch's counter does.
        let flop = 2.0 * (g.filter_len() * g.output().iter().product::<usize>()) as f64;
        let seen =
            times_ms(3, CONV_RUNS, || conv::fprop(&g, &x, &w, Some(&bias), &mut y, &mut work));
        emit(name, "forward", flop, &seen)?;
        let seen = times_ms(3, CONV_RUNS, || {
            conv::dgrad(&g, &dy, &w, None, &mut dx, false, &mut work);
            conv::wgrad(&g, &x, &dy, &mut dw, false, &mut work);
            conv::bias_grad(&dy, g.out_channels, &mut db, false);
        });
        emit(name, "backward", 2.0 * flop, &seen)?;
    }
    Ok(())
}

/// The training step both sides run.
pub(crate) fn options() -> ProgramOptions {
    let stage = |(i, (features, blocks))| Stage {
        features,
        blocks,
        kernel: [3; 3],
        stride: [if i == 0 { 1 } else { 2 }; 3],
    };
    ProgramOptions {
        encoder: ResEncUNet {
            in_channels: 1,
            stem_channels: 32,
            stages: [(32, 1), (64, 3), (128, 4), (256, 6)]
                .into_iter()
                .enumerate()
                .map(stage)
                .collect(),
            decoder_convs: 1,
            conv_bias: true,
        },
        views: 3,
        batch: 1,
        view_size: [64; 3],
        sub_size: [16; 3],
        tasks: chosen_tasks(&TaskOptions::default(), |name| f64::from(u8::from(name != "masked"))),
        gradient_views: GradientViews::First,
        hiding: Hiding { block: [2; 3], share: [0.6, 0.75] },
        hides_from_all: false,
        adamw: AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 },
        max_norm: None,
    }
}

/// The step with weights and all inputs but the scalars filled.
pub(crate) fn prepare(options: &ProgramOptions) -> Result<(Program, Step<f32>), Box<dyn Error>> {
    let program = Program::new(options)?;
    let mut step = Step::new(&program.tape);
    initialise(&program.tape, &mut step, 1);
    let mut noise = Noise::new(2);
    for &image in &program.images {
        noise.fill(step.write(image), 1.7);
    }
    noise.fill(step.write(program.target("gap")), 0.5);
    let room = (options.view_size[0] - options.sub_size[0]) as f32;
    for start in step.write(program.target("boxes")) {
        *start = ((noise.next() + 1.0) / 2.0 * room).floor();
    }
    for weight in program.weights() {
        step.write(weight).fill(1.0);
    }
    scalars(&program, &mut step, 1, 1.0);
    Ok((program, step))
}

/// Writes what changes from step to step; `t` counts from 1.
pub(crate) fn scalars(program: &Program, step: &mut Step<f32>, t: i32, ema: f32) {
    let values = step.write(program.update.scalars);
    values[scalar::LR] = 1e-4;
    values[scalar::BIAS1] = 1.0 - 0.9f32.powi(t);
    values[scalar::BIAS2] = 1.0 - 0.999f32.powi(t);
    values[scalar::EMA] = ema;
}

/// Floating-point operations of a record in convolutions and matrix products, for each gradient written once.
pub(crate) fn flop(record: &Record) -> f64 {
    let once = record.op.rule().flops(&record.shapes) as f64;
    match record.pass {
        Pass::Forward => once,
        Pass::Backward => once * record.writes.iter().take(2).flatten().count() as f64,
    }
}

/// Trained parameters among `ids`.
fn count(tape: &Tape, ids: &[ValueId]) -> usize {
    ids.iter().map(|&id| tape.shape(id).len()).sum()
}

fn whole_step() -> Result<(), Box<dyn Error>> {
    let (program, mut step) = prepare(&options())?;
    let mut t = 0;
    let seen = times_ms(2, STEP_RUNS, || {
        t += 1;
        scalars(&program, &mut step, t, if t == 1 { 1.0 } else { EMA });
        step.run();
    });
    let losses: Vec<f32> = program.losses().into_iter().map(|id| step.read(id)[0]).collect();
    if !losses.iter().all(|loss| loss.is_finite()) {
        return Err(format!("the losses are {losses:?}").into());
    }
    let flop = program.tape.records().iter().map(flop).sum();
    emit("training step", "all", flop, &seen)?;
    let [encoder, heads] = &program.groups;
    let line = serde_json::json!({
        "encoder_parameters": count(&program.tape, &encoder.params),
        "head_parameters": count(&program.tape, &heads.params),
        "threads": rayon::current_num_threads(),
        "losses": losses,
    });
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
