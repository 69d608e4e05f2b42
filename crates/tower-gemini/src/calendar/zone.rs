//! Time zones: what the clock on the wall shows, and where its hours, days and months begin. Pure.

use std::fmt;
use std::time::SystemTime;

use jiff::civil::Date;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Unit};

/// A time zone.
///
/// Everything but [`named`](Self::named) works by rule, without a time zone database, which a
/// container may lack.
///
/// ```
/// use tower_gemini::calendar::Zone;
///
/// assert_eq!(Zone::fixed(8, 0)?.to_string(), "UTC+08:00");
/// assert_eq!(Zone::posix("CET-1CEST,M3.5.0,M10.5.0/3")?.to_string(), "CET-1CEST,M3.5.0,M10.5.0/3");
/// assert_eq!(Zone::named("Europe/Berlin")?.to_string(), "Europe/Berlin");
/// assert!(Zone::named("Europe/Atlantis").is_err());
/// # Ok::<(), tower_gemini::calendar::UnknownZone>(())
/// ```
#[derive(Clone)]
pub struct Zone {
    rules: TimeZone,
    name: String,
}

/// A time zone of this name, rule or offset is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownZone(String);

impl fmt::Display for UnknownZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the time zone `{}` is not known; enable the feature `time-zones`, or give its POSIX rule with Zone::posix",
            self.0
        )
    }
}

impl std::error::Error for UnknownZone {}

/// The rules in force in some zones, as the IANA database's POSIX footers state them (tzdata
/// 2025b): what [`Zone::named`] knows without a database.
const RULES: [(&str, &str); 16] = [
    ("Etc/UTC", "UTC0"),
    ("America/Los_Angeles", PACIFIC),
    ("America/Denver", "MST7MDT,M3.2.0,M11.1.0"),
    ("America/Chicago", "CST6CDT,M3.2.0,M11.1.0"),
    ("America/New_York", "EST5EDT,M3.2.0,M11.1.0"),
    ("America/Sao_Paulo", "<-03>3"),
    ("Europe/London", "GMT0BST,M3.5.0/1,M10.5.0"),
    ("Europe/Paris", "CET-1CEST,M3.5.0,M10.5.0/3"),
    ("Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"),
    ("Europe/Madrid", "CET-1CEST,M3.5.0,M10.5.0/3"),
    ("Asia/Kolkata", "IST-5:30"),
    ("Asia/Shanghai", "CST-8"),
    ("Asia/Singapore", "<+08>-8"),
    ("Asia/Tokyo", "JST-9"),
    ("Asia/Seoul", "KST-9"),
    ("Australia/Sydney", "AEST-10AEDT,M10.1.0,M4.1.0/3"),
];

const PACIFIC: &str = "PST8PDT,M3.2.0,M11.1.0";

impl Zone {
    /// Universal time.
    #[must_use]
    pub fn utc() -> Self {
        Self { rules: TimeZone::UTC, name: "UTC".to_owned() }
    }

    /// Pacific time, in which Google counts the days of its quotas: UTC-8, and UTC-7 from the
    /// second Sunday of March to the first of November, as in the United States since 2007.
    #[must_use]
    pub fn pacific() -> Self {
        // The rule is a constant that a test reads; were it wrong, the standard offset would serve
        // until the test says so.
        let standard = || TimeZone::fixed(jiff::tz::offset(-8));
        let rules = TimeZone::posix(PACIFIC).unwrap_or_else(|_| standard());
        Self { rules, name: "America/Los_Angeles".to_owned() }
    }

    /// A fixed distance from UTC, east positive. `minutes` go the way the hours go.
    ///
    /// # Errors
    ///
    /// Where there is no such offset: beyond 25 hours, or minutes beyond 59.
    pub fn fixed(hours: i8, minutes: u8) -> Result<Self, UnknownZone> {
        let sign = if hours < 0 { -1 } else { 1 };
        let seconds = i32::from(hours) * 3600 + sign * i32::from(minutes) * 60;
        let letter = if hours < 0 { '-' } else { '+' };
        let name = format!("UTC{letter}{:02}:{minutes:02}", hours.unsigned_abs());
        match Offset::from_seconds(seconds) {
            Ok(offset) if minutes < 60 => Ok(Self { rules: TimeZone::fixed(offset), name }),
            _ => Err(UnknownZone(name)),
        }
    }

    /// A zone by its POSIX rule, such as `EST5EDT,M3.2.0,M11.1.0`.
    ///
    /// # Errors
    ///
    /// Where it is no such rule.
    pub fn posix(rule: &str) -> Result<Self, UnknownZone> {
        let name = rule.to_owned();
        match TimeZone::posix(rule) {
            Ok(rules) => Ok(Self { rules, name }),
            Err(_) => Err(UnknownZone(name)),
        }
    }

    /// A zone by its IANA name. With the feature `time-zones` every one is known; without it `UTC`
    /// and sixteen in which most callers live, by the rules now in force.
    ///
    /// # Errors
    ///
    /// Where the name is not known: [`posix`](Self::posix) takes its rule.
    pub fn named(name: &str) -> Result<Self, UnknownZone> {
        if name.eq_ignore_ascii_case("UTC") {
            return Ok(Self::utc());
        }
        let by_rule = || {
            let (_, rule) = RULES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
            TimeZone::posix(rule).ok()
        };
        let name = name.to_owned();
        match TimeZone::get(&name).ok().or_else(by_rule) {
            Some(rules) => Ok(Self { rules, name }),
            None => Err(UnknownZone(name)),
        }
    }

