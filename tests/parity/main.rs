//! Every operation on the CUDA backend, here on the emulated driver, against the CPU backend in f64. With a GPU, built
//! with nvcc, `SPATIALSSL_EMULATOR=none cargo test --test parity` runs it there.

#[cfg(test)]
#[path = "../common/mod.rs"]
mod common;
#[cfg(test)]
mod compare;
#[cfg(test)]
mod memory_bound;
#[cfg(test)]
mod sizes;

use common::cases::{Case, cases};
use common::emulator::Order;
use compare::{Numbers, check};

const ORDERS: [Order; 3] = [Order::Ascending, Order::Descending, Order::Random(7)];

/// Cases of operations that run on the device.
fn small() -> impl Iterator<Item = Case> {
    cases().into_iter().filter(|case| !case.real)
}

#[test]
fn whole_numbers_agree_exactly() {
    for case in small() {
        check(&case, Numbers::Whole, 1, &ORDERS);
    }
}

#[test]
fn random_numbers_agree_within_their_rounding() {
    for case in small() {
        check(&case, Numbers::Normal(0), 1, &[Order::Ascending]);
        check(&case, Numbers::Normal(1), 2, &[Order::Descending]);
    }
}

/// Products in one pass of a convolution.
fn products(case: &Case) -> usize {
    match &case.op {
        spatialssl::ops::Op::Conv3d(_) => {
            let [x, w] = [&case.inputs[0], &case.inputs[1]];
            x[..4].iter().product::<usize>() * w.iter().product::<usize>()
        }
        _ => 0,
    }
}

/// Every second of `all` from `first` on, on whole and on random numbers. The largest on whole numbers only, which show
/// every wrong place and every sum that is not kept in f32: this runs in six builds.
fn check_every_second(all: &[Case], first: usize) {
    for (i, case) in all.iter().enumerate().skip(first).step_by(2) {
        check(case, Numbers::Whole, 1, &[ORDERS[i % 3]]);
        if products(case) < 400_000_000 {
            check(case, Numbers::Normal(2), 1, &[ORDERS[(i + 1) % 3]]);
        }
    }
}

// In two tests, which run side by side: they take longest.
#[test]
fn sizes_around_the_tiles_agree_even() {
    check_every_second(&sizes::convolutions(), 0);
}

#[test]
fn sizes_around_the_tiles_agree_odd() {
    check_every_second(&sizes::convolutions(), 1);
    for first in [0, 1] {
        check_every_second(&sizes::norms(), first);
    }
}

/// Some of the above once more on the build of the emulated driver that checks every memory access of every kernel:
/// races between threads and between blocks, accesses outside of allocations and shared arrays, reads of what nobody
/// wrote.
fn check_every_access(name: &str, which: &[&str]) -> std::io::Result<()> {
    if common::emulator::left_out(name) || std::env::var_os(common::emulator::BUILD).is_some() {
        return Ok(());
    }
    let mut again = std::process::Command::new(std::env::current_exe()?);
    let output = again.env(common::emulator::BUILD, "check").args(which).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains(" 0 passed"), "no test of {which:?} ran");
    Ok(())
}

// In two tests, as above.
#[test]
fn no_kernel_races_or_strays() {
    check_every_access("no_kernel_races_or_strays", &["--skip", "agree_even"]).unwrap();
}

#[test]
fn no_kernel_races_or_strays_at_every_second_size() {
    let name = "no_kernel_races_or_strays_at_every_second_size";
    check_every_access(name, &["agree_even"]).unwrap();
}
