//! Where the time of a training step goes, beside what the device can do at most. Not here: printing it.

mod roofs;
mod step;

pub use roofs::{Effort, Least, Roof, Roofs, Wgmma, measure_roofs, wgmma_roof};
pub use step::{Profile, ProfileRow, Share, profile};