    /// What the clock on the wall shows: the minute of the week from Monday 00:00 on, and the
    /// nanoseconds of that minute.
    pub(crate) fn minute_of_week(&self, at: Timestamp) -> (u16, i64) {
        let civil = self.rules.to_datetime(at);
        let day = i16::from(civil.date().weekday().to_monday_zero_offset());
        let minute = day * 1440 + i16::from(civil.hour()) * 60 + i16::from(civil.minute());
        let nanos =
            i64::from(civil.second()) * 1_000_000_000 + i64::from(civil.subsec_nanosecond());
        (u16::try_from(minute).unwrap_or(0), nanos)
    }

    /// The first moment after this one at which the clock is set forward or back.
    pub(crate) fn next_change(&self, at: Timestamp) -> Option<Timestamp> {
        self.rules.following(at).next().map(|transition| transition.timestamp())
    }

    fn midnight(&self, date: Date) -> Option<Timestamp> {
        date.to_zoned(self.rules.clone()).ok().map(|midnight| midnight.timestamp())
    }

    /// Where the calendar's hour, day or month that holds a moment begins and ends.
    pub(crate) fn span_of(&self, unit: Unit, at: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let civil = self.rules.to_datetime(at);
        let date = civil.date();
        let (first, next) = match unit {
            // Not by the civil hour: the one that comes twice in autumn would be one hour of two.
            Unit::Hour => {
                let into = i64::from(civil.minute()) * 60 + i64::from(civil.second());
                let start = Timestamp::from_second(at.as_second() - into).ok()?;
                return Some((start, start.checked_add(SignedDuration::from_hours(1)).ok()?));
            }
            Unit::Month => (date.first_of_month(), date.last_of_month().tomorrow().ok()?),
            _ => (date, date.tomorrow().ok()?),
        };
        Some((self.midnight(first)?, self.midnight(next)?))
    }
}

/// `None` beyond the years -9999 to 9999, in which nothing is called.
pub(crate) fn timestamp(at: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(at).ok()
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn pacific_is_eight_hours_behind_and_seven_in_summer() {
        let zone = Zone::pacific();
        assert_eq!(zone.minute_of_week(at("2026-01-05T08:00:00Z")), (0, 0), "a Monday's midnight");
        assert_eq!(zone.minute_of_week(at("2026-07-06T07:00:30Z")), (0, 30_000_000_000));
    }

    #[test]
    fn every_rule_of_the_table_reads() {
        for (name, rule) in RULES {
            assert!(TimeZone::posix(rule).is_ok(), "{name}");
            assert_eq!(Zone::named(name).unwrap().to_string(), name);
        }
        assert!(Zone::fixed(30, 0).is_err());
        assert!(Zone::fixed(5, 60).is_err());
        assert!(Zone::posix("nowhere").is_err());
        assert_eq!(Zone::fixed(-3, 30).unwrap().minute_of_week(at("2026-01-05T03:30:00Z")), (0, 0));
    }

    /// Run with `--features time-zones`.
    #[cfg(feature = "time-zones")]
    #[test]
    fn with_the_database_every_name_is_known_and_the_table_agrees_with_it() {
        assert_eq!(
            Zone::named("Pacific/Chatham").unwrap().minute_of_week(at("2026-01-05T00:00:00Z")).0,
            13 * 60 + 45
        );
        for (name, rule) in RULES {
            let (named, ruled) = (Zone::named(name).unwrap(), Zone::posix(rule).unwrap());
            for hour in 0..365 * 24 {
                let at = Timestamp::from_second(1_767_225_600 + hour * 3600).unwrap();
                assert_eq!(named.minute_of_week(at), ruled.minute_of_week(at), "{name} at {at}");
            }
        }
    }

    #[test]
    fn days_have_23_or_25_hours_where_clocks_change() {
        let zone = Zone::pacific();
        for (noon, hours) in [
            ("2026-03-08T20:00:00Z", 23),
            ("2026-11-01T20:00:00Z", 25),
            ("2026-07-01T20:00:00Z", 24),
        ] {
            let (start, end) = zone.span_of(Unit::Day, at(noon)).unwrap();
            assert_eq!(end.as_second() - start.as_second(), hours * 3600, "{noon}");
        }
        // Both 01:30 of the morning on which the clock goes back are an hour of their own.
        let (first, second) = (at("2026-11-01T08:30:00Z"), at("2026-11-01T09:30:00Z"));
        for (unit, moment, start, end) in [
            (Unit::Hour, first, "2026-11-01T08:00:00Z", "2026-11-01T09:00:00Z"),
            (Unit::Hour, second, "2026-11-01T09:00:00Z", "2026-11-01T10:00:00Z"),
            (Unit::Month, second, "2026-11-01T07:00:00Z", "2026-12-01T08:00:00Z"),
        ] {
            assert_eq!(zone.span_of(unit, moment), Some((at(start), at(end))));
        }
    }
}
