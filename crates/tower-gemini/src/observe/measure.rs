//! Counters and histograms through the `metrics` facade. The table is in the [module](super).
//!
//! Labels are bounded: models are those of the catalogue or `other`, everything else is one of our
//! own words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::trail::{Attempt, Step};
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Outcome, QuotaCharge};

use super::events::word;
use super::names::OTHER;
use super::outcome::CallOutcome;
use super::tally::{Sent, wait_word};
use crate::model_fallback::{Circuit, CircuitState};
use crate::quota_guard::QuotaUsage;

/// Tells the recorder what each metric is. [`ObserveLayer::new`](super::ObserveLayer::new) does so;
/// call it again where the recorder is installed after the layer was made.
pub fn describe_metrics() {
    for (name, unit, help) in COUNTERS {
        describe_counter!(*name, *unit, *help);
    }
    for (name, unit, help) in HISTOGRAMS {
        describe_histogram!(*name, *unit, *help);
    }
    for (name, help) in GAUGES {
        describe_gauge!(*name, Unit::Count, *help);
    }
}

const COUNTERS: &[(&str, Unit, &str)] = &[
    (CALLS, Unit::Count, "Calls that ended, by kind (generate, other) and outcome."),
    (ATTEMPTS, Unit::Count, "Attempts that ended, by model, outcome and charge."),
    (IMAGES, Unit::Count, "Images delivered, one a call, those given again included."),
    (DRAFTS, Unit::Count, "Drafts that came with delivered images."),
    (COST_LEAST, Unit::Count, "Micro-dollars that attempts cost at least, by model."),
    (COST_MOST, Unit::Count, "Micro-dollars that attempts of known price cost at most, by model."),
    (
        UNPRICED,
        Unit::Count,
        "Attempts that may have been paid for and whose price is not known, by model.",
    ),
    (QUOTA_LEAST, Unit::Count, "Requests that the service counted at least, by model."),
    (QUOTA_MOST, Unit::Count, "Requests that the service counted at most, by model."),
    (RESENDS, Unit::Count, "Sent again to the same target."),
    (FALLBACKS, Unit::Count, "Sent to another target."),
    (MOVED_ON, Unit::Count, "A fallback left a target, by the outcome that it left for."),
    (DEGRADATIONS, Unit::Count, "Things given up for an answer, by what."),
    (SKIPPED, Unit::Count, "Targets passed over, by why."),
    (STOPS, Unit::Count, "Nothing more was sent, by why."),
    (PREFERRED, Unit::Count, "Another model was asked to lead, by why."),
    (LEFT, Unit::Count, "Calls that went on without their callers."),
    (KEPT, Unit::Count, "Answers kept for their callers' next identical requests."),
    (NOT_KEPT, Unit::Count, "Answers that were not kept, by why."),
    (REDEEMED, Unit::Count, "Kept answers that were given."),
];

const HISTOGRAMS: &[(&str, Unit, &str)] = &[
    (
        CALL_SECONDS,
        Unit::Seconds,
        "How long calls took, by result (success, failure, caller_left).",
    ),
    (ATTEMPT_SECONDS, Unit::Seconds, "How long attempts took, by model and outcome."),
    (WAIT_SECONDS, Unit::Seconds, "How long was waited before an attempt, by why."),
    (
        COST_PER_IMAGE,
        Unit::Count,
        "Micro-dollars of all attempts of a call that delivered an image, by bound.",
    ),
];

const GAUGES: &[(&str, &str)] = &[
    (IN_FLIGHT, "Calls that have begun and not ended."),
    (
        QUOTA_USED,
        "How much of a quota is used or held, 0 to 1, by model and dimension; of several projects the fullest.",
    ),
    (CIRCUITS_OPEN, "Targets and accounts that rest after failures, or are tried again."),
];

const CALLS: &str = "gemini_calls_total";
const ATTEMPTS: &str = "gemini_attempts_total";
const IMAGES: &str = "gemini_images_delivered_total";
const DRAFTS: &str = "gemini_drafts_total";
const COST_LEAST: &str = "gemini_cost_at_least_microusd_total";
const COST_MOST: &str = "gemini_cost_at_most_microusd_total";
const UNPRICED: &str = "gemini_unpriced_attempts_total";
const QUOTA_LEAST: &str = "gemini_quota_requests_at_least_total";
const QUOTA_MOST: &str = "gemini_quota_requests_at_most_total";
const RESENDS: &str = "gemini_resends_total";
const FALLBACKS: &str = "gemini_fallbacks_total";
const MOVED_ON: &str = "gemini_moved_on_total";
const DEGRADATIONS: &str = "gemini_degradations_total";
const SKIPPED: &str = "gemini_skipped_targets_total";
const STOPS: &str = "gemini_stops_total";
const PREFERRED: &str = "gemini_preferred_total";
const LEFT: &str = "gemini_callers_left_total";
const KEPT: &str = "gemini_kept_answers_total";
const NOT_KEPT: &str = "gemini_not_kept_answers_total";
const REDEEMED: &str = "gemini_redeemed_answers_total";
const CALL_SECONDS: &str = "gemini_call_duration_seconds";
const ATTEMPT_SECONDS: &str = "gemini_attempt_duration_seconds";
const WAIT_SECONDS: &str = "gemini_wait_seconds";
const COST_PER_IMAGE: &str = "gemini_cost_per_image_microusd";
const IN_FLIGHT: &str = "gemini_calls_in_flight";
const QUOTA_USED: &str = "gemini_quota_used_ratio";
const CIRCUITS_OPEN: &str = "gemini_circuits_open";

