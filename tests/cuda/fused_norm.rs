//! Norms whose statistics, or whose sums of the backward pass, come from the convolution beside them: against the same
//! calls each on its own, and against f64.

use half::bf16;
use spatialssl::driver::{Device, counts};
use spatialssl::ops::{Conv3d, InstanceNorm, LeakyRelu};
use spatialssl::tape::{CudaStep, Init, Tape, ValueId};

use crate::common::bound::normals;
use crate::common::emulator::{alone, emulator};
use crate::fused::Both;

/// Rounding to f32, and to bf16.
const U: f64 = 1.0 / (1u64 << 24) as f64;
const HALF: f64 = 1.0 / 256.0;

/// The residual of the norm.
#[derive(Clone, Copy, PartialEq)]
enum Residual {
    None,
    /// With a gradient that the norm sets.
    Wanted,
    /// With a gradient that the norm adds to.
    Added,
    /// Without a gradient.
    Fixed,
}

/// `x`, a convolution, a norm, a convolution: filters of `taps` voxels an axis and the stride.
#[derive(Clone, Copy)]
struct Chain {
    x: [usize; 5],
    channels: [usize; 2],
    before: (usize, usize),
    after: (usize, usize),
    residual: Residual,
    slope: Option<f64>,
    /// Mean of the norm's input, in standard deviations.
    offset: f64,
    /// Whether the output's gradient is added to one that is there.
    twice: bool,
    /// Kernels with a part of the norm's work, forward and backward; as many pairs.
    kernels: [Option<&'static str>; 2],
}

const PLAIN: Chain = Chain {
    x: [1, 17, 16, 17, 16],
    channels: [16, 16],
    before: (3, 1),
    after: (3, 1),
    residual: Residual::None,
    slope: Some(0.01),
    offset: 0.0,
    twice: false,
    kernels: [Some("conv3d_zstream_fprop_c16_n16"), Some("conv3d_zstream_dgrad_c16_n16")],
};

struct Recorded {
    tape: Tape,
    /// Filters, gamma, beta, bias, residual and x, with their values.
    filled: Vec<(ValueId, Vec<f32>)>,
    z: ValueId,
    y: ValueId,
    stats: ValueId,
    dz: ValueId,
    dy: ValueId,
    dres: Option<ValueId>,
    dgamma: ValueId,
    dbeta: ValueId,
    gamma: Vec<f32>,
    forward: usize,
}

impl Chain {
    /// `whole`: the output's gradient can be read in any case, which keeps it from being left out.
    fn record(&self, whole: bool) -> Recorded {
        let mut make = Maker::default();
        let [c, k] = self.channels;
        let x = make.param("x", &self.x, 0.0, 1.0);
        let w = make.filter(self.before, self.x[4], c);
        let bias = make.param("bias", &[c], self.offset, 0.1);
        let z = make.tape.record("z", conv(self.before, true), &[x, w, bias]).unwrap();
        let gamma = make.param("gamma", &[c], 1.0, 0.25);
        let beta = make.param("beta", &[c], 0.0, 0.5);
        let mut reads = vec![z, gamma, beta];
        let like = make.tape.shape(z).dims().to_vec();
        let residual = match self.residual {
            Residual::None => None,
            Residual::Fixed => {
                let r = make.tape.state("r", &like);
                Some(make.fill(r, 0.0, 1.0))
            }
            _ => Some(make.param("r", &like, 0.0, 1.0)),
        };
        reads.extend(residual);
        let op = InstanceNorm { slope: self.slope, residual: residual.is_some() };
        let made = make.tape.record_all("y", op, &reads).unwrap();
        let (y, stats) = (made[0], made[1]);
        let mut outputs = Vec::new();
        for _ in 0..1 + usize::from(self.twice) {
            let w = make.filter(self.after, c, k);
            outputs.push(make.tape.record("out", conv(self.after, false), &[y, w]).unwrap());
        }
        if self.residual == Residual::Added {
            let leaky = LeakyRelu { slope: 0.5 };
            outputs.push(make.tape.record("r", leaky, &[residual.unwrap()]).unwrap());
        }
        let forward = make.tape.records().len();
        let grads = make.backward(&outputs, &[z, y, gamma, beta]);
        let Maker { mut tape, filled } = make;
        let wanted = residual.filter(|_| self.residual != Residual::Fixed);
        let dres = wanted.map(|_| {
            let backward = tape.records().iter().rev().find(|record| record.reads.contains(&stats));
            backward.unwrap().writes[3].unwrap().to
        });
        let [dz, dy, dgamma, dbeta] = std::array::from_fn(|i| grads[i].unwrap());
        let kept = [z, y, stats, dz, dgamma, dbeta];
        let seen = (whole || !self.is_gated()).then_some(dy);
        kept.into_iter().chain(seen).chain(dres).for_each(|id| tape.keep(id));
        let gamma = filled.iter().find(|(id, _)| *id == gamma).unwrap().1.clone();
        Recorded { tape, filled, z, y, stats, dz, dy, dres, dgamma, dbeta, gamma, forward }
    }
}

/// A tape and the numbers of its values.
#[derive(Default)]
struct Maker {
    tape: Tape,
    filled: Vec<(ValueId, Vec<f32>)>,
}

impl Maker {
    fn fill(&mut self, id: ValueId, mean: f64, deviation: f64) -> ValueId {
        let numbers = normals(7, self.filled.len() as u32, self.tape.shape(id).len());
        let values = numbers.iter().map(|v| (mean + deviation * v) as f32).collect();
        self.filled.push((id, values));
        id
    }

