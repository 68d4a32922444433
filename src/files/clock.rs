//! Dates as they are shown.

use std::time::SystemTime;

use jiff::Timestamp;

/// Now, as `2026-11-24 12:34:56 UTC`.
pub(crate) fn utc_now() -> String {
    utc(SystemTime::now())
}

/// A time as `2026-11-24 12:34:56 UTC`; a time beyond the calendar as 1970 began.
fn utc(time: SystemTime) -> String {
    let stamp = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    stamp.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_are_told_in_utc() {
        let text = |s| utc(UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(text(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00 UTC");
        assert_eq!(text(1_795_521_599), "2026-11-24 11:59:59 UTC");
        assert_eq!(text(1 << 50), "1970-01-01 00:00:00 UTC");
    }
}
