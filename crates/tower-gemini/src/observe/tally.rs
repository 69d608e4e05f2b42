//! What happened, counted by the hour and by the day: pure, and of bounded size whatever happens.
//!
//! Everything that is counted is an [`Entry`], added to three rings of [`Counts`] (five minutes,
//! hours, days) and to a sum since the start. What a window came to is a sum of such counts.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::trail::WaitReason;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Charge, Outcome, QuotaCharge};

use super::latency::Latencies;
use super::names::ModelPlace;
use super::outcome::{CallOutcome, FailureKind, place};

/// One thing that is counted.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Entry {
    /// A call that asked a model to make something has ended.
    Call {
        outcome: CallOutcome,
        took: Duration,
        images: u32,
        degraded: bool,
        /// What its failed attempts ended in, where the call failed: what its caller saw of them.
        blamed: Vec<Outcome>,
    },
    /// A call of another kind has ended: token counts, lists of models.
    OtherCall,
    /// An attempt has ended.
    Attempt {
        model: ModelPlace,
        outcome: Outcome,
        quota: QuotaCharge,
        charge: Charge,
        cost: Cost,
        took: Duration,
        sent: Sent,
    },
    /// An attempt of a call of another kind has ended: it counts as money and quota only.
    OtherAttempt {
        quota: QuotaCharge,
        cost: Cost,
    },
    Waited {
        why: WaitReason,
        delay: Duration,
    },
    Skipped,
    CallerLeft,
    Kept,
    NotKept,
}

/// Why an attempt was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    First,
    /// Again to the same target.
    Again,
    /// To another target.
    Elsewhere,
}

/// The waits that are told apart.
pub(super) const WAITS: [WaitReason; 6] = [
    WaitReason::Backoff,
    WaitReason::ServerHint,
    WaitReason::OwnQuota,
    WaitReason::SpendingCap,
    WaitReason::Cooldown,
    WaitReason::QuietHours,
];

/// The word for a wait in logs, metrics and reports.
pub(super) fn wait_word(why: WaitReason) -> &'static str {
    match why {
        WaitReason::QuietHours => "quiet_hours",
        WaitReason::Backoff => "backoff",
        WaitReason::ServerHint => "server_hint",
        WaitReason::OwnQuota => "own_quota",
        WaitReason::SpendingCap => "spending_cap",
        WaitReason::Cooldown => "cooldown",
    }
}

/// What some stretch of time came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) calls: [u64; CallOutcome::COUNT],
    pub(super) other_calls: u64,
    pub(super) degraded: u64,
    pub(super) images: u64,
    pub(super) drafts: u64,
    pub(super) call_took: Latencies,
    pub(super) attempts: [u64; Outcome::ALL.len()],
    /// The failed attempts of failed calls.
    pub(super) blamed: [u64; Outcome::ALL.len()],
    pub(super) attempt_took: Latencies,
    pub(super) models: BTreeMap<ModelPlace, ModelCounts>,
    pub(super) sent_again: u64,
    pub(super) sent_elsewhere: u64,
    pub(super) cost_at_least: u64,
    /// Of the attempts whose cost is bounded.
    pub(super) cost_at_most: u64,
    pub(super) unpriced: u64,
    pub(super) charged: u64,
    pub(super) maybe_charged: u64,
    pub(super) quota_at_least: u64,
    pub(super) quota_at_most: u64,
    pub(super) waits: [(u64, u64); WAITS.len()],
    pub(super) skipped: u64,
    pub(super) callers_left: u64,
    pub(super) kept: u64,
    pub(super) not_kept: u64,
}

/// What one model came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ModelCounts {
    pub(super) attempts: u64,
    pub(super) successes: u64,
    /// Failures that are the service's own.
    pub(super) service_failures: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            calls: [0; CallOutcome::COUNT],
            other_calls: 0,
            degraded: 0,
            images: 0,
            drafts: 0,
            call_took: Latencies::default(),
            attempts: [0; Outcome::ALL.len()],
            blamed: [0; Outcome::ALL.len()],
            attempt_took: Latencies::default(),
            models: BTreeMap::new(),
            sent_again: 0,
            sent_elsewhere: 0,
            cost_at_least: 0,
            cost_at_most: 0,
            unpriced: 0,
            charged: 0,
            maybe_charged: 0,
            quota_at_least: 0,
            quota_at_most: 0,
            waits: [(0, 0); WAITS.len()],
            skipped: 0,
            callers_left: 0,
            kept: 0,
            not_kept: 0,
        }
    }
}

/// Counts end before a machine does; money of a hostile price list may not.
fn add(to: &mut u64, more: u64) {
    *to = to.saturating_add(more);
}

