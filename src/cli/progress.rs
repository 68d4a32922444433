//! Progress of a run on stderr: a bar on a terminal, a line now and then elsewhere.
//!
//! Nothing here can stop a run: a closed or full stderr is ignored.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run::rows::Row;

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Redraws of the bar per second.
const REDRAWS_PER_S: u8 = 5;

/// Shows step, loss, error of the last validation, times and the time left.
pub(super) struct Progress {
    output: Output,
    total: u64,
    /// The first figure of the last validation, in words.
    headline: String,
    /// Step and time of the first row, from which the speed is reckoned: a resumed run starts late, and
    /// the first step, which plans memory, is slow.
    first: Option<(u64, Instant)>,
}

enum Output {
    Bar { bar: ProgressBar, has_color: bool },
    Lines { out: Box<dyn Write + Send>, every: Duration, last: Option<Instant> },
}

impl Progress {
    /// Progress on stderr: a bar if it is a terminal, lines otherwise. `has_color` is false under `NO_COLOR`.
    pub(super) fn stderr(has_color: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_S);
        if !is_terminal || target.is_hidden() {
            return Self::lines(Box::new(io::stderr()), LINE_EVERY);
        }
        let bar = ProgressBar::with_draw_target(None, target);
        Self::new(Output::Bar { bar, has_color })
    }

    /// Progress as lines to `out`, one at most `every` so often; the first and the last step have one too.
    pub(super) fn lines(out: Box<dyn Write + Send>, every: Duration) -> Self {
        Self::new(Output::Lines { out, every, last: None })
    }

    fn new(output: Output) -> Self {
        Progress { output, total: 0, headline: String::new(), first: None }
    }

    /// Begins a run of `total` steps, those done before a resume included.
    pub(super) fn start(&mut self, total: u64) {
        self.total = total;
        self.first = None;
        if let Output::Bar { bar, has_color } = &self.output {
            let color = if *has_color { ":12.cyan/blue" } else { ":12" };
            let template = format!("{{bar{color}}} {{wide_msg}}");
            // The template is fixed; should the library refuse it, its own style serves as well.
            let style = ProgressStyle::with_template(&template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar.set_length(total);
        }
    }

    /// Shows a finished step.
    pub(super) fn step(&mut self, row: &Row) {
        let now = Instant::now();
        let (first_step, first_time) = *self.first.get_or_insert((row.step, now));
        let done = row.step.saturating_sub(first_step);
        let left = self.total.saturating_sub(row.step);
        let eta = time_left(now - first_time, done, left);
        let text = step_text(row, self.total, &self.headline, eta);
        match &mut self.output {
            Output::Bar { bar, .. } => {
                bar.set_position(row.step);
                bar.set_message(text);
            }
            Output::Lines { out, every, last } => {
                if left == 0 || last.is_none_or(|last| now - last >= *every) {
                    *last = Some(now);
                    let _ = writeln!(out, "{text}");
                }
            }
        }
    }

    /// Shows a validation, and its headline beside the steps from now on.
    pub(super) fn validation(&mut self, step: u64, figures: &str, headline: &str) {
        self.headline = headline.to_string();
        self.note(&format!("validation at step {step}: {figures}"));
    }

    /// Prints a line, above the bar if there is one. Paths in it must be escaped already.
    pub(super) fn note(&mut self, text: &str) {
        match &mut self.output {
            Output::Bar { bar, .. } => bar.println(text),
            Output::Lines { out, .. } => {
                let _ = writeln!(out, "{text}");
            }
        }
    }

    /// Ends the display; the bar stays as it is, also if the run ended early.
    pub(super) fn finish(&mut self) {
        match &mut self.output {
            Output::Bar { bar, .. } => {
                bar.abandon();
                // The bar leaves the cursor at its end.
                let _ = writeln!(io::stderr());
            }
            Output::Lines { out, .. } => {
                let _ = out.flush();
            }
        }
    }
}

