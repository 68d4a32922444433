//! The pretext tasks: heads, losses, and what is observed of them. Not here: where views lie to each other
//! (`views::geometry`), how a step and a page are put together.

mod gap;
mod heads;
mod masked;
mod similarity;
mod task;
mod trunk;
mod vector;

use std::sync::{Arc, LazyLock};

pub use gap::Gap;
pub use heads::Views;
pub use masked::Masked;
pub use similarity::Similarity;
pub use task::{Hidden, Inputs, Output, Reads, Recorded, Samples, Target, Task, ViewSizes};
pub use trunk::{Trunk, TrunkWidths};
pub use vector::{Vector, VectorHead};

use crate::report::Term;

/// Variants of the tasks' heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskOptions {
    /// What the vector head predicts.
    pub vector_head: VectorHead,
    /// Whether the gap head drops its bias.
    pub antisymmetric_gap: bool,
    /// Widths of the trunk of both.
    pub trunk: TrunkWidths,
}

impl Default for TaskOptions {
    fn default() -> Self {
        TaskOptions {
            vector_head: VectorHead::Absolute,
            antisymmetric_gap: false,
            trunk: TrunkWidths::Auto,
        }
    }
}

/// Every task there is, in the order in which they are recorded. A new task is registered here.
pub fn all_tasks(options: &TaskOptions) -> Vec<Arc<dyn Task>> {
    vec![
        Arc::new(Gap { antisymmetric: options.antisymmetric_gap, trunk: options.trunk }),
        Arc::new(Similarity),
        Arc::new(Vector { head: options.vector_head, trunk: options.trunk }),
        Arc::new(Masked),
    ]
}

/// The terms of all tasks, in order: the weights that `[tasks]` takes.
pub fn terms() -> &'static [Term] {
    static TERMS: LazyLock<Vec<Term>> = LazyLock::new(|| {
        all_tasks(&TaskOptions::default()).iter().flat_map(|task| task.terms()).copied().collect()
    });
    &TERMS
}

/// Tasks that are trained together, each with the weights that its terms declare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// The paper's tasks.
    #[default]
    Paper,
    /// Masked reconstruction alone.
    Masked,
    /// Both.
    Joint,
}

impl Recipe {
    /// Names of its tasks.
    fn tasks(self) -> &'static [&'static str] {
        match self {
            Recipe::Paper => &["gap", "similarity", "vector"],
            Recipe::Masked => &["masked"],
            Recipe::Joint => &["gap", "similarity", "vector", "masked"],
        }
    }

    /// Weights of all terms, in the order of [`terms`]: 0 for those of tasks that are not in it.
    pub fn weights(self) -> Vec<f64> {
        let of_task = |task: &Arc<dyn Task>| {
            let is_in = self.tasks().contains(&task.name());
            let weight = move |term: &Term| if is_in { term.weight } else { 0.0 };
            task.terms().iter().map(weight).collect::<Vec<_>>()
        };
        all_tasks(&TaskOptions::default()).iter().flat_map(of_task).collect()
    }
}

/// The tasks that a step records: those with a weight, with the weights of their terms.
pub fn chosen_tasks(
    options: &TaskOptions,
    weight: impl Fn(&str) -> f64,
) -> Vec<(Arc<dyn Task>, Vec<f64>)> {
    let with_weights = all_tasks(options).into_iter().map(|task| {
        let weights: Vec<f64> = task.terms().iter().map(|term| weight(term.name)).collect();
        (task, weights)
    });
    with_weights.filter(|(_, weights)| weights.iter().any(|&w| w != 0.0)).collect()
}
