//! Fused calls of the decoder and the heads: a transposed convolution that works in the concatenation it writes to, and
//! a GELU that the convolution before it makes; beside the same calls each on its own, bit for bit, and beside the CPU
//! where that is exact.

use spatialssl::config::GradientViews;
use spatialssl::driver::{Device, counts};
use spatialssl::model::initial_values;
use spatialssl::ops::{Axis, Concat, Conv3d, ConvTranspose3d, Gelu, LeakyRelu, Op};
use spatialssl::session::{Program, ProgramOptions};
use spatialssl::tape::{CudaStep, Init, Step, Tape, ValueId};

use crate::common::emulator::{Order, alone, emulator, left_out};
use crate::common::program::{inputs, options};
use crate::fused::Both;

/// A tape, what is written to it and what is read of it.
#[derive(Default)]
struct Recorded {
    tape: Tape,
    given: Vec<ValueId>,
    read: Vec<ValueId>,
}

impl Recorded {
    /// A value that is given, and whose gradient is wanted if it is `trained`.
    fn give(&mut self, dims: &[usize], trained: bool) -> ValueId {
        let name = format!("given {}", self.given.len());
        let id = match trained {
            true => self.tape.param(name, dims, Init::Constant(0.0)),
            false => self.tape.state(name, dims),
        };
        self.given.push(id);
        id
    }

    /// Another value than `value`, so that the memory of that one may be anywhere.
    fn act(&mut self, value: ValueId) -> ValueId {
        self.tape.record("act", LeakyRelu { slope: 2.0 }, &[value]).unwrap()
    }

    /// Backward from `outputs`; keeps them and all gradients.
    fn backward(&mut self, outputs: &[ValueId]) {
        let losses: Vec<_> = outputs
            .iter()
            .map(|&y| {
                let dims = self.tape.shape(y).dims().to_vec();
                (y, self.tape.input("dy", &dims))
            })
            .collect();
        let wanted = self.tape.params();
        let grads = self.tape.backward(&losses, &wanted);
        self.given.extend(losses.iter().map(|(_, seed)| *seed));
        self.read.extend(outputs.iter().copied().chain(grads.into_iter().flatten()));
        self.read.iter().for_each(|&id| self.tape.keep(id));
    }

    /// What the `k`-th given value holds: -1, 0 and 1, three out of four of them 0, so that all sums are exact, also in
    /// bf16.
    fn whole(&self, k: usize) -> Vec<f32> {
        let value = |i: usize| {
            let mixed = (i + 1).wrapping_mul(2_654_435_761 + 97 * k).wrapping_mul(40_503) >> 11;
            [0.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0][mixed % 8]
        };
        (0..self.tape.shape(self.given[k]).len()).map(value).collect()
    }

    /// Numbers with all their bits.
    fn fractions(&self, k: usize) -> Vec<f32> {
        let len = self.tape.shape(self.given[k]).len();
        (0..len).map(|i| ((i * 7919 + k * 104_729) % 2003) as f32 * 7e-4 - 0.7).collect()
    }

    /// Runs the tape twice with and without fused calls, so that the second run finds what the first left, on the
    /// values that `values` gives; fails where a bit differs. Returns the fused step.
    fn same_bits(
        &self,
        name: &str,
        pairs: usize,
        values: impl Fn(&Self, usize) -> Vec<f32>,
    ) -> CudaStep {
        let mut both = Both::new(&self.tape, pairs);
        both.each(|step| {
            for _ in 0..2 {
                for (k, &id) in self.given.iter().enumerate() {
                    step.write(id, &values(self, k)).unwrap();
                }
                if let Err(error) = step.run_range(0..step.len()) {
                    panic!("{name}: {error}\n{}", emulator().last_report());
                }
            }
        });
        for &id in &self.read {
            let bits = |step: &CudaStep| -> Vec<u32> {
                step.read(id).unwrap().into_iter().map(f32::to_bits).collect()
            };
            let what = &self.tape.get(id).name;
            assert!(bits(&both.fused) == bits(&both.alone), "{name}: {what} differs");
        }
        assert_eq!(emulator().reports(), "", "{name}");
        both.fused
    }

