//! Is every backward pass the derivative of its forward pass? In f64, against central differences.
//!
//! Memory an operation has to write is NaN beforehand, so reading what nobody wrote, or adding where it should set,
//! shows. Where a derivative jumps (leaky ReLU at 0, smooth L1 at 1) inputs are drawn until none lies within reach.

#[cfg(test)]
mod common;
#[cfg(test)]
#[path = "gradcheck/exact.rs"]
mod exact;
#[cfg(test)]
#[path = "gradcheck/operations.rs"]
mod operations;
#[cfg(test)]
#[path = "gradcheck/whole.rs"]
mod whole;

use std::sync::Mutex;

use common::cases::{Case, cases};

/// The cases that are small enough to check.
fn small() -> impl Iterator<Item = Case> {
    cases().into_iter().filter(|case| !case.real)
}

/// Calls `check` on each case and fails with the names of all for which it panics.
fn each(cases: impl Iterator<Item = Case>, check: impl Fn(&Case)) {
    let (mut count, mut failed) = (0, Vec::new());
    for case in cases {
        let check = std::panic::AssertUnwindSafe(|| check(&case));
        if std::panic::catch_unwind(check).is_err() {
            failed.push(format!("{} {}", case.op.rule().name(), case.name));
        }
        count += 1;
    }
    assert!(count > 0, "no cases");
    assert!(failed.is_empty(), "{} of {count} cases fail: {failed:#?}", failed.len());
}

/// Every operation must be in the table, in at least three small cases and one real one.
#[test]
fn every_operation_has_cases() {
    let source = include_str!("../src/ops/mod.rs");
    let list = source.split("\nops!(").nth(1).unwrap().split(");").next().unwrap();
    let mut count = 0;
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let is = |case: &Case| {
            format!("{:?}", case.op).trim_end_matches(')').starts_with(&format!("{name}("))
        };
        let (all, real): (usize, usize) = cases()
            .iter()
            .filter(|case| is(case))
            .fold((0, 0), |(all, real), case| (all + 1, real + usize::from(case.real)));
        assert!(all - real >= 3, "{name} has {} small cases", all - real);
        assert!(real >= 1, "{name} has no case of a real size");
        count += 1;
    }
    assert!(count > 20, "the list of src/ops/mod.rs was read: {count} operations");
}

#[test]
fn names_are_unique() {
    let mut names: Vec<String> =
        cases().iter().map(|case| format!("{}/{}", case.op.rule().name(), case.name)).collect();
    names.sort_unstable();
    let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "named twice: {twice:?}");
}

#[test]
fn gradients_are_the_derivatives() {
    let worst = Mutex::new((0.0, String::new()));
    each(small().filter(operations::differentiable), |case| {
        for (input, ratio) in operations::check(case) {
            let label = format!("{} {}, input {input}", case.op.rule().name(), case.name);
            assert!(ratio <= 1.0, "{label}: error of {ratio} times its bound");
            let mut worst = worst.lock().unwrap();
            if ratio > worst.0 {
                *worst = (ratio, label);
            }
        }
    });
    let (ratio, label) = worst.into_inner().unwrap();
    println!("worst: {ratio:.4} of the bound, {label}");
}

#[test]
fn gradients_do_not_depend_on_who_else_wants_one() {
    each(small().filter(operations::differentiable), operations::check_alone);
}

#[test]
fn a_second_reader_adds_its_gradient() {
    each(small().filter(operations::differentiable), operations::check_twice);
}

#[test]
fn indexing_is_exact() {
    each(small().filter(exact::moves), exact::check);
}

#[test]
fn updates_follow_their_formulas() {
    each(small().filter(|case| !operations::differentiable(case)), exact::check_update);
}

#[test]
fn a_tap_measures_the_gradient() {
    exact::check_tap();
}

#[test]
fn the_whole_model_has_the_gradient_it_says_first() {
    whole::check(spatialssl::config::GradientViews::First);
}

#[test]
fn the_whole_model_has_the_gradient_it_says_all() {
    whole::check(spatialssl::config::GradientViews::All);
}

#[test]
fn masked_reconstruction_has_the_gradient_it_says() {
    whole::check_masked();
}
