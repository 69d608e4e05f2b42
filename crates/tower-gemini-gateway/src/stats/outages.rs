//! Which models fail again and again. Pure: outcomes and times are handed in.

use std::collections::BTreeMap;

use tower_gemini::observe::is_service_fault;
use tower_gemini::verdict::Outcome;

use super::diagnosis::MIN_CALLS;

/// An outage that nobody has met for so many seconds is over, as far as anybody knows. Ours: models
/// that are down are probed about once a minute while anybody wants them.
const FORGOTTEN_AFTER: u64 = 3600;

/// A model whose latest attempts all failed by the service's own fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outage {
    pub(crate) model: String,
    /// How many attempts in a row.
    pub(crate) failures: u64,
    /// What became of the last.
    pub(crate) outcome: Outcome,
}

#[derive(Debug, Clone, Copy)]
struct Streak {
    failures: u64,
    outcome: Outcome,
    last: u64,
}

/// Failures in a row, by model. Models are labels of the catalogue, so their number is bounded.
#[derive(Debug, Default)]
pub(super) struct Outages(BTreeMap<String, Streak>);

impl Outages {
    /// Records what became of an attempt, at a time in seconds. What says nothing about the model's
    /// health, such as a rate limit, changes nothing.
    pub(super) fn record(&mut self, model: &str, outcome: Outcome, now: u64) {
        if outcome.is_success() {
            self.0.remove(model);
        } else if is_service_fault(outcome) {
            let fresh = Streak { failures: 0, outcome, last: now };
            let streak = self.0.entry(model.to_owned()).or_insert(fresh);
            if now.saturating_sub(streak.last) > FORGOTTEN_AFTER {
                *streak = fresh;
            }
            *streak = Streak { failures: streak.failures.saturating_add(1), outcome, last: now };
        }
    }

    /// The outages at a time, by model: as many failures in a row as a rate is computed from. A call
    /// that fails by itself makes fewer attempts before others wait for it.
    pub(super) fn at(&self, now: u64) -> Vec<Outage> {
        let is_on = |streak: &Streak| {
            streak.failures >= MIN_CALLS && now.saturating_sub(streak.last) <= FORGOTTEN_AFTER
        };
        let outages = self.0.iter().filter(|(_, streak)| is_on(streak));
        let outage = |(model, streak): (&String, &Streak)| Outage {
            model: model.clone(),
            failures: streak.failures,
            outcome: streak.outcome,
        };
        outages.map(outage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome as O;

    fn failures(outages: &Outages, now: u64) -> Vec<u64> {
        outages.at(now).iter().map(|outage| outage.failures).collect()
    }

    #[test]
    fn an_outage_is_five_faults_in_a_row_until_an_answer_or_an_hour_without_any() {
        for (outcomes, found) in [
            (&[O::Overloaded; 4][..], &[][..]),
            (&[O::Overloaded; 5], &[5]),
            (&[O::Overloaded, O::Internal, O::Deadline, O::BadGateway, O::Overloaded], &[5]),
            (
                &[O::Overloaded, O::Internal, O::Image, O::BadGateway, O::Overloaded, O::Internal],
                &[],
            ),
            (
                &[O::Internal, O::Internal, O::RateLimited, O::Internal, O::Internal, O::Internal],
                &[5],
            ),
            (&[O::RateLimitedDay; 9], &[]),
            (&[O::Internal, O::Internal, O::Internal, O::Internal, O::Internal, O::Image], &[]),
        ] {
            let mut outages = Outages::default();
            outcomes.iter().for_each(|outcome| outages.record("m", *outcome, 1_000));
            assert_eq!(failures(&outages, 1_000 + FORGOTTEN_AFTER), found, "{outcomes:?}");
            assert!(failures(&outages, 1_001 + FORGOTTEN_AFTER).is_empty(), "{outcomes:?}");
        }
    }

    #[test]
    fn one_model_says_nothing_about_another_and_old_failures_nothing_about_new_ones() {
        let mut outages = Outages::default();
        for now in 0..5 {
            outages.record("a", O::Overloaded, now);
            outages.record("b", O::Image, now);
        }
        assert_eq!(outages.at(5).iter().map(|one| one.model.as_str()).collect::<Vec<_>>(), ["a"]);
        outages.record("a", O::Overloaded, 10 + FORGOTTEN_AFTER);
        assert!(outages.at(10 + FORGOTTEN_AFTER).is_empty());
    }
}