    /// The same on small whole numbers, and fails where the CPU has other ones.
    fn same_as_cpu(&self, name: &str, pairs: usize) {
        let device = self.same_bits(name, pairs, Self::whole);
        let mut cpu = Step::<f32>::new(&self.tape);
        for (k, &id) in self.given.iter().enumerate() {
            cpu.write(id).copy_from_slice(&self.whole(k));
        }
        cpu.run();
        for &id in &self.read {
            let (got, want) = (device.read(id).unwrap(), cpu.read(id));
            let what = &self.tape.get(id).name;
            assert!(want.iter().any(|&x| x != 0.0), "{name}: {what} is 0");
            let differs = got.iter().zip(want).position(|(g, w)| g != w);
            if let Some(i) = differs {
                panic!("{name}: {what}[{i}] is {}, on the CPU {}", got[i], want[i]);
            }
        }
    }
}

/// What the upsampled value meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meets {
    /// `[up, skip]`, `[skip, up]`, `[up, skip, another]` with another reader of `skip`, `[up, up]`.
    Skip,
    SkipBefore,
    TwoSkips,
    Itself,
    /// `[up, skip]`, and another reader: recorded before, recorded later, from outside.
    ReaderBefore,
    ReaderAfter,
    ReaderOutside,
    /// `[skip, another]`, and another reader.
    Nothing,
}

/// A transposed convolution and a concatenation, `times` times with the same inputs.
#[derive(Clone, Copy)]
struct Upsampling {
    x: [usize; 5],
    filter: [usize; 3],
    output: usize,
    skip: usize,
    bias: bool,
    /// Which of input, filter with bias, and skip are trained.
    trained: [bool; 3],
    meets: Meets,
    times: usize,
}

impl Upsampling {
    fn new(x: [usize; 5], output: usize, skip: usize) -> Upsampling {
        let (filter, trained) = ([2; 3], [true; 3]);
        Upsampling { x, filter, output, skip, bias: true, trained, meets: Meets::Skip, times: 1 }
    }

    fn name(&self) -> String {
        let Upsampling { x, filter, output, skip, meets, times, .. } = self;
        format!("{x:?} by {filter:?} to {output} and {skip}, {meets:?}, {times} times")
    }

    fn record(&self) -> Recorded {
        let mut r = Recorded::default();
        let ([n, d, h, w, c], [t, p, q]) = (self.x, self.filter);
        let x = r.give(&self.x, self.trained[0]);
        let mut inputs = vec![r.act(x), r.give(&[c, t, p, q, self.output], self.trained[1])];
        if self.bias {
            inputs.push(r.give(&[self.output], self.trained[1]));
        }
        let [skip, another] = [self.skip, 16]
            .map(|channels| r.give(&[n, d * t, h * p, w * q, channels], self.trained[2]));
        let mut outputs = Vec::new();
        for _ in 0..self.times {
            let op = ConvTranspose3d { bias: self.bias };
            let up = r.tape.record("up", op, &inputs).unwrap();
            let mut read = |r: &mut Recorded, value| outputs.push(r.act(value));
            if self.meets == Meets::ReaderBefore {
                read(&mut r, up);
            }
            let fused = match self.meets {
                Meets::SkipBefore => vec![skip, up],
                Meets::TwoSkips => vec![up, skip, another],
                Meets::Itself => vec![up, up],
                Meets::Nothing => vec![skip, another],
                _ => vec![up, skip],
            };
            let op = Concat { axis: Axis::Channel };
            let concat = r.tape.record("concat", op, &fused).unwrap();
            if matches!(self.meets, Meets::ReaderAfter | Meets::Nothing) {
                read(&mut r, up);
            }
            read(&mut r, concat);
            if self.meets == Meets::TwoSkips {
                read(&mut r, skip);
            }
            if self.meets == Meets::ReaderOutside {
                r.read.push(up);
            }
        }
        r.backward(&outputs);
        r
    }

