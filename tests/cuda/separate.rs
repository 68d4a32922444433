//! Values in allocations of their own: the same bits, and a kernel that leaves one is seen.

use bytemuck::NoUninit;
use spatialssl::config::GradientViews;
use spatialssl::driver::{DevPtr, Device, Kernel};
use spatialssl::ops::LeakyRelu;
use spatialssl::tape::{Arrangement, CudaStep, Tape};

use super::steps::{small, train_arranged};
use crate::common::emulator::{alone, emulator, left_out};

#[test]
fn a_step_has_the_same_bits_with_values_apart() {
    let _alone = alone();
    // Two eager steps and one that is captured. Few, since the emulated driver looks around every allocation after
    // every launch.
    let options = small(GradientViews::First);
    let [planned, apart] = [Arrangement::Planned, Arrangement::Separate]
        .map(|arrangement| train_arranged(&options, 3, true, arrangement));
    assert_eq!(planned.losses, apart.losses);
    assert!(planned.bits == apart.bits, "what is kept differs");
    let (shared, own) = (planned.step.device_len(), apart.step.device_len());
    assert!(own > shared, "{own} bytes apart, {shared} planned");
}

/// Argument of `roofline_copy`; see kernels/roofline.cu.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Copy {
    x: DevPtr,
    y: DevPtr,
    len: i64,
}

static COPY: Kernel = Kernel::new::<Copy>("roofline_copy", 256);

/// Copies 16 bytes more than a value has over it, and says what the driver says.
fn overrun(arrangement: Arrangement) -> Result<(), String> {
    const ELEMENTS: usize = 3 * 128;
    let mut tape = Tape::default();
    let x = tape.state("x", &[1, 1, 1, 1, ELEMENTS]);
    let behind = tape.state("behind", &[1, 1, 1, 1, ELEMENTS]);
    for value in [x, behind] {
        let y = tape.record("y", LeakyRelu { slope: 0.5 }, &[value]).unwrap();
        tape.keep(y);
    }
    let device = Device::open(0, false).unwrap();
    device.load([&COPY]).unwrap();
    let from = device.alloc(2 * ELEMENTS + 16).unwrap();
    device.zero(&from, 0, from.len()).unwrap();
    let step = CudaStep::arranged(&tape, device, false, arrangement).unwrap();
    let len = (2 * ELEMENTS / 16 + 1) as i64;
    let copy = Copy { x: from.ptr(), y: step.half_address(x), len };
    step.queue().launch(&COPY, [1, 1, 1], &copy).unwrap();
    step.queue().device.sync().map_err(|e| format!("{e}\n{}", emulator().last_report()))
}

/// A fault is for the whole process: the part of a test that makes one runs in one of its own.
const ALONE: &str = "SPATIALSSL_OVERRUN";

#[test]
fn an_overrun_of_a_value_is_seen_only_with_values_apart() {
    const NAME: &str = "separate::an_overrun_of_a_value_is_seen_only_with_values_apart";
    if left_out(NAME) {
        return;
    }
    if std::env::var_os(ALONE).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output = again.args([NAME, "--exact"]).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    assert_eq!(overrun(Arrangement::Planned), Ok(()));
    let error = overrun(Arrangement::Separate).unwrap_err();
    assert!(
        error.contains("roofline_copy") && error.contains("past the end of a device allocation"),
        "{error}"
    );
}
