//! Sizes at the edges of the device's tiles: extents 1, primes, one below, at and above a tile, odd volumes; channels 1
//! to 320.

use spatialssl::ops::{Conv3d, ConvTranspose3d, InstanceNorm, Op};

use crate::common::cases::Case;

const CHANNELS: [usize; 7] = [1, 8, 32, 48, 64, 96, 320];
const EXTENTS: [[usize; 3]; 9] = [
    [1, 1, 1],
    [3, 3, 3],
    [5, 6, 7],
    [7, 7, 7],
    [8, 8, 8],
    [9, 9, 9],
    [4, 17, 16],
    [17, 8, 3],
    [2, 15, 33],
];

fn case(name: String, op: impl Into<Op>, inputs: Vec<Vec<usize>>) -> Case {
    Case { name, op: op.into(), inputs, real: false }
}

fn conv(
    extent: [usize; 3],
    (c, k): (usize, usize),
    filter: usize,
    stride: usize,
    pad: usize,
) -> Case {
    let [d, h, w] = extent;
    let op = Conv3d { stride: [stride; 3], padding: [pad; 3], bias: true, normed: false };
    let name = format!("{d}x{h}x{w}, {c} to {k}, filter {filter}, stride {stride}");
    let n = if d * h * w < 100 { 2 } else { 1 };
    case(name, op, vec![vec![n, d, h, w, c], vec![k, filter, filter, filter, c], vec![k]])
}

/// Every extent with few channels, every number of channels at one odd extent, as input and as output.
pub(crate) fn convolutions() -> Vec<Case> {
    let mut all = Vec::new();
    for (i, &extent) in EXTENTS.iter().enumerate() {
        all.push(conv(extent, (16, 32), 3, 1, 1));
        all.push(conv(extent, (32, 32), 3, 1, 1));
        all.push(conv(extent, (32, 16), 3, 1, 1));
        all.push(conv(extent, (CHANNELS[i % 7], 16), 3, 2, 1));
    }
    for &c in &CHANNELS {
        all.push(conv([3, 5, 4], (c, 16), 3, 1, 1));
        all.push(conv([3, 5, 4], (16, c), 3, 1, 1));
        all.push(conv([4, 5, 6], (c, 24), 3, 2, 1));
        all.push(conv([3, 4, 5], (c, 40), 1, 1, 0));
        all.push(conv([4, 6, 4], (c, 32), 4, 2, 1));
    }
    // Enough blocks that spatial tiles are used: many output channels in one, few in the other.
    for (c, k) in [(48, 64), (64, 48)] {
        let mut wide = conv([7, 32, 31], (c, k), 3, 1, 1);
        wide.inputs[0][0] = 2;
        all.push(wide);
    }
    for channels in [(48, 16), (48, 32), (16, 48), (32, 48)] {
        all.push(conv([26, 26, 26], channels, 3, 1, 1));
    }
    all.push(conv([8, 17, 31], (16, 16), 3, 1, 1));
    // Enough for boxes of eight planes, which end inside of the last box on all axes, as do the channels.
    for (c, k) in [(48, 336), (336, 48)] {
        let mut high = conv([13, 15, 13], (c, k), 3, 1, 1);
        high.inputs[0][0] = 2;
        all.push(high);
    }
    // Filter gradients whose blocks stream over several planes and from one column to the next, to a last run that is
    // shorter: tiles of 16 x 16 channels in several blocks, of 32 x 32, 32 x 16 and 16 x 32 in one; columns and bands
    // of full and odd heights.
    all.push(conv([7, 15, 17], (96, 64), 3, 1, 1));
    all.push(conv([35, 17, 16], (32, 32), 3, 1, 1));
    all.push(conv([33, 33, 17], (16, 16), 3, 1, 1));
    all.push(conv([3, 17, 8], (224, 320), 3, 1, 1));
    all.push(conv([4, 8, 9], (224, 320), 3, 1, 1));
    all.push(conv([3, 17, 16], (112, 336), 3, 1, 1));
    all.push(conv([4, 8, 17], (336, 112), 3, 1, 1));
    // A sum cut into parts that are not equal; several boxes of the one-channel kernels.
    all.push(conv([3, 5, 4], (320, 320), 3, 1, 1));
    all.push(conv([9, 10, 17], (1, 24), 3, 1, 1));
    // The last chunk of 32 channels is the first, the second, a later one; the last tile of 64 columns is not full, nor
    // is the only one.
    for (extent, c, k, t) in [
        ([3, 5, 4], 8, 16, 2),
        ([3, 5, 4], 40, 16, 2),
        ([8, 9, 7], 72, 32, 2),
        ([2, 3, 5], 136, 40, 2),
        ([2, 3, 5], 136, 8, 1),
        ([1, 2, 3], 320, 64, 2),
    ] {
        let [d, h, w] = extent;
        let name = format!("{d}x{h}x{w}, {c} to {k}, filter {t}x2x2");
        let inputs = vec![vec![2, d, h, w, c], vec![c, t, 2, 2, k], vec![k]];
        all.push(case(name, ConvTranspose3d { bias: true }, inputs));
    }
    all
}

/// Slices of a volume at their edges, with and without activation and residual.
pub(crate) fn norms() -> Vec<Case> {
    let mut all = Vec::new();
    for (i, &c) in CHANNELS.iter().enumerate() {
        for (j, &[d, h, w]) in EXTENTS.iter().enumerate() {
            if (i + j) % 3 != 0 {
                continue;
            }
            let op = InstanceNorm { slope: (i % 2 == 0).then_some(0.01), residual: j % 2 == 0 };
            let x = vec![2, d, h, w, c];
            let mut inputs = vec![x.clone(), vec![c], vec![c]];
            if op.residual {
                inputs.push(x);
            }
            all.push(case(format!("{d}x{h}x{w}, {c} channels"), op, inputs));
        }
    }
    all
}