    fn check(&self, pairs: usize) {
        let recorded = self.record();
        recorded.same_as_cpu(&self.name(), pairs);
        recorded.same_bits(&self.name(), pairs, Recorded::fractions);
    }
}

#[test]
fn upsampled_channels_are_written_and_read_in_the_concatenation() {
    let _alone = alone();
    let plain = |x, output, skip| Upsampling::new(x, output, skip);
    let cases = [
        plain([2, 3, 1, 2, 8], 8, 8),
        plain([1, 1, 1, 1, 16], 8, 48),
        plain([2, 3, 5, 7, 16], 16, 16),
        plain([1, 5, 4, 3, 48], 16, 8),
        plain([2, 2, 3, 1, 96], 48, 48),
        plain([1, 3, 2, 1, 320], 96, 96),
        plain([2, 1, 2, 1, 96], 320, 16),
        // Several blocks of voxels, and of columns.
        plain([1, 7, 6, 5, 48], 96, 8),
        // Without the kernel for upsampling: many channels, of which the sum is split or not, and odd ones.
        plain([2, 3, 2, 3, 520], 16, 8),
        Upsampling { filter: [4, 4, 5], ..plain([1, 2, 1, 3, 520], 8, 16) },
        plain([1, 2, 3, 2, 12], 8, 16),
        plain([1, 2, 3, 2, 5], 16, 8),
        Upsampling { filter: [1, 2, 2], ..plain([1, 3, 5, 3, 16], 8, 16) },
        Upsampling { filter: [3, 1, 2], bias: false, ..plain([2, 2, 3, 3, 8], 16, 8) },
    ];
    for (i, case) in cases.iter().enumerate() {
        emulator().set_order([Order::Ascending, Order::Descending, Order::Random(i as u64)][i % 3]);
        case.check(2);
        // Gradients that are added to.
        Upsampling { times: 2, ..*case }.check(4);
    }
    emulator().set_order(Order::Ascending);
    let case = plain([2, 3, 2, 1, 16], 8, 16);
    Upsampling { trained: [true, true, false], ..case }.check(2);
    Upsampling { trained: [false, true, true], ..case }.check(2);
    Upsampling { trained: [true, false, true], ..case }.check(2);
    // Memory of the input is free for others where nothing is trained.
    Upsampling { trained: [false; 3], ..plain([1, 7, 6, 5, 48], 96, 8) }.check(1);
    // No gradient of what is upsampled.
    Upsampling { trained: [false, false, true], ..case }.check(1);
}

#[test]
fn what_cannot_stay_in_the_concatenation_is_copied() {
    let _alone = alone();
    let case = Upsampling::new([2, 3, 2, 1, 16], 8, 8);
    // Pieces of 16 bytes would lie across the border.
    Upsampling { output: 12, ..case }.check(0);
    Upsampling { skip: 12, ..case }.check(0);
    Upsampling { skip: 3, output: 5, ..case }.check(0);
    for meets in [Meets::SkipBefore, Meets::TwoSkips] {
        Upsampling { meets, ..case }.check(0);
        Upsampling { meets, times: 2, ..case }.check(0);
    }
    for meets in [Meets::ReaderBefore, Meets::ReaderAfter, Meets::Nothing] {
        Upsampling { meets, ..case }.check(0);
    }
    // Such a value has no gradient.
    Upsampling { meets: Meets::Itself, trained: [false; 3], ..case }.check(0);
    // Read from outside; its gradient is not.
    Upsampling { meets: Meets::ReaderOutside, ..case }.check(1);
}

/// Calls, bytes read and bytes written of a kernel by the fused calls of `recorded`.
fn moved(recorded: &Recorded, kernel: &str) -> [u64; 3] {
    let mut step = CudaStep::new(&recorded.tape, Device::open(0, false).unwrap(), false).unwrap();
    let before = counts(kernel).unwrap();
    step.run_range(0..step.len()).unwrap();
    let after = counts(kernel).unwrap();
    [after.calls - before.calls, after.read - before.read, after.written - before.written]
}

