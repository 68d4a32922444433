//! Text to stdout and stderr: errors, notes, panics, and what happens when nobody reads.

use std::io::{ErrorKind, IsTerminal, Write};
use std::panic::PanicHookInfo;

use crate::error::{Error, Result};

/// Prints a result to stdout. A closed pipe (`| head`) is a quiet end, not an error.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::output("stdout", format!("{e}\n  is the disk full?")))
        }
        _ => Ok(()),
    }
}

/// Prints a line to stderr. Nobody is left to be told if that fails.
pub(super) fn print_line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints an error as one block to stderr.
pub(super) fn print_error(text: &str) {
    print_line(&format!("{} {text}", label("error:", "1;31")));
}

/// Prints a warning to stderr.
pub(super) fn print_warning(text: &str) {
    print_line(&warning_text(text));
}

/// A warning as it is printed.
pub(super) fn warning_text(text: &str) -> String {
    format!("{} {text}", label("warning:", "1;33"))
}

fn label(word: &str, style: &str) -> String {
    if has_colour() { format!("\u{1b}[{style}m{word}\u{1b}[0m") } else { word.to_string() }
}

/// Whether stderr is a terminal that wants colour; see no-color.org.
pub(super) fn has_colour() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !set("NO_COLOR") && !dumb
}

/// The panic hook: a short block that asks for a report. The process still ends with 101.
pub(super) fn report_panic(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map_or_else(|| "unknown".to_string(), ToString::to_string);
    print_error(&bug_report(message, &place));
    let trace = std::backtrace::Backtrace::capture();
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        print_line(&trace.to_string());
    }
}

fn bug_report(message: &str, place: &str) -> String {
    let message = message.replace('\n', "\n    ");
    format!(
        "this is a bug in spatialssl {}; please report it with this text and the \
         command\n  what: {message}\n  where: {place}\n  \
         checkpoints already written are not affected; RUST_BACKTRACE=1 shows more",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_called_a_bug_with_its_place() {
        let text = bug_report("left != right\nmore", "src/a.rs:3:5");
        assert!(text.starts_with("this is a bug in spatialssl 0."), "{text}");
        assert!(text.contains("\n  where: src/a.rs:3:5\n"), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("  ")), "{text}");
    }
}
