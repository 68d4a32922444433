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
#[path = "common/program.rs"]
mod program;
#[cfg(test)]
#[path = "gradcheck/whole.rs"]
mod whole;

use common::cases::{Case, cases};

/// The cases that are small enough to check.
fn small() -> impl Iterator<Item = Case> {
    cases().into_iter().filter(|case| !case.real)
}

/// Every operation must be in the table, in at least four small cases and one real one.
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
    assert_eq!(count, 21, "operations listed in src/ops/mod.rs");
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
    let mut worst = (0.0, String::new());
    for case in small().filter(operations::differentiable) {
        for (input, ratio) in operations::check(&case) {
            let label = format!("{} {}, input {input}", case.op.rule().name(), case.name);
            assert!(ratio <= 1.0, "{label}: error of {ratio} times its bound");
            if ratio > worst.0 {
                worst = (ratio, label);
            }
        }
    }
    println!("worst: {} of the bound, {}", worst.0, worst.1);
}

#[test]
fn gradients_do_not_depend_on_who_else_wants_one() {
    for case in small().filter(operations::differentiable) {
        operations::check_alone(&case);
    }
}

#[test]
fn a_second_reader_adds_its_gradient() {
    for case in small().filter(operations::differentiable) {
        operations::check_twice(&case);
    }
}

#[test]
fn indexing_is_exact() {
    let mut count = 0;
    for case in small() {
        count += usize::from(exact::check(&case));
    }
    assert!(count >= 20, "{count} cases of indexing operations");
}

#[test]
fn updates_follow_their_formulas() {
    for case in small() {
        exact::check_update(&case);
    }
}

#[test]
fn a_probe_measures_the_gradient() {
    exact::check_probe();
}

#[test]
fn the_whole_model_has_the_gradient_it_says_first() {
    whole::check(spatialssl::train::GradientViews::First);
}

#[test]
fn the_whole_model_has_the_gradient_it_says_all() {
    whole::check(spatialssl::train::GradientViews::All);
}