impl Counts {
    pub(super) fn add(&mut self, entry: &Entry) {
        match entry {
            Entry::Call { outcome, took, images, degraded, blamed } => {
                if let Some(count) = self.calls.get_mut(outcome.index()) {
                    add(count, 1);
                }
                add(&mut self.degraded, u64::from(*degraded));
                if outcome.is_image() {
                    add(&mut self.images, 1);
                    add(&mut self.drafts, u64::from(images.saturating_sub(1)));
                }
                self.call_took.add(*took);
                for outcome in blamed {
                    if let Some(count) = self.blamed.get_mut(place(*outcome)) {
                        add(count, 1);
                    }
                }
            }
            Entry::OtherCall => add(&mut self.other_calls, 1),
            Entry::Attempt { model, outcome, quota, charge, cost, took, sent } => {
                if let Some(count) = self.attempts.get_mut(place(*outcome)) {
                    add(count, 1);
                }
                let model = self.models.entry(*model).or_default();
                add(&mut model.attempts, 1);
                match FailureKind::of(*outcome) {
                    None => add(&mut model.successes, 1),
                    Some(kind) => add(&mut model.service_failures, u64::from(kind.is_service())),
                }
                self.attempt_took.add(*took);
                match sent {
                    Sent::First => {}
                    Sent::Again => add(&mut self.sent_again, 1),
                    Sent::Elsewhere => add(&mut self.sent_elsewhere, 1),
                }
                match charge {
                    Charge::Charged => add(&mut self.charged, 1),
                    Charge::Maybe => add(&mut self.maybe_charged, 1),
                    Charge::None | Charge::Waived => {}
                }
                self.paid(*quota, *cost);
            }
            Entry::OtherAttempt { quota, cost } => self.paid(*quota, *cost),
            Entry::Waited { why, delay } => {
                let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                for (one, wait) in WAITS.iter().zip(&mut self.waits) {
                    if one == why {
                        add(&mut wait.0, 1);
                        add(&mut wait.1, ms);
                    }
                }
            }
            Entry::Skipped => add(&mut self.skipped, 1),
            Entry::CallerLeft => add(&mut self.callers_left, 1),
            Entry::Kept => add(&mut self.kept, 1),
            Entry::NotKept => add(&mut self.not_kept, 1),
        }
    }

    fn paid(&mut self, quota: QuotaCharge, cost: Cost) {
        add(&mut self.cost_at_least, cost.at_least_microusd);
        match cost.at_most_microusd {
            Some(most) => add(&mut self.cost_at_most, most),
            None => {
                add(&mut self.cost_at_most, cost.at_least_microusd);
                add(&mut self.unpriced, 1);
            }
        }
        add(&mut self.quota_at_least, u64::from(quota == QuotaCharge::Counted));
        add(&mut self.quota_at_most, u64::from(quota != QuotaCharge::None));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.calls.iter_mut().zip(&other.calls) {
            add(count, *more);
        }
        for (count, more) in self.attempts.iter_mut().zip(&other.attempts) {
            add(count, *more);
        }
        for (count, more) in self.blamed.iter_mut().zip(&other.blamed) {
            add(count, *more);
        }
        for (wait, more) in self.waits.iter_mut().zip(&other.waits) {
            add(&mut wait.0, more.0);
            add(&mut wait.1, more.1);
        }
        for (model, more) in &other.models {
            let model = self.models.entry(*model).or_default();
            add(&mut model.attempts, more.attempts);
            add(&mut model.successes, more.successes);
            add(&mut model.service_failures, more.service_failures);
        }
        self.call_took.merge(&other.call_took);
        self.attempt_took.merge(&other.attempt_took);
        for (count, more) in [
            (&mut self.other_calls, other.other_calls),
            (&mut self.degraded, other.degraded),
            (&mut self.images, other.images),
            (&mut self.drafts, other.drafts),
            (&mut self.sent_again, other.sent_again),
            (&mut self.sent_elsewhere, other.sent_elsewhere),
            (&mut self.cost_at_least, other.cost_at_least),
            (&mut self.cost_at_most, other.cost_at_most),
            (&mut self.unpriced, other.unpriced),
            (&mut self.charged, other.charged),
            (&mut self.maybe_charged, other.maybe_charged),
            (&mut self.quota_at_least, other.quota_at_least),
            (&mut self.quota_at_most, other.quota_at_most),
            (&mut self.skipped, other.skipped),
            (&mut self.callers_left, other.callers_left),
            (&mut self.kept, other.kept),
            (&mut self.not_kept, other.not_kept),
        ] {
            add(count, more);
        }
    }
}

