//! The day that Google counts daily quotas in, which ends at midnight Pacific. Pure.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

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
    number: i32,
    start_ms: i64,
    end_ms: i64,
}

/// A rule instead of a time zone database, which a container may lack: daylight time lasts from the
/// second Sunday of March to the first of November, as in the United States since 2007.
const RULE: &str = "PST8PDT,M3.2.0,M11.1.0";

fn pacific() -> &'static TimeZone {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    // The rule is a constant that a test parses; were it wrong, the standard offset would serve
    // until the test says so.
    ZONE.get_or_init(|| {
        TimeZone::posix(RULE).unwrap_or_else(|_| TimeZone::fixed(jiff::tz::offset(-8)))
    })
}

/// Milliseconds since 1970 in UTC; 0 for moments before.
pub(crate) fn unix_ms(moment: SystemTime) -> i64 {
    moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn start_of(date: Date) -> Option<i64> {
    date.to_zoned(pacific().clone()).ok().map(|zoned| zoned.timestamp().as_millisecond())
}

impl PacificDay {
    /// Returns the day that contains this moment, given in milliseconds since 1970 in UTC.
    #[must_use]
    pub fn holding(wall_ms: i64) -> Self {
        // A year is 10^10.5 ms: what is beyond jiff's years -9999 to 9999 is no time that a quota
        // has.
        let wall_ms = wall_ms.clamp(0, 250_000_000_000_000);
        let found = Timestamp::from_millisecond(wall_ms).ok().and_then(|at| {
            let date = at.to_zoned(pacific().clone()).date();
            let (start_ms, end_ms) = (start_of(date)?, start_of(date.tomorrow().ok()?)?);
            Some(Self { number: number_of(date), start_ms, end_ms })
        });
        // Unreachable for the years clamped to; a day of UTC-8 is still a day.
        found.unwrap_or_else(|| {
            let number = wall_ms.saturating_sub(8 * 3_600_000).div_euclid(86_400_000);
            let start_ms = number * 86_400_000 + 8 * 3_600_000;
            Self {
                number: i32::try_from(number).unwrap_or(0),
                start_ms,
                end_ms: start_ms + 86_400_000,
            }
        })
    }

    /// The day that contains this moment.
    #[must_use]
    pub fn at(moment: SystemTime) -> Self {
        Self::holding(unix_ms(moment))
    }

    /// Returns the days since 1970-01-01 by the Californian calendar.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.number
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

fn number_of(date: Date) -> i32 {
    let epoch = jiff::civil::date(1970, 1, 1);
    date.since((jiff::Unit::Day, epoch)).map(|span| span.get_days()).unwrap_or(0)
}

impl std::fmt::Display for PacificDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Timestamp::from_millisecond(self.start_ms) {
            Ok(at) => write!(f, "{}", at.to_zoned(pacific().clone()).date()),
            Err(_) => write!(f, "day {}", self.number),
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
    fn the_rule_can_be_read() {
        assert!(TimeZone::posix(RULE).is_ok());
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
