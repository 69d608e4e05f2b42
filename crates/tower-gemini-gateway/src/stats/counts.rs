//! Counts events by five minutes, hour and day, in bounded memory.
//!
//! Every count is a [`Key`] in a map, so that adding, merging and summing windows is the same code
//! for all of them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_gemini::observe::CallOutcome;
use tower_gemini::trail::WaitReason;
use tower_gemini::verdict::Outcome;

/// One thing that is counted. Models are labels of the catalogue, so the number of keys is bounded.
///
/// They stand in files: a new meaning of one needs a new version of `figures.rs`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Key {
    Call(CallOutcome),
    /// A bucket of the durations of calls.
    CallTook(u8),
    /// Calls that generate nothing.
    OtherCalls,
    Degraded,
    Images,
    Drafts,
    Attempt(Outcome),
    AttemptTook(u8),
    /// A failed attempt of a failed call.
    BlamedAttempt(Outcome),
    ModelAttempts(Arc<str>),
    ModelSuccesses(Arc<str>),
    ModelServiceFaults(Arc<str>),
    Retries,
    FallbackAttempts,
    CostAtLeastMicrousd,
    /// Upper bound of the attempts that have one.
    CostAtMostMicrousd,
    UnpricedAttempts,
    ChargedAttempts,
    MaybeChargedAttempts,
    QuotaRequestsAtLeast,
    QuotaRequestsAtMost,
    Waits(WaitReason),
    WaitMs(WaitReason),
    SkippedTargets,
    ClientDisconnects,
    Kept,
    NotKept,
}

/// Counts of a stretch of time. A list in files: JSON's own keys are text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(Key, u64)>", into = "Vec<(Key, u64)>")]
pub(super) struct Counts(HashMap<Key, u64>);

impl From<Vec<(Key, u64)>> for Counts {
    fn from(list: Vec<(Key, u64)>) -> Self {
        let mut counts = Self::default();
        list.into_iter().for_each(|(key, count)| counts.add(key, count));
        counts
    }
}

impl From<Counts> for Vec<(Key, u64)> {
    fn from(counts: Counts) -> Self {
        counts.0.into_iter().collect()
    }
}

impl Counts {
    pub(super) fn add(&mut self, key: Key, count: u64) {
        if count > 0 {
            let sum = self.0.entry(key).or_default();
            // Costs by a hostile price list could overflow.
            *sum = sum.saturating_add(count);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(key, count)| self.add(key.clone(), *count));
    }

    pub(super) fn get(&self, key: &Key) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, u64)> {
        self.0.iter().map(|(key, count)| (key, *count))
    }

    /// Returns the counts of the keys that `select` turns into something.
    pub(super) fn select<'a, T>(
        &'a self,
        select: impl Fn(&'a Key) -> Option<T> + 'a,
    ) -> impl Iterator<Item = (T, u64)> + 'a {
        self.0.iter().filter_map(move |(key, count)| Some((select(key)?, *count)))
    }

    pub(super) fn calls(&self, which: impl Fn(CallOutcome) -> bool) -> u64 {
        self.iter()
            .map(|(key, n)| if matches!(key, Key::Call(of) if which(*of)) { n } else { 0 })
            .sum()
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = (Outcome, u64)> {
        self.select(|key| if let Key::Attempt(outcome) = key { Some(*outcome) } else { None })
    }
}

/// Divides counts; `None` where there is nothing to divide by.
#[allow(clippy::cast_precision_loss, reason = "for people: counts stay far below 2^53")]
pub(super) fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Durations are counted in four buckets per doubling, from a millisecond to seventy minutes, which
/// is longer than any deadline. So a percentile is never too low, and at most 19 % too high.
const BUCKETS: u8 = 90;

/// The longest duration of a bucket.
fn bucket_end_ms(bucket: u8) -> u64 {
    // 2^(0/4), 2^(1/4), 2^(2/4), 2^(3/4) in thousandths, rounded up.
    const QUARTERS: [u64; 4] = [1000, 1190, 1415, 1682];
    ((1_u64 << (bucket / 4)) * QUARTERS[usize::from(bucket % 4)]).div_ceil(1000)
}

pub(super) fn bucket(took: Duration) -> u8 {
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    (0..BUCKETS).find(|&bucket| ms <= bucket_end_ms(bucket)).unwrap_or(BUCKETS - 1)
}

