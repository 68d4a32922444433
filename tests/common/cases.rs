//! The case table: every operation at small sizes that try its edges (extent 1, primes, one channel, anisotropic,
//! stride 2, batch 2), and at the sizes it has in the networks (`real`: measured, not gradient-checked).
//!
//! "s" is the preset `resenc-s` with 3 views of 32^3, batch 2; "m" the network with 32, 64, 128, 256 features and
//! 3 views of 64^3, batch 1.

use spatialssl::ops::{
    AdamW, AvgPool, Axis, Concat, Conv3d, ConvTranspose3d, CosineLoss, CrossEntropy, Ema,
    GapAxisLoss, GapNormLoss, Gelu, GlobalPool, GradNorm, GradNormTap, HideBlocks, InstanceNorm,
    LeakyRelu, Linear, MaskedMse, Op, Pairwise, PairwiseKind, ResidualAdd, RouteLoss, SCALARS,
    SpreadLoss, SubView, VectorLoss,
};

/// One operation on inputs of given extents.
pub(crate) struct Case {
    /// Name within the operation.
    pub(crate) name: String,
    /// The operation.
    pub(crate) op: Op,
    /// Extents of the inputs.
    pub(crate) inputs: Vec<Vec<usize>>,
    /// Whether it is as large as in a network.
    pub(crate) real: bool,
}

/// The table under construction.
#[derive(Default)]
struct Table(Vec<Case>);

impl Table {
    fn add(&mut self, name: &str, op: impl Into<Op>, inputs: &[&[usize]]) {
        let inputs = inputs.iter().map(|dims| dims.to_vec()).collect();
        self.0.push(Case { name: name.to_string(), op: op.into(), inputs, real: false });
    }

    fn real(&mut self, name: &str, op: impl Into<Op>, inputs: &[&[usize]]) {
        self.add(name, op, inputs);
        if let Some(case) = self.0.last_mut() {
            case.real = true;
        }
    }
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::default();
    conv3d(&mut table);
    conv3d_real(&mut table);
    conv_transpose3d(&mut table);
    norm(&mut table);
    activations(&mut table);
    pools(&mut table);
    joins(&mut table);
    linear(&mut table);
    sub_view(&mut table);
    losses(&mut table);
    updates(&mut table);
    table.0
}

fn conv(stride: usize, padding: usize) -> Conv3d {
    Conv3d { stride: [stride; 3], padding: [padding; 3], bias: true, normed: false }
}

fn conv3d(t: &mut Table) {
    t.add("one voxel, one tap", conv(1, 0), &[&[1, 1, 1, 1, 1], &[1, 1, 1, 1, 1], &[1]]);
    t.add("one voxel, padded", conv(1, 1), &[&[1, 1, 1, 1, 2], &[3, 3, 3, 3, 2], &[3]]);
    t.add("k3", conv(1, 1), &[&[1, 4, 5, 6, 8], &[16, 3, 3, 3, 8], &[16]]);
    t.add("k3, primes, batch 2", conv(1, 1), &[&[2, 3, 5, 7, 3], &[5, 3, 3, 3, 3], &[5]]);
    t.add("k3, one channel", conv(1, 1), &[&[1, 5, 4, 6, 1], &[8, 3, 3, 3, 1], &[8]]);
    t.add("k3, 17 to 33 channels", conv(1, 1), &[&[1, 3, 2, 5, 17], &[33, 3, 3, 3, 17], &[33]]);
    t.add("k3 s2, even", conv(2, 1), &[&[2, 4, 6, 8, 4], &[8, 3, 3, 3, 4], &[8]]);
    t.add("k3 s2, odd", conv(2, 1), &[&[1, 5, 7, 3, 3], &[2, 3, 3, 3, 3], &[2]]);
    t.add("k4 s2", conv(2, 1), &[&[2, 4, 8, 6, 5], &[7, 4, 4, 4, 5], &[7]]);
    t.add("k1 s2 leaves voxels out", conv(2, 0), &[&[1, 5, 4, 3, 2], &[3, 1, 1, 1, 2], &[3]]);
    let flat = Conv3d { stride: [1, 2, 2], padding: [0, 1, 2], bias: false, normed: false };
    t.add("1x3x5 s122, no bias", flat, &[&[1, 3, 6, 7, 4], &[6, 1, 3, 5, 4]]);
    let normed = Conv3d { stride: [1; 3], padding: [1; 3], bias: true, normed: true };
    t.add("k3, bias before a norm", normed, &[&[1, 3, 3, 4, 4], &[4, 3, 3, 3, 4], &[4]]);
    t.add("k5, no padding", conv(1, 0), &[&[1, 5, 6, 7, 2], &[3, 5, 5, 5, 2], &[3]]);
}

