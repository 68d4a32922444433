//! How much device memory a pass asks for, counted by the emulated driver, beside the least that any kernel has to
//! move.

use std::collections::BTreeSet;
use std::ops::Range;

use spatialssl::driver::{Counts, Device, counts};
use spatialssl::ops::{Conv3d, InstanceNorm, Op, Pass};
use spatialssl::tape::{CudaStep, Init, Tape};

use crate::common::bound::Recorded;
use crate::common::cases::Case;
use crate::common::emulator::{alone, emulator, left_out};

/// Runs forward and backward of an operation once; what each kernel read and wrote.
fn traffic(op: impl Into<Op>, inputs: &[&[usize]]) -> Vec<(&'static str, Counts)> {
    traffic_of(op, inputs, &[Pass::Forward, Pass::Backward], |_| true)
}

/// Of these passes only, with the gradients of the inputs that are `wanted`.
pub(crate) fn traffic_of(
    op: impl Into<Op>,
    inputs: &[&[usize]],
    passes: &[Pass],
    wanted: impl Fn(usize) -> bool,
) -> Vec<(&'static str, Counts)> {
    let inputs: Vec<Vec<usize>> = inputs.iter().map(|dims| dims.to_vec()).collect();
    let case = Case { name: "traffic".into(), op: op.into(), inputs, real: true };
    let recorded = Recorded::new(&case, 1, wanted);
    let device = Device::open(0, false).unwrap();
    let mut step = CudaStep::new(&recorded.tape, device, false).unwrap();
    let names = case.op.cuda().kernels().iter().map(|kernel| kernel.name);
    let before: Vec<_> = names.map(|name| (name, counts(name).unwrap())).collect();
    for pass in passes {
        let range = match pass {
            Pass::Forward => 0..recorded.forward,
            Pass::Backward => recorded.forward..step.len(),
        };
        step.run_range(range).unwrap();
    }
    let used = before.into_iter().filter_map(|(name, old)| {
        let new = counts(name).unwrap();
        let now = new.since(&old, 1);
        (now.calls > 0).then_some((name, now))
    });
    used.collect()
}

