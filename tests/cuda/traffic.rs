//! How much device memory a pass asks for, counted by the emulated driver, beside the least that any kernel has to move.

use spatialssl::driver::{Counts, Device, counts};
use spatialssl::ops::{Conv3d, InstanceNorm, Op};
use spatialssl::tape::CudaStep;

use crate::common::bound::Recorded;
use crate::common::cases::Case;
use crate::emulator::alone;

/// Runs forward and backward of an operation once; what each kernel read and wrote.
fn traffic(op: impl Into<Op>, inputs: &[&[usize]]) -> Vec<(&'static str, Counts)> {
    traffic_for(op, inputs, |_| true)
}

/// The same with the gradients of the inputs that are `wanted`.
pub(crate) fn traffic_for(
    op: impl Into<Op>,
    inputs: &[&[usize]],
    wanted: impl Fn(usize) -> bool,
) -> Vec<(&'static str, Counts)> {
    let inputs: Vec<Vec<usize>> = inputs.iter().map(|dims| dims.to_vec()).collect();
    let case = Case { name: "traffic".into(), op: op.into(), inputs, real: true };
    let recorded = Recorded::new(&case, 1, wanted);
    let device = Device::open(0, false).unwrap();
    let mut step = CudaStep::new(&recorded.tape, device, false).unwrap();
    let names = case.op.cuda().kernels().iter().map(|kernel| kernel.name);
    let before: Vec<_> = names.map(|name| (name, counts(name).unwrap())).collect();
    step.run_range(0..step.len()).unwrap();
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

#[test]
fn each_pass_of_a_narrow_convolution_reads_its_operands_about_once() {
    let _alone = alone();
    let (extent, channels) = (64, 32);
    let op = Conv3d { stride: [1; 3], padding: [1; 3], bias: true, normed: true };
    let x = [1, extent, extent, extent, channels];
    let all = traffic(op, &[&x, &[channels, 3, 3, 3, channels], &[channels]]);
    let (activation, filter) =
        ((2 * x.iter().product::<usize>()) as f64, (27 * channels * channels) as f64);
    let products = 2.0 * activation + 2.0 * filter;
    for pass in ["fwd", "dgrad"] {
        let ratio = moved(&all, &[pass]) / products;
        println!("{channels} to {channels} at {extent}: {pass} asks for {ratio:.2} of the least");
        assert!(ratio <= 1.5, "{pass} asks for {ratio:.2} of the least traffic");
    }
    // The filter gradient reads boxes of x and dy with halos, of x on two axes and of dy on the third; and each of its blocks
    // leaves sums of the filter's size behind, which are written and read once more. They do not grow with the volume.
    let [sums, least] = [2.0 * 128.0 * 4.0 * filter, 2.0 * activation + 4.0 * filter];
    let ratio = (moved(&all, &["wgrad", "sum_splits"]) - sums) / least;
    println!("{channels} to {channels} at {extent}: wgrad asks for {ratio:.2} beside its sums");
    assert!(ratio <= 1.55, "wgrad asks for {ratio:.2} of the least traffic beside its sums");
}

#[test]
fn a_norm_makes_the_passes_of_one_kernel_norms() {
    let _alone = alone();
    let x = [1, 64, 64, 64, 32];
    let activation = (2 * x.iter().product::<usize>()) as f64;
    for (residual, forward, backward) in [(false, 3.0, 5.0), (true, 4.0, 7.0)] {
        let op = InstanceNorm { slope: Some(0.01), residual };
        let inputs: [&[usize]; 4] = [&x, &[32], &[32], &x];
        let all = traffic(op, &inputs[..if residual { 4 } else { 3 }]);
        let (back, front): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(name, _)| name.contains("grad"));
        for (what, kernels, most) in [("forward", front, forward), ("backward", back, backward)] {
            let passes = moved(&kernels, &["norm"]) / activation;
            println!("norm, residual {residual}, {what}: {passes:.2} passes over the activation");
            // Every block reads the statistics of all slices of its instance again: a quarter of a pass at this size, from L2.
            assert!(passes <= most + 0.27, "{what}: {passes:.2} passes, at most {most}");
        }
    }
}
