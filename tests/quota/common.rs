//! What the tests share.

use std::time::{Duration, SystemTime};

pub(crate) const MODEL: &str = "gemini-3.1-flash-image";

/// 2026-03-08 20:00 UTC: the day of a daylight change, at noon Pacific.
pub(crate) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_773_000_000_000)
}
