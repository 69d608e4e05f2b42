//! The peak hours of five articles, as they state them.
//!
//! They contradict each other: what is one article's worst hour is another's best, and one repeats
//! another's figures in another time zone. None was measured by Google. So none is a default: take
//! one knowingly, or as the prior of what is [learned](super::Learning).
//!
//! | article | its peak | in UTC |
//! | --- | --- | --- |
//! | 001 (Feb 2026) | 00-02, 09-11 and 20-23 Beijing | 16-18, 01-03, 12-15 |
//! | 002 (Mar 2026) | 10-14 UTC | 10-14; its best hours, 00-06, hold one of 001's peaks |
//! | 003 (Mar 2026) | 10-14 UTC | 10-14 |
//! | 004 (Feb 2026) | the digits of 001, as UTC | 00-02, 09-11, 20-23; the first of them within 002's best hours |
//! | 000 (Jan 2026) | none: an outage that began at 10:00 UTC | |

use super::{Schedule, Window, Zone};

/// What 001 states on the clock of Beijing. That it means Beijing follows from its text; 004
/// repeats the digits as UTC.
#[must_use]
pub fn article_001() -> Schedule {
    made(Zone::fixed(8, 0).ok(), &DIGITS)
}

/// What the table of 002 states, half open. Its code, `10 <= hour <= 14`, takes 14:00 to 14:59 in
/// as well; the table wins.
#[must_use]
pub fn article_002() -> Schedule {
    made(Some(Zone::utc()), &[("10:00", "14:00")])
}

/// What 003 states: the same hours as [`article_002`].
#[must_use]
pub fn article_003() -> Schedule {
    article_002()
}

/// What 004 states: the digits of [`article_001`], labelled UTC.
#[must_use]
pub fn article_004() -> Schedule {
    made(Some(Zone::utc()), &DIGITS)
}

const DIGITS: [(&str, &str); 3] = [("00:00", "02:00"), ("09:00", "11:00"), ("20:00", "23:00")];

fn made(zone: Option<Zone>, windows: &[(&str, &str)]) -> Schedule {
    // Constants that a test makes: a schedule without a peak stands for a case that cannot be
    // released.
    let windows = windows.iter().map(|&(start, end)| Window::daily(start, end));
    zone.and_then(|zone| Schedule::new(zone, windows).ok()).unwrap_or_else(Schedule::never)
}

/// The share of 503s by hour of the UTC day that 002 states for Nano Banana 2 (Mar 2026): "below 8
/// %" from 00, 15 % from 06, 45 % from 10, 25 % from 14, 10 % from 18.
pub const RATES_OF_ARTICLE_002: [f64; 24] = [
    0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.15, 0.15, 0.15, 0.15, 0.45, 0.45, 0.45, 0.45, 0.25, 0.25,
    0.25, 0.25, 0.10, 0.10, 0.10, 0.10, 0.10, 0.10,
];

/// What 002 leaves for Nano Banana Pro at every hour: it says that moving to it in peak hours
/// lowers 45 % by three to four times, to 10 to 15 %. 001 and 004 say the opposite: that Pro is the
/// one that fails, up to 45 % of calls.
pub const RATE_OF_PRO_BY_ARTICLE_002: f64 = 0.125;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    /// The peak hours in UTC of a Tuesday in January 2026.
    fn hours(schedule: &Schedule) -> Vec<u64> {
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_657_600);
        (0..24).filter(|hour| schedule.is_peak(day + Duration::from_secs(hour * 3600))).collect()
    }

    #[test]
    fn every_article_has_the_hours_it_states() {
        assert_eq!(hours(&article_001()), [1, 2, 12, 13, 14, 16, 17]);
        assert_eq!(hours(&article_002()), [10, 11, 12, 13]);
        assert_eq!(hours(&article_003()), hours(&article_002()));
        assert_eq!(hours(&article_004()), [0, 1, 9, 10, 20, 21, 22]);
    }

    #[test]
    fn the_articles_contradict_each_other() {
        let (beijing, utc, table) =
            (hours(&article_001()), hours(&article_004()), hours(&article_002()));
        assert!(
            table.iter().any(|hour| !beijing.contains(hour))
                && beijing.iter().any(|hour| !table.contains(hour))
        );
        assert!(
            utc.iter().any(|hour| RATES_OF_ARTICLE_002[*hour as usize] <= 0.08),
            "004's peak lies in 002's best hours"
        );
        assert!(
            beijing.iter().any(|hour| RATES_OF_ARTICLE_002[*hour as usize] <= 0.08),
            "and so does 001's"
        );
    }
}
