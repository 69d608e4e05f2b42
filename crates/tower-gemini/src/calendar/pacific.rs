//! The day that Google counts daily quotas in, which ends at midnight Pacific. Pure.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use jiff::{Timestamp, Unit};

use super::Zone;

/// Tells where the Pacific day that contains a moment begins and ends.
///
/// ```
/// use tower_gemini::calendar::PacificDay;
///
/// // 2026-03-08 is 23 hours long: clocks go from 02:00 to 03:00.
/// let day = PacificDay::holding(1_773_000_000_000);
/// assert_eq!(day.end_ms() - day.start_ms(), 23 * 3_600_000);
/// assert_eq!(day.to_string(), "2026-03-08");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacificDay {
    start_ms: i64,
    end_ms: i64,
}

const DAY_MS: i64 = 86_400_000;

/// Milliseconds since 1970 in UTC; 0 for moments before.
pub(crate) fn unix_ms(moment: SystemTime) -> i64 {
    moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl PacificDay {
    /// Returns the day that contains this moment, given in milliseconds since 1970 in UTC.
    #[must_use]
    pub fn holding(wall_ms: i64) -> Self {
        static ZONE: OnceLock<Zone> = OnceLock::new();
        // A year is 10^10.5 ms: what is beyond jiff's years -9999 to 9999 is no time that a quota
        // has.
        let wall_ms = wall_ms.clamp(0, 250_000_000_000_000);
        let at = Timestamp::from_millisecond(wall_ms).ok();
        let day = at.and_then(|at| ZONE.get_or_init(Zone::pacific).span_of(Unit::Day, at));
        match day {
            Some((start, end)) => {
                Self { start_ms: start.as_millisecond(), end_ms: end.as_millisecond() }
            }
            // Unreachable for the years clamped to; a day of UTC-8 is still a day.
            None => {
                let behind_ms = 8 * 3_600_000;
                let start_ms = (wall_ms - behind_ms).div_euclid(DAY_MS) * DAY_MS + behind_ms;
                Self { start_ms, end_ms: start_ms + DAY_MS }
            }
        }
    }

    /// The day that contains this moment.
    #[must_use]
    pub fn at(moment: SystemTime) -> Self {
        Self::holding(unix_ms(moment))
    }

    /// Returns the days since 1970-01-01 by the Californian calendar.
    #[must_use]
    pub fn number(&self) -> i32 {
        // A midnight in California is a morning of the same date in UTC.
        i32::try_from(self.start_ms.div_euclid(DAY_MS)).unwrap_or(i32::MAX)
    }

    /// Returns the midnight at which the day begins, in milliseconds since 1970 in UTC.
    #[must_use]
    pub fn start_ms(&self) -> i64 {
        self.start_ms
    }

    /// Returns the midnight at which the day ends, in milliseconds since 1970 in UTC.
    #[must_use]
    pub fn end_ms(&self) -> i64 {
        self.end_ms
    }

    /// Returns the time from `wall_ms` to the end of the day, zero for a moment after it.
    #[must_use]
    pub fn time_left(&self, wall_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(self.end_ms.saturating_sub(wall_ms)).unwrap_or(0))
    }

    /// Whether the day contains this moment.
    #[must_use]
    pub fn holds(&self, wall_ms: i64) -> bool {
        (self.start_ms..self.end_ms).contains(&wall_ms)
    }
}

impl std::fmt::Display for PacificDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Timestamp::from_millisecond(self.start_ms) {
            Ok(at) => write!(f, "{}", at.strftime("%F")),
            Err(_) => write!(f, "day {}", self.number()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    #[test]
    fn midnight_pacific_is_eight_hours_behind_in_winter_and_seven_in_summer() {
        assert_eq!(
            PacificDay::holding(ms("2026-01-21T10:00:00Z")).end_ms(),
            ms("2026-01-22T08:00:00Z")
        );
        assert_eq!(
            PacificDay::holding(ms("2026-07-21T10:00:00Z")).end_ms(),
            ms("2026-07-22T07:00:00Z")
        );
    }

    #[test]
    fn the_day_of_each_daylight_change_has_its_own_length() {
        let spring = PacificDay::holding(ms("2026-03-08T12:00:00Z"));
        assert_eq!(
            (spring.start_ms(), spring.end_ms()),
            (ms("2026-03-08T08:00:00Z"), ms("2026-03-09T07:00:00Z"))
        );
        let autumn = PacificDay::holding(ms("2026-11-01T12:00:00Z"));
        assert_eq!(
            (autumn.start_ms(), autumn.end_ms()),
            (ms("2026-11-01T07:00:00Z"), ms("2026-11-02T08:00:00Z"))
        );
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
        #[test]
        fn days_follow_each_other_without_gap_or_overlap(wall_ms in 0i64..4_102_444_800_000) {
            let day = PacificDay::holding(wall_ms);
            assert!(day.holds(wall_ms));
            let next = PacificDay::holding(day.end_ms());
            assert_eq!(next.start_ms(), day.end_ms());
            assert_eq!(next.number(), day.number() + 1);
            assert!(matches!((day.end_ms() - day.start_ms()) / 3_600_000, 23..=25));
        }
    }
}