/// Sets the gauges of the quota, from
/// [`QuotaGuardLayer::ledgers`](crate::QuotaGuardLayer::ledgers): to be called before metrics are
/// read. Models that the catalogue does not know are `other`; of several projects the fullest
/// counts, because projects are no label.
pub fn record_quota(catalog: &Catalog, ledgers: &[QuotaUsage]) {
    let mut fullest: BTreeMap<(&str, &'static str), f64> = BTreeMap::new();
    for ledger in ledgers {
        let model = catalog.lookup(ledger.key.model.as_str()).map_or(OTHER, |model| &model.id);
        for entry in &ledger.entries {
            let Some(limit) = entry.limit else { continue };
            #[allow(clippy::cast_precision_loss, reason = "a share for people")]
            let used = if limit == 0 {
                1.0
            } else {
                entry.used.saturating_add(entry.reserved) as f64 / limit as f64
            };
            let share = fullest.entry((model, entry.dimension.as_str())).or_insert(0.0);
            *share = share.max(used);
        }
    }
    for ((model, dimension), used) in fullest {
        gauge!(QUOTA_USED, "model" => model.to_owned(), "dimension" => dimension).set(used);
    }
}

/// Sets the gauge of open circuits, from a fallback's
/// [`Circuits::snapshot`](crate::model_fallback::Circuits::snapshot): to be called before metrics
/// are read.
pub fn record_circuits(circuits: &[Circuit]) {
    let is_open = |circuit: &&Circuit| !matches!(circuit.state, CircuitState::Failing { .. });
    let open = circuits.iter().filter(is_open).count();
    #[allow(clippy::cast_precision_loss, reason = "a handful")]
    gauge!(CIRCUITS_OPEN).set(open as f64);
}

pub(super) fn call_began() {
    gauge!(IN_FLIGHT).increment(1.0);
}

/// A call has ended. `images` is what its answer held, `cost` what all its attempts cost.
pub(super) fn call_ended(
    generating: bool,
    outcome: CallOutcome,
    took: Duration,
    images: u32,
    cost: Cost,
) {
    gauge!(IN_FLIGHT).decrement(1.0);
    let kind = if generating { "generate" } else { "other" };
    counter!(CALLS, "kind" => kind, "outcome" => outcome.as_str()).increment(1);
    if !generating {
        return;
    }
    let result = match outcome {
        CallOutcome::CallerLeft => "caller_left",
        outcome if outcome.is_success() => "success",
        _ => "failure",
    };
    histogram!(CALL_SECONDS, "result" => result).record(took);
    if outcome.is_image() {
        counter!(IMAGES).increment(1);
        counter!(DRAFTS).increment(u64::from(images.saturating_sub(1)));
        #[allow(
            clippy::cast_precision_loss,
            reason = "an image costs far less than 2^53 micro-dollars"
        )]
        let record = |bound: &'static str, microusd: u64| {
            histogram!(COST_PER_IMAGE, "bound" => bound).record(microusd as f64)
        };
        record("at_least", cost.at_least_microusd);
        if let Some(most) = cost.at_most_microusd {
            record("at_most", most);
        }
    }
}

pub(super) fn sent(sent: Sent) {
    match sent {
        Sent::First => {}
        Sent::Again => counter!(RESENDS).increment(1),
        Sent::Elsewhere => counter!(FALLBACKS).increment(1),
    }
}

pub(super) fn attempt_ended(model: &Arc<str>, outcome: Outcome, attempt: &Attempt) {
    let (charge, outcome) = (attempt.charge.as_str(), outcome.as_str());
    counter!(ATTEMPTS, "model" => model.clone(), "outcome" => outcome, "charge" => charge)
        .increment(1);
    histogram!(ATTEMPT_SECONDS, "model" => model.clone(), "outcome" => outcome)
        .record(attempt.took);
    counter!(COST_LEAST, "model" => model.clone()).increment(attempt.cost.at_least_microusd);
    match attempt.cost.at_most_microusd {
        Some(most) => counter!(COST_MOST, "model" => model.clone()).increment(most),
        None => counter!(UNPRICED, "model" => model.clone()).increment(1),
    }
    let (least, most) = match attempt.quota {
        QuotaCharge::None => (0, 0),
        QuotaCharge::Maybe => (0, 1),
        QuotaCharge::Counted => (1, 1),
    };
    counter!(QUOTA_LEAST, "model" => model.clone()).increment(least);
    counter!(QUOTA_MOST, "model" => model.clone()).increment(most);
}

/// A decision other than an attempt.
pub(super) fn step(step: &Step) {
    match step {
        Step::Preferred { why, .. } => counter!(PREFERRED, "why" => word(why)).increment(1),
        Step::Waited { delay, why } => {
            histogram!(WAIT_SECONDS, "why" => wait_word(*why)).record(*delay)
        }
        Step::FellBack { why, .. } => counter!(MOVED_ON, "outcome" => why.as_str()).increment(1),
        Step::Skipped { why, .. } => counter!(SKIPPED, "why" => word(why)).increment(1),
        Step::Degraded { given_up } => {
            for one in given_up {
                counter!(DEGRADATIONS, "what" => word(&one.what)).increment(1);
            }
        }
        Step::Stopped { why } => counter!(STOPS, "why" => word(why)).increment(1),
        Step::CallerLeft => counter!(LEFT).increment(1),
        Step::Kept { .. } => counter!(KEPT).increment(1),
        Step::NotKept { why } => counter!(NOT_KEPT, "why" => word(why)).increment(1),
        Step::Redeemed { .. } => counter!(REDEEMED).increment(1),
        _ => {}
    }
}