fn conv3d_real(t: &mut Table) {
    let normed = |stride| Conv3d { stride: [stride; 3], padding: [1; 3], bias: true, normed: true };
    let mut add = |name: &str, op: Conv3d, n: usize, extent: usize, (c, k): (usize, usize)| {
        let s = if op.padding == [1; 3] && !op.normed && op.stride == [2; 3] { 4 } else { 3 };
        t.real(name, op, &[&[n, extent, extent, extent, c], &[k, s, s, s, c], &[k]]);
    };
    add("s stem 1 to 16 at 32", normed(1), 2, 32, (1, 16));
    add("s 16 to 16 at 32", normed(1), 2, 32, (16, 16));
    add("s 16 to 32 s2 at 32", normed(2), 2, 32, (16, 32));
    add("s 32 to 32 at 16", normed(1), 2, 16, (32, 32));
    add("s 64 to 64 at 8", normed(1), 2, 8, (64, 64));
    add("s 128 to 128 at 4", normed(1), 2, 4, (128, 128));
    add("m stem 1 to 32 at 64", normed(1), 1, 64, (1, 32));
    add("m 32 to 32 at 64", normed(1), 1, 64, (32, 32));
    add("m 64 to 32 at 64", normed(1), 1, 64, (64, 32));
    add("m 32 to 64 s2 at 64", normed(2), 1, 64, (32, 64));
    add("m 64 to 64 at 32", normed(1), 1, 32, (64, 64));
    add("m 128 to 128 at 16", normed(1), 1, 16, (128, 128));
    add("m 256 to 256 at 8", normed(1), 1, 8, (256, 256));
    add("m sub-views 32 to 64 k4 s2 at 16", conv(2, 1), 12, 16, (32, 64));
    add("m sub-views 256 to 512 k4 s2 at 2", conv(2, 1), 12, 2, (256, 512));
}

fn conv_transpose3d(t: &mut Table) {
    let (bias, plain) = (ConvTranspose3d { bias: true }, ConvTranspose3d { bias: false });
    t.add("one voxel", bias.clone(), &[&[1, 1, 1, 1, 1], &[1, 1, 1, 1, 1], &[1]]);
    t.add("2x2x2", bias.clone(), &[&[1, 2, 3, 4, 8], &[8, 2, 2, 2, 4], &[4]]);
    t.add("2x2x2, primes, batch 2", bias.clone(), &[&[2, 3, 5, 2, 7], &[7, 2, 2, 2, 3], &[3]]);
    t.add("2x2x2 to one channel", bias.clone(), &[&[1, 2, 2, 3, 5], &[5, 2, 2, 2, 1], &[1]]);
    t.add("1x2x2, no bias", plain.clone(), &[&[1, 3, 2, 3, 4], &[4, 1, 2, 2, 6]]);
    t.add("3x1x2, no bias", plain, &[&[1, 2, 3, 2, 3], &[3, 3, 1, 2, 5]]);
    t.real("s 128 to 64 at 4", bias.clone(), &[&[2, 4, 4, 4, 128], &[128, 2, 2, 2, 64], &[64]]);
    t.real("m 64 to 32 at 32", bias, &[&[1, 32, 32, 32, 64], &[64, 2, 2, 2, 32], &[32]]);
}