/// Returns the seconds that `percent` of the durations did not exceed; `None` without durations.
#[allow(clippy::cast_precision_loss, reason = "an hour in milliseconds")]
pub(super) fn percentile(counts: &Counts, of: fn(u8) -> Key, percent: u64) -> Option<f64> {
    let count = |bucket| counts.get(&of(bucket));
    let all: u64 = (0..BUCKETS).map(count).sum();
    let rank = (all * percent).div_ceil(100).max(1);
    let mut seen = 0;
    let reaches_rank = |&bucket: &u8| {
        seen += count(bucket);
        seen >= rank
    };
    (0..BUCKETS).find(reaches_rank).map(|bucket| bucket_end_ms(bucket) as f64 / 1000.0)
}

/// Counts of the latest stretches of equal width. A stretch without events takes no memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ring {
    width_secs: u64,
    keep: u64,
    /// By their number since 1970, in order.
    slots: VecDeque<(u64, Counts)>,
}

impl Ring {
    fn new(width_secs: u64, keep: u64) -> Self {
        Self { width_secs, keep, slots: VecDeque::new() }
    }

    fn add(&mut self, unix_secs: u64, counts: &Counts) {
        let number = unix_secs / self.width_secs;
        let newest = self.slots.back().map_or(number, |(newest, _)| *newest);
        // The wall clock may be set. A little back: events count where it says. Far back: the slots
        // belong to a future that does not come and would stay forever.
        if number.saturating_add(self.keep) <= newest {
            self.slots.clear();
        }
        let at = self.slots.partition_point(|(one, _)| *one < number);
        if self.slots.get(at).is_none_or(|(one, _)| *one != number) {
            self.slots.insert(at, (number, Counts::default()));
        }
        if let Some((_, slot)) = self.slots.get_mut(at) {
            slot.merge(counts);
        }
        let newest = self.slots.back().map_or(number, |(newest, _)| *newest);
        self.slots.retain(|(one, _)| one.saturating_add(self.keep) > newest);
    }

    /// Returns the start and counts of the latest `n` stretches, those with events, oldest first.
    pub(super) fn latest(&self, unix_secs: u64, n: u64) -> impl Iterator<Item = (u64, &Counts)> {
        let newest = unix_secs / self.width_secs;
        let range = newest.saturating_sub(n - 1)..=newest;
        let in_range = self.slots.iter().filter(move |(number, _)| range.contains(number));
        in_range.map(|(number, counts)| (number.saturating_mul(self.width_secs), counts))
    }

    pub(super) fn sum(&self, unix_secs: u64, n: u64) -> Counts {
        let mut sum = Counts::default();
        self.latest(unix_secs, n).for_each(|(_, counts)| sum.merge(counts));
        sum
    }
}

/// All counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    /// Five-minute stretches, so that the last hour is correct at every minute of it.
    pub(super) fives: Ring,
    pub(super) hours: Ring,
    pub(super) days: Ring,
    pub(super) total: Counts,
}

/// An hour has twelve of them; one more, because the newest has only begun.
pub(super) const FIVES: u64 = 13;
/// Hours that are kept.
pub(super) const HOURS: u64 = 48;
/// Days that are kept.
pub(super) const DAYS: u64 = 30;

impl History {
    pub(super) fn new() -> Self {
        Self {
            fives: Ring::new(300, FIVES),
            hours: Ring::new(3600, HOURS),
            days: Ring::new(86_400, DAYS),
            total: Counts::default(),
        }
    }

    pub(super) fn add(&mut self, unix_secs: u64, counts: &Counts) {
        for ring in [&mut self.fives, &mut self.hours, &mut self.days] {
            ring.add(unix_secs, counts);
        }
        self.total.merge(counts);
    }