/// Counts of the latest stretches of time, each of the same width. Stretches in which nothing
/// happened take no room.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    width_secs: u64,
    keep: u64,
    /// By their number since 1970, in order.
    slots: VecDeque<(u64, Counts)>,
}

impl Ring {
    pub(super) fn new(width_secs: u64, keep: u64) -> Self {
        Self { width_secs: width_secs.max(1), keep: keep.max(1), slots: VecDeque::new() }
    }

    /// The number of the stretch that holds a second.
    pub(super) fn number(&self, unix_secs: u64) -> u64 {
        unix_secs / self.width_secs
    }

    /// When a stretch began, in seconds since 1970.
    pub(super) fn start(&self, number: u64) -> u64 {
        number.saturating_mul(self.width_secs)
    }

    fn add(&mut self, unix_secs: u64, entry: &Entry) {
        let number = self.number(unix_secs);
        let newest = self.slots.back().map_or(number, |(number, _)| *number);
        // A clock on the wall may be set. A little back: what happened is counted where it says.
        // Far back: what was counted belongs to a future that is not coming, and would never leave.
        if number.saturating_add(self.keep) <= newest {
            self.slots.clear();
        }
        let at = self.slots.partition_point(|(one, _)| *one < number);
        if self.slots.get(at).is_none_or(|(one, _)| *one != number) {
            self.slots.insert(at, (number, Counts::default()));
        }
        if let Some((_, counts)) = self.slots.get_mut(at) {
            counts.add(entry);
        }
        let newest = self.slots.back().map_or(number, |(number, _)| *number);
        while self.slots.front().is_some_and(|(one, _)| one.saturating_add(self.keep) <= newest) {
            self.slots.pop_front();
        }
    }

    /// The latest `n` stretches up to the one that holds `unix_secs`, oldest first. `None` where
    /// nothing happened.
    pub(super) fn latest(
        &self,
        unix_secs: u64,
        n: u64,
    ) -> impl Iterator<Item = (u64, Option<&Counts>)> {
        let newest = self.number(unix_secs);
        let oldest = newest.saturating_sub(n.saturating_sub(1));
        (oldest..=newest).map(|number| {
            let found = self
                .slots
                .binary_search_by_key(&number, |(number, _)| *number)
                .ok()
                .and_then(|at| self.slots.get(at));
            (number, found.map(|(_, counts)| counts))
        })
    }

    pub(super) fn sum(&self, unix_secs: u64, n: u64) -> Counts {
        let mut sum = Counts::default();
        self.latest(unix_secs, n)
            .filter_map(|(_, counts)| counts)
            .for_each(|counts| sum.merge(counts));
        sum
    }

    /// How many stretches are held.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// All that is counted.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    /// Stretches of five minutes, so that "the last hour" is the last hour at every minute of it.
    pub(super) fives: Ring,
    pub(super) hours: Ring,
    pub(super) days: Ring,
    pub(super) total: Counts,
}

