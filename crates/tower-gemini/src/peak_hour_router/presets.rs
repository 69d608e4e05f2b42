//! The peak hours that published guides state, as they state them.
//!
//! They contradict each other: the worst hours of one are the best of another, and one repeats
//! another's figures in another time zone. None was measured by Google. So none is a default: take
//! one knowingly.
//!
//! | preset | peak | in UTC | source |
//! | --- | --- | --- | --- |
//! | [`THREE_PEAKS_BEIJING`] | 00-02, 09-11 and 20-23 Beijing | 16-18, 01-03, 12-15 | operators' error guide for Nano Banana Pro, 2026-02 |
//! | [`THREE_PEAKS_UTC`] | the same figures, labelled UTC | 00-02, 09-11, 20-23 | operators' guide to RESOURCE_EXHAUSTED, 2026-02 |
//! | [`TEN_TO_FOURTEEN_UTC`] | 10-14 UTC; its best hours, 00-06, contain a peak of both others | 10-14 | APIYI, 503s on Nano Banana 2, 2026-03; operators' troubleshooting guide for Nano Banana 2, 2026-03 |
//!
//! APIYI's post-mortem of the outage of 2026-01-21 states no peak: the outage began at 10:00 UTC.

use super::{Schedule, Window, Zone};

/// Peak hours as a source states them.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_gemini::peak_hour_router::presets::TEN_TO_FOURTEEN_UTC;
///
/// let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(12 * 3600);
/// assert!(TEN_TO_FOURTEEN_UTC.schedule().is_peak(noon));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeakHours {
    /// What it is called here.
    pub name: &'static str,
    /// Who states it, and when.
    pub source: &'static str,
    /// Hours east of UTC.
    pub utc_offset: i8,
    /// Start and end of each window, every day.
    pub windows: &'static [(&'static str, &'static str)],
}

/// Three peaks a day by the clock of Beijing, which its source's text implies.
pub const THREE_PEAKS_BEIJING: PeakHours = PeakHours {
    name: "three_peaks_beijing",
    source: "operators' error guide for Nano Banana Pro, 2026-02",
    utc_offset: 8,
    windows: &[("00:00", "02:00"), ("09:00", "11:00"), ("20:00", "23:00")],
};

/// The figures of [`THREE_PEAKS_BEIJING`], labelled UTC.
pub const THREE_PEAKS_UTC: PeakHours = PeakHours {
    name: "three_peaks_utc",
    source: "operators' guide to RESOURCE_EXHAUSTED, 2026-02",
    utc_offset: 0,
    ..THREE_PEAKS_BEIJING
};

/// One peak, half open as the table of its source has it. That source's code, `10 <= hour <= 14`,
/// includes 14:00 to 14:59; the table wins.
pub const TEN_TO_FOURTEEN_UTC: PeakHours = PeakHours {
    name: "ten_to_fourteen_utc",
    source: "APIYI, 503s on Nano Banana 2, 2026-03",
    utc_offset: 0,
    windows: &[("10:00", "14:00")],
};

/// Every preset.
pub const ALL: [PeakHours; 3] = [THREE_PEAKS_BEIJING, THREE_PEAKS_UTC, TEN_TO_FOURTEEN_UTC];

impl PeakHours {
    /// The schedule.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        let windows = self.windows.iter().map(|&(start, end)| Window::daily(start, end));
        // Constants that a test makes: a schedule without a peak stands for a case that cannot be
        // released.
        let zone = Zone::fixed(self.utc_offset, 0).ok();
        zone.and_then(|zone| Schedule::new(zone, windows).ok()).unwrap_or_else(Schedule::never)
    }
}

/// The share of 503s by hour of the UTC day on Nano Banana 2: "below 8 %" from 00, 15 % from 06,
/// 45 % from 10, 25 % from 14, 10 % from 18 (APIYI, 503s on Nano Banana 2, 2026-03).
pub const FLASH_503_RATES: [f64; 24] = [
    0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.15, 0.15, 0.15, 0.15, 0.45, 0.45, 0.45, 0.45, 0.25, 0.25,
    0.25, 0.25, 0.10, 0.10, 0.10, 0.10, 0.10, 0.10,
];

/// The share of 503s on Nano Banana Pro at every hour: the same source says that moving to it in
/// peak hours lowers 45 % by three to four times, to 10 to 15 %. The two guides of 2026-02 say the
/// opposite: that Pro is the one that fails, up to 45 % of calls.
pub const PRO_503_RATE: f64 = 0.125;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    /// The peak hours in UTC of a Tuesday in January 2026.
    fn hours(preset: PeakHours) -> Vec<u64> {
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_657_600);
        let schedule = preset.schedule();
        (0..24).filter(|hour| schedule.is_peak(day + Duration::from_secs(hour * 3600))).collect()
    }

    #[test]
    fn every_preset_has_the_hours_that_its_source_states() {
        assert_eq!(hours(THREE_PEAKS_BEIJING), [1, 2, 12, 13, 14, 16, 17]);
        assert_eq!(hours(TEN_TO_FOURTEEN_UTC), [10, 11, 12, 13]);
        assert_eq!(hours(THREE_PEAKS_UTC), [0, 1, 9, 10, 20, 21, 22]);
    }

    #[test]
    fn the_sources_contradict_each_other() {
        let [beijing, utc, table] = ALL.map(hours);
        assert!(
            table.iter().any(|hour| !beijing.contains(hour))
                && beijing.iter().any(|hour| !table.contains(hour))
        );
        for peaks in [utc, beijing] {
            assert!(
                peaks.iter().any(|hour| FLASH_503_RATES[*hour as usize] <= 0.08),
                "{peaks:?}: a peak of the older guides lies in the best hours of the newer one"
            );
        }
    }
}