    /// Takes over what an earlier process counted. Its stretches may have been of another width or
    /// number.
    pub(super) fn restore(&mut self, earlier: &Self) {
        let rings = [
            (&mut self.fives, &earlier.fives),
            (&mut self.hours, &earlier.hours),
            (&mut self.days, &earlier.days),
        ];
        for (ring, earlier) in rings {
            for (number, counts) in &earlier.slots {
                ring.add(number.saturating_mul(earlier.width_secs), counts);
            }
        }
        self.total.merge(&earlier.total);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(key: Key) -> Counts {
        let mut counts = Counts::default();
        counts.add(key, 1);
        counts
    }

    fn took(times: &[u64]) -> Counts {
        let mut counts = Counts::default();
        for &ms in times {
            counts.add(Key::CallTook(bucket(Duration::from_millis(ms))), 1);
        }
        counts
    }

    fn keys() -> impl Strategy<Value = Counts> {
        let model = prop::sample::select(vec!["gemini-3-pro-image", "other"]).prop_map(Arc::from);
        let outcome = prop::sample::select(Outcome::ALL.to_vec());
        let key = prop_oneof![
            outcome.clone().prop_map(|outcome| Key::Call(CallOutcome::Ended(outcome))),
            outcome.prop_map(Key::Attempt),
            model.prop_map(Key::ModelAttempts),
            (0..BUCKETS).prop_map(Key::CallTook),
            prop::sample::select(vec![
                Key::Kept,
                Key::Images,
                Key::CostAtLeastMicrousd,
                Key::WaitMs(WaitReason::Backoff)
            ]),
        ];
        prop::collection::vec((key, 0_u64..1_000_000), 0..5).prop_map(|all| {
            let mut counts = Counts::default();
            all.into_iter().for_each(|(key, n)| counts.add(key, n));
            counts
        })
    }

    const NOW: u64 = 1_790_000_000;

    #[test]
    fn buckets_grow_by_at_most_a_fifth_above_a_few_milliseconds() {
        for bucket in 1..BUCKETS {
            let (below, above) = (bucket_end_ms(bucket - 1), bucket_end_ms(bucket));
            assert!(above >= below);
            assert!(below < 100 || above * 100 <= below * 120, "{below} to {above}");
        }
        assert!(bucket_end_ms(BUCKETS - 1) > 3_600_000, "an hour fits");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn a_percentile_is_never_below_the_truth_and_at_most_a_fifth_above(
            mut times in prop::collection::vec(1_u64..3_000_000, 1..200), percent in 1_u64..=100,
        ) {
            let shown = percentile(&took(&times), Key::CallTook, percent).unwrap() * 1000.0;
            let shown = shown.round() as u64;
            times.sort_unstable();
            let rank = (times.len() * percent as usize).div_ceil(100).max(1);
            let truth = times[rank - 1];
            prop_assert!(shown >= truth && shown <= truth + truth / 5 + 2, "{truth} shown as {shown}");
        }

        #[test]
        fn merging_is_adding(
            left in prop::collection::vec(0_u64..10_000_000, 0..50),
            right in prop::collection::vec(0_u64..10_000_000, 0..50),
        ) {
            let mut merged = took(&left);
            merged.merge(&took(&right));
            prop_assert_eq!(merged, took(&[left, right].concat()));
        }

        /// Within what is kept nothing is lost and nothing is counted twice.
        #[test]
        fn each_ring_sums_to_the_total(events in prop::collection::vec((0_u64..3000, keys()), 0..120)) {
            let mut history = History::new();
            let mut now = NOW;
            for (later, counts) in &events {
                // Up to fifty minutes in all: within every ring.
                now += later / events.len().max(1) as u64;
                history.add(now, counts);
            }
            prop_assert_eq!(&history.fives.sum(now, FIVES), &history.total);
            prop_assert_eq!(&history.hours.sum(now, HOURS), &history.total);
            prop_assert_eq!(&history.days.sum(now, DAYS), &history.total);
        }

        /// Whatever the clock does, no ring holds more than it keeps, and what happens now is
        /// shown.
        #[test]
        fn memory_is_bounded_whatever_the_clock_does(
            events in prop::collection::vec(prop_oneof![0_u64..10_000_000, any::<u64>()], 1..200),
        ) {
            let mut history = History::new();
            for at in &events {
                history.add(*at, &one(Key::Kept));
                for (ring, most) in [(&history.fives, FIVES), (&history.hours, HOURS), (&history.days, DAYS)] {
                    prop_assert!(ring.slots.len() as u64 <= most, "{}", ring.slots.len());
                    prop_assert!(ring.sum(*at, 1).get(&Key::Kept) > 0, "what has just happened is shown");
                }
            }
            prop_assert_eq!(history.total.get(&Key::Kept), events.len() as u64);
        }
    }

    #[test]
    fn what_is_older_than_a_ring_leaves_it() {
        let mut history = History::new();
        for hour in 0..100 {
            history.add(NOW + hour * 3600, &one(Key::Kept));
        }
        let now = NOW + 99 * 3600;
        assert_eq!(history.hours.sum(now, HOURS).get(&Key::Kept), HOURS);
        assert_eq!(history.days.sum(now, DAYS).get(&Key::Kept), 100);
        assert_eq!(history.total.get(&Key::Kept), 100);
    }

    #[test]
    fn a_clock_set_far_back_starts_anew_and_a_little_back_does_not() {
        let mut history = History::new();
        history.add(NOW + 10 * 365 * 86_400, &one(Key::Kept));
        history.add(NOW, &one(Key::Kept));
        assert_eq!(history.days.sum(NOW, DAYS).get(&Key::Kept), 1);
        history.add(NOW + 7200, &one(Key::Kept));
        history.add(NOW, &one(Key::Kept));
        assert_eq!(history.hours.sum(NOW + 7200, HOURS).get(&Key::Kept), 3);
    }
}
