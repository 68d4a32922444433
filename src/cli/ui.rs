//! Shows the progress of library calls on stderr.

use std::time::{Duration, Instant};

use crate::cli::output::{has_colour, print_line, warning_text};
use crate::cli::progress::Progress;
use crate::run::Ui;
use crate::run::rows::Row;

/// Preparing volumes is worth a line only if it takes longer than this.
const QUIET: Duration = Duration::from_secs(2);

/// The command line's [`Ui`].
pub(super) struct Watch {
    progress: Option<Progress>,
    begun: Option<Instant>,
    said: Option<Instant>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Watch { progress: None, begun: None, said: None }
    }

    fn line(&mut self, text: &str) {
        match &mut self.progress {
            Some(progress) => progress.note(text),
            None => print_line(text),
        }
    }
}

impl Ui for Watch {
    fn note(&mut self, text: &str) {
        self.line(text);
    }

    fn warn(&mut self, text: &str) {
        self.line(&warning_text(text));
    }

    fn preparing(&mut self, done: usize, all: usize) {
        let now = Instant::now();
        let begun = *self.begun.get_or_insert(now);
        let last = *self.said.get_or_insert(begun);
        if now - last > QUIET {
            self.said = Some(now);
            self.line(&format!("prepared {done} of {all} volumes"));
        }
    }

    fn start(&mut self, total: u64) {
        let mut progress = Progress::stderr(has_colour());
        progress.start(total);
        self.progress = Some(progress);
    }

    fn step(&mut self, row: &Row) {
        if let Some(progress) = &mut self.progress {
            progress.step(row);
        }
    }

    fn validation(&mut self, step: u64, figures: &str, headline: &str) {
        if let Some(progress) = &mut self.progress {
            progress.validation(step, figures, headline);
        }
    }

    fn finish(&mut self) {
        if let Some(mut progress) = self.progress.take() {
            progress.finish();
        }
    }
}
