//! Tasks that are written outside of the library, as docs/adding-a-task.md shows: recorded, trained and observed like
//! the paper's.

#[cfg(test)]
#[path = "../common/mod.rs"]
mod common;
#[cfg(test)]
mod learns;
#[cfg(test)]
mod place;
#[cfg(test)]
mod restore;

use std::sync::Arc;

#[test]
fn a_task_on_pooled_features_learns_and_is_reported() {
    learns::check(Arc::new(place::Place), "place_mae_mm", 70);
}

#[test]
fn a_task_with_a_target_per_voxel_learns_and_is_reported() {
    learns::check(Arc::new(restore::Restore), "restore_missed", 30);
}
