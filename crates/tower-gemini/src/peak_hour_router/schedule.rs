//! Decides which hours of the week are peaks. Pure.

use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::civil::Time;
use jiff::{SignedDuration, Timestamp};

use crate::calendar::{UnknownZone, Zone, timestamp};

const DAY: u16 = 24 * 60;
const WEEK: u16 = 7 * DAY;

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names of the days say it")]
pub enum Day {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Day {
    /// The week, from Monday on.
    pub const WEEK: [Self; 7] = {
        use Day::*;
        [Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday]
    };
    /// Monday to Friday.
    pub const WORKING: [Self; 5] = {
        use Day::*;
        [Monday, Tuesday, Wednesday, Thursday, Friday]
    };
}

/// A stretch of the clock that recurs every week: from `start`, which belongs to it, to `end`,
/// which does not.
///
/// An end at or before the start lies on the next day: `22:00` to `02:00` is four hours, and
/// belongs to the day on which it begins. `24:00` is a valid end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// One bit per day, Monday's the lowest.
    days: u8,
    start: String,
    end: String,
}

impl Window {
    /// Every day from `start` to `end`, each written `10:00`. [`Schedule::new`] validates them.
    #[must_use]
    pub fn daily(start: impl Into<String>, end: impl Into<String>) -> Self {
        Self::on(&Day::WEEK, start, end)
    }

    /// On these days from `start` to `end`.
    #[must_use]
    pub fn on(days: &[Day], start: impl Into<String>, end: impl Into<String>) -> Self {
        let days = days.iter().fold(0, |days, &day| days | 1 << day as u8);
        Self { days, start: start.into(), end: end.into() }
    }

    fn days(&self) -> impl Iterator<Item = Day> + use<> {
        let days = self.days;
        Day::WEEK.into_iter().filter(move |&day| days >> day as u8 & 1 == 1)
    }

    /// Start and length in minutes.
    fn minutes(&self) -> Result<(u16, u16), ConfigError> {
        let parse = |text: &String| {
            let invalid =
                || ConfigError::InvalidTime { window: self.clone(), text: text.to_owned() };
            minute_of_day(text).ok_or_else(invalid)
        };
        let (start, end) = (parse(&self.start)?, parse(&self.end)?);
        if start == DAY {
            let (window, text) = (self.clone(), self.start.clone());
            return Err(ConfigError::InvalidTime { window, text });
        }
        if start == end || self.days == 0 {
            return Err(ConfigError::Empty { window: self.clone() });
        }
        Ok((start, if end > start { end - start } else { end + DAY - start }))
    }
}

/// `10:00` as minutes.
fn minute_of_day(text: &str) -> Option<u16> {
    if text == "24:00" {
        return Some(DAY);
    }
    let time = Time::strptime("%H:%M", text).ok()?;
    u16::try_from(i16::from(time.hour()) * 60 + i16::from(time.minute())).ok()
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days: Vec<_> = self.days().map(|day| format!("{day:?}")[..3].to_owned()).collect();
        let days = if days.len() == 7 { "daily".to_owned() } else { days.join(",") };
        write!(f, "{days} {}-{}", self.start, self.end)
    }
}

