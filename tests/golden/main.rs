//! Golden values: operations, geometry, tasks, encoders and whole training runs against an independent PyTorch
//! program's float64 results. `SPATIALSSL_FIXTURES` names another folder of the same format; without it the subset
//! in `tests/golden/fixtures` is what runs. Every small case of the case table has golden values besides
//! (`table.rs`, `cases.py`). README.md says how to compute them.

#[cfg(test)]
#[path = "../common/mod.rs"]
mod common;
#[cfg(test)]
mod each;
#[cfg(test)]
mod encoder;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod format;
#[cfg(test)]
mod geometry;
#[cfg(test)]
mod ops;
#[cfg(test)]
mod resample;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tasks;
#[cfg(test)]
mod trajectory;

/// Relative error allowed of a forward pass of one operation, and of a dense representation.
const FORWARD: f64 = 1e-5;
/// Relative error allowed of a gradient.
const GRADIENT: f64 = 1e-4;
/// Absolute error allowed of a loss.
const LOSS: f64 = 1e-5;

use each::each;

#[test]
fn operations_match() {
    each("ops", ops::check);
}

#[test]
fn geometry_matches() {
    each("geometry", |_, case| geometry::check(case));
}

#[test]
fn tasks_match() {
    each("tasks", |_, case| tasks::check(case));
}

#[test]
fn encoders_match() {
    each("encoder", |_, case| encoder::check(case));
}

#[test]
fn encoders_match_in_f64() {
    each("encoder", |_, case| encoder::check_exactly(case));
}

#[test]
fn a_pre_activation_that_changes_sides_is_told_from_a_fault() {
    each("encoder", |_, case| encoder::check_a_kink(case));
}

#[test]
fn trajectories_match() {
    each("trajectory", |_, case| trajectory::check(case));
}

#[test]
fn operations_match_on_the_device() {
    engine::on_device(|| each("ops", ops::check));
}

#[test]
fn tasks_match_on_the_device() {
    engine::on_device(|| each("tasks", |_, case| tasks::check(case)));
}

#[test]
fn encoders_match_on_the_device() {
    engine::on_device(|| each("encoder", |_, case| encoder::check(case)));
}
