//! Convolutions against a plain loop in f64.

use crate::backend::cpu::conv::dense::Run;
use crate::backend::cpu::conv::plan::Dense;
use crate::backend::cpu::conv::{
    ConvGeometry, ConvPass, bias_grad, dense, dgrad, fprop, wgrad, workspace_len,
};
use crate::backend::cpu::isa::Isa;
use crate::scalar::Scalar;

/// A small generator (SplitMix64); tests need no more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick(&mut self, from: &[usize]) -> usize {
        from[self.below(from.len())]
    }

    /// Whole numbers from -3 to 3.
    fn whole(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.below(7) as f64 - 3.0).collect()
    }

    /// Approximately normal, representable in f32.
    fn normal(&mut self, len: usize) -> Vec<f64> {
        let mut uniform = || (self.next() >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
        let mut one = || f64::from(((0..12).map(|_| uniform()).sum::<f64>()) as f32);
        (0..len).map(|_| one()).collect()
    }
}

/// Calls `f(x, w, y)` with the indices of every product of the convolution.
fn for_products(g: &ConvGeometry, mut f: impl FnMut(usize, usize, usize)) {
    let (o, i, k) = (g.output(), g.input, g.filter);
    let at = |dims: [usize; 3], p: [usize; 3]| (p[0] * dims[1] + p[1]) * dims[2] + p[2];
    let cells = |dims: [usize; 3]| {
        (0..dims.iter().product::<usize>())
            .map(move |v| [v / (dims[1] * dims[2]), v / dims[2] % dims[1], v % dims[2]])
    };
    for n in 0..g.batch {
        for out in cells(o) {
            for tap in cells(k) {
                let mut input = [0; 3];
                let inside = (0..3).all(|d| {
                    let v = (out[d] * g.stride[d] + tap[d]).checked_sub(g.padding[d]);
                    input[d] = v.unwrap_or(usize::MAX);
                    input[d] < i[d]
                });
                if !inside {
                    continue;
                }
                let y = (n * o.iter().product::<usize>() + at(o, out)) * g.out_channels;
                let x = (n * i.iter().product::<usize>() + at(i, input)) * g.in_channels;
                for kk in 0..g.out_channels {
                    let w = (kk * k.iter().product::<usize>() + at(k, tap)) * g.in_channels;
                    (0..g.in_channels).for_each(|c| f(x + c, w + c, y + kk));
                }
            }
        }
    }
}

/// Operands in f64, and all results by the plain loop.
struct Case {
    g: ConvGeometry,
    x: Vec<f64>,
    w: Vec<f64>,
    dy: Vec<f64>,
    bias_out: Vec<f64>,
    bias_in: Vec<f64>,
}

impl Case {
    fn new(g: ConvGeometry, values: impl Fn(&mut Random, usize) -> Vec<f64>) -> Self {
        let mut random = Random(g.input_len() as u64 ^ (g.filter_len() as u64) << 20);
        Case {
            g,
            x: values(&mut random, g.input_len()),
            w: values(&mut random, g.filter_len()),
            dy: values(&mut random, g.output_len()),
            bias_out: values(&mut random, g.out_channels),
            bias_in: values(&mut random, g.in_channels),
        }
    }

    /// `[y, dx, dw]` without bias, from operands seen through `map`.
    fn plain(&self, map: impl Fn(f64) -> f64) -> [Vec<f64>; 3] {
        let g = &self.g;
        let mut y = vec![0.0; g.output_len()];
        let (mut dx, mut dw) = (vec![0.0; g.input_len()], vec![0.0; g.filter_len()]);
        for_products(g, |xi, wi, yi| {
            y[yi] += map(self.x[xi]) * map(self.w[wi]);
            dx[xi] += map(self.dy[yi]) * map(self.w[wi]);
            dw[wi] += map(self.dy[yi]) * map(self.x[xi]);
        });
        [y, dx, dw]
    }

    /// `[y, dx, dw]`; outputs start from `start`, added to if that is a number; with biases if `bias`.
    fn run<T: Scalar>(&self, isa: Isa, bias: bool, start: f64) -> [Vec<T>; 3] {
        let (g, add) = (&self.g, !start.is_nan());
        let typed = |v: &[f64]| v.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>();
        let [x, w, dy] = [&self.x, &self.w, &self.dy].map(|v| typed(v));
        let [b_out, b_in] = [&self.bias_out, &self.bias_in].map(|v| typed(v));
        let space = |pass| vec![T::from_f64(f64::NAN); workspace_len(g, pass)];
        let fresh = |len| vec![T::from_f64(start); len];
        let mut y = fresh(g.output_len());
        let bias_out = bias.then_some(&b_out[..]);
        let run = Run { isa, x: &x, w: &w, bias: bias_out, add };
        dense::run(&Dense::fprop(g), &run, &mut y, &mut space(ConvPass::Fprop));
        let mut dx = fresh(g.input_len());
        let run = Run { x: &dy, bias: bias.then_some(&b_in[..]), ..run };
        dense::run(&Dense::dgrad(g), &run, &mut dx, &mut space(ConvPass::Dgrad));
        let mut dw = fresh(g.filter_len());
        wgrad::run(g, isa, &x, &dy, &mut dw, add, &mut space(ConvPass::Wgrad));
        [y, dx, dw]
    }

