//! Operations that go over memory, at sizes that the case table does not have: norms cut into slices, sums of many
//! blocks, rows that allow wide accesses and rows that do not.

use half::bf16;
use spatialssl::driver::Device;
use spatialssl::ops::{
    AdamW, AvgPool, Axis, Concat, Conv3d, Gelu, GlobalPool, GradNorm, GradNormTap, InstanceNorm,
    LeakyRelu, Linear, Op, Pairwise, PairwiseKind, ResidualAdd, SCALARS,
};
use spatialssl::optim::{ParamGroup, record_update};
use spatialssl::tape::{CudaStep, Init, Tape, ValueId};

use crate::ORDERS;
use crate::common::bound::normals;
use crate::common::cases::Case;
use crate::common::emulator::emulator;
use crate::compare::{Numbers, check};

fn case(name: &str, op: impl Into<Op>, inputs: Vec<Vec<usize>>) -> Case {
    Case { name: format!("{name} {:?}", inputs[0]), op: op.into(), inputs, real: false }
}

/// Norms: several slices to an instance, a last slice that is not full, tiles of less than all channels, and instances
/// too many or too large for one launch.
fn norms() -> Vec<Case> {
    let sizes = [
        [1, 24, 23, 19, 8],  // 3 slices, 10,488 voxels
        [2, 21, 17, 13, 16], // wide, two accesses to a voxel
        [1, 15, 14, 13, 96], // two tiles of six accesses
        [1, 11, 13, 14, 19], // one by one
        [2, 13, 17, 15, 3],
        [5, 3, 5, 7, 16], // one slice, more instances than one block takes
        [6, 1, 2, 3, 17],
        [1, 41, 37, 29, 1], // one channel: 512 rows
        [1, 17, 19, 23, 8], // one slice, more voxels to a thread than one run
        [2, 3, 5, 4, 65],   // a last tile that is not full
        [2, 3, 5, 4, 72],
    ];
    let mut all = Vec::new();
    for (i, x) in sizes.iter().enumerate() {
        for (slope, residual) in [(Some(0.01), false), (Some(0.01), true), (None, i % 2 == 0)] {
            let (x, c) = (x.to_vec(), vec![x[4]]);
            let mut inputs = vec![x.clone(), c.clone(), c];
            if residual {
                inputs.push(x);
            }
            all.push(case("slices", InstanceNorm { slope, residual }, inputs));
        }
    }
    all
}

fn others() -> Vec<Case> {
    let mut all = Vec::new();
    for len in [2047, 2048, 2049, 70_003] {
        all.push(case("pieces", Gelu, vec![vec![len]]));
        all.push(case("pieces", LeakyRelu { slope: 0.25 }, vec![vec![len]]));
        all.push(case("pieces", ResidualAdd, vec![vec![len]; 2]));
        all.push(case("blocks", GradNormTap, vec![vec![len]]));
        all.push(case("blocks", GradNorm { max_norm: Some(3.0) }, vec![vec![len], vec![9]]));
        let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        all.push(case("pieces", rule, vec![vec![SCALARS], vec![2], vec![len]]));
    }
    // Filters of more elements than a block of threads.
    for bias in [false, true] {
        let mut inputs = vec![vec![7, 48], vec![40, 48]];
        if bias {
            inputs.push(vec![40]);
        }
        all.push(case("blocks", Linear { bias }, inputs));
    }
    for kind in [PairwiseKind::Difference, PairwiseKind::Concat] {
        all.push(case("blocks", Pairwise { kind }, vec![vec![3, 2, 48]]));
    }
    // A factor between 1/2 and 1; more partial sums than one block of threads adds at once.
    all.push(case("limit", GradNorm { max_norm: Some(36.0) }, vec![vec![2048]]));
    all.push(case("blocks", GradNorm { max_norm: None }, vec![vec![1_100_000]]));
    for c in [1, 8, 17, 48, 320] {
        all.push(case("slices", GlobalPool, vec![vec![2, 17, 16, 15, c]]));
        all.push(case("one slice", GlobalPool, vec![vec![3, 2, 3, 4, c]]));
        all.push(case("widths", AvgPool { window: [2, 1, 2] }, vec![vec![2, 5, 6, 7, c]]));
        let (low, high) = (vec![2, 3, 5, 4, c], vec![2, 3, 5, 4, 16]);
        all.push(case("widths", Concat { axis: Axis::Channel }, vec![low, high]));
        all.push(case("widths", Concat { axis: Axis::Batch }, vec![vec![3, c], vec![2, c]]));
    }
    all
}