/// Bytes of all kernels whose names contain one of `parts`.
fn moved(all: &[(&'static str, Counts)], parts: &[&str]) -> f64 {
    let chosen = all.iter().filter(|(name, _)| parts.iter().any(|part| name.contains(part)));
    let bytes: u64 = chosen.map(|(_, c)| c.read + c.written).sum();
    assert!(bytes > 0, "no kernel is called {parts:?} among {all:?}");
    bytes as f64
}

fn convolution_op() -> Conv3d {
    Conv3d { stride: [1; 3], padding: [1; 3], bias: true, normed: true }
}

/// A 3x3x3 convolution of one volume of 64^3, or of a part of it that is so many planes deep. Of the forward pass, the
/// input gradient and the filter gradient with its sums: bytes asked for, and distinct bytes of each launch, over the
/// least (input, output and filter once).
fn convolution(channels: usize, planes: usize) -> [[f64; 2]; 3] {
    let x = [1, planes, 64, 64, channels];
    let of = |name: &str| emulator().distinct(name).iter().sum::<u64>();
    let op = convolution_op();
    let kernels = Op::from(op.clone()).cuda().kernels();
    let before: Vec<u64> = kernels.iter().map(|kernel| of(kernel.name)).collect();
    emulator().track(true);
    let all = traffic(op, &[&x, &[channels, 3, 3, 3, channels], &[channels]]);
    emulator().track(false);
    let activation = (2 * x.iter().product::<usize>()) as f64;
    let filter = (27 * channels * channels) as f64;
    [(&["fprop"][..], 2.0), (&["dgrad"], 2.0), (&["wgrad", "sum_splits"], 4.0)].map(
        |(parts, filter_bytes)| {
            let least = 2.0 * activation + filter_bytes * filter;
            let distinct: u64 = kernels
                .iter()
                .zip(&before)
                .filter(|(kernel, _)| parts.iter().any(|part| kernel.name.contains(part)))
                .map(|(kernel, old)| of(kernel.name) - old)
                .sum();
            let found = [moved(&all, parts) / least, distinct as f64 / least];
            println!(
                "{channels} to {channels}, {planes} x 64 x 64: {} asks for {:.2} of the least, distinct {:.2}",
                parts[0], found[0], found[1]
            );
            found
        },
    )
}

#[test]
fn each_pass_of_a_narrow_convolution_reads_its_operands_about_once() {
    if left_out("each_pass_of_a_narrow_convolution_reads_its_operands_about_once") {
        return;
    }
    let _alone = alone();
    let [forward, dgrad, [asked, distinct]] = convolution(32, 64);
    for (pass, [asked, distinct]) in [("fprop", forward), ("dgrad", dgrad)] {
        assert!(asked <= 1.5 && distinct <= 1.01, "{pass}: {asked:.2}, distinct {distinct:.2}");
    }
    // The blocks of the filter gradient leave sums behind, which are written and read once more: 0.42. They do not grow
    // with the volume. Two tiles of 16 input channels halve them and read dy twice.
    assert!(asked <= 2.15 && distinct <= 1.45, "wgrad: {asked:.2}, distinct {distinct:.2}");
}

#[test]
fn each_pass_of_a_wide_convolution_shares_what_its_blocks_read() {
    if left_out("each_pass_of_a_wide_convolution_shares_what_its_blocks_read") {
        return;
    }
    let _alone = alone();
    let [forward, dgrad, [asked, distinct]] = convolution(64, 32);
    // Every block reads the whole filter, 1.7 of the least, from the cache.
    for (pass, [asked, distinct]) in [("fprop", forward), ("dgrad", dgrad)] {
        assert!(asked <= 3.1 && distinct <= 1.01, "{pass}: {asked:.2}, distinct {distinct:.2}");
    }
    // Four tiles of 32 x 32 channels: both operands twice, and the sums of 128 blocks, which do not grow with the
    // volume: 1.5 here, 0.7 at 64^3.
    assert!(asked <= 3.6 && distinct <= 1.45, "wgrad: {asked:.2}, distinct {distinct:.2}");
}

#[test]
fn matrices_of_convolutions_load_without_bank_conflicts() {
    if left_out("matrices_of_convolutions_load_without_bank_conflicts") {
        return;
    }
    let _alone = alone();
    let kernels = Op::from(convolution_op()).cuda().kernels();
    for (c, k) in [(16, 16), (16, 32), (32, 16), (32, 32), (64, 64)] {
        traffic(convolution_op(), &[&[1, 8, 16, 16, c], &[k, 3, 3, 3, c], &[k]]);
    }
    for kernel in kernels {
        let [phases, accesses] = emulator().banks(kernel.name);
        assert_eq!(phases, accesses, "{}", kernel.name);
    }
    let used = kernels.iter().filter(|kernel| emulator().banks(kernel.name)[0] > 0).count();
    assert!(used >= 12, "only {used} kernels ran");
}

#[test]
fn a_norm_makes_the_passes_of_one_kernel_norms() {
    if left_out("a_norm_makes_the_passes_of_one_kernel_norms") {
        return;
    }
    let _alone = alone();
    let x = [1, 64, 64, 64, 32];
    let activation = (2 * x.iter().product::<usize>()) as f64;
    for (residual, forward, backward) in [(false, 3.0, 5.0), (true, 4.0, 7.0)] {
        let op = InstanceNorm { slope: Some(0.01), residual };
        let inputs: [&[usize]; 4] = [&x, &[32], &[32], &x];
        let all = traffic(op, &inputs[..if residual { 4 } else { 3 }]);
        let (back, front): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(name, _)| name.contains("_bwd"));
        for (what, kernels, most) in [("forward", front, forward), ("backward", back, backward)] {
            let passes = moved(&kernels, &["norm"]) / activation;
            println!("norm, residual {residual}, {what}: {passes:.2} passes over the activation");
            // 128 slices leave 8 bytes for each channel, which are written and read once, 0.4 % of a pass; and blocks
            // read their coefficients.
            assert!(passes <= most + 0.02, "{what}: {passes:.2} passes, at most {most}");
        }
    }
}

/// Two residual blocks of a stage and a convolution before and behind them. Their two inner norms are those of any
/// block: the statistics of both, and the backward sums of both, come from convolutions.
fn blocks(extent: usize, channels: usize) -> (Tape, usize) {
    let mut tape = Tape::default();
    let dims = [1, extent, extent, extent, channels];
    let mut at = tape.param("x", &dims, Init::Constant(0.5));
    let conv = Conv3d { stride: [1; 3], padding: [1; 3], bias: false, normed: true };
    let taps = [channels, 3, 3, 3, channels];
    let layer = |tape: &mut Tape, x, skip: Option<_>| {
        let w = tape.param("w", &taps, Init::Constant(0.01));
        let z = tape.record("z", conv.clone(), &[x, w]).unwrap();
        let [gamma, beta] =
            ["gamma", "beta"].map(|n| tape.param(n, &[channels], Init::Constant(1.0)));
        let reads: Vec<_> = [z, gamma, beta].into_iter().chain(skip).collect();
        let norm = InstanceNorm { slope: Some(0.01), residual: skip.is_some() };
        tape.record_all("y", norm, &reads).unwrap()[0]
    };
    for _ in 0..2 {
        let inner = layer(&mut tape, at, None);
        at = layer(&mut tape, inner, Some(at));
    }
    let w = tape.param("w", &taps, Init::Constant(0.01));
    let out = tape.record("out", conv, &[at, w]).unwrap();
    let forward = tape.records().len();
    let seed = tape.input("seed", &dims);
    let wanted = tape.params();
    let grads = tape.backward(&[(out, seed)], &wanted);
    grads.into_iter().flatten().for_each(|grad| tape.keep(grad));
    (tape, forward)
}

/// Bytes that kernels moved in a part of a step: those of norms, those of the products of convolutions.
fn norms_and_products(step: &mut CudaStep, range: Range<usize>) -> [f64; 2] {
    let names: BTreeSet<&str> = step.kernels().map(|kernel| kernel.name).collect();
    let bytes = |part: &[&str]| -> u64 {
        let chosen = names.iter().filter(|name| part.iter().any(|p| name.contains(p)));
        chosen.map(|name| counts(name).unwrap()).map(|c| c.read + c.written).sum()
    };
    let both = || [bytes(&["norm_"]), bytes(&["_fprop", "dgrad"])];
    let before = both();
    step.run_range(range).unwrap();
    std::array::from_fn(|i| (both()[i] - before[i]) as f64)
}

#[test]
fn norms_beside_convolutions_read_their_input_less_often() {
    if left_out("norms_beside_convolutions_read_their_input_less_often") {
        return;
    }
    let _alone = alone();
    let (extent, channels) = (48, 32);
    let (tape, forward) = blocks(extent, channels);
    let open = |fused: bool| {
        let device = Device::open(0, false).unwrap();
        if fused {
            CudaStep::new(&tape, device, false)
        } else {
            CudaStep::unfused(&tape, device, false)
        }
    };
    let (mut fused, mut alone) = (open(true).unwrap(), open(false).unwrap());
    assert_eq!(fused.fusions().count(), 8, "{:?}", fused.fusions().collect::<Vec<_>>());
    let activation = (2 * extent.pow(3) * channels) as f64;
    // 5 and 9 passes, and backward the norm's coefficients, which each warp of a convolution reads again for each
    // plane: 0.5 of a pass in bytes asked for (0.4 at 64^3), of a few hundred different ones.
    for (what, range, most, before) in
        [("forward", 0..forward, 5.0, 7.0), ("backward", forward..tape.records().len(), 9.5, 12.0)]
    {
        let [norms, products] = norms_and_products(&mut fused, range.clone());
        let [norms_alone, products_alone] = norms_and_products(&mut alone, range);
        // Two blocks.
        let passes = |bytes: f64| bytes / activation / 2.0;
        let [in_all, in_norms] = [norms + products - products_alone, norms].map(passes);
        let added = passes(products - products_alone);
        let unfused = passes(norms_alone);
        println!(
            "a residual block, {what}: {in_all:.2} passes for its norms, {in_norms:.2} of them by the norms' kernels and \
             {added:.2} by the convolutions'; alone {unfused:.2}"
        );
        // Statistics that blocks leave: 0.03 of a pass at 64^3, and their number does not grow with the volume.
        assert!(in_all <= most + 0.1, "{what}: {in_all:.2} passes, at most {most}");
        assert!(unfused <= before + 0.1, "{what}: {unfused:.2} passes alone, at most {before}");
    }
    println!("memory {} fused, {} alone", fused.device_len(), alone.device_len());
}
