//! Where a network's tensors come from while it is recorded: trained parameters, or kept averages of them.

use crate::tape::{Init, Tape, ValueId};

/// Makes the tensors of one network, in the order it asks for them.
#[derive(Clone, Debug)]
pub struct Weights {
    trained: bool,
    ids: Vec<ValueId>,
    names: Vec<String>,
}

impl Weights {
    /// Parameters that gradients reach.
    pub fn trained() -> Self {
        Weights { trained: true, ids: Vec::new(), names: Vec::new() }
    }

    /// Averages of parameters: no gradient reaches them. Their values are named `ema.` and the parameter's name.
    pub fn averaged() -> Self {
        Weights { trained: false, ids: Vec::new(), names: Vec::new() }
    }

    /// The tensor `name`; if it was made before (a network recorded a second time), the same.
    pub fn get(&mut self, tape: &mut Tape, name: &str, dims: &[usize], init: Init) -> ValueId {
        if let Some(at) = self.names.iter().position(|n| n == name) {
            assert_eq!(
                tape.shape(self.ids[at]).dims(),
                dims,
                "{name} is asked for in another shape"
            );
            return self.ids[at];
        }
        let id = if self.trained {
            tape.param(name, dims, init)
        } else {
            tape.state(format!("ema.{name}"), dims)
        };
        self.ids.push(id);
        self.names.push(name.to_string());
        id
    }

    /// Handles in the order they were made.
    pub fn ids(&self) -> &[ValueId] {
        &self.ids
    }

    /// Names, without `ema.`, in the same order.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}