fn norm(t: &mut Table) {
    let op = |slope, residual| InstanceNorm { slope, residual };
    let mut add = |name: &str, op: InstanceNorm, x: &[usize]| {
        let c = &x[4..];
        let real = name.starts_with(['s', 'm']);
        let inputs = [x, c, c, x];
        let inputs = &inputs[..if op.residual { 4 } else { 3 }];
        if real { t.real(name, op, inputs) } else { t.add(name, op, inputs) }
    };
    add("plain, one channel", op(None, false), &[1, 2, 3, 2, 1]);
    add("plain, primes, batch 2", op(None, false), &[2, 3, 5, 2, 7]);
    add("one voxel", op(None, false), &[1, 1, 1, 1, 3]);
    add("activation, 16 channels", op(Some(0.01), false), &[1, 2, 3, 4, 16]);
    add("activation, 19 channels, batch 2", op(Some(0.01), false), &[2, 2, 3, 2, 19]);
    add("residual, 5 channels, batch 2", op(None, true), &[2, 2, 2, 3, 5]);
    add("residual and activation, 33 channels", op(Some(0.01), true), &[1, 2, 2, 3, 33]);
    add("residual and activation, batch 2", op(Some(0.2), true), &[2, 3, 2, 2, 4]);
    add("s 16 at 32", op(Some(0.01), false), &[2, 32, 32, 32, 16]);
    add("s 16 at 32, residual", op(Some(0.01), true), &[2, 32, 32, 32, 16]);
    add("m 32 at 64", op(Some(0.01), false), &[1, 64, 64, 64, 32]);
    add("m 32 at 64, residual", op(Some(0.01), true), &[1, 64, 64, 64, 32]);
}

fn activations(t: &mut Table) {
    let sizes: [&[usize]; 4] = [&[1], &[2, 3, 5, 7, 1], &[1, 2, 3, 4, 16], &[17]];
    for (name, dims) in ["one element", "primes", "16 channels", "a vector"].iter().zip(sizes) {
        t.add(name, Gelu, &[dims]);
        t.add(name, LeakyRelu { slope: 0.01 }, &[dims]);
        t.add(name, GradNormTap, &[dims]);
        t.add(name, ResidualAdd, &[dims, dims]);
    }
    t.add("more than one task", Gelu, &[&[32 * 1024 + 3]]);
    t.add("more than one task", LeakyRelu { slope: 0.3 }, &[&[32 * 1024 + 3]]);
    t.add("more than one task", ResidualAdd, &[&[32 * 1024 + 3], &[32 * 1024 + 3]]);
    t.add("more than one task", GradNormTap, &[&[70_001]]);
    t.real("m sub-views 64 at 8", Gelu, &[&[12, 8, 8, 8, 64]]);
    t.real("m 32 at 64", LeakyRelu { slope: 0.01 }, &[&[1, 64, 64, 64, 32]]);
    t.real("m 32 at 64", ResidualAdd, &[&[1, 64, 64, 64, 32], &[1, 64, 64, 64, 32]]);
    t.real("m 32 at 64", GradNormTap, &[&[1, 64, 64, 64, 32]]);
}

fn pools(t: &mut Table) {
    let op = |window| AvgPool { window };
    t.add("one voxel", op([1; 3]), &[&[1, 1, 1, 1, 1]]);
    t.add("2x2x2", op([2; 3]), &[&[1, 4, 2, 6, 8]]);
    t.add("2x2x2, odd, batch 2", op([2; 3]), &[&[2, 5, 3, 7, 3]]);
    t.add("1x2x2", op([1, 2, 2]), &[&[1, 3, 4, 5, 2]]);
    t.add("4x1x2, one channel", op([4, 1, 2]), &[&[1, 5, 3, 4, 1]]);
    t.add("3x3x3", op([3; 3]), &[&[1, 7, 3, 5, 2]]);
    t.real("m 32 at 64", op([2; 3]), &[&[1, 64, 64, 64, 32]]);
    t.add("one voxel", GlobalPool, &[&[1, 1, 1, 1, 1]]);
    t.add("primes, batch 2", GlobalPool, &[&[2, 3, 5, 2, 7]]);
    t.add("one channel", GlobalPool, &[&[1, 2, 3, 4, 1]]);
    t.add("17 channels, batch 3", GlobalPool, &[&[3, 1, 2, 2, 17]]);
    t.real("m head, 4 at 8", GlobalPool, &[&[3, 8, 8, 8, 4]]);
}