    /// Whole numbers: every way of computing gives exactly the plain loop's result.
    fn assert_exact<T: Scalar>(&self, isa: Isa) {
        let plain = self.plain(|v| v);
        let g = &self.g;
        for (bias, start) in [(true, f64::NAN), (false, f64::NAN), (true, 5.0), (false, 5.0)] {
            let got = self.run::<T>(isa, bias, start);
            let biases = [Some(&self.bias_out), Some(&self.bias_in), None];
            for (((got, want), b), name) in
                got.iter().zip(&plain).zip(biases).zip(["y", "dx", "dw"])
            {
                for (i, (got, want)) in got.iter().zip(want).enumerate() {
                    let b = b.filter(|_| bias).map_or(0.0, |b| b[i % b.len()]);
                    let want = want + b + if start.is_nan() { 0.0 } else { start };
                    let got = got.to_f64();
                    assert!(got == want, "{name}[{i}] is {got}, not {want}: {isa:?} {g:?}");
                }
            }
        }
    }
}

fn geometry(
    batch: usize,
    input: [usize; 3],
    channels: [usize; 2],
    filter: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
) -> ConvGeometry {
    let [in_channels, out_channels] = channels;
    ConvGeometry { batch, input, in_channels, out_channels, filter, stride, padding }
}

/// Equal along all axes.
fn cube(n: usize, side: usize, channels: [usize; 2], k: usize, s: usize, p: usize) -> ConvGeometry {
    geometry(n, [side; 3], channels, [k; 3], [s; 3], [p; 3])
}

