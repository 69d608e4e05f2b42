//! Records metrics through the `metrics` facade. The table is in the [module](super).

use std::collections::BTreeMap;

use crate::trail::{Attempt, Step};
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use tower_gemini_core::call::ModelId;
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::target::Degradation;
use tower_gemini_core::verdict::{Outcome, QuotaCharge};

use super::events::{reason_name, wait_name};
use super::observer::{
    CallEnd, CallInfo, CallObserver, ObservedStep, SendKind, cost_of, images_of,
};
use super::{CallOutcome, model_label};
use crate::model_fallback::{Circuit, CircuitState};
use crate::quota_guard::QuotaUsage;

/// Describes every metric to the recorder. [`ObserveLayer::new`](super::ObserveLayer::new) does so;
/// call it again if the recorder is installed later.
pub fn describe_metrics() {
    for (name, help) in COUNTERS {
        describe_counter!(*name, Unit::Count, *help);
    }
    for (name, unit, help) in HISTOGRAMS {
        describe_histogram!(*name, *unit, *help);
    }
    for (name, help) in GAUGES {
        describe_gauge!(*name, Unit::Count, *help);
    }
}

#[rustfmt::skip]
const COUNTERS: &[(&str, &str)] = &[
    ("gemini_calls_total", "Ended calls, by kind (generate, other) and outcome."),
    ("gemini_attempts_total", "Ended attempts, by model, outcome and charge."),
    ("gemini_images_delivered_total", "Calls that delivered an image, replays included."),
    ("gemini_drafts_total", "Drafts in responses with a delivered image."),
    ("gemini_cost_at_least_microusd_total", "Lower bound of the cost in micro-dollars, by model."),
    ("gemini_cost_at_most_microusd_total", "Upper bound of the cost in micro-dollars, by model."),
    ("gemini_unpriced_attempts_total", "Attempts without an upper cost bound, by model."),
    ("gemini_quota_requests_at_least_total", "Requests certainly counted by the service, by model."),
    ("gemini_quota_requests_at_most_total", "Requests possibly counted by the service, by model."),
    ("gemini_retries_total", "Retries at the same target."),
    ("gemini_fallback_attempts_total", "Attempts at another target."),
    ("gemini_fallbacks_total", "Targets left by a fallback, by the outcome that caused it."),
    ("gemini_degradations_total", "Things given up for a response, by what."),
    ("gemini_skipped_targets_total", "Skipped targets, by why."),
    ("gemini_stops_total", "Decisions to send nothing more, by why."),
    ("gemini_preferred_total", "Calls that try another model first, by why."),
    ("gemini_client_disconnects_total", "Clients that disconnected after dispatch."),
    ("gemini_stored_responses_total", "Responses stored for an identical request."),
    ("gemini_not_stored_responses_total", "Responses that were not stored, by why."),
    ("gemini_continued_calls_total", "Resends of calls that had just failed, which went on with them."),
    ("gemini_replayed_responses_total", "Stored responses that were replayed."),
];

#[rustfmt::skip]
const HISTOGRAMS: &[(&str, Unit, &str)] = &[
    ("gemini_call_duration_seconds", Unit::Seconds, "Durations of calls, by result."),
    ("gemini_attempt_duration_seconds", Unit::Seconds, "Durations of attempts, by model and outcome."),
    ("gemini_wait_seconds", Unit::Seconds, "Waits before an attempt, by why."),
    ("gemini_cost_per_image_microusd", Unit::Count, "Cost of calls that delivered an image, by bound."),
];

const GAUGES: &[(&str, &str)] = &[
    ("gemini_calls_in_flight", "Calls that have not ended."),
    ("gemini_quota_used_ratio", "Used and reserved share of a quota, by model and dimension."),
    ("gemini_circuits_open", "Open circuits of targets and accounts, those being probed included."),
];

