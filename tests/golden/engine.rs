//! What computes a fixture, and how close it must come: the CPU in f32, or a CUDA device in bf16.
//!
//! The tolerances of bf16 are those of the fixtures' authors: what PyTorch's own bf16 run misses, with room.

use std::cell::Cell;

use spatialssl::driver::Device;
use spatialssl::tape::{CudaStep, Executor, Step, Tape, ValueId};

use crate::emulator::emulator;

thread_local! {
    static ON_DEVICE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `checks` with everything computed on the device.
pub(crate) fn on_device(checks: impl FnOnce()) {
    emulator();
    ON_DEVICE.set(true);
    checks();
    ON_DEVICE.set(false);
}

pub(crate) fn is_on_device() -> bool {
    ON_DEVICE.get()
}

/// Relative error allowed of a forward pass of one operation.
pub(crate) fn forward() -> f64 {
    if is_on_device() { 1e-2 } else { crate::FORWARD }
}

/// Relative error allowed of a gradient of one operation.
pub(crate) fn gradient() -> f64 {
    if is_on_device() { 1e-2 } else { crate::GRADIENT }
}

/// Relative error allowed of a gradient of a task: several operations one behind the other.
pub(crate) fn task_gradient() -> f64 {
    if is_on_device() { 1e-1 } else { crate::GRADIENT }
}

/// Absolute error allowed of a loss.
pub(crate) fn loss() -> f64 {
    if is_on_device() { 1e-2 } else { crate::LOSS }
}

/// Relative error allowed of the dense representation of a whole encoder.
pub(crate) fn representation() -> f64 {
    if is_on_device() { 3e-2 } else { crate::FORWARD }
}

/// The tape in memory that is NaN where the records have to write first (on the device the driver sees to that).
pub(crate) fn machine(tape: &Tape) -> Executor {
    if is_on_device() {
        let device = Device::open(0, false).unwrap();
        return Executor::Cuda(Box::new(CudaStep::new(tape, device, false).unwrap()));
    }
    let mut step = Step::<f32>::new(tape);
    step.poison(f32::NAN);
    Executor::cpu(step)
}

pub(crate) fn write(machine: &mut Executor, id: ValueId, data: &[f64]) {
    let data: Vec<f32> = data.iter().map(|&x| x as f32).collect();
    machine.write(id, &data).unwrap();
}

pub(crate) fn run(machine: &mut Executor, tape: &Tape) {
    if let Err(error) = machine.run_range(0..tape.records().len()) {
        panic!("{error}\n{}", emulator().last_report());
    }
}

pub(crate) fn read(machine: &Executor, id: ValueId) -> Vec<f64> {
    machine.read(id).unwrap().iter().map(|&x| f64::from(x)).collect()
}
