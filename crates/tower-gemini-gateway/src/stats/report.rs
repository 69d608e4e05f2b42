//! What was counted, as data.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use tower_gemini::cost::Cost;
use tower_gemini::observe::{CallOutcome, cost_of, is_under_way};
use tower_gemini::trail::{Step, Trail};
use tower_gemini::verdict::Outcome;

use super::counts::{Counts, Key, percentile, ratio};
use super::diagnosis::{Cause, Diagnosis, Health};

/// What [`Stats`](super::Stats) has counted. The fields are documented with
/// [`/status.json`](crate::status), which holds them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Report {
    pub at_unix_seconds: u64,
    pub since_unix_seconds: u64,
    pub calls_in_flight: u64,
    pub diagnosis: Diagnoses,
    pub last_hour: Window,
    pub last_day: Window,
    pub total: Window,
    pub hours: Vec<Hour>,
    pub days: Vec<Window>,
    pub failure_rate_targets: Targets,
    pub recent_calls: Vec<Call>,
}

/// The diagnoses of the last hour and day.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by their windows")]
pub struct Diagnoses {
    pub hour: Diagnosis,
    pub day: Diagnosis,
}

/// The failure rates that are aimed for, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Targets {
    pub off_peak: f64,
    pub peak: f64,
    pub peak_hours_known: bool,
}

/// One hour on the clock.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Hour {
    #[serde(flatten)]
    pub window: Window,
    pub is_peak: Option<bool>,
    pub health: Health,
}

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
                Key::Waits(why) => waits.entry(*why).or_default().count = count,
                Key::WaitMs(why) => {
                    waits.entry(*why).or_default().seconds = ratio(count, 1000).unwrap_or(0.0);
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
            replayed_responses: calls(CallOutcome::Redeemed),
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

/// The most steps that are kept of one call: a chain of five targets with ten attempts each has
/// about as many.
const MAX_STEPS: usize = 100;

/// A call that has ended. What becomes of an attempt that continues without its client is added
/// later.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table in `status` documents each field")]
pub struct Call {
    pub id: String,
    pub ended_unix_seconds: u64,
    #[serde(serialize_with = "name")]
    pub outcome: CallOutcome,
    pub sentence: String,
    pub took_ms: u64,
    pub cost: Cost,
    pub under_way: bool,
    pub steps: Vec<Step>,
    pub omitted_steps: usize,
    pub trail: Vec<String>,
}

fn name<S: Serializer>(outcome: &CallOutcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(outcome.as_str())
}

impl Call {
    /// Sets the steps, which are redacted already, and what follows from them.
    pub(super) fn set_steps(&mut self, steps: Vec<Step>) {
        self.omitted_steps = steps.len().saturating_sub(MAX_STEPS);
        self.cost = cost_of(&steps);
        self.steps = steps;
        self.steps.truncate(MAX_STEPS);
        self.describe();
    }

    /// Adds a step that came after the call's end. An attempt replaces the one that was under way:
    /// the call's `attempt`th.
    pub(super) fn add_step(&mut self, step: &Step, attempt: u32) {
        let is_attempt = |step: &Step| matches!(step, Step::Attempt(_));
        let nth = usize::try_from(attempt.saturating_sub(1)).unwrap_or(0);
        let mut attempts = self.steps.iter_mut().filter(|step| is_attempt(step));
        if let Some(earlier) = attempts.nth(nth).filter(|_| is_attempt(step)) {
            *earlier = step.clone();
        } else if self.steps.len() < MAX_STEPS {
            self.steps.push(step.clone());
        } else {
            self.omitted_steps += 1;
        }
        self.cost = cost_of(&self.steps);
        self.describe();
    }

    fn describe(&mut self) {
        self.under_way = self.steps.iter().any(is_under_way);
        let trail = Trail::new();
        self.steps.iter().for_each(|step| trail.push(step.clone()));
        self.trail = trail.to_string().lines().map(str::to_owned).collect();
        if self.omitted_steps > 0 {
            self.trail.push(format!("and {} more steps", self.omitted_steps));
        }
    }
}