/// Why a schedule could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// Two windows share a minute of the week, so that it is not clear which one holds.
    Overlap {
        /// The one that begins first in the week.
        first: Window,
        /// The one that begins before the first has ended.
        second: Window,
    },
    /// A window without a minute, or without a day.
    Empty {
        /// Which.
        window: Window,
    },
    /// A start or end that is not a time of the day.
    InvalidTime {
        /// Of which window.
        window: Window,
        /// What it says.
        text: String,
    },
    /// A time zone that is not known.
    UnknownZone(UnknownZone),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { first, second } => write!(
                f,
                "the windows `{first}` and `{second}` overlap; end the first where the second begins"
            ),
            Self::Empty { window } => write!(
                f,
                "the window `{window}` holds no minute; a whole day is written 00:00-24:00"
            ),
            Self::InvalidTime { window, text } => write!(
                f,
                "`{text}` in the window `{window}` is not a time of the day; write it as 09:30"
            ),
            Self::UnknownZone(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<UnknownZone> for ConfigError {
    fn from(error: UnknownZone) -> Self {
        Self::UnknownZone(error)
    }
}

/// Weekly windows on the clock of one time zone.
///
/// The local wall clock decides: a window in the hour that is skipped in spring is shorter that
/// night, and one in the hour that is repeated in autumn applies twice.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_gemini::peak_hour_router::{Day, Schedule, Window, Zone};
///
/// let evenings = Schedule::new(Zone::fixed(8, 0)?, [
///     Window::on(&Day::WORKING, "20:00", "23:00"),
///     Window::on(&[Day::Saturday], "22:00", "02:00"),
/// ])?;
/// // Monday 2026-01-05, 20:00 in Beijing.
/// let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_614_400);
/// assert!(evenings.is_peak(at));
/// assert!(!evenings.is_peak(at + Duration::from_secs(3 * 3600)));
/// assert_eq!(evenings.quiet_from(at), Some(at + Duration::from_secs(3 * 3600)));
///
/// let refused = Schedule::new(Zone::utc(), [Window::daily("10:00", "14:00"), Window::daily("13:00", "15:00")]);
/// assert_eq!(
///     refused.unwrap_err().to_string(),
///     "the windows `daily 10:00-14:00` and `daily 13:00-15:00` overlap; end the first where the second begins"
/// );
/// # Ok::<(), tower_gemini::peak_hour_router::ConfigError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Schedule {
    zone: Zone,
    windows: Vec<Window>,
    /// Minutes of the week, in order, without overlap.
    spans: Vec<Span>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: u16,
    end: u16,
    window: usize,
}

impl Schedule {
    /// The windows on the zone's clock.
    ///
    /// # Errors
    ///
    /// Windows that overlap, are empty, or whose start or end is not a time.
    pub fn new(zone: Zone, windows: impl IntoIterator<Item = Window>) -> Result<Self, ConfigError> {
        let mut schedule = Self { zone, windows: windows.into_iter().collect(), spans: Vec::new() };
        for (window, of) in schedule.windows.iter().enumerate() {
            let (start, length) = of.minutes()?;
            for day in of.days() {
                let start = day as u16 * DAY + start;
                let end = start + length;
                schedule.spans.push(Span { start, end: end.min(WEEK), window });
                if end > WEEK {
                    schedule.spans.push(Span { start: 0, end: end - WEEK, window });
                }
            }
        }
        schedule.spans.sort_unstable_by_key(|span| span.start);
        let pairs = schedule.spans.iter().zip(schedule.spans.iter().skip(1));
        let window = |span: &Span| schedule.windows.get(span.window).cloned();
        for (first, second) in pairs.filter(|(first, second)| second.start < first.end) {
            if let (Some(first), Some(second)) = (window(first), window(second)) {
                return Err(ConfigError::Overlap { first, second });
            }
        }
        Ok(schedule)
    }

    /// No peak at any hour.
    #[must_use]
    pub fn never() -> Self {
        Self { zone: Zone::utc(), windows: Vec::new(), spans: Vec::new() }
    }

    /// The zone whose clock it follows.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Its windows, as they were given.
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The window that contains this moment.
    #[must_use]
    pub fn window_at(&self, at: SystemTime) -> Option<&Window> {
        self.windows.get(self.span_at(timestamp(at)?)?.0.window)
    }

    /// Whether this moment lies in a window.
    #[must_use]
    pub fn is_peak(&self, at: SystemTime) -> bool {
        self.window_at(at).is_some()
    }

    /// The first moment from this one on that lies in no window; this one itself where it does not.
    /// `None` where the peak does not end within eight days.
    #[must_use]
    pub fn quiet_from(&self, at: SystemTime) -> Option<SystemTime> {
        const LONGEST: SignedDuration = SignedDuration::from_hours(8 * 24);
        let Some(from) = timestamp(at) else { return Some(at) };
        let mut now = from;
        while let Some((span, minute, nanos)) = self.span_at(now) {
            let left = SignedDuration::from_mins(i64::from(span.end - minute))
                - SignedDuration::from_nanos(nanos);
            let mut next = now.checked_add(left).ok()?;
            // Where the clock is set on the way, the local time decides anew from there.
            if let Some(change) = self.zone.next_change(now).filter(|&change| change < next) {
                next = change;
            }
            if next <= now || next.duration_since(from) > LONGEST {
                return None;
            }
            now = next;
        }
        at.checked_add(Duration::try_from(now.duration_since(from)).ok()?)
    }

