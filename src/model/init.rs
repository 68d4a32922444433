//! Start values of parameters, from the run's seed.

use crate::random::philox::{Purpose, SampleKey};
use crate::scalar::Scalar;
use crate::tape::{Init, Role, Step, Tape, ValueId};

/// Element values of a parameter: tensor number `tensor`, counted over all parameters of the program.
pub fn initial_value(seed: u64, tensor: u32, init: Init, len: usize) -> Vec<f32> {
    let mut stream = SampleKey { seed, step: 0, sample: tensor }.shared(Purpose::Weights);
    match init {
        Init::Constant(value) => vec![value as f32; len],
        Init::Uniform { bound } => {
            (0..len).map(|_| ((stream.uniform_f64() * 2.0 - 1.0) * bound) as f32).collect()
        }
        Init::Normal { std } => (0..len).map(|i| stream.normal_at(i as u32) * std as f32).collect(),
    }
}

/// Start values of all parameters of `tape`, one after the other.
pub fn initial_values(tape: &Tape, seed: u64) -> impl Iterator<Item = (ValueId, Vec<f32>)> + '_ {
    tape.params().into_iter().enumerate().filter_map(move |(number, id)| {
        let Role::Param(init) = tape.get(id).role else { return None };
        Some((id, initial_value(seed, number as u32, init, tape.shape(id).len())))
    })
}

/// Writes the initial values of all parameters into the memory of `step`.
pub fn initialise<T: Scalar>(tape: &Tape, step: &mut Step<T>, seed: u64) {
    for (id, values) in initial_values(tape, seed) {
        for (to, from) in step.write(id).iter_mut().zip(values) {
            *to = T::from_f64(f64::from(from));
        }
    }
}
