//! GFLOP/s of chosen convolutions, the fastest of many calls: `cargo bench --bench conv_layers -- 1`.

use spatialssl::backend::cpu::conv::*;
use spatialssl::backend::{ConvGeometry, ConvPass};
use std::error::Error;
use std::io::Write;
use std::time::Instant;

/// Name, batch, side, channels in and out, `[filter, stride, padding]`; all cubes.
type Layer = (&'static str, usize, usize, [usize; 2], [usize; 3]);

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let args: Vec<String> = std::env::args().collect();
    let known = |a: &&String| *a == "--bench" || a.contains('@') || a.parse::<usize>().is_ok();
    if !args.iter().skip(1).all(|a| known(&a)) {
        // `cargo bench conv3d`, or `--test`: meant for other benches.
        return Ok(writeln!(
            std::io::stderr(),
            "conv_layers: nothing measured; arguments: a number of threads, part of a layer's name with its @"
        )?);
    }
    let threads = args.iter().filter_map(|a| a.parse().ok()).next().unwrap_or(0);
    let only = args.iter().skip(1).find(|a| a.contains("@")).cloned().unwrap_or_default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    writeln!(
        std::io::stdout(),
        "{:<28}{:>8}{:>8}{:>8}{:>8}   ms",
        "layer",
        "fprop",
        "dgrad",
        "wgrad",
        "db GB/s"
    )?;
    let all: [Layer; 16] = [
        ("32->32k3@64", 1, 64, [32, 32], [3, 1, 1]),
        ("64->64k3@32", 1, 32, [64, 64], [3, 1, 1]),
        ("128->128k3@16", 1, 16, [128, 128], [3, 1, 1]),
        ("256->256k3@8", 1, 8, [256, 256], [3, 1, 1]),
        ("256->256k3@8n2", 2, 8, [256, 256], [3, 1, 1]),
        ("32->64k3s2@64", 1, 64, [32, 64], [3, 2, 1]),
        ("64->128k3s2@32", 1, 32, [64, 128], [3, 2, 1]),
        ("128->256k3s2@16", 1, 16, [128, 256], [3, 2, 1]),
        ("32->16k3s2@64n2", 2, 64, [32, 16], [3, 2, 1]),
        ("1->32k3@64", 1, 64, [1, 32], [3, 1, 1]),
        ("64->32k3@64", 1, 64, [64, 32], [3, 1, 1]),
        ("16->16k3@32n2", 2, 32, [16, 16], [3, 1, 1]),
        ("16->16k3@32n4", 4, 32, [16, 16], [3, 1, 1]),
        ("64<-128k2s2@32", 1, 32, [64, 128], [2, 2, 0]),
        ("32->64k1@32", 1, 32, [32, 64], [1, 1, 0]),
        ("256->512k4s2@2n12", 12, 2, [256, 512], [4, 2, 1]),
    ];
    pool.install(|| {
        for (name, batch, side, channels, ksp) in all {
            if !name.contains(&only) {
                continue;
            }
            let g = ConvGeometry {
                batch,
                input: [side; 3],
                in_channels: channels[0],
                out_channels: channels[1],
                filter: [ksp[0]; 3],
                stride: [ksp[1]; 3],
                padding: [ksp[2]; 3],
            };
            measure(name, &g)?;
        }
        Ok(())
    })
}

/// Values at a 64-byte boundary, as the arena of a training step has them.
struct Aligned(Vec<f32>, usize, usize);

impl Aligned {
    fn new(len: usize) -> Self {
        let values: Vec<f32> = (0..len + 16).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect();
        let skip = values.as_ptr().align_offset(64);
        Aligned(values, skip, len)
    }

    fn get(&mut self) -> &mut [f32] {
        &mut self.0[self.1..][..self.2]
    }
}

fn measure(name: &str, g: &ConvGeometry) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut all = [g.input_len(), g.filter_len(), g.output_len()].map(|n| [n, n].map(Aligned::new));
    let [[x, dx], [w, dw], [dy, y]] = all.each_mut().map(|pair| pair.each_mut().map(Aligned::get));
    let (x, w, dy) = (&*x, &*w, &*dy);
    let mut db = vec![0.0; g.out_channels];
    let passes = [ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad];
    let len = passes.iter().map(|&p| workspace_len(g, p)).max().unwrap_or(0);
    let mut ws = vec![0f32; len];
    let f = fastest(|| fprop(g, x, w, None, y, &mut ws));
    let d = fastest(|| dgrad(g, dy, w, None, dx, false, &mut ws));
    let v = fastest(|| wgrad(g, x, dy, dw, false, &mut ws));
    let b = fastest(|| bias_grad(dy, g.out_channels, &mut db, false));
    let taps = g.filter.iter().product::<usize>() * g.in_channels;
    let gflop = 2.0 * (g.output_len() * taps) as f64 * 1e-9;
    writeln!(
        std::io::stdout(),
        "{name:<28}{:>8.0}{:>8.0}{:>8.0}{:>8.1}   {:.2} {:.2} {:.2} {:.2}",
        gflop / f,
        gflop / d,
        gflop / v,
        g.output_len() as f64 * 4e-9 / b,
        f * 1e3,
        d * 1e3,
        v * 1e3,
        b * 1e3
    )?;
    Ok(())
}

/// Seconds that this thread has computed (one thread: what others make us wait does not count), or the
/// time where the kernel does not tell.
fn clock(begin: Instant) -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let busy = stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
    match busy {
        Some(ns) if rayon::current_num_threads() == 1 => ns * 1e-9,
        _ => begin.elapsed().as_secs_f64(),
    }
}

/// Seconds of one call, the fastest of many batches long enough for that clock.
fn fastest(mut f: impl FnMut()) -> f64 {
    f();
    let begin = Instant::now();
    f();
    let batch = (0.02 / begin.elapsed().as_secs_f64()).ceil().max(1.0);
    let mut best = f64::MAX;
    for _ in 0..8 {
        std::thread::yield_now();
        let start = clock(begin);
        (0..batch as usize).for_each(|_| f());
        std::thread::yield_now();
        best = best.min((clock(begin) - start) / batch);
    }
    best
}
