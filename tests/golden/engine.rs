//! What computes a fixture, and how close it must come: the CPU in f32, or a CUDA device in bf16.
//!
//! The tolerances of bf16 are those of the fixtures' authors: what PyTorch's own bf16 run misses, with room. Where
//! rounding the inputs to bf16 alone, everything else in f32, already makes a larger error (an instance norm over data
//! with mean 100, the direction of a predicted gap that is almost 0), four times that error is allowed: it is measured
//! first.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use half::bf16;
use spatialssl::driver::Device;
use spatialssl::tape::{CudaStep, Executor, Step, Tape, ValueId};

use crate::common::emulator::emulator;

/// How fixtures are computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// In f32 on the CPU.
    Cpu,
    /// In f32 on the CPU from inputs rounded to bf16: errors are noted, not judged.
    Rounded,
    /// On the device.
    Device,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Cpu) };
    static ROUNDED: RefCell<HashMap<String, f64>> = RefCell::default();
}

/// Runs `checks` with everything computed on the device, after a run that shows what rounding the inputs costs.
pub(crate) fn on_device(checks: impl Fn()) {
    emulator();
    for mode in [Mode::Rounded, Mode::Device] {
        MODE.set(mode);
        checks();
    }
    MODE.set(Mode::Cpu);
}

pub(crate) fn is_on_device() -> bool {
    MODE.get() == Mode::Device
}

/// Whether inputs are not rounded.
pub(crate) fn is_exact() -> bool {
    MODE.get() == Mode::Cpu
}

/// The bound in place of `bound` for an error found under `name`; none if it is only noted.
pub(crate) fn bound(name: &str, error: f64, bound: f64) -> Option<f64> {
    match MODE.get() {
        Mode::Cpu => Some(bound),
        Mode::Rounded => {
            ROUNDED.with_borrow_mut(|all| all.insert(name.into(), error));
            None
        }
        Mode::Device => {
            let rounded = ROUNDED.with_borrow(|all| all.get(name).copied());
            Some(bound.max(4.0 * rounded.unwrap_or_else(|| panic!("{name} was not noted"))))
        }
    }
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
    let rounds = MODE.get() == Mode::Rounded;
    let narrow = |x: f64| if rounds { bf16::from_f64(x).to_f32() } else { x as f32 };
    let data: Vec<f32> = data.iter().map(|&x| narrow(x)).collect();
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