/// The line of a step. What matters least is last: a narrow terminal cuts the end off.
fn step_text(row: &Row, total: u64, headline: &str, eta: Option<Duration>) -> String {
    let gap = if headline.is_empty() { String::new() } else { format!("  {headline}") };
    let eta = eta.map(|left| format!("  ETA {}", duration_text(left))).unwrap_or_default();
    format!(
        "step {}/{total}{eta}  loss {}{gap}  step {:.0} ms  data {:.0} ms",
        row.step,
        short(row.get("loss")),
        row.get("step_ms"),
        row.get("data_ms")
    )
}

/// Time for the `left` steps at the mean speed so far; `None` before there is one.
fn time_left(elapsed: Duration, done: u64, left: u64) -> Option<Duration> {
    let per_step_s = elapsed.as_secs_f64() / done as f64;
    (done > 0).then(|| Duration::try_from_secs_f64(per_step_s * left as f64).ok()).flatten()
}

/// A number in four significant digits, without an exponent where that is short.
fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => value.to_string(),
        _ if size >= 1e6 || (size > 0.0 && size < 1e-3) => format!("{value:.3e}"),
        _ if size >= 1000.0 => format!("{value:.0}"),
        _ if size >= 100.0 => format!("{value:.1}"),
        _ if size >= 10.0 => format!("{value:.2}"),
        _ if size >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A duration in its two largest units.
fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {:02} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours:02} h"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn run(progress: &mut Progress, steps: u64) {
        progress.start(steps);
        for step in 1..=steps {
            let row = Row::new(step).with("loss", 0.5).with("step_ms", 84.7).with("data_ms", 2.0);
            progress.step(&row);
            if step == 2 {
                progress.validation(
                    2,
                    "gap error 12.3 mm, direction error 5\u{b0}",
                    "gap error 12.3 mm",
                );
            }
        }
        progress.note("done");
        progress.finish();
    }

    #[test]
    fn lines_are_few_plain_and_hold_the_figures() {
        let sink = Sink::default();
        run(&mut Progress::lines(Box::new(sink.clone()), Duration::from_secs(3600)), 50);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0], "step 1/50  loss 0.5000  step 85 ms  data 2 ms");
        assert!(lines[1].starts_with("validation at step 2: gap error 12.3 mm, dir"), "{text}");
        assert_eq!(
            lines[2],
            "step 50/50  ETA 0 s  loss 0.5000  gap error 12.3 mm  step 85 ms  data 2 ms"
        );
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_short_interval_shows_every_step() {
        let sink = Sink::default();
        run(&mut Progress::lines(Box::new(sink.clone()), Duration::ZERO), 5);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("step ")).count(), 5);
    }

    #[test]
    fn a_closed_output_is_ignored() {
        run(&mut Progress::lines(Box::new(Closed), Duration::ZERO), 3);
    }

    #[test]
    fn a_bar_keeps_its_place_after_a_resume() {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        for has_color in [false, true] {
            let mut progress = Progress::new(Output::Bar { bar: bar.clone(), has_color });
            progress.start(100);
            progress.step(&Row::new(40));
            progress.finish();
            assert_eq!((bar.position(), bar.length()), (40, Some(100)));
            assert!(bar.message().starts_with("step 40/100  loss NaN"), "{}", bar.message());
        }
    }

    #[test]
    fn the_time_left_is_that_of_the_steps_seen() {
        let ten = Duration::from_secs(10);
        assert_eq!(time_left(ten, 0, 5), None);
        assert_eq!(time_left(ten, 20, 5), Some(Duration::from_millis(2500)));
        assert_eq!(time_left(Duration::MAX, 1, u64::MAX), None);
        let texts: Vec<String> =
            [59, 61, 3661, 90_000].map(|s| duration_text(Duration::from_secs(s))).to_vec();
        assert_eq!(texts, ["59 s", "1 min 01 s", "1 h 01 min", "1 d 01 h"]);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 1e-5, 0.1234567, 12.3456, 123456.7, 1e9, f64::NAN].map(short);
        assert_eq!(shown, ["0.0000", "1.000e-5", "0.1235", "12.35", "123457", "1.000e9", "NaN"]);
    }
}