fn table() -> Vec<ConvGeometry> {
    vec![
        cube(1, 1, [1, 1], 1, 1, 0),
        cube(2, 3, [1, 1], 3, 1, 1),
        cube(2, 5, [2, 3], 3, 1, 1),
        cube(1, 6, [3, 2], 3, 2, 1),
        cube(2, 7, [8, 16], 3, 1, 1),
        cube(2, 7, [16, 8], 3, 2, 1),
        cube(1, 12, [1, 32], 3, 1, 1),
        cube(2, 9, [1, 32], 3, 2, 1),
        cube(1, 10, [32, 1], 3, 1, 1),
        cube(1, 10, [32, 32], 3, 1, 1),
        cube(2, 8, [32, 64], 3, 2, 1),
        cube(1, 9, [32, 16], 3, 2, 1),
        cube(2, 9, [64, 32], 3, 1, 1),
        cube(1, 5, [48, 48], 3, 1, 1),
        cube(1, 4, [48, 40], 3, 2, 1),
        cube(2, 3, [320, 320], 3, 1, 1),
        cube(1, 3, [320, 32], 3, 2, 1),
        cube(1, 4, [128, 128], 3, 1, 1),
        cube(2, 4, [64, 128], 2, 2, 0),
        cube(1, 6, [16, 32], 2, 2, 0),
        cube(1, 7, [16, 32], 2, 2, 0),
        cube(2, 6, [32, 64], 1, 1, 0),
        cube(1, 7, [32, 16], 1, 2, 0),
        cube(1, 5, [3, 8], 1, 1, 0),
        cube(3, 2, [64, 96], 4, 2, 1),
        cube(12, 2, [32, 64], 4, 2, 1),
        cube(2, 8, [8, 16], 4, 2, 1),
        cube(2, 8, [16, 8], 4, 4, 0),
        cube(1, 1, [16, 16], 3, 1, 1),
        cube(1, 2, [16, 16], 5, 1, 2),
        cube(1, 2, [3, 16], 5, 2, 2),
        cube(1, 2, [16, 3], 5, 3, 4),
        cube(1, 3, [8, 8], 2, 3, 0),
        cube(1, 5, [8, 8], 2, 3, 2),
        cube(1, 2, [8, 8], 4, 1, 0),
        geometry(2, [3, 8, 9], [16, 32], [1, 3, 3], [1, 2, 2], [0, 1, 1]),
        geometry(1, [5, 6, 20], [32, 32], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
        geometry(1, [1, 9, 33], [8, 24], [1, 3, 3], [1, 1, 1], [0, 1, 1]),
        geometry(2, [4, 3, 5], [17, 19], [3, 2, 4], [2, 1, 3], [1, 0, 2]),
        geometry(1, [9, 8, 70], [33, 34], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
        geometry(1, [20, 17, 18], [16, 16], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
        geometry(1, [2, 3, 4], [320, 48], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    ]
}

fn random_geometries(count: usize) -> Vec<ConvGeometry> {
    let mut r = Random(7);
    let channels = [1, 2, 3, 4, 5, 8, 13, 16, 17, 31, 32, 33, 48, 64, 70];
    (0..count)
        .map(|_| {
            let mut three = |low: usize, high: usize| [0; 3].map(|_| low + r.below(high - low + 1));
            let (input, filter) = (three(1, 9), three(1, 4));
            let (stride, padding) = (three(1, 3), three(0, 3));
            let pair = [r.pick(&channels), r.pick(&channels)];
            geometry(1 + r.below(3), input, pair, filter, stride, padding)
        })
        .collect()
}

#[test]
fn whole_numbers_are_exact_on_chosen_geometries() {
    for g in table() {
        let case = Case::new(g, Random::whole);
        case.assert_exact::<f32>(Isa::best());
        case.assert_exact::<f64>(Isa::best());
    }
}

#[test]
fn whole_numbers_are_exact_on_random_geometries() {
    for g in random_geometries(120) {
        Case::new(g, Random::whole).assert_exact::<f32>(Isa::best());
    }
}

/// The geometries of [`table`] that slow paths can run.
fn small() -> impl Iterator<Item = ConvGeometry> {
    let products = |g: &ConvGeometry| g.output_len() * g.filter_len() / g.out_channels;
    table().into_iter().filter(move |g| products(g) < 2_000_000)
}

#[test]
fn all_instruction_sets_give_the_same_bits() {
    for g in small() {
        let case = Case::new(g, Random::normal);
        let want = case.run::<f32>(Isa::Portable, true, f64::NAN);
        let want64 = case.run::<f64>(Isa::Portable, true, f64::NAN);
        for isa in [Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.supported()) {
            assert!(case.run::<f32>(isa, true, f64::NAN) == want, "{isa:?} {g:?}");
            assert!(case.run::<f64>(isa, true, f64::NAN) == want64, "{isa:?} {g:?}");
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    for g in table() {
        let case = Case::new(g, Random::normal);
        let once = |n| pool(n).install(|| case.run::<f32>(Isa::best(), true, f64::NAN));
        assert!(once(1) == once(2), "{g:?}");
    }
}

#[test]
fn rounding_stays_within_the_bound_of_a_random_walk() {
    let unit = 2f64.powi(-24);
    for g in table() {
        let case = Case::new(g, Random::normal);
        let got = case.run::<f32>(Isa::best(), false, f64::NAN);
        let taps = g.filter.iter().product::<usize>();
        let voxels = g.output_len() / g.out_channels;
        let terms = [taps * g.in_channels, taps * g.out_channels, voxels];
        let (plain, sizes) = (case.plain(|v| v), case.plain(f64::abs));
        for (pass, got) in got.iter().enumerate() {
            let factor = 4.0 * (terms[pass] as f64).sqrt() * unit;
            for (i, &got) in got.iter().enumerate() {
                let (want, size) = (plain[pass][i], sizes[pass][i]);
                let bound = factor * size + unit * want.abs();
                let error = (f64::from(got) - want).abs();
                assert!(error <= bound, "pass {pass} element {i}: {error} > {bound}, {g:?}");
            }
        }
    }
}

#[test]
fn public_functions_check_and_forward() {
    let g = cube(2, 5, [8, 16], 3, 2, 1);
    let case = Case::new(g, Random::whole);
    let typed = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
    let (x, w, dy) = (typed(&case.x), typed(&case.w), typed(&case.dy));
    let want = case.run::<f32>(Isa::best(), false, f64::NAN);
    let space = |pass| vec![f32::NAN; workspace_len(&g, pass)];
    let mut y = vec![f32::NAN; g.output_len()];
    fprop(&g, &x, &w, None, &mut y, &mut space(ConvPass::Fprop));
    let mut dx = vec![f32::NAN; g.input_len()];
    dgrad(&g, &dy, &w, None, &mut dx, false, &mut space(ConvPass::Dgrad));
    let mut dw = vec![f32::NAN; g.filter_len()];
    wgrad(&g, &x, &dy, &mut dw, false, &mut space(ConvPass::Wgrad));
    assert!([y, dx, dw] == want);
}

#[test]
fn a_filter_that_does_not_fit_leaves_nothing_to_sum() {
    let g = cube(2, 2, [3, 4], 5, 1, 0);
    assert_eq!(g.output(), [0; 3]);
    Case::new(g, Random::whole).assert_exact::<f32>(Isa::best());
}

#[test]
fn bias_gradients_are_sums_over_voxels() {
    for (voxels, channels) in [(1, 1), (700, 3), (5000, 32), (3000, 40), (1500, 100), (0, 5)] {
        let dy: Vec<f32> = Random(3).whole(voxels * channels).iter().map(|&v| v as f32).collect();
        for add in [false, true] {
            let mut db = vec![if add { 2.0 } else { f32::NAN }; channels];
            bias_grad(&dy, channels, &mut db, add);
            for (c, &got) in db.iter().enumerate() {
                let want: f32 = dy.iter().skip(c).step_by(channels).sum();
                assert_eq!(got, want + if add { 2.0 } else { 0.0 }, "channel {c} of {channels}");
            }
        }
    }
}
