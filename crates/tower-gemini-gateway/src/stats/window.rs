//! The counts of a stretch of time, as data.

use std::collections::BTreeMap;

use serde::Serialize;
use tower_gemini::cost::Cost;
use tower_gemini::observe::{CallOutcome, wait_name};
use tower_gemini::verdict::Outcome;

use super::cause::Cause;
use super::counts::{Counts, Key, percentile, ratio};

/// The counts of a stretch of time. Calls that generate nothing count as `other_calls` and towards
/// cost and quota only.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Window {
    pub start_unix_seconds: u64,
    pub calls: u64,
    pub successes: u64,
    pub failures: u64,
    pub client_disconnects: u64,
    pub failure_rate: Option<f64>,
    pub outcomes: BTreeMap<&'static str, u64>,
    pub other_calls: u64,
    pub degraded: u64,
    pub call_seconds_p50: Option<f64>,
    pub call_seconds_p95: Option<f64>,
    pub attempts: u64,
    pub failed_attempts: u64,
    pub attempt_outcomes: BTreeMap<&'static str, u64>,
    /// Failed attempts of failed calls.
    #[serde(skip)]
    pub(super) blamed_outcomes: BTreeMap<&'static str, u64>,
    pub failure_kinds: BTreeMap<Cause, u64>,
    pub attempt_seconds_p50: Option<f64>,
    pub attempt_seconds_p95: Option<f64>,
    pub retries: u64,
    pub fallback_attempts: u64,
    pub skipped_targets: u64,
    pub waits: BTreeMap<&'static str, Wait>,
    pub completed_without_client: u64,
    pub stored_responses: u64,
    pub not_stored_responses: u64,
    pub replayed_responses: u64,
    pub images: u64,
    pub drafts: u64,
    pub cost: Cost,
    pub cost_per_image: Option<Cost>,
    pub unpriced_attempts: u64,
    pub charged_attempts: u64,
    pub maybe_charged_attempts: u64,
    pub quota_requests_at_least: u64,
    pub quota_requests_at_most: u64,
    pub models: BTreeMap<String, ModelWindow>,
}

/// The counts of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct ModelWindow {
    pub attempts: u64,
    pub successes: u64,
    pub service_faults: u64,
}

/// Waits for one reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Wait {
    pub count: u64,
    pub seconds: f64,
}

impl Window {
    pub(super) fn new(start_unix_seconds: u64, counts: &Counts) -> Self {
        let n = |key: Key| counts.get(&key);
        let calls = |outcome| counts.get(&Key::Call(outcome));
        let successes = counts.calls(CallOutcome::is_success);
        let failures = counts.calls(CallOutcome::is_failure);
        let (mut waits, mut models) = (BTreeMap::<_, Wait>::new(), BTreeMap::new());
        let mut failure_kinds = BTreeMap::new();
        for (outcome, count) in counts.attempts() {
            if let Some(kind) = Cause::from_outcome(outcome) {
                *failure_kinds.entry(kind).or_default() += count;
            }
        }
        for (key, count) in counts.iter() {
            let mut model = |model: &str, add: fn(&mut ModelWindow, u64)| {
                add(models.entry(model.to_owned()).or_default(), count);
            };
            match key {
                Key::ModelAttempts(of) => model(of, |model, n| model.attempts = n),
                Key::ModelSuccesses(of) => model(of, |model, n| model.successes = n),
                Key::ModelServiceFaults(of) => model(of, |model, n| model.service_faults = n),
                Key::Waits(why) => waits.entry(wait_name(*why)).or_default().count = count,
                Key::WaitMs(why) => {
                    let seconds = ratio(count, 1000).unwrap_or(0.0);
                    waits.entry(wait_name(*why)).or_default().seconds = seconds;
                }
                _ => {}
            }
        }
        let unpriced_attempts = n(Key::UnpricedAttempts);
        let cost = Cost {
            at_least_microusd: n(Key::CostAtLeastMicrousd),
            at_most_microusd: (unpriced_attempts == 0).then(|| n(Key::CostAtMostMicrousd)),
        };
        let name = |key: &Key| if let Key::Call(of) = key { Some(of.as_str()) } else { None };
        let blamed =
            |key: &Key| if let Key::BlamedAttempt(of) = key { Some(of.as_str()) } else { None };
        Self {
            start_unix_seconds,
            calls: counts.calls(|_| true),
            successes,
            failures,
            client_disconnects: calls(CallOutcome::ClientDisconnected),
            failure_rate: ratio(failures, successes + failures),
            outcomes: counts.select(name).collect(),
            other_calls: n(Key::OtherCalls),
            degraded: n(Key::Degraded),
            call_seconds_p50: percentile(counts, Key::CallTook, 50),
            call_seconds_p95: percentile(counts, Key::CallTook, 95),
            attempts: counts.attempts().map(|(_, count)| count).sum(),
            failed_attempts: failure_kinds.values().sum(),
            attempt_outcomes: counts.attempts().map(|(of, count)| (of.as_str(), count)).collect(),
            blamed_outcomes: counts.select(blamed).collect(),
            failure_kinds,
            attempt_seconds_p50: percentile(counts, Key::AttemptTook, 50),
            attempt_seconds_p95: percentile(counts, Key::AttemptTook, 95),
            retries: n(Key::Retries),
            fallback_attempts: n(Key::FallbackAttempts),
            skipped_targets: n(Key::SkippedTargets),
            waits,
            completed_without_client: n(Key::ClientDisconnects),
            stored_responses: n(Key::Kept),
            not_stored_responses: n(Key::NotKept),
            replayed_responses: calls(CallOutcome::Replayed),
            images: n(Key::Images),
            drafts: n(Key::Drafts),
            cost,
            cost_per_image: cost.per_image(n(Key::Images)),
            unpriced_attempts,
            charged_attempts: n(Key::ChargedAttempts),
            maybe_charged_attempts: n(Key::MaybeChargedAttempts),
            quota_requests_at_least: n(Key::QuotaRequestsAtLeast),
            quota_requests_at_most: n(Key::QuotaRequestsAtMost),
            models,
        }
    }

    /// Returns how many attempts ended so.
    #[must_use]
    pub fn attempts_with(&self, outcome: Outcome) -> u64 {
        self.attempt_outcomes.get(outcome.as_str()).copied().unwrap_or(0)
    }

    /// Returns how many calls ended so.
    #[must_use]
    pub fn calls_with(&self, outcome: CallOutcome) -> u64 {
        self.outcomes.get(outcome.as_str()).copied().unwrap_or(0)
    }
}
