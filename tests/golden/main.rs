//! Golden values: operations, geometry, tasks, encoders and whole training runs against an independent PyTorch
//! program's float64 results. `SPATIALSSL_FIXTURES` names another folder of the same format; without it the subset
//! in `tests/golden/fixtures` is what runs.

#[cfg(test)]
mod encoder;
#[cfg(test)]
mod format;
#[cfg(test)]
mod geometry;
#[cfg(test)]
mod ops;
#[cfg(test)]
mod resample;
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

/// Runs every case of the files of one kind. Fails if there is none, so that no kind can go missing unseen.
fn each(kind: &str, check: impl Fn(&str, &format::Case)) {
    let mut count = 0;
    for file in format::files().iter().filter(|f| f.kind == kind) {
        let stem = file.path.file_stem().unwrap().to_string_lossy();
        for case in &file.cases {
            println!("{}", case.label);
            check(&stem, case);
            count += 1;
        }
    }
    assert!(count > 0, "no fixture of kind {kind} in {}", format::root().display());
    println!("{kind}: {count} cases");
}

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
fn trajectories_match() {
    each("trajectory", |_, case| trajectory::check(case));
}