fn joins(t: &mut Table) {
    let (channel, batch) = (Concat { axis: Axis::Channel }, Concat { axis: Axis::Batch });
    t.add("one input", channel.clone(), &[&[1, 1, 1, 1, 1]]);
    t.add("channels 3 and 5", channel.clone(), &[&[2, 2, 3, 2, 3], &[2, 2, 3, 2, 5]]);
    t.add("channels of three", channel.clone(), &[&[4, 1], &[4, 7], &[4, 2]]);
    t.add("batch 1 and 2", batch.clone(), &[&[1, 3, 2], &[2, 3, 2]]);
    t.add("batch of three", batch, &[&[2, 5], &[1, 5], &[3, 5]]);
    let half = [1, 64, 64, 64, 32];
    t.real("m 32 and 32 at 64", channel, &[&half, &half]);
    let op = |kind| Pairwise { kind };
    for (name, dims) in
        [("one view", [1, 1, 1]), ("3 views", [3, 2, 5]), ("4 views, one feature", [4, 1, 1])]
    {
        t.add(&format!("{name}, difference"), op(PairwiseKind::Difference), &[&dims]);
        t.add(&format!("{name}, concatenation"), op(PairwiseKind::Concat), &[&dims]);
    }
    t.real("m", op(PairwiseKind::Difference), &[&[3, 1, 4]]);
}

fn linear(t: &mut Table) {
    let (bias, plain) = (Linear { bias: true }, Linear { bias: false });
    t.add("one element", bias.clone(), &[&[1, 1], &[1, 1], &[1]]);
    t.add("3 of 5", bias.clone(), &[&[7, 5], &[3, 5], &[3]]);
    t.add("pairs", bias.clone(), &[&[2, 3, 3, 4], &[3, 4], &[3]]);
    t.add("pairs, no bias", plain.clone(), &[&[2, 3, 3, 4], &[3, 4]]);
    t.add("17 of 13, no bias", plain, &[&[2, 13], &[17, 13]]);
    t.add("more than one task and part", bias.clone(), &[&[1031, 67], &[33, 67], &[33]]);
    t.real("m", bias.clone(), &[&[1, 3, 3, 4], &[3, 4], &[3]]);
    t.real("probe, 240 features", bias, &[&[8192, 240], &[8, 240], &[8]]);
}

fn sub_view(t: &mut Table) {
    let op = |views, size| SubView { views, size };
    t.add("2 views, one voxel", op(2, [1; 3]), &[&[1, 1, 4, 3], &[2, 1, 1, 1, 1]]);
    t.add("2 views, one value", op(2, [2, 1, 3]), &[&[2, 1, 4, 3], &[4, 3, 4, 5, 2]]);
    t.add("3 views, one value", op(3, [2; 3]), &[&[1, 3, 4, 3], &[3, 3, 3, 3, 3]]);
    t.add(
        "3 views, two values, batch 2",
        op(3, [2, 3, 1]),
        &[&[2, 3, 4, 3], &[2, 4, 5, 3, 2], &[4, 4, 5, 3, 2]],
    );
    t.add(
        "4 views, two values",
        op(4, [2, 2, 3]),
        &[&[1, 6, 4, 3], &[1, 3, 3, 4, 1], &[3, 3, 3, 4, 1]],
    );
    t.add(
        "3 views, two values, 16 channels, batch 2",
        op(3, [2, 3, 4]),
        &[&[2, 3, 4, 3], &[2, 3, 5, 6, 16], &[4, 3, 5, 6, 16]],
    );
    t.real("m", op(3, [16; 3]), &[&[1, 3, 4, 3], &[1, 64, 64, 64, 32], &[2, 64, 64, 64, 32]]);
}

