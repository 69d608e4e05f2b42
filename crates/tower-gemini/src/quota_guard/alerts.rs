//! Telling once that an allowance runs low: pure.

use super::admission::{Admission, Moment, WINDOW_MS};
use super::limits::{Limits, QuotaDimension, QuotaKey};

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
    /// How many of them, from the lowest, were told already, by dimension.
    told: [usize; 4],
    told_at_ms: [u64; 4],
    told_on_day: i32,
    /// The lowest amounts at which there may be something to tell, and the limits they belong to:
    /// the usual call stops here.
    quiet_below: [u64; 4],
    seen: Option<Limits>,
    pending: Vec<(QuotaDimension, u8, u64, u64)>,
}

impl Alerts {
    pub(crate) fn new(mut thresholds: Vec<u8>) -> Self {
        thresholds.sort_unstable();
        thresholds.dedup();
        Self {
            thresholds,
            told: [0; 4],
            told_at_ms: [0; 4],
            told_on_day: i32::MIN,
            quiet_below: [0; 4],
            seen: None,
            pending: Vec::new(),
        }
    }

    /// Looks at the counts after something was taken. `true` if there is something to tell.
    pub(crate) fn check(&mut self, admission: &mut Admission, now: Moment) -> bool {
        if self.thresholds.is_empty() || admission.limits().is_unlimited() {
            return false;
        }
        let taken = admission.taken(now);
        if self.seen != Some(*admission.limits()) {
            self.seen = Some(*admission.limits());
            let first = u64::from(self.thresholds.first().copied().unwrap_or(u8::MAX));
            self.quiet_below = admission
                .limits()
                .0
                .map(|limit| limit.map_or(u64::MAX, |limit| limit / 100 * first));
        }
        if self.told == [0; 4] && (0..4).all(|d| taken.0[d] < self.quiet_below[d]) {
            return false;
        }
        let day = admission.day().number();
        for dimension in QuotaDimension::ALL {
            let d = dimension.index();
            let Some(limit) = admission.limits().get(dimension) else { continue };
            let amount = taken.get(dimension);
            if self.told[d] > 0 {
                // Once per crossing: armed again when the window in which it was told has passed
                // and the level has fallen.
                if d == 3 {
                    if self.told_on_day != day {
                        self.told[d] = 0;
                    }
                } else if now.steady_ms >= self.told_at_ms[d] + WINDOW_MS {
                    while self.told[d] > 0
                        && !crossed(amount, limit, self.thresholds[self.told[d] - 1])
                    {
                        self.told[d] -= 1;
                    }
                }
            }
            while let Some(&threshold) = self.thresholds.get(self.told[d]) {
                if !crossed(amount, limit, threshold) {
                    break;
                }
                self.told[d] += 1;
                self.told_at_ms[d] = now.steady_ms;
                if d == 3 {
                    self.told_on_day = day;
                }
                self.pending.push((dimension, threshold, amount, limit));
            }
        }
        !self.pending.is_empty()
    }

    /// What is to be told, once.
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
    use super::super::limits::QuotaAmounts;
    use super::*;

    fn at(steady_ms: u64) -> Moment {
        Moment { steady_ms, wall_ms: 1_773_000_000_000 + i64::try_from(steady_ms).unwrap() }
    }

    #[test]
    fn a_threshold_is_told_once_and_again_after_its_window() {
        let key = QuotaKey::new("p", "m");
        let mut admission = Admission::new(Limits::unlimited().rpm(10), 0);
        let mut alerts = Alerts::new(vec![90, 70]);
        let mut told = Vec::new();
        for _ in 0..10 {
            admission.take(at(0), QuotaAmounts::for_call(1, 1), 0).unwrap();
            alerts.check(&mut admission, at(0));
            told.extend(
                alerts.drain(&key).into_iter().map(|alert| (alert.threshold_percent, alert.taken)),
            );
        }
        assert_eq!(told, [(70, 7), (90, 9)]);
        told.clear();
        for _ in 0..8 {
            admission.take(at(61_000), QuotaAmounts::for_call(1, 1), 0).unwrap();
            alerts.check(&mut admission, at(61_000));
            told.extend(
                alerts.drain(&key).into_iter().map(|alert| (alert.threshold_percent, alert.taken)),
            );
        }
        assert_eq!(told, [(70, 7)]);
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
