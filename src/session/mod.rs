//! What training, evaluation and profiling work with: the recorded step of the whole method, its memory on a device,
//! the data of a run, and what is saved of them. Not here: the order in which a run does things.

mod cost;
mod data;
mod model;
mod program;
pub(crate) mod state;

pub use cost::{Cost, costs, describe_costs};
pub(crate) use data::{RunData, load, spacing_text, view_options};
pub(crate) use model::{Model, executor};
pub use model::{Target, program_options};
pub use program::{Program, ProgramOptions, RecordedTask};
