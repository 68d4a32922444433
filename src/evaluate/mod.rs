//! What a model has learnt: figures in millimetres on held-out volumes beside the trivial guess, and the report of a
//! run. Not here: how the report looks.

mod report;
#[cfg(test)]
mod sample;
mod validation;

pub(crate) use report::{About, not_learnt, write_report};
pub(crate) use validation::{Validation, evaluate};
