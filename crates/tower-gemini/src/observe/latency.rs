//! Times in fixed buckets that grow by a quarter of a doubling, so that any number of them takes
//! the same room: pure.

use std::time::Duration;

/// Four buckets a doubling, from a millisecond to seventy minutes: longer than any deadline of
/// ours.
const BUCKETS: usize = 90;

/// How long things took. A percentile is at most 19 % above the truth, and never below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Latencies {
    buckets: [u32; BUCKETS],
    count: u64,
    sum_ms: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], count: 0, sum_ms: 0 }
    }
}

impl Latencies {
    pub(super) fn add(&mut self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.count = self.count.saturating_add(1);
        self.sum_ms = self.sum_ms.saturating_add(ms);
        let bucket = (0..BUCKETS).find(|&bucket| ms <= upper_ms(bucket)).unwrap_or(BUCKETS - 1);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            *bucket = bucket.saturating_add(1);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.sum_ms = self.sum_ms.saturating_add(other.sum_ms);
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket = bucket.saturating_add(more);
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn sum(&self) -> Duration {
        Duration::from_millis(self.sum_ms)
    }

    /// The time that `percent` of them did not pass; `None` where there are none.
    pub(super) fn percentile(&self, percent: u32) -> Option<Duration> {
        let all: u64 = self.buckets.iter().map(|&bucket| u64::from(bucket)).sum();
        if all == 0 {
            return None;
        }
        let rank = (all * u64::from(percent.min(100))).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return Some(Duration::from_millis(upper_ms(bucket)));
            }
        }
        None
    }
}

/// The longest time that falls into a bucket.
fn upper_ms(bucket: usize) -> u64 {
    // 2^(0/4), 2^(1/4), 2^(2/4), 2^(3/4), in thousandths, rounded up: a bucket's edge is never
    // below what is in it.
    const QUARTERS: [u64; 4] = [1000, 1190, 1415, 1682];
    let quarter = QUARTERS.get(bucket % 4).copied().unwrap_or(1000);
    ((1_u64 << (bucket / 4)) * quarter).div_ceil(1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edges_grow_by_at_most_a_fifth_above_a_few_milliseconds() {
        for bucket in 1..BUCKETS {
            let (below, above) = (upper_ms(bucket - 1), upper_ms(bucket));
            assert!(above >= below);
            assert!(below < 100 || above * 100 <= below * 120, "{below} to {above}");
        }
        assert!(upper_ms(BUCKETS - 1) > 3_600_000, "an hour fits");
    }

    proptest! {
        #[test]
        fn a_percentile_is_never_below_the_truth_and_at_most_a_fifth_above(
            mut times in prop::collection::vec(1_u64..3_000_000, 1..200), percent in 1_u32..=100,
        ) {
            let mut latencies = Latencies::default();
            times.iter().for_each(|&ms| latencies.add(Duration::from_millis(ms)));
            times.sort_unstable();
            let rank = (times.len() * percent as usize).div_ceil(100).max(1);
            let truth = times[rank - 1];
            let shown = u64::try_from(latencies.percentile(percent).unwrap().as_millis()).unwrap();
            prop_assert!(shown >= truth && shown <= truth + truth / 5 + 2, "{truth} shown as {shown}");
            prop_assert_eq!(latencies.sum(), Duration::from_millis(times.iter().sum()));
        }

        #[test]
        fn merging_is_adding(left in prop::collection::vec(0_u64..10_000_000, 0..50), right in prop::collection::vec(0_u64..10_000_000, 0..50)) {
            let of = |times: &[u64]| {
                let mut latencies = Latencies::default();
                times.iter().for_each(|&ms| latencies.add(Duration::from_millis(ms)));
                latencies
            };
            let mut merged = of(&left);
            merged.merge(&of(&right));
            prop_assert_eq!(merged, of(&[left, right].concat()));
        }
    }
}