    fn param(&mut self, name: &str, dims: &[usize], mean: f64, deviation: f64) -> ValueId {
        let id = self.tape.param(name, dims, Init::Constant(0.0));
        self.fill(id, mean, deviation)
    }

    /// Whose convolution has the deviation of its input.
    fn filter(&mut self, (taps, _): (usize, usize), from: usize, to: usize) -> ValueId {
        let size = ((taps.pow(3) * from) as f64).sqrt().recip();
        self.param("w", &[to, taps, taps, taps, from], 0.0, size)
    }

    fn backward(&mut self, outputs: &[ValueId], wanted: &[ValueId]) -> Vec<Option<ValueId>> {
        let mut losses = Vec::new();
        for &out in outputs {
            let dims = self.tape.shape(out).dims().to_vec();
            let seed = self.tape.input("seed", &dims);
            losses.push((out, self.fill(seed, 0.1, 1.0)));
        }
        self.tape.backward(&losses, wanted)
    }
}

fn conv((taps, stride): (usize, usize), bias: bool) -> Conv3d {
    Conv3d { stride: [stride; 3], padding: [taps / 2; 3], bias, normed: false }
}

impl Chain {
    /// Whether the norm's gradient before the activation takes the place of its output's gradient.
    fn is_gated(&self) -> bool {
        self.slope.is_some() && self.residual != Residual::None
    }
}

fn read(step: &CudaStep, id: ValueId) -> Vec<f64> {
    step.read(id).unwrap().into_iter().map(f64::from).collect()
}

/// Fails unless all differ by at most their bound.
fn near(what: &str, got: &[f64], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let most = bound(i);
        assert!((got - want).abs() <= most, "{what}, element {i}: {got}, not {want} +- {most:.3e}");
    }
}

/// Instance, voxel and channel sums of `f(index in the tensor, index in the statistics)`, by instance and channel.
fn sums(len: usize, [n, c]: [usize; 2], f: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut all = vec![0.0; n * c];
    for i in 0..len {
        let at = i / (len / n) * c + i % c;
        all[at] += f(i, at);
    }
    all
}

