//! What a convolution moves between device memory and the cache in front of it, by the emulated driver's model of one.

use spatialssl::ops::{Conv3d, Pass};

use crate::common::emulator::{alone, emulator, left_out};
use crate::traffic::traffic_of;

/// The smallest cache of a card with bf16 tensor cores and memory to train in: GeForce RTX 3060; bytes. An A100 has 40
/// MiB.
const CACHE: u64 = 3 << 20;
/// Blocks at work at once, about: one for each multiprocessor of a large card.
const RUNNING: u32 = 132;

/// Bytes moved by each pass over so many planes of 64 x 64, of the least, with an empty cache of so many bytes before
/// each.
fn moved(cache: u64, planes: usize, channels: usize) -> [f64; 3] {
    let op = Conv3d { stride: [1; 3], padding: [1; 3], bias: true, normed: true };
    let x = [1, planes, 64, 64, channels];
    let filter = (27 * channels * channels) as f64;
    let activations = 4.0 * x.iter().product::<usize>() as f64;
    // The filter is read in bf16, its gradient written in f32.
    let passes = [("fwd", 2.0 * filter), ("dgrad", 2.0 * filter), ("wgrad", 4.0 * filter)];
    passes.map(|(pass, of_filter)| {
        emulator().set_cache(cache, RUNNING);
        let inputs: [&[usize]; 3] = [&x, &[channels, 3, 3, 3, channels], &[channels]];
        let runs = if pass == "fwd" { Pass::Forward } else { Pass::Backward };
        let wanted = |i| (pass, i) != ("wgrad", 0) && (pass, i) != ("dgrad", 1);
        let all = traffic_of(op.clone(), &inputs, &[runs], wanted);
        emulator().set_cache(0, 1);
        let bytes: u64 = all.iter().map(|(_, c)| c.memory_read + c.memory_written).sum();
        assert!(bytes > 0, "{pass}: {all:?}");
        bytes as f64 / (activations + of_filter)
    })
}

#[test]
fn narrow_convolutions_move_their_operands_about_once() {
    let _alone = alone();
    if left_out("traffic through the cache") {
        return;
    }
    for (planes, channels) in [(64, 32), (32, 64)] {
        let [fwd, dgrad, wgrad] = moved(CACHE, planes, channels);
        println!(
            "{channels} to {channels} at {planes} x 64^2: forward {fwd:.2}, input gradient {dgrad:.2}, filter gradient {wgrad:.2} of the least"
        );
        // The filter gradient with the sums of its blocks, written and read once more.
        let most = fwd.max(dgrad).max(wgrad);
        assert!(most <= 1.5, "{most:.2} of the least");
    }
}
