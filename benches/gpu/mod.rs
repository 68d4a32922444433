//! What benches on a CUDA device share: finding it, and time between two events of its stream.

use std::io::Write;
use std::time::Duration;

use spatialssl::driver::{Device, Event};
use spatialssl::error::Result;

/// Device 0, opened so that its context stays; without one a line on stderr says why benches on it are skipped.
pub(crate) fn open() -> Option<Device> {
    match Device::open(0, false) {
        Ok(device) => Some(device),
        Err(error) => {
            let text = error.to_string();
            let why: Vec<&str> = text.lines().take(2).map(str::trim).collect();
            let why = why.join("; ");
            // Nobody listens if standard error is closed.
            let _ = writeln!(std::io::stderr(), "no GPU: {why}: benches on cuda:0 skipped");
            None
        }
    }
}

/// What a failed measurement ends with: benches have no other way out.
pub(crate) fn must<T>(what: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Two points in the stream.
pub(crate) struct Clock {
    start: Event,
    end: Event,
}

impl Clock {
    /// Starts behind everything queued on `device`.
    pub(crate) fn start(device: &Device) -> Result<Clock> {
        let clock = Clock { start: device.event(true)?, end: device.event(true)? };
        device.record(&clock.start)?;
        Ok(clock)
    }

    /// Time from the start to everything queued on `device` until now; waits for it. Criterion needs it above 0.
    pub(crate) fn stop(&self, device: &Device) -> Result<Duration> {
        device.record(&self.end)?;
        self.end.wait()?;
        let seconds = self.end.ms_since(&self.start)? / 1e3;
        Ok(Duration::from_secs_f64(seconds).max(Duration::from_nanos(1)))
    }
}