fn check(name: &str, chain: &Chain) {
    let r = chain.record(false);
    let mut both = Both::new(&r.tape, chain.kernels.iter().flatten().count());
    let device = Device::open(0, false).unwrap();
    both.alone = CudaStep::unfused(&chain.record(true).tape, device, false).unwrap();
    both.each(|step| {
        for (id, values) in &r.filled {
            step.write(*id, values).unwrap();
        }
    });
    // Which kernels run is seen where the driver counts; what they compute, everywhere.
    let calls = || chain.kernels.map(|k| counts(k?).map(|c| c.calls));
    let before = calls();
    both.fused
        .run_range(0..r.forward)
        .unwrap_or_else(|e| panic!("{name}: {e}\n{}", emulator().last_report()));
    both.alone.run_range(0..r.forward).unwrap();
    forward_agrees(name, &r, &both);

    // Backward from the same statistics, so that no activation is on another side.
    for id in [r.stats, r.y] {
        let values = both.fused.read(id).unwrap();
        both.alone.write(id, &values).unwrap();
    }
    let all = r.forward..both.fused.len();
    both.fused
        .run_range(all.clone())
        .unwrap_or_else(|e| panic!("{name}: {e}\n{}", emulator().last_report()));
    both.alone.run_range(all).unwrap();
    for (kernel, (old, new)) in chain.kernels.iter().zip(before.into_iter().zip(calls())) {
        assert!(new.is_none() || new > old, "{name}: {kernel:?} did not run");
        assert_eq!(new.is_some(), kernel.is_some() && emulator().is_loaded(), "{name}");
    }
    backward_agrees(name, chain, &r, &both);
}

/// The norm's input and the statistics of it, in f64.
struct Input {
    z: Vec<f64>,
    y: Vec<f64>,
    items: [usize; 2],
    means: Vec<f64>,
    deviations: Vec<f64>,
    voxels: f64,
}

impl Input {
    fn new(r: &Recorded, both: &Both) -> Input {
        let [n, .., c] = r.tape.shape(r.z).ndhwc().unwrap();
        let (z, y) = (read(&both.fused, r.z), read(&both.fused, r.y));
        let (len, voxels) = (z.len(), (z.len() / (n * c)) as f64);
        let means: Vec<f64> = sums(len, [n, c], |i, _| z[i]).iter().map(|s| s / voxels).collect();
        let squares = sums(len, [n, c], |i, at| (z[i] - means[at]).powi(2));
        let deviations = squares.iter().map(|s| (s / voxels + 1e-5).sqrt()).collect();
        Input { z, y, items: [n, c], means, deviations, voxels }
    }

    /// Place of the statistics of an element.
    fn at(&self, i: usize) -> usize {
        let [n, c] = self.items;
        i / (self.z.len() / n) * c + i % c
    }

    fn scale(&self, gamma: &[f32], i: usize) -> f64 {
        f64::from(gamma[i % gamma.len()]).abs() / self.deviations[self.at(i)]
    }

    fn centred(&self, i: usize) -> f64 {
        (self.z[i] - self.means[self.at(i)]).abs()
    }
}

fn forward_agrees(name: &str, r: &Recorded, both: &Both) {
    let input = Input::new(r, both);
    let Input { z, y, items: [n, c], means, deviations, .. } = &input;
    assert!(*z == read(&both.alone, r.z), "{name}: the convolution's output");
    // A merge rounds the mean once; there are planes, lanes, warps, rows of parts and their tree on the way, at most 40
    // of them. Of the squares and their merges, 100.
    let want = (0..2 * n * c).map(|i| match i % 2 {
        0 => means[i / 2],
        _ => deviations[i / 2].recip(),
    });
    let stats = read(&both.fused, r.stats);
    near(&format!("{name}: statistics"), &stats, &want.collect::<Vec<_>>(), |i| match i % 2 {
        0 => 40.0 * U * (means[i / 2].abs() + deviations[i / 2]),
        _ => 100.0 * U / deviations[i / 2],
    });
    let y_alone = read(&both.alone, r.y);
    near(&format!("{name}: y"), y, &y_alone, |i| {
        let at = input.at(i);
        let mean = 80.0 * U * (means[at].abs() + deviations[at]);
        let terms = input.scale(&r.gamma, i) * (mean + 200.0 * U * input.centred(i));
        2.0 * HALF * y[i].abs().max(y_alone[i].abs()) + terms
    });
}

