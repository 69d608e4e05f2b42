//! Reports once that an allowance runs low. Pure.

use super::admission::{Admission, Moment, WINDOW_MS};
use super::limits::{QuotaDimension, QuotaKey};

/// A threshold was crossed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaAlert {
    /// Whose quota.
    pub key: QuotaKey,
    /// Which dimension.
    pub dimension: QuotaDimension,
    /// The threshold, in percent of the limit.
    pub threshold_percent: u8,
    /// What is taken, reservations included.
    pub taken: u64,
    /// The limit.
    pub limit: u64,
}

/// Which thresholds were crossed, of one (project, model).
#[derive(Debug, Clone)]
pub(crate) struct Alerts {
    /// In percent, ascending.
    thresholds: Vec<u8>,
    reported: [Reported; 4],
    pending: Vec<(QuotaDimension, u8, u64, u64)>,
}

/// How many thresholds of a dimension were reported, from the lowest, and when the last was.
#[derive(Debug, Clone, Copy, Default)]
struct Reported {
    thresholds: usize,
    at_ms: u64,
    day: i32,
}

impl Alerts {
    pub(crate) fn new(mut thresholds: Vec<u8>) -> Self {
        thresholds.sort_unstable();
        thresholds.dedup();
        Self { thresholds, reported: [Reported::default(); 4], pending: Vec::new() }
    }

    /// Looks at the counts after something was taken. `true` if there is something to report.
    pub(crate) fn check(&mut self, admission: &mut Admission, now: Moment) -> bool {
        if self.thresholds.is_empty() || admission.limits().is_unlimited() {
            return false;
        }
        let (taken, day) = (admission.taken(now), admission.day().number());
        for (dimension, reported) in QuotaDimension::ALL.into_iter().zip(&mut self.reported) {
            let Some(limit) = admission.limits().get(dimension) else { continue };
            let amount = taken.get(dimension);
            let is_crossed = |threshold: &&u8| crossed(amount, limit, **threshold);
            let all = self.thresholds.iter().take_while(is_crossed).count();
            // Once per crossing: armed again at midnight, or when the window in which it was
            // reported has passed and the level has fallen.
            if dimension == QuotaDimension::RequestsPerDay {
                if reported.day != day {
                    reported.thresholds = 0;
                }
            } else if now.steady_ms >= reported.at_ms + WINDOW_MS {
                reported.thresholds = reported.thresholds.min(all);
            }
            if all > reported.thresholds {
                let new = &self.thresholds[reported.thresholds..all];
                self.pending.extend(new.iter().map(|&new| (dimension, new, amount, limit)));
                *reported = Reported { thresholds: all, at_ms: now.steady_ms, day };
            }
        }
        !self.pending.is_empty()
    }

    /// What is to be reported, once.
    pub(crate) fn drain(&mut self, key: &QuotaKey) -> Vec<QuotaAlert> {
        let alert = |(dimension, threshold_percent, taken, limit)| QuotaAlert {
            key: key.clone(),
            dimension,
            threshold_percent,
            taken,
            limit,
        };
        self.pending.drain(..).map(alert).collect()
    }
}

fn crossed(amount: u64, limit: u64, percent: u8) -> bool {
    u128::from(amount) * 100 >= u128::from(limit) * u128::from(percent) && amount > 0
}

#[cfg(test)]
mod tests {
    use super::super::limits::{Limits, QuotaAmounts};
    use super::*;

    fn at(steady_ms: u64) -> Moment {
        Moment { steady_ms, wall_ms: 1_773_000_000_000 + i64::try_from(steady_ms).unwrap() }
    }

    #[test]
    fn a_threshold_is_reported_once_and_again_after_its_window() {
        let key = QuotaKey::new("p", "m");
        let mut admission = Admission::new(Limits::unlimited().rpm(10), 0);
        let mut alerts = Alerts::new(vec![90, 70]);
        let mut reported = Vec::new();
        for _ in 0..10 {
            admission.take(at(0), QuotaAmounts::for_call(1, 1), 0).unwrap();
            alerts.check(&mut admission, at(0));
            reported.extend(
                alerts.drain(&key).into_iter().map(|alert| (alert.threshold_percent, alert.taken)),
            );
        }
        assert_eq!(reported, [(70, 7), (90, 9)]);
        reported.clear();
        for _ in 0..8 {
            admission.take(at(61_000), QuotaAmounts::for_call(1, 1), 0).unwrap();
            alerts.check(&mut admission, at(61_000));
            reported.extend(
                alerts.drain(&key).into_iter().map(|alert| (alert.threshold_percent, alert.taken)),
            );
        }
        assert_eq!(reported, [(70, 7)]);
    }

    #[test]
    fn a_days_threshold_is_armed_again_at_midnight() {
        let key = QuotaKey::new("p", "m");
        let mut admission = Admission::new(Limits::unlimited().rpd(2), 0);
        let mut alerts = Alerts::new(vec![50]);
        let mut count = 0;
        for ms in [0, 1, 86_400_000] {
            admission.take(at(ms), QuotaAmounts::for_call(1, 1), 0).unwrap();
            alerts.check(&mut admission, at(ms));
            count += alerts.drain(&key).len();
        }
        assert_eq!(count, 2);
    }
}
