//! Where the time of a training step goes: by operation and pass, the slowest records, and every convolution alone.
//! All times are the least of several runs, so that other work on the machine counts as little as possible.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::time::Instant;

use spatialssl::backend::cpu::conv;

use spatialssl::backend::{ConvGeometry, ConvPass};
use spatialssl::ops::{Op, Pass};
use spatialssl::shape::Shape;
use spatialssl::tape::{Record, Tape};

use crate::{Noise, flop, options, prepare, scalars, times_ms};

/// Steps timed record by record.
const STEPS: i32 = 6;
/// Times a record of one operation is run.
const REPEATS: usize = 12;
/// Records listed.
const LISTED: usize = 15;

/// Sums over the records of one operation and pass.
#[derive(Default)]
struct Total {
    records: usize,
    ms: f64,
    flop: f64,
    bytes: f64,
}

/// Runs each record of one operation many times in place and prints the sums and the slowest: data that fits a cache
/// stays in it, so this shows what the operation itself costs.
pub(crate) fn one(name: &str) -> Result<(), Box<dyn Error>> {
    let (program, mut step) = prepare(&options())?;
    step.run();
    let mut least = vec![0.0; program.tape.records().len()];
    for (at, record) in program.tape.records().iter().enumerate() {
        if record.op.rule().name() == name {
            least[at] = times_ms(1, REPEATS, || step.run_range(at..at + 1))[0];
        }
    }
    totals(&program.tape, &least)?;
    slowest(&program.tape, &least)
}