fn backward_agrees(name: &str, chain: &Chain, r: &Recorded, both: &Both) {
    let input = Input::new(r, both);
    let Input { z, y, items, means, deviations, voxels } = &input;
    let ([n, c], len) = (*items, z.len());
    let (at, centred) = (|i: usize| input.at(i), |i: usize| input.centred(i));
    let scale = |i: usize| input.scale(&r.gamma, i);
    let deviation = |at: usize| deviations[at];
    let (dy, dz) = (read(&both.alone, r.dy), read(&both.alone, r.dz));
    let gated = chain.is_gated();
    if !gated {
        assert!(read(&both.fused, r.dy) == dy, "{name}: the output's gradient");
    }
    let g = |i: usize| dy[i].abs() * if y[i] > 0.0 { 1.0 } else { chain.slope.unwrap_or(1.0) };
    let xhat = |i: usize| centred(i) / deviation(at(i));
    // A path of 64 sums, on either side; where g has been rounded before it is added, that, too.
    let rounded = |i: usize| if gated && y[i] <= 0.0 { HALF * g(i) } else { 0.0 };
    let part = |i: usize| 128.0 * U * g(i) + rounded(i);
    let bounds = [
        sums(len, [n, c], |i, _| part(i)),
        sums(len, [n, c], |i, at| {
            part(i) * xhat(i) + 80.0 * U * g(i) * (1.0 + means[at].abs() / deviation(at))
        }),
    ];
    for (what, id, bound) in [("dbeta", r.dbeta, &bounds[0]), ("dgamma", r.dgamma, &bounds[1])] {
        near(&format!("{name}: {what}"), &read(&both.fused, id), &read(&both.alone, id), |i| {
            (0..n).map(|item| bound[item * c + i]).sum()
        });
    }
    let dz_joined = read(&both.fused, r.dz);
    near(&format!("{name}: dx of the norm"), &dz_joined, &dz, |i| {
        let sums = (bounds[0][at(i)] + xhat(i) * bounds[1][at(i)]) / voxels;
        // Where the other does not leave g in the place of dres, it has g as it was before rounding.
        let rounding = if chain.residual == Residual::Wanted { 0.0 } else { rounded(i) };
        2.0 * HALF * dz[i].abs().max(dz_joined[i].abs()) + scale(i) * (sums + rounding)
    });
    if let Some(dres) = r.dres {
        let [fused, alone] = [&both.fused, &both.alone].map(|step| read(step, dres));
        if chain.residual == Residual::Wanted || !gated {
            assert!(fused == alone, "{name}: gradient of the residual");
        }
        near(&format!("{name}: dres"), &fused, &alone, |i| {
            2.0 * HALF * fused[i].abs().max(alone[i].abs()) + rounded(i)
        });
    }
    assert!(dz.iter().all(|v| bf16::from_f64(*v).to_f64() == *v), "gradients are bf16");
}

#[test]
fn columns_of_narrow_layers_leave_parts() {
    let _alone = alone();
    check("16 channels", &PLAIN);
    let wide = [Some("conv3d_zstream_fprop_c32_n32"), Some("conv3d_zstream_dgrad_c32_n32")];
    let chain = Chain { channels: [32, 32], kernels: wide, ..PLAIN };
    check("two items", &Chain { x: [2, 9, 33, 15, 32], ..chain });
    check("residual", &Chain { x: [2, 9, 15, 17, 32], residual: Residual::Wanted, ..chain });
    check("offset", &Chain { x: [1, 18, 16, 8, 32], offset: 100.0, ..chain });
    let mixed = [Some("conv3d_zstream_fprop_c16_n32"), Some("conv3d_zstream_dgrad_c32_n32")];
    check(
        "48 channels",
        &Chain { x: [1, 7, 31, 9, 16], channels: [48, 32], kernels: mixed, ..PLAIN },
    );
    let kernels = [Some("conv3d_zstream_fprop_c32_n16"), Some("conv3d_zstream_dgrad_c16_n16")];
    check("32 to 16", &Chain { x: [1, 17, 16, 17, 32], kernels, ..PLAIN });
    check("one plane", &Chain { x: [1, 1, 65, 67, 16], residual: Residual::Fixed, ..PLAIN });
    check(
        "no activation",
        &Chain { slope: None, residual: Residual::Wanted, twice: true, ..PLAIN },
    );
}