#[test]
fn norms_in_slices_agree() {
    for (i, case) in norms().iter().enumerate() {
        check(case, Numbers::Normal(3), 1, &[ORDERS[i % 3]]);
        check(case, Numbers::Normal(4), 2, &[ORDERS[(i + 1) % 3]]);
    }
}

#[test]
fn memory_bound_operations_agree() {
    for (i, case) in others().iter().enumerate() {
        check(case, Numbers::Whole, 1, &[ORDERS[i % 3]]);
        check(case, Numbers::Normal(3), 2, &[ORDERS[(i + 1) % 3]]);
    }
}

#[test]
fn a_tap_measures_the_gradient() {
    // Squares of the last two have no place in f32.
    for (len, size) in
        [(1, 1.0), (17, 1.0), (70_003, 1.0), (1_100_000, 1.0), (70_003, 1e-21), (70_003, 1e25)]
    {
        let mut tape = Tape::default();
        let x = tape.param("x", &[len], Init::Constant(0.0));
        let (tapped, norm) = tape.tap("grad_norm_tap", x).unwrap();
        let y = tape.record("y", LeakyRelu { slope: 0.5 }, &[tapped]).unwrap();
        let seed = tape.input("dy", &[len]);
        let grad = tape.backward(&[(y, seed)], &[x])[0].unwrap();
        tape.keep(grad);
        emulator();
        let mut step = CudaStep::new(&tape, Device::open(0, false).unwrap(), false).unwrap();
        let dy: Vec<f32> =
            normals(0, 0, len).iter().map(|&x| bf16::from_f64(size * x).to_f32()).collect();
        step.write(x, &vec![1.0; len]).unwrap();
        step.write(seed, &dy).unwrap();
        step.run_range(0..step.len()).unwrap();
        assert_eq!(step.read(grad).unwrap(), dy, "the gradient passes unchanged");
        let want = dy.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let got = f64::from(step.read(norm).unwrap()[0]);
        // Squares and sums of eight in f32, the rest in f64: (1 + 8) u of the square, half of it of the root, one
        // rounding.
        let bound = 6.0 / f64::from(1 << 24) * want;
        assert!((got - want).abs() <= bound, "norm of {len} of size {size:e}: {got}, not {want}");
    }
}

#[test]
fn the_norm_of_all_gradients_is_exact_to_its_rounding() {
    // Squares of the last two have no place in f32.
    for (len, size) in
        [(1, 1.0), (9, 1.0), (4097, 1.0), (1_100_000, 1.0), (4097, 1e-21), (4097, 1e25)]
    {
        let mut tape = Tape::default();
        let inputs = [tape.input("a", &[len]), tape.input("b", &[3])];
        let norm = tape.record("norm", GradNorm { max_norm: Some(1.5) }, &inputs).unwrap();
        tape.keep(norm);
        emulator();
        let mut step = CudaStep::new(&tape, Device::open(0, false).unwrap(), false).unwrap();
        let mut square = 0.0;
        for (i, &input) in inputs.iter().enumerate() {
            let values = normals(0, i as u32, tape.shape(input).len());
            let values: Vec<f32> = values.into_iter().map(|x| (size * x) as f32).collect();
            square += values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            step.write(input, &values).unwrap();
        }
        step.run_range(0..step.len()).unwrap();
        let got = step.read(norm).unwrap();
        let want = [square.sqrt(), (1.5 / (square.sqrt() + 1e-6)).min(1.0)];
        for (got, want) in got.iter().zip(want) {
            // As for the tap.
            let bound = 6.0 / f64::from(1 << 24) * want;
            assert!(
                (f64::from(*got) - want).abs() <= bound,
                "of {len} of size {size:e}: {got}, not {want}"
            );
        }
    }
}