/// Sets the gauges of the quota from
/// [`QuotaGuardLayer::usages`](crate::QuotaGuardLayer::usages). Call it before metrics are read.
///
/// Models that the catalogue does not know are `other`. Projects are not a label: the fullest one
/// counts.
pub fn record_quota(catalog: &Catalog, ledgers: &[QuotaUsage]) {
    let mut fullest: BTreeMap<(&str, &'static str), f64> = BTreeMap::new();
    for ledger in ledgers {
        let model = model_label(catalog, Some(&ModelId::new(ledger.key.model.as_str())));
        for entry in &ledger.entries {
            let Some(limit) = entry.limit else { continue };
            let taken = entry.used.saturating_add(entry.reserved);
            #[allow(clippy::cast_precision_loss, reason = "a share for people")]
            let used = if limit == 0 { 1.0 } else { taken as f64 / limit as f64 };
            let share = fullest.entry((model, entry.dimension.as_str())).or_insert(0.0);
            *share = share.max(used);
        }
    }
    for ((model, dimension), used) in fullest {
        let labels = [("model", model.to_owned()), ("dimension", dimension.to_owned())];
        gauge!("gemini_quota_used_ratio", &labels).set(used);
    }
}

/// Sets the gauge of open circuits from a fallback's
/// [`Circuits::snapshot`](crate::model_fallback::Circuits::snapshot). Call it before metrics are
/// read.
pub fn record_circuits(circuits: &[Circuit]) {
    let is_open = |circuit: &&Circuit| !matches!(circuit.state, CircuitState::Failing { .. });
    #[allow(clippy::cast_precision_loss, reason = "a handful")]
    gauge!("gemini_circuits_open").set(circuits.iter().filter(is_open).count() as f64);
}

/// Records the metrics of calls.
pub(super) struct Metrics;

impl CallObserver for Metrics {
    fn on_start(&self, _: &CallInfo) {
        gauge!("gemini_calls_in_flight").increment(1.0);
    }

    fn on_send(&self, _: &CallInfo, kind: SendKind) {
        match kind {
            SendKind::First => {}
            SendKind::Retry => counter!("gemini_retries_total").increment(1),
            SendKind::Fallback => counter!("gemini_fallback_attempts_total").increment(1),
        }
    }

    fn on_step(&self, _: &CallInfo, observed: &ObservedStep<'_>) {
        let by_why = |name: &'static str, why| counter!(name, "why" => why).increment(1);
        match observed.step {
            Step::Attempt(attempt) => count_attempt(attempt, observed.model),
            Step::Preferred { why, .. } => by_why("gemini_preferred_total", reason_name(why)),
            Step::Waited { delay, why } => {
                histogram!("gemini_wait_seconds", "why" => wait_name(*why)).record(*delay);
            }
            Step::FellBack { why, .. } => {
                counter!("gemini_fallbacks_total", "outcome" => why.as_str()).increment(1);
            }
            Step::Skipped { why, .. } => by_why("gemini_skipped_targets_total", reason_name(why)),
            Step::Degraded { given_up } => given_up.iter().for_each(count_degradation),
            Step::Stopped { why } => by_why("gemini_stops_total", reason_name(why)),
            Step::Continued { .. } => counter!("gemini_continued_calls_total").increment(1),
            Step::ClientDisconnected => counter!("gemini_client_disconnects_total").increment(1),
            Step::Stored { .. } => counter!("gemini_stored_responses_total").increment(1),
            Step::NotStored { why } => {
                by_why("gemini_not_stored_responses_total", reason_name(why))
            }
            Step::Replayed { .. } => counter!("gemini_replayed_responses_total").increment(1),
            _ => {}
        }
    }

    fn on_end(&self, call: &CallInfo, end: &CallEnd<'_>) {
        gauge!("gemini_calls_in_flight").decrement(1.0);
        let kind = if call.generates { "generate" } else { "other" };
        counter!("gemini_calls_total", "kind" => kind, "outcome" => end.outcome.as_str())
            .increment(1);
        if !call.generates {
            return;
        }
        let result = match end.outcome {
            CallOutcome::ClientDisconnected => "client_disconnected",
            outcome if outcome.is_success() => "success",
            _ => "failure",
        };
        histogram!("gemini_call_duration_seconds", "result" => result).record(end.took);
        if end.outcome.is_image() {
            let steps = end.steps();
            counter!("gemini_images_delivered_total").increment(1);
            let drafts = images_of(&steps).saturating_sub(1);
            counter!("gemini_drafts_total").increment(u64::from(drafts));
            // A replayed image costs what it cost then: the call that paid delivered none.
            let replayed = |step: &Step| match step {
                Step::Replayed { cost, .. } => Some(*cost),
                _ => None,
            };
            let cost = cost_of(&steps) + steps.iter().filter_map(replayed).sum::<Cost>();
            #[allow(clippy::cast_precision_loss, reason = "an image costs far below 2^53")]
            let record = |bound: &'static str, microusd: u64| {
                histogram!("gemini_cost_per_image_microusd", "bound" => bound)
                    .record(microusd as f64);
            };
            record("at_least", cost.at_least_microusd);
            cost.at_most_microusd.into_iter().for_each(|most| record("at_most", most));
        }
    }
}

fn count_attempt(attempt: &Attempt, model: &str) {
    let outcome = attempt.outcome.unwrap_or(Outcome::Interrupted).as_str();
    let by_model = |name: &'static str, count: u64| {
        counter!(name, "model" => model.to_owned()).increment(count);
    };
    counter!(
        "gemini_attempts_total",
        "model" => model.to_owned(), "outcome" => outcome, "charge" => attempt.charge.as_str()
    )
    .increment(1);
    let labels = [("model", model.to_owned()), ("outcome", outcome.to_owned())];
    histogram!("gemini_attempt_duration_seconds", &labels).record(attempt.took);
    by_model("gemini_cost_at_least_microusd_total", attempt.cost.at_least_microusd);
    match attempt.cost.at_most_microusd {
        Some(most) => by_model("gemini_cost_at_most_microusd_total", most),
        None => by_model("gemini_unpriced_attempts_total", 1),
    }
    let (is_counted, may_be) =
        (attempt.quota == QuotaCharge::Counted, attempt.quota != QuotaCharge::None);
    by_model("gemini_quota_requests_at_least_total", u64::from(is_counted));
    by_model("gemini_quota_requests_at_most_total", u64::from(may_be));
    let given_up = attempt.rerouting();
    given_up.iter().for_each(count_degradation);
}

fn count_degradation(one: &Degradation) {
    let what = reason_name(&one.what);
    counter!("gemini_degradations_total", "what" => what).increment(1);
}