/// Five minutes.
const FIVE: u64 = 300;
/// An hour has twelve of them; one more, as the newest has only begun.
pub(super) const FIVES: u64 = 13;
/// Hours that are kept.
pub(super) const HOURS: u64 = 48;
/// Days that are kept.
pub(super) const DAYS: u64 = 30;

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            fives: Ring::new(FIVE, FIVES),
            hours: Ring::new(3600, HOURS),
            days: Ring::new(86_400, DAYS),
            total: Counts::default(),
        }
    }

    pub(super) fn add(&mut self, unix_secs: u64, entry: &Entry) {
        self.fives.add(unix_secs, entry);
        self.hours.add(unix_secs, entry);
        self.days.add(unix_secs, entry);
        self.total.add(entry);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::sync::Arc;
    use tower_gemini_core::call::ModelId;
    use tower_gemini_core::catalog::Catalog;

    use super::super::names::ModelNames;
    use super::*;

    fn models() -> ModelNames {
        ModelNames::new(Arc::new(Catalog::builtin().clone()))
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let ms = |most: u64| (0..most).prop_map(Duration::from_millis);
        let cost =
            (0_u64..1_000_000, prop::option::of(0_u64..1_000_000)).prop_map(|(least, more)| Cost {
                at_least_microusd: least,
                at_most_microusd: more.map(|more| least + more),
            });
        let quota =
            prop::sample::select(vec![QuotaCharge::None, QuotaCharge::Maybe, QuotaCharge::Counted]);
        let charge = prop::sample::select(vec![
            Charge::None,
            Charge::Waived,
            Charge::Maybe,
            Charge::Charged,
        ]);
        let sent = prop::sample::select(vec![Sent::First, Sent::Again, Sent::Elsewhere]);
        let outcomes: Vec<_> = CallOutcome::all().collect();
        let model =
            prop::sample::select(vec!["gemini-3-pro-image", "gemini-2.5-flash-image", "anything"])
                .prop_map(|model| models().place(Some(&ModelId::new(model))));
        prop_oneof![
            4 => (prop::sample::select(outcomes), ms(700_000), 0_u32..4, any::<bool>(), prop::collection::vec(prop::sample::select(Outcome::ALL.to_vec()), 0..3))
                .prop_map(|(outcome, took, images, degraded, blamed)| Entry::Call { outcome, took, images, degraded, blamed }),
            4 => (model, prop::sample::select(Outcome::ALL.to_vec()), quota.clone(), charge, cost.clone(), ms(700_000), sent)
                .prop_map(|(model, outcome, quota, charge, cost, took, sent)| Entry::Attempt { model, outcome, quota, charge, cost, took, sent }),
            1 => (quota, cost).prop_map(|(quota, cost)| Entry::OtherAttempt { quota, cost }),
            1 => (prop::sample::select(WAITS.to_vec()), ms(90_000)).prop_map(|(why, delay)| Entry::Waited { why, delay }),
            1 => prop::sample::select(vec![Entry::OtherCall, Entry::Skipped, Entry::CallerLeft, Entry::Kept, Entry::NotKept]),
        ]
    }

    const NOW: u64 = 1_790_000_000;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        /// Within what is kept nothing is lost and nothing is counted twice: each ring sums to the
        /// sum since the start.
        #[test]
        fn buckets_sum_to_totals(entries in prop::collection::vec((0_u64..3000, entries()), 0..120)) {
            let mut tally = Tally::new();
            let mut now = NOW;
            for (later, entry) in &entries {
                // Up to fifty minutes in all: within every ring.
                now += later / entries.len().max(1) as u64;
                tally.add(now, entry);
            }
            prop_assert_eq!(&tally.fives.sum(now, FIVES), &tally.total);
            prop_assert_eq!(&tally.hours.sum(now, HOURS), &tally.total);
            prop_assert_eq!(&tally.days.sum(now, DAYS), &tally.total);
            prop_assert!(tally.total.cost_at_least <= tally.total.cost_at_most);
            prop_assert!(tally.total.quota_at_least <= tally.total.quota_at_most);
            let attempts: u64 = tally.total.attempts.iter().sum();
            prop_assert_eq!(attempts, tally.total.models.values().map(|model| model.attempts).sum::<u64>());
            prop_assert_eq!(tally.total.call_took.count(), tally.total.calls.iter().sum::<u64>());
        }

        /// Whatever the clock does, no ring holds more than it keeps, and what happens now is among
        /// what is shown.
        #[test]
        fn memory_is_bounded_whatever_the_clock_does(
            entries in prop::collection::vec((prop_oneof![0_u64..10_000_000, any::<u64>()], entries()), 1..200),
        ) {
            let mut tally = Tally::new();
            for (at, entry) in &entries {
                let before: u64 = tally.total.calls.iter().sum();
                tally.add(*at, entry);
                for (ring, most) in [(&tally.fives, FIVES), (&tally.hours, HOURS), (&tally.days, DAYS)] {
                    prop_assert!(ring.len() as u64 <= most, "{}", ring.len());
                    let shown: u64 = ring.sum(*at, 1).calls.iter().sum();
                    let is_call = matches!(entry, Entry::Call { .. });
                    prop_assert!(!is_call || shown > 0, "what has just happened is shown");
                }
                prop_assert!(tally.total.models.len() <= 3 && before <= tally.total.calls.iter().sum());
            }
        }
    }

    #[test]
    fn what_is_older_than_a_ring_leaves_it() {
        let mut tally = Tally::new();
        for hour in 0..100 {
            tally.add(NOW + hour * 3600, &Entry::Kept);
        }
        let now = NOW + 99 * 3600;
        assert_eq!(tally.hours.sum(now, HOURS).kept, HOURS);
        assert_eq!(tally.days.sum(now, DAYS).kept, 100);
        assert_eq!(tally.total.kept, 100);
    }

    #[test]
    fn a_clock_set_far_back_starts_anew_and_a_little_back_does_not() {
        let mut tally = Tally::new();
        tally.add(NOW + 10 * 365 * 86_400, &Entry::Kept);
        tally.add(NOW, &Entry::Kept);
        assert_eq!(tally.days.sum(NOW, DAYS).kept, 1);
        tally.add(NOW + 7200, &Entry::Kept);
        tally.add(NOW, &Entry::Kept);
        assert_eq!(tally.hours.sum(NOW + 7200, HOURS).kept, 3);
    }
}