#[test]
fn a_concatenation_copies_in_one_launch_and_only_what_is_elsewhere() {
    if left_out("a_concatenation_copies_in_one_launch_and_only_what_is_elsewhere") {
        return;
    }
    let _alone = alone();
    let case = Upsampling::new([1, 2, 3, 2, 16], 8, 24);
    let (voxels, skip) = (8 * 12, 2 * 24);
    let fused = case.record();
    assert_eq!(moved(&fused, "concat_fwd_bf16"), [1, voxels * skip, voxels * skip]);
    assert_eq!(moved(&fused, "concat_bwd_bf16"), [1, voxels * skip, voxels * skip]);
    let unwanted = Upsampling { trained: [true, true, false], ..case }.record();
    assert_eq!(moved(&unwanted, "concat_bwd_bf16"), [0; 3]);
    let three = Upsampling { meets: Meets::TwoSkips, ..case }.record();
    let all = voxels * (16 + skip + 32);
    assert_eq!(moved(&three, "concat_fwd_bf16"), [1, all, all]);
    // The gradient of one skip is added to.
    assert_eq!(moved(&three, "concat_bwd_bf16"), [1, all + voxels * skip, all]);
}

#[test]
fn a_part_of_a_concatenation_may_begin_anywhere() {
    let _alone = alone();
    for channels in [[12, 8, 12], [8, 8, 16], [3, 5, 8]] {
        let mut r = Recorded::default();
        let parts: Vec<_> = (0..3).map(|i| r.give(&[2, 3, 1, 2, channels[i]], i == 1)).collect();
        let op = Concat { axis: Axis::Channel };
        let concat = r.tape.record("concat", op, &parts).unwrap();
        let y = r.act(concat);
        r.backward(&[y]);
        r.same_as_cpu(&format!("{channels:?}"), 0);
    }
}

/// What a GELU beside a convolution follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    /// The convolution; the same where nothing is trained; the same with another call in between.
    Output,
    Untrained,
    Later,
    /// The input of the convolution.
    Input,
}

/// A convolution and a GELU, between temporary values.
fn activated(
    dims: [usize; 5],
    output: usize,
    conv: &Conv3d,
    kernel: usize,
    follows: Follows,
) -> Recorded {
    let mut r = Recorded::default();
    let trained = follows != Follows::Untrained;
    let x = r.give(&dims, trained);
    let mut inputs = vec![r.act(x), r.give(&[output, kernel, kernel, kernel, dims[4]], trained)];
    if conv.bias {
        inputs.push(r.give(&[output], trained));
    }
    let y = r.tape.record("conv", conv.clone(), &inputs).unwrap();
    let mut outputs = Vec::new();
    if follows == Follows::Later {
        outputs.push(r.act(x));
    }
    let of = if follows == Follows::Input { inputs[0] } else { y };
    let z = r.tape.record("gelu", Gelu, &[of]).unwrap();
    outputs.push(r.act(z));
    if follows == Follows::Input {
        outputs.push(r.act(y));
    }
    r.backward(&outputs);
    r
}