fn losses(t: &mut Table) {
    for (name, v, n) in [("one view", 1, 1), ("3 views, batch 2", 3, 2), ("4 views", 4, 1)] {
        let dims = [n, v, v, 3];
        t.add(name, GapAxisLoss, &[&dims, &dims]);
        t.add(name, GapNormLoss, &[&dims, &dims]);
        t.add(name, VectorLoss, &[&dims, &dims]);
        t.add(name, RouteLoss, &[&dims, &dims]);
    }
    let dims = [1, 6, 6, 3];
    t.real("6 views", GapAxisLoss, &[&dims, &dims]);
    t.real("6 views", GapNormLoss, &[&dims, &dims]);
    t.real("6 views", VectorLoss, &[&dims, &dims]);
    t.real("6 views", RouteLoss, &[&dims, &dims]);
    for (name, dims) in [
        ("one voxel", [4, 1, 1, 1, 1]),
        ("one pair", [4, 2, 1, 3, 8]),
        ("3 pairs, batch 2", [24, 1, 2, 1, 5]),
        ("2 pairs, 264 channels", [8, 2, 3, 2, 264]),
    ] {
        for first in [0, 2] {
            let factor = if first == 0 { -1.0 } else { 1.0 };
            t.add(&format!("{name}, role {first}"), CosineLoss { first, factor }, &[&dims]);
        }
    }
    t.real("m", CosineLoss { first: 0, factor: -1.0 }, &[&[12, 1, 1, 1, 512]]);
    for (name, samples, dims) in [
        ("one voxel", 1, [4, 1, 1, 1, 1]),
        ("one pair", 1, [4, 2, 1, 3, 8]),
        ("3 pairs, 2 samples", 2, [24, 1, 2, 1, 5]),
        ("2 samples, 264 channels", 2, [8, 2, 3, 2, 264]),
        ("7 views", 1, [84, 1, 1, 1, 3]),
    ] {
        t.add(name, SpreadLoss { samples }, &[&dims]);
    }
    t.real("m", SpreadLoss { samples: 2 }, &[&[24, 1, 1, 1, 512]]);
    let mut masked = |name: &str, block: [usize; 3], dims: [usize; 5]| {
        let mask = [dims[0], dims[1] / block[0], dims[2] / block[1], dims[3] / block[2]];
        let inputs: [&[usize]; 3] = [&dims, &dims, &mask];
        let real = name.starts_with(['s', 'm']);
        if real {
            t.real(name, MaskedMse { block }, &inputs);
            t.real(name, HideBlocks { block }, &inputs[1..]);
        } else {
            t.add(name, MaskedMse { block }, &inputs);
            t.add(name, HideBlocks { block }, &inputs[1..]);
        }
    };
    masked("one voxel", [1; 3], [1; 5]);
    masked("blocks of 2x1x3, primes, batch 2", [2, 1, 3], [2, 4, 3, 9, 5]);
    masked("blocks of 2x2x8, one channel", [2, 2, 8], [1, 4, 2, 24, 1]);
    masked("blocks of 1x2x4, 6 channels", [1, 2, 4], [1, 3, 4, 8, 6]);
    masked("more than one slice", [7, 4, 4], [1, 14, 36, 36, 2]);
    masked("m, blocks of 8 at 64", [8; 3], [1, 64, 64, 64, 1]);
    cross_entropy(t);
}

fn cross_entropy(t: &mut Table) {
    t.add("one row, one class", CrossEntropy, &[&[1, 1], &[1], &[1]]);
    t.add("one row of 5", CrossEntropy, &[&[1, 5], &[1], &[5]]);
    t.add("a map of 3 classes, batch 2", CrossEntropy, &[&[2, 3, 1, 5, 3], &[2, 3, 1, 5], &[3]]);
    t.add("37 rows of 41", CrossEntropy, &[&[37, 41], &[37], &[41]]);
    t.add("more than one slice and task", CrossEntropy, &[&[4099, 11], &[4099], &[11]]);
    t.real("probe, 8 classes", CrossEntropy, &[&[8192, 8], &[8192], &[8]]);
}

fn updates(t: &mut Table) {
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    for (name, len) in [("one element", 1), ("a prime", 1009), ("more than one task", 40_007)] {
        t.add(name, adamw.clone(), &[&[SCALARS], &[2], &[len]]);
        t.add(name, Ema, &[&[SCALARS], &[len]]);
        t.add(name, GradNorm { max_norm: Some(1.0) }, &[&[len]]);
        t.add(&format!("{name}, no limit"), GradNorm { max_norm: None }, &[&[len], &[3]]);
    }
    let encoder = 25_890_000;
    t.real("m encoder", adamw, &[&[SCALARS], &[2], &[encoder]]);
    t.real("m encoder", Ema, &[&[SCALARS], &[encoder]]);
    t.real("m encoder", GradNorm { max_norm: Some(12.0) }, &[&[encoder]]);
}
