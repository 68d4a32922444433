//! What a run tells whoever watches it.

use crate::run::rows::Row;

/// Receives the progress of a run. The library never prints: the command line implements this.
pub trait Ui: Send {
    /// A fact worth a line.
    fn note(&mut self, text: &str);
    /// Something to look into.
    fn warn(&mut self, text: &str);
    /// `done` of `all` volumes are prepared.
    fn preparing(&mut self, done: usize, all: usize);
    /// Training begins, of `total` steps.
    fn start(&mut self, total: u64);
    /// A step is done.
    fn step(&mut self, row: &Row);
    /// A validation is done; `figures` says in words what it found, the first figure in full as `headline`.
    fn validation(&mut self, step: u64, figures: &str, headline: &str);
    /// Training is over.
    fn finish(&mut self);
}