#[test]
fn boxes_leave_parts() {
    let _alone = alone();
    let x = [1, 9, 16, 24, 48];
    let kernels = [Some("conv3d_spatial_fprop_n64"), Some("conv3d_spatial_dgrad_n64")];
    let chain = Chain { x, channels: [320, 48], kernels, ..PLAIN };
    check("320 channels", &chain);
    let x = [2, 8, 16, 16, 48];
    check("residual", &Chain { x, residual: Residual::Wanted, twice: true, ..chain });
    let kernels = [Some("conv3d_spatial_fprop_n64_z8"), Some("conv3d_spatial_dgrad_n64_z8")];
    let x = [2, 15, 15, 17, 48];
    check("boxes of eight planes", &Chain { x, kernels, ..chain });
    let narrow = [Some("conv3d_spatial_fprop_n32"), Some("conv3d_spatial_dgrad_n32")];
    let x = [1, 26, 25, 26, 48];
    check(
        "32 channels",
        &Chain { x, channels: [32, 48], kernels: narrow, offset: -100.0, ..PLAIN },
    );
    let narrow = [Some("conv3d_spatial_fprop_n16"), Some("conv3d_spatial_dgrad_n16")];
    let residual = Residual::Added;
    check("16 channels", &Chain { x, channels: [16, 48], kernels: narrow, residual, ..PLAIN });
}

#[test]
fn implicit_gemm_rows_leave_parts() {
    let _alone = alone();
    let kernels = [Some("conv3d_igemm_fprop_n64"), Some("conv3d_igemm_dgrad_n64")];
    let point = Chain { x: [2, 13, 11, 17, 16], channels: [48, 16], before: (1, 1), ..PLAIN };
    let point = Chain { after: (1, 1), kernels, ..point };
    check("1x1x1", &point);
    check("1x1x1, residual", &Chain { residual: Residual::Fixed, offset: 100.0, ..point });
    let strided = Chain { x: [1, 17, 27, 29, 8], channels: [320, 16], before: (3, 2), ..point };
    check("stride 2", &strided);
    check(
        "96 channels, then stride 2",
        &Chain {
            x: [2, 7, 11, 18, 16],
            channels: [96, 32],
            after: (3, 2),
            residual: Residual::Wanted,
            ..point
        },
    );
    let narrow = [Some("conv3d_igemm_fprop_n32"), Some("conv3d_igemm_dgrad_n32")];
    let point = Chain { x: [2, 19, 15, 17, 8], channels: [32, 16], kernels: narrow, ..point };
    check("32 channels", &Chain { residual: Residual::Added, twice: true, ..point });
    check("32 channels, then stride 2", &Chain { after: (2, 2), ..point });
}

#[test]
fn the_first_layer_leaves_parts() {
    let _alone = alone();
    let kernels = [Some("conv3d_direct_fprop"), Some("conv3d_zstream_dgrad_c32_n32")];
    let chain = Chain { x: [2, 17, 9, 31, 1], channels: [48, 32], kernels, ..PLAIN };
    check("48 channels", &chain);
    let kernels = [Some("conv3d_direct_fprop"), Some("conv3d_zstream_dgrad_c32_n16")];
    let x = [1, 33, 16, 15, 1];
    check("16 channels", &Chain { x, channels: [16, 32], offset: 100.0, kernels, ..chain });
}

/// A small norm makes its statistics itself, in one launch; a convolution that splits its sums has none to give.
#[test]
fn what_does_not_pay_is_not_joined() {
    let _alone = alone();
    check("small", &Chain { x: [1, 8, 8, 9, 16], kernels: [None, None], ..PLAIN });
    let kernels = [None, Some("conv3d_zstream_dgrad_c16_n16")];
    check("split", &Chain { x: [1, 33, 31, 31, 64], before: (3, 2), kernels, ..PLAIN });
}