/// Prints all tables.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let (program, mut step) = prepare(&options())?;
    let records = program.tape.records();
    let mut least = vec![f64::INFINITY; records.len()];
    for t in 1..=STEPS {
        scalars(&program, &mut step, t, if t == 1 { 1.0 } else { 0.5 });
        for (at, least) in least.iter_mut().enumerate() {
            let start = Instant::now();
            step.run_range(at..at + 1);
            *least = least.min(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    totals(&program.tape, &least)?;
    slowest(&program.tape, &least)?;
    convolutions(records)
}

/// Bytes a record moves if it reads and writes every operand once, and reads what it adds to.
fn bytes(tape: &Tape, record: &Record) -> f64 {
    let len = |id| tape.shape(id).len();
    let reads: usize = record.reads.iter().map(|&id| len(id)).sum();
    let writes: usize = record
        .writes
        .iter()
        .flatten()
        .map(|write| len(write.to) * (1 + usize::from(write.add)))
        .sum();
    4.0 * (reads + writes) as f64
}

fn pass_name(pass: Pass) -> &'static str {
    match pass {
        Pass::Forward => "forward",
        Pass::Backward => "backward",
    }
}

fn totals(tape: &Tape, ms: &[f64]) -> Result<(), Box<dyn Error>> {
    let mut all: BTreeMap<(&str, &str), Total> = BTreeMap::new();
    for (record, ms) in tape.records().iter().zip(ms) {
        if *ms == 0.0 {
            continue;
        }
        let total = all.entry((record.op.rule().name(), pass_name(record.pass))).or_default();
        total.records += 1;
        total.ms += ms;
        total.flop += flop(record);
        total.bytes += bytes(tape, record);
    }
    let mut rows: Vec<_> = all.into_iter().collect();
    rows.sort_by(|a, b| b.1.ms.total_cmp(&a.1.ms));
    let mut out = std::io::stdout();
    writeln!(out, "| operation | pass | records | ms | GFLOP/s | GB/s |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for ((op, pass), t) in rows {
        let (rate, speed) = (t.flop / t.ms / 1e6, t.bytes / t.ms / 1e6);
        writeln!(out, "| {op} | {pass} | {} | {:.2} | {rate:.0} | {speed:.1} |", t.records, t.ms)?;
    }
    let (sum, work): (f64, f64) = (ms.iter().sum(), tape.records().iter().map(flop).sum());
    Ok(writeln!(
        out,
        "\nall: {sum:.1} ms, {:.1} GFLOP, {:.0} GFLOP/s\n",
        work / 1e9,
        work / sum / 1e6
    )?)
}

fn slowest(tape: &Tape, ms: &[f64]) -> Result<(), Box<dyn Error>> {
    let mut order: Vec<usize> = (0..ms.len()).collect();
    order.retain(|&at| ms[at] > 0.0);
    order.sort_by(|&a, &b| ms[b].total_cmp(&ms[a]));
    let mut out = std::io::stdout();
    writeln!(
        out,
        "| record | operation | pass | input shapes | ms | GFLOP/s |\n|---|---|---|---|---|---|"
    )?;
    for at in order.into_iter().take(LISTED) {
        let r = &tape.records()[at];
        let shapes: Vec<String> = r.shapes.iter().take(2).map(Shape::to_string).collect();
        let (op, pass, rate) = (r.op.rule().name(), pass_name(r.pass), flop(r) / ms[at] / 1e6);
        let shapes = shapes.join(" ");
        writeln!(out, "| {} | {op} | {pass} | {shapes} | {:.2} | {rate:.0} |", r.name, ms[at])?;
    }
    Ok(writeln!(out)?)
}

/// The geometry of a convolution, and whether it is used transposed.
fn geometry(record: &Record) -> Option<(ConvGeometry, bool)> {
    let (x, w) = (record.shapes.first()?.ndhwc()?, record.shapes.get(1)?.ndhwc()?);
    let filter = [w[1], w[2], w[3]];
    let size = [x[1], x[2], x[3]];
    match &record.op {
        Op::Conv3d(op) => {
            let g = ConvGeometry {
                batch: x[0],
                input: size,
                in_channels: x[4],
                out_channels: w[0],
                filter,
                stride: op.stride,
                padding: op.padding,
            };
            Some((g, false))
        }
        Op::ConvTranspose3d(_) => {
            let g = ConvGeometry {
                batch: x[0],
                input: std::array::from_fn(|a| size[a] * filter[a]),
                in_channels: w[4],
                out_channels: w[0],
                filter,
                stride: filter,
                padding: [0; 3],
            };
            Some((g, true))
        }
        _ => None,
    }
}

/// How often each pass of a geometry runs in a step: fprop, dgrad, wgrad.
fn uses(record: &Record, transposed: bool) -> [usize; 3] {
    let [dx, dw] = [0, 1].map(|i| usize::from(record.writes.get(i).is_some_and(Option::is_some)));
    match (record.pass, transposed) {
        (Pass::Forward, false) => [1, 0, 0],
        (Pass::Forward, true) => [0, 1, 0],
        (Pass::Backward, false) => [0, dx, dw],
        (Pass::Backward, true) => [dx, 0, dw],
    }
}

fn convolutions(records: &[Record]) -> Result<(), Box<dyn Error>> {
    let mut seen: Vec<(ConvGeometry, [usize; 3])> = Vec::new();
    for record in records {
        let Some((g, transposed)) = geometry(record) else { continue };
        let uses = uses(record, transposed);
        match seen.iter_mut().find(|(other, _)| *other == g) {
            Some((_, all)) => all.iter_mut().zip(uses).for_each(|(all, new)| *all += new),
            None => seen.push((g, uses)),
        }
    }
    let mut out = std::io::stdout();
    writeln!(
        out,
        "| convolution | pass | times | ms each | GFLOP/s | ms in the step |\n|---|---|---|---|---|---|"
    )?;
    let mut rows = Vec::new();
    for (g, uses) in seen {
        let work = 2.0 * (g.batch * g.filter_len() * g.output().iter().product::<usize>()) as f64;
        for (pass, times) in
            [ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad].into_iter().zip(uses)
        {
            if times > 0 {
                rows.push((g, pass, times, alone_ms(&g, pass), work));
            }
        }
    }
    rows.sort_by(|a, b| (b.3 * b.2 as f64).total_cmp(&(a.3 * a.2 as f64)));
    for (g, pass, times, ms, work) in rows {
        let ([k, ..], [s, ..], [z, y, x]) = (g.filter, g.stride, g.input);
        let (c, f, n) = (g.in_channels, g.out_channels, g.batch);
        let (rate, all) = (work / ms / 1e6, ms * times as f64);
        writeln!(
            out,
            "| {c}->{f} k{k} s{s} {n}x{z}x{y}x{x} | {pass:?} | {times} | {ms:.3} | {rate:.0} | {all:.2} |"
        )?;
    }
    Ok(())
}

/// Least time of one pass on its own.
fn alone_ms(g: &ConvGeometry, pass: ConvPass) -> f64 {
    let mut noise = Noise::new(3);
    let (mut x, mut w) = (noise.vec(g.input_len(), 1.0), noise.vec(g.filter_len(), 0.05));
    let mut y = noise.vec(g.output_len(), 1.0);
    let mut work = vec![0.0; conv::workspace_len(g, pass)];
    times_ms(2, 8, || match pass {
        ConvPass::Fprop => conv::fprop(g, &x, &w, None, &mut y, &mut work),
        ConvPass::Dgrad => conv::dgrad(g, &y, &w, None, &mut x, false, &mut work),
        ConvPass::Wgrad => conv::wgrad(g, &x, &y, &mut w, false, &mut work),
    })[0]
}
