//! The tape: a list of records over numbered values, planned into one block of memory, run as often as wanted.
//!
//! Words used here: a *value* is a tensor with a shape and a role; a *record* is one operation in one pass, with the
//! values it reads and writes; backward is appended as more records, so one planner sees one timeline; the *arena*
//! is the part of memory that values with disjoint lifetimes share; a *call* is a record with its places in memory
//! bound; a *step* is the memory and all calls.

mod backward;
mod cuda;
mod executor;
mod inspect;
mod plan;
mod record;
mod step;

pub use cuda::{Arrangement, CudaStep};
pub use executor::Executor;
pub use inspect::describe;
pub use plan::{Plan, Units};
pub use record::{Init, Record, Role, Tape, Value, ValueId};
pub use step::Step;