    fn span_at(&self, at: Timestamp) -> Option<(Span, u16, i64)> {
        let (minute, nanos) = self.zone.minute_of_week(at);
        let behind = self.spans.partition_point(|span| span.start <= minute);
        let span = self.spans.get(behind.checked_sub(1)?)?;
        (minute < span.end).then_some((*span, minute, nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-01-01T00:00:00Z, a Thursday.
    const YEAR: i64 = 1_767_225_600;
    const YEAR_MINUTES: i64 = 365 * 1440;

    fn at_minute(minute: i64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs((YEAR + minute * 60) as u64)
    }

    fn utc(text: &str) -> SystemTime {
        SystemTime::from(text.parse::<Timestamp>().unwrap())
    }

    /// The offset in minutes in 2026, written down by hand from the published rules and not asked
    /// of any library.
    fn offset(zone: usize, unix: i64) -> i64 {
        // 2026-03-08 10:00 UTC to 2026-11-01 09:00 UTC; 2026-03-29 01:00 UTC to 2026-10-25 01:00
        // UTC.
        let pacific_summer = (1_772_964_000..1_793_523_600).contains(&unix);
        let european_summer = (1_774_746_000..1_792_890_000).contains(&unix);
        match zone {
            0 => 0,
            1 => 480,
            2 => -480 + 60 * i64::from(pacific_summer),
            3 => 60 + 60 * i64::from(european_summer),
            _ => 330,
        }
    }

    fn zone(index: usize) -> Zone {
        match index {
            0 => Zone::utc(),
            1 => Zone::fixed(8, 0).unwrap(),
            2 => Zone::pacific(),
            3 => Zone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap(),
            _ => Zone::fixed(5, 30).unwrap(),
        }
    }

    /// A window as three numbers, and what it holds by the plainest reading: the clock's minute
    /// lies on one of its days between start and end, or on the day after one of them before an end
    /// that lies there.
    #[derive(Debug, Clone)]
    struct Plain {
        days: u8,
        start: i64,
        end: i64,
    }

    impl Plain {
        fn holds(&self, zone: usize, unix_minute: i64) -> bool {
            let local = unix_minute + offset(zone, unix_minute * 60);
            // 1970-01-01 was a Thursday.
            let (day, minute) =
                ((local.div_euclid(1440) + 3).rem_euclid(7), local.rem_euclid(1440));
            let on = |day: i64| self.days >> day.rem_euclid(7) & 1 == 1;
            if self.end > self.start {
                on(day) && (self.start..self.end).contains(&minute)
            } else {
                (on(day) && minute >= self.start) || (on(day - 1) && minute < self.end)
            }
        }

        fn window(&self) -> Window {
            let days: Vec<_> =
                Day::WEEK.into_iter().filter(|&day| self.days >> day as u8 & 1 == 1).collect();
            let text = |minute: i64| format!("{:02}:{:02}", minute / 60, minute % 60);
            Window::on(&days, text(self.start), text(self.end))
        }

        fn week(&self) -> Vec<bool> {
            (0..10_080).map(|minute| self.holds(0, 4 * 1440 + minute)).collect()
        }
    }

    fn plain() -> impl Strategy<Value = Plain> {
        (1_u8..128, 0_i64..1440, 0_i64..=1440)
            .prop_filter("empty", |(_, start, end)| start != end)
            .prop_map(|(days, start, end)| Plain { days, start, end })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn a_schedule_is_refused_exactly_where_two_windows_share_a_minute(windows in proptest::collection::vec(plain(), 1..5)) {
            let mut taken = vec![None; 10_080];
            let mut shared = false;
            for (index, window) in windows.iter().enumerate() {
                for (slot, held) in taken.iter_mut().zip(window.week()) {
                    if held {
                        shared |= slot.replace(index).is_some();
                    }
                }
            }
            match Schedule::new(Zone::utc(), windows.iter().map(Plain::window)) {
                Ok(_) => prop_assert!(!shared),
                Err(ConfigError::Overlap { first, second }) => {
                    prop_assert!(shared);
                    let week = |window: &Window| windows.iter().find(|plain| plain.window() == *window).unwrap().week();
                    let both = week(&first).into_iter().zip(week(&second)).any(|(a, b)| a && b);
                    prop_assert!(both, "{first} and {second} do not overlap");
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
        }

        #[test]
        fn a_moment_is_in_a_window_exactly_where_the_clock_on_the_wall_says_so(
            index in 0_usize..5,
            windows in proptest::collection::vec(plain(), 1..4),
            minutes in proptest::collection::vec(0_i64..YEAR_MINUTES, 100),
        ) {
            // As many of them as do not overlap.
            let mut kept: Vec<Plain> = Vec::new();
            for window in windows {
                kept.push(window);
                if Schedule::new(Zone::utc(), kept.iter().map(Plain::window)).is_err() {
                    kept.pop();
                }
            }
            let schedule = Schedule::new(zone(index), kept.iter().map(Plain::window)).unwrap();
            // Around the changes of the clock too, where faults live.
            let changes = [1_772_964_000_i64, 1_793_523_600, 1_774_746_000, 1_792_890_000].map(|at| (at - YEAR) / 60);
            let near = changes.iter().flat_map(|change| (-90..90).step_by(9).map(move |minute| change + minute));
            for minute in minutes.into_iter().chain(near) {
                let held = kept.iter().find(|plain| plain.holds(index, YEAR / 60 + minute)).map(Plain::window);
                prop_assert_eq!(schedule.window_at(at_minute(minute)), held.as_ref(), "minute {}", minute);
            }
        }

        #[test]
        fn quiet_begins_with_the_first_minute_that_no_window_holds(
            index in 0_usize..5,
            window in plain(),
            minute in 0_i64..YEAR_MINUTES - 20_000,
            change in proptest::option::of(0_usize..4),
            into in 0_u64..60,
        ) {
            let schedule = Schedule::new(zone(index), [window.window()]).unwrap();
            let changes = [1_772_964_000_i64, 1_793_523_600, 1_774_746_000, 1_792_890_000].map(|at| (at - YEAR) / 60);
            let minute = change.map_or(minute, |at| changes[at] - 1440 + minute % 1440);
            let from = YEAR / 60 + minute;
            let quiet = (from..from + 11_521).find(|&minute| !window.holds(index, minute));
            let at = at_minute(minute) + Duration::from_secs(into);
            let expected = quiet.map(|quiet| if quiet == from { at } else { at_minute(quiet - YEAR / 60) });
            prop_assert_eq!(schedule.quiet_from(at), expected);
        }
    }

    #[test]
    fn every_minute_of_a_year_is_where_the_clock_on_the_wall_puts_it() {
        let windows = [
            Plain { days: 0b111_1111, start: 90, end: 150 },
            Plain { days: 0b001_1111, start: 600, end: 840 },
            Plain { days: 0b110_0000, start: 1320, end: 75 },
        ];
        for index in [2, 3] {
            let schedule = Schedule::new(zone(index), windows.iter().map(Plain::window)).unwrap();
            for minute in 0..YEAR_MINUTES {
                let held = windows.iter().any(|plain| plain.holds(index, YEAR / 60 + minute));
                assert_eq!(
                    schedule.is_peak(at_minute(minute)),
                    held,
                    "minute {minute} of zone {index}"
                );
            }
        }
    }

    #[test]
    fn the_hour_that_spring_skips_is_in_no_window_and_the_one_that_autumn_repeats_twice() {
        let schedule = Schedule::new(Zone::pacific(), [Window::daily("01:30", "02:30")]).unwrap();
        // 2026-03-08: 01:59 PST is followed by 03:00 PDT.
        assert!(schedule.is_peak(utc("2026-03-08T09:59:59Z")));
        assert!(!schedule.is_peak(utc("2026-03-08T10:00:00Z")));
        assert_eq!(
            schedule.quiet_from(utc("2026-03-08T09:40:00Z")),
            Some(utc("2026-03-08T10:00:00Z"))
        );
        // 2026-11-01: 01:59 PDT is followed by 01:00 PST.
        assert!(schedule.is_peak(utc("2026-11-01T08:45:00Z")));
        assert!(!schedule.is_peak(utc("2026-11-01T09:15:00Z")));
        assert!(schedule.is_peak(utc("2026-11-01T09:45:00Z")));
        assert_eq!(
            schedule.quiet_from(utc("2026-11-01T08:45:00Z")),
            Some(utc("2026-11-01T09:00:00Z"))
        );
        assert_eq!(
            schedule.quiet_from(utc("2026-11-01T09:45:00Z")),
            Some(utc("2026-11-01T10:30:00Z"))
        );
    }

    #[test]
    fn europe_changes_its_clocks_on_other_days() {
        let schedule =
            Schedule::new(Zone::named("Europe/Berlin").unwrap(), [Window::daily("10:00", "14:00")])
                .unwrap();
        assert!(
            schedule.is_peak(utc("2026-03-28T12:59:59Z"))
                && !schedule.is_peak(utc("2026-03-28T13:00:00Z")),
            "winter: UTC+1"
        );
        assert!(
            schedule.is_peak(utc("2026-03-29T08:00:00Z"))
                && !schedule.is_peak(utc("2026-03-29T12:00:00Z")),
            "summer: UTC+2"
        );
        assert!(
            !schedule.is_peak(utc("2026-10-25T08:59:59Z"))
                && schedule.is_peak(utc("2026-10-25T09:00:00Z")),
            "winter again"
        );
    }

    #[test]
    fn a_window_is_half_open() {
        let schedule = Schedule::new(
            Zone::utc(),
            [Window::daily("10:00", "14:00"), Window::daily("14:00", "15:00")],
        )
        .unwrap();
        assert_eq!(
            schedule.window_at(utc("2026-01-05T13:59:59.999Z")).map(ToString::to_string).as_deref(),
            Some("daily 10:00-14:00")
        );
        assert_eq!(
            schedule.window_at(utc("2026-01-05T14:00:00Z")).map(ToString::to_string).as_deref(),
            Some("daily 14:00-15:00")
        );
        assert_eq!(
            schedule.quiet_from(utc("2026-01-05T10:00:00Z")),
            Some(utc("2026-01-05T15:00:00Z"))
        );
    }

    #[test]
    fn a_peak_without_end_has_no_quiet_hour() {
        let always = Schedule::new(Zone::utc(), [Window::daily("00:00", "24:00")]).unwrap();
        assert_eq!(always.quiet_from(utc("2026-01-05T10:00:00Z")), None);
        assert_eq!(
            Schedule::never().quiet_from(utc("2026-01-05T10:00:00Z")),
            Some(utc("2026-01-05T10:00:00Z"))
        );
    }

    #[test]
    fn an_invalid_window_is_refused_with_its_name() {
        let refused = |window| Schedule::new(Zone::utc(), [window]).unwrap_err().to_string();
        assert_eq!(
            refused(Window::daily("10:00", "10:00")),
            "the window `daily 10:00-10:00` holds no minute; a whole day is written 00:00-24:00"
        );
        assert_eq!(
            refused(Window::on(&[Day::Monday, Day::Friday], "9.30", "10:00")),
            "`9.30` in the window `Mon,Fri 9.30-10:00` is not a time of the day; write it as 09:30"
        );
        for (start, end) in [
            ("24:00", "01:00"),
            ("10:00", "24:01"),
            ("10:60", "12:00"),
            ("-1:00", "12:00"),
            ("99999:00", "1:00"),
        ] {
            assert!(
                Schedule::new(Zone::utc(), [Window::daily(start, end)]).is_err(),
                "{start} {end}"
            );
        }
        assert!(refused(Window::on(&[], "10:00", "12:00")).contains("holds no minute"));
    }
}