/// A filter, its average and their update.
struct Updated {
    step: CudaStep,
    filter: ValueId,
    average: ValueId,
    block: ParamGroup,
    scalars: ValueId,
}

/// Two convolutions make filter and average values with a bf16 copy.
fn updated() -> Updated {
    let mut tape = Tape::default();
    let dims = [5, 1, 1, 1, 3];
    let x = tape.input("x", &[1, 2, 2, 2, 3]);
    let filter = tape.param("w", &dims, Init::Constant(0.0));
    let average = tape.state("average", &dims);
    let conv = Conv3d { stride: [1; 3], padding: [0; 3], bias: false, normed: false };
    for w in [filter, average] {
        tape.record("y", conv.clone(), &[x, w]).unwrap();
    }
    let used = tape.records().len();
    let block = ParamGroup::new(&mut tape, "w", &[filter], &[None]);
    let averages = tape.pack("averages", &[average], spatialssl::tape::Role::State);
    let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let update = record_update(
        &mut tape,
        &rule,
        Some(1.0),
        std::slice::from_ref(&block),
        Some((&block, averages)),
    );
    emulator();
    let mut step = CudaStep::new(&tape, Device::open(0, false).unwrap(), false).unwrap();
    let scalars = update.unwrap().scalars;
    step.write(scalars, &[1e-2, 0.1, 1e-3, 0.25]).unwrap();
    step.write(filter, &[1.0; 15]).unwrap();
    step.write(average, &[3.0; 15]).unwrap();
    step.write(block.moments[0][0], &[0.5; 15]).unwrap();
    step.write(block.moments[0][1], &[0.25; 15]).unwrap();
    assert_eq!(used, 2);
    Updated { step, filter, average, block, scalars }
}

impl Updated {
    /// Runs the update with every gradient being `grad`; the filter then.
    fn run(&mut self, grad: f32) -> Vec<f32> {
        self.step.write(self.block.param_grads[0], &[grad; 15]).unwrap();
        self.step.run_range(2..self.step.len()).unwrap();
        for id in [self.filter, self.average] {
            let rounded: Vec<f32> =
                self.step.read(id).unwrap().iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            assert_eq!(
                self.step.read_half_copy(id).unwrap(),
                Some(rounded),
                "the copy is the value, rounded"
            );
        }
        self.step.read(self.filter).unwrap()
    }
}

#[test]
fn an_update_keeps_the_copies_and_skips_what_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut updated = updated();
        assert_eq!(updated.run(bad), [1.0; 15], "parameters of a skipped step");
        assert_eq!(updated.step.read(updated.block.moments[0][0]).unwrap(), [0.5; 15]);
        assert_eq!(updated.step.read(updated.block.moments[0][1]).unwrap(), [0.25; 15]);
        assert_eq!(updated.step.read(updated.average).unwrap(), [2.5; 15], "3 + (1 - 3) / 4");
        let after = updated.run(2.0);
        assert!(
            after.iter().all(|&p| p < 1.0 && p > 0.9),
            "a step against the gradient: {after:?}"
        );
    }
    let mut updated = updated();
    updated.step.write(updated.scalars, &[1e-2, 0.1, 1e-3, 1.0]).unwrap();
    updated.run(0.125);
    assert_eq!(updated.step.read(updated.average).unwrap(), [1.0; 15], "weight 1 copies");
    updated.step.write(updated.scalars, &[1e-2, 0.1, 1e-3, 0.0]).unwrap();
    updated.run(0.125);
    assert_eq!(updated.step.read(updated.average).unwrap(), [1.0; 15], "weight 0 leaves it");
}
