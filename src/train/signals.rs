//! Signals that ask a run to stop: SIGINT, SIGTERM and SIGUSR1 mean the same.
//!
//! The first one only sets a flag: the loop finishes its step, saves, and ends with code 75. A second one,
//! of any of the three, ends the process at once with code 128 + n; the last checkpoint stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{Error, Result};

/// The signals listened to. Batch systems warn with SIGTERM or, on request, SIGUSR1.
const SIGNALS: &[(i32, &str)] = &[
    (SIGINT, "SIGINT"),
    (SIGTERM, "SIGTERM"),
    #[cfg(unix)]
    (SIGUSR1, "SIGUSR1"),
];

/// Tells whether a signal has asked the process to stop.
///
/// Clones share the flag. The handlers stay for the life of the process.
#[derive(Clone, Debug)]
pub struct StopFlag {
    signal: Arc<AtomicUsize>,
}

impl StopFlag {
    /// Installs the handlers; call it once, before anything that takes long.
    ///
    /// # Errors
    /// [`Error::Output`] (the code for system failures) if the system refuses a handler.
    pub fn install() -> Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        let armed = Arc::new(AtomicBool::new(false));
        for &(number, name) in SIGNALS {
            // Actions run in the order they are registered: the first signal must find the exit unarmed.
            let exit_code = 128 + number;
            signal_hook::flag::register_conditional_shutdown(number, exit_code, Arc::clone(&armed))
                .and_then(|_| {
                    let value = number.unsigned_abs() as usize;
                    signal_hook::flag::register_usize(number, Arc::clone(&signal), value)
                })
                .and_then(|_| signal_hook::flag::register(number, Arc::clone(&armed)))
                .map_err(|e| {
                    Error::output("signal handlers", format!("{name} cannot be handled: {e}"))
                })?;
        }
        Ok(StopFlag { signal })
    }

    /// The name of the signal that arrived, or `None` as long as none has.
    pub fn requested(&self) -> Option<&'static str> {
        let number = self.signal.load(Ordering::SeqCst);
        SIGNALS.iter().find(|(n, _)| n.unsigned_abs() as usize == number).map(|&(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The variable that turns [`child`] from an empty test into the process under test.
    const CHILD: &str = "SPATIALSSL_TEST_SIGNALS";

    /// Runs in a process of its own: raises the signals listed, reports each, ends with 9 if it survives.
    #[test]
    fn child() {
        let Ok(list) = std::env::var(CHILD) else { return };
        let flag = StopFlag::install().unwrap();
        assert_eq!(flag.requested(), None);
        for number in list.split(',') {
            signal_hook::low_level::raise(number.parse().unwrap()).unwrap();
            println!("seen {:?}", flag.requested());
        }
        std::process::exit(9);
    }

    fn raise(list: &str) -> (Option<i32>, String) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::signals::tests::child", "--nocapture"])
            .env(CHILD, list)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn the_first_signal_sets_the_flag_and_names_itself() {
        for &(number, name) in SIGNALS {
            let (code, text) = raise(&number.to_string());
            assert_eq!(code, Some(9), "{name} ended the process: {text}");
            assert!(text.contains(&format!("seen Some(\"{name}\")")), "{text}");
        }
    }

    #[test]
    fn the_second_signal_ends_the_process() {
        assert_eq!(raise(&format!("{SIGTERM},{SIGTERM}")).0, Some(128 + SIGTERM));
        assert_eq!(raise(&format!("{SIGTERM},{SIGINT}")).0, Some(128 + SIGINT));
        #[cfg(unix)]
        assert_eq!(raise(&format!("{SIGINT},{SIGUSR1}")).0, Some(128 + SIGUSR1));
    }
}
