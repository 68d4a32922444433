//! The one error type of the library, and the exit code each kind of failure ends in.

use std::path::PathBuf;

/// Result of a fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A condition of the world that stops the work. Bugs are assertions, not values of this type.
///
/// `Display` is one block ready for stderr: what was being done, what is wrong (the value found and the
/// value needed), and what to do about it, the later lines indented by two spaces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Sizes that do not fit together, found while a model is recorded.
    #[error("{op}: {what}")]
    Shape {
        /// The operation, as its file is named.
        op: &'static str,
        /// What was expected and what was found.
        what: String,
    },
    /// A wrong option or configuration value. Exit code 2.
    #[error("{key}: {why}")]
    Config {
        /// The option or configuration key, for example `optim.lr` or `--steps`.
        key: String,
        /// The value found, the values allowed, what to do.
        why: String,
    },
    /// An input volume, list or folder that cannot be used. Exit code 3.
    #[error("cannot read {}\n  {what}", escape(path))]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do; lines after the first are indented by the writer.
        what: String,
    },
    /// An output that cannot be written: disk full, permission, lock. Exit code 4.
    #[error("cannot write {}\n  {what}", escape(path))]
    Output {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// The device asked for is not usable. Exit code 5.
    #[error("{0}")]
    Device(String),
    /// Training went wrong: diverged, or too many unusable samples. Exit code 6.
    #[error("{0}")]
    Unhealthy(String),
    /// A checkpoint or weight file that is invalid or does not fit. Exit code 7.
    #[error("cannot use {}\n  {why}", escape(path))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A signal stopped the run after its state was saved. Exit code 75.
    #[error(
        "stopped by {signal} at step {step}, the state is saved\n  run the same command with --resume to go on"
    )]
    Stopped {
        /// Name of the signal.
        signal: &'static str,
        /// Number of finished steps.
        step: u64,
    },
}

impl Error {
    /// The process exit code of this kind of failure, as the command-line contract lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Shape { .. } | Error::Config { .. } => 2,
            Error::Data { .. } => 3,
            Error::Output { .. } => 4,
            Error::Device(_) => 5,
            Error::Unhealthy(_) => 6,
            Error::Checkpoint { .. } => 7,
            Error::Stopped { .. } => 75,
        }
    }

    /// A configuration error for `key`.
    pub fn config(key: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Config { key: key.into(), why: why.into() }
    }

    /// An input-data error for `path`.
    pub fn data(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Error::Data { path: path.into(), what: what.into() }
    }

    /// An output error for `path`.
    pub fn output(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Error::Output { path: path.into(), what: what.into() }
    }

    /// A checkpoint error for `path`.
    pub fn checkpoint(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.into(), why: why.into() }
    }
}

/// A path as it may be printed: control characters, quotes and bytes that are not UTF-8 are escaped, so
/// that a file name can never move the cursor or forge a line of our output.
pub fn escape(path: &std::path::Path) -> String {
    let text = path.to_string_lossy();
    text.chars()
        .flat_map(|c| {
            let turns_text =
                matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let hidden = c.is_control() || turns_text;
            let escaped: Box<dyn Iterator<Item = char>> =
                if hidden { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) };
            escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_in_names_are_escaped() {
        let shown = escape(std::path::Path::new("a\u{1b}[2Jb\nc\u{202e}d"));
        assert_eq!(shown, "a\\u{1b}[2Jb\\nc\\u{202e}d");
    }

    #[test]
    fn exit_codes_are_distinct() {
        let all = [
            Error::config("k", "w"),
            Error::data("p", "w"),
            Error::output("p", "w"),
            Error::Device("d".into()),
            Error::Unhealthy("u".into()),
            Error::checkpoint("p", "w"),
            Error::Stopped { signal: "SIGINT", step: 1 },
        ];
        let codes: std::collections::BTreeSet<u8> = all.iter().map(Error::exit_code).collect();
        assert_eq!(codes.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 75]);
    }
}
