//! Learning-rate schedule, averaging weight, and the recording of one update.

mod schedule;

pub use schedule::{Schedule, ema_weight};

use crate::error::Result;
use crate::ops::{AdamW, Ema, GradNorm, SCALARS};
use crate::tape::{Role, Tape, ValueId};

/// A group of parameters with its gradient and moments, each laid out alike.
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// Parameters, in the order they were made.
    pub params: Vec<ValueId>,
    /// Their gradients, in the same order.
    pub param_grads: Vec<ValueId>,
    /// All parameters as one value.
    pub packed: ValueId,
    /// Gradients as one value.
    pub grads: ValueId,
    /// First moments.
    pub m: ValueId,
    /// Second moments.
    pub v: ValueId,
    /// First and second moments of each parameter, in the order of the parameters.
    pub moments: Vec<[ValueId; 2]>,
}

impl ParamGroup {
    /// Lays out `params`, their gradients (a parameter no loss reaches has a gradient that stays 0) and moments.
    pub fn new(tape: &mut Tape, name: &str, params: &[ValueId], grads: &[Option<ValueId>]) -> Self {
        let grads: Vec<ValueId> = params
            .iter()
            .zip(grads)
            .map(|(&p, &grad)| {
                let name = format!("d {}", tape.get(p).name);
                let dims = tape.shape(p).dims().to_vec();
                grad.unwrap_or_else(|| tape.state(name, &dims))
            })
            .collect();
        let packed = tape.pack(name, params, Role::State);
        let param_grads = grads;
        let grads = tape.pack(format!("d {name}"), &param_grads, Role::State);
        let moments = |tape: &mut Tape, moment: &str| {
            let made: Vec<ValueId> = params
                .iter()
                .map(|&p| {
                    let name = format!("{moment} {}", tape.get(p).name);
                    let dims = tape.shape(p).dims().to_vec();
                    tape.state(name, &dims)
                })
                .collect();
            (tape.pack(format!("{moment} {name}"), &made, Role::State), made)
        };
        let ((m, first), (v, second)) = (moments(tape, "m"), moments(tape, "v"));
        let moments = first.into_iter().zip(second).map(|(m, v)| [m, v]).collect();
        ParamGroup { params: params.to_vec(), param_grads, packed, grads, m, v, moments }
    }
}

/// Handles of what an update reads and reports.
#[derive(Clone, Debug)]
pub struct Update {
    /// Input `[SCALARS]`, see [`crate::ops::scalar`].
    pub scalars: ValueId,
    /// Result `[norm, clipping factor]`.
    pub norm: ValueId,
}

/// Records the global gradient norm, the averaging of `averaged` (with the weights before the update), and AdamW on
/// every group.
///
/// # Errors
/// None in practice: all shapes come from [`ParamGroup::new`].
pub fn record_update(
    tape: &mut Tape,
    rule: &AdamW,
    max_norm: Option<f64>,
    groups: &[ParamGroup],
    averaged: Option<(&ParamGroup, ValueId)>,
) -> Result<Update> {
    let scalars = tape.input("scalars", &[SCALARS]);
    let grads: Vec<ValueId> = groups.iter().map(|b| b.grads).collect();
    let norm = tape.record("grad_norm", GradNorm { max_norm }, &grads)?;
    tape.keep(norm);
    if let Some((group, average)) = averaged {
        tape.update("ema", Ema, &[scalars, group.packed], &[average])?;
    }
    for group in groups {
        let name = format!("adamw {}", tape.get(group.packed).name);
        tape.update(
            &name,
            rule.clone(),
            &[scalars, norm, group.grads],
            &[group.packed, group.m, group.v],
        )?;
    }
    Ok(Update { scalars, norm })
}