#[test]
fn a_convolution_makes_the_gelu_behind_it() {
    let _alone = alone();
    let conv = |stride, bias| Conv3d { stride: [stride; 3], padding: [1; 3], bias, normed: false };
    // The trunks of the heads and the sub-view head, at their sizes and at others.
    let cases = [
        ([2, 16, 16, 16, 32], 16, conv(2, true), 3),
        ([1, 8, 8, 8, 16], 8, conv(2, true), 3),
        ([2, 5, 3, 7, 8], 4, conv(2, true), 3),
        ([1, 2, 2, 2, 4], 2, conv(2, true), 3),
        ([3, 16, 16, 16, 8], 48, conv(2, true), 4),
        ([2, 8, 8, 8, 64], 128, conv(2, true), 4),
        ([2, 2, 2, 2, 96], 320, conv(2, true), 3),
        ([2, 33, 17, 16, 8], 40, conv(1, false), 3),
        ([1, 19, 17, 15, 5], 7, conv(1, false), 3),
        // Sums that are not split, of a few rows and of several blocks of them.
        ([1, 4, 3, 2, 7], 9, conv(1, true), 2),
        ([2, 9, 7, 8, 5], 7, conv(1, true), 2),
        ([2, 9, 7, 8, 8], 24, conv(1, true), 2),
        ([1, 9, 7, 8, 8], 72, conv(1, false), 2),
    ];
    for (i, (x, output, conv, kernel)) in cases.iter().enumerate() {
        emulator().set_order([Order::Ascending, Order::Descending, Order::Random(i as u64)][i % 3]);
        let name = format!("{x:?} to {output} by {kernel}");
        let recorded = activated(*x, *output, conv, *kernel, Follows::Output);
        recorded.same_bits(&name, 1, Recorded::fractions);
        if !left_out("GELUs that are launched") {
            assert_eq!(moved(&recorded, "gelu_fwd_bf16"), [0; 3], "{name}");
        }
    }
    emulator().set_order(Order::Ascending);
    // Kernels that do not, and a GELU of something else.
    let same = conv(1, true);
    let (output, fractions) = (Follows::Output, Recorded::fractions);
    activated([1, 8, 8, 8, 16], 16, &same, 3, output).same_bits("zstream", 0, fractions);
    activated([1, 8, 8, 8, 1], 16, &same, 3, output).same_bits("stem", 0, fractions);
    activated([1, 5, 5, 5, 8], 8, &same, 3, Follows::Input).same_bits("input", 0, fractions);
    activated([1, 5, 5, 5, 8], 8, &same, 3, Follows::Later).same_bits("later", 0, fractions);
    // The input has its memory for itself until both are done.
    let untrained = activated([2, 9, 7, 8, 8], 72, &same, 2, Follows::Untrained);
    untrained.same_bits("untrained", 1, fractions);
}

/// Two steps of training; the bits of all that is kept, and the length of the plan. Fused or not, but for norms: their
/// sums then run in another order.
fn train(options: &ProgramOptions, fused: bool) -> (Vec<u32>, usize, usize) {
    let program = Program::new(options).unwrap();
    let device = Device::open(0, false).unwrap();
    let fuses = |_: &Op, second: &Op| fused && !matches!(second, Op::InstanceNorm(_));
    let mut step = CudaStep::fusing(&program.tape, device, false, fuses).unwrap();
    for (id, values) in initial_values(&program.tape, 7) {
        step.write(id, &values).unwrap();
    }
    for (seed, weight) in program.weights().into_iter().zip(options.weights()) {
        step.write(seed, &[weight as f32]).unwrap();
    }
    for t in 0..2 {
        for (id, values) in inputs(options, &program, t, 1e-3) {
            let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
            step.write(id, &values).unwrap();
        }
        step.run_range(0..step.len()).unwrap();
    }
    let kept = program.groups.iter().flat_map(|b| [b.packed, b.m, b.v]).chain([program.average]);
    let read = |id| step.read(id).unwrap().into_iter().map(f32::to_bits);
    let bits = kept.chain(program.losses()).flat_map(read).collect();
    (bits, step.plan().len, step.fusions().count())
}

#[test]
fn whole_steps_keep_their_bits_and_need_no_more_memory() {
    let _alone = alone();
    for (views, features, size) in [
        (GradientViews::First, [8, 16, 24], [16, 16, 20]),
        (GradientViews::All, [8, 24, 16], [16, 20, 16]),
    ] {
        let options =
            ProgramOptions { gradient_views: views, ..options(&features, &[1, 1, 1], size, 2) };
        let ((fused, len, pairs), (apart, len_apart, _)) =
            (train(&options, true), train(&options, false));
        println!("{features:?}: {pairs} pairs, {len} bytes; apart {len_apart}");
        assert!(fused == apart, "{views:?}: what is kept differs");
        assert!(len <= len_apart, "{views:?}: {len} bytes, apart {len_apart}");
    }
}
