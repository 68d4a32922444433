//! Calls that do a part of a later call's work, beside the same calls each on its own.

use half::bf16;
use spatialssl::driver::Device;
use spatialssl::ops::{AdamW, Conv3d, Ema, SCALARS, scalar};
use spatialssl::tape::{CudaStep, Tape, ValueId};

use crate::common::emulator::alone;

/// A tape run with and without fused calls.
pub(crate) struct Both {
    pub(crate) fused: CudaStep,
    pub(crate) alone: CudaStep,
}

impl Both {
    /// Fails unless there are so many pairs.
    pub(crate) fn new(tape: &Tape, pairs: usize) -> Both {
        let device = || Device::open(0, false).unwrap();
        let fused = CudaStep::new(tape, device(), false).unwrap();
        assert_eq!(
            fused.fusions().count(),
            pairs,
            "pairs: {:?}",
            fused.fusions().collect::<Vec<_>>()
        );
        Both { fused, alone: CudaStep::unfused(tape, device(), false).unwrap() }
    }

    pub(crate) fn each(&mut self, mut f: impl FnMut(&mut CudaStep)) {
        f(&mut self.fused);
        f(&mut self.alone);
    }
}

/// The bf16 copy of a value is that value, rounded.
fn check_copy(step: &CudaStep, id: ValueId) {
    let (values, copy) = (step.read(id).unwrap(), step.read_half_copy(id).unwrap().unwrap());
    for (&value, copy) in values.iter().zip(copy) {
        let wanted = bf16::from_f32(value).to_f32();
        assert!(copy == wanted || copy.is_nan() && wanted.is_nan(), "{copy}, not {wanted}");
    }
}

#[test]
fn the_update_makes_the_average_of_the_weights_before_it() {
    let _alone = alone();
    const FILTER: [usize; 5] = [8, 3, 3, 3, 8];
    const LEN: usize = 27 * 64;
    let mut tape = Tape::default();
    let scalars = tape.input("scalars", &[SCALARS]);
    let norm = tape.input("norm", &[2]);
    let grad = tape.input("grad", &FILTER);
    let [param, m, v, average] = ["param", "m", "v", "average"].map(|n| tape.state(n, &FILTER));
    let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05 };
    tape.update("ema", Ema, &[scalars, param], &[average]).unwrap();
    tape.update("adamw", rule, &[scalars, norm, grad], &[param, m, v]).unwrap();
    // Filters, so that both have copies in bf16.
    let conv = Conv3d { stride: [1; 3], padding: [1; 3], bias: false, normed: false };
    for filter in [param, average] {
        let x = tape.state("x", &[1, 3, 3, 3, 8]);
        tape.record("conv", conv.clone(), &[x, filter]).unwrap();
    }
    let mut both = Both::new(&tape, 1);
    let values = |from: usize| -> Vec<f32> {
        (0..LEN).map(|i| ((i * 37 + from * 101) % 1000) as f32 * 0.002 - 1.0).collect()
    };
    both.each(|step| {
        for (i, id) in [param, m, average].into_iter().enumerate() {
            step.write(id, &values(i)).unwrap();
        }
        let mut weights = values(0);
        weights[7] = f32::INFINITY;
        step.write(param, &weights).unwrap();
        step.write(v, &values(9).iter().map(|x| x * x).collect::<Vec<_>>()).unwrap();
    });
    // Copied, left (even where a weight is infinite), moved; and a step that is skipped, in which the average still
    // moves.
    for (t, (weight, size)) in
        [(1.0, 3.0), (0.0, 3.0), (0.25, 3.0), (0.25, f32::NAN)].into_iter().enumerate()
    {
        let mut changing = [0.0; SCALARS];
        changing[scalar::LR] = 1e-2;
        changing[scalar::BIAS1] = 0.1;
        changing[scalar::BIAS2] = 1e-3;
        changing[scalar::EMA] = weight;
        let mut before = Vec::new();
        both.each(|step| {
            before = step.read(param).unwrap();
            step.write(scalars, &changing).unwrap();
            step.write(norm, &[size, 0.5]).unwrap();
            step.write(grad, &values(20 + t)).unwrap();
            step.run_range(0..2).unwrap();
        });
        for id in [param, m, v, average] {
            let bits = |step: &CudaStep| -> Vec<u32> {
                step.read(id).unwrap().into_iter().map(f32::to_bits).collect()
            };
            assert!(bits(&both.fused) == bits(&both.alone), "step {t}: {}", tape.get(id).name);
        }
        both.each(|step| [param, average].iter().for_each(|&id| check_copy(step, id)));
        let moved = both.fused.read(param).unwrap() != before;
        assert_eq!(moved, size.is_finite(), "step {t}");
        if weight == 1.0 {
            assert_eq!(both.fused.read(average).unwrap(), before, "a copy of the weights before");
        }
    }
}
