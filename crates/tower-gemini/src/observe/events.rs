//! One `tracing` event for each decision, with the same field names everywhere. The table is in the
//! [module](super).

use std::borrow::Cow;
use std::time::Duration;

use crate::trail::{Attempt, SkipReason, Step};
use serde::Serialize;
use tower_gemini_core::call::{ImageSize, ModelId};
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Charge, Outcome};
use tracing::Level;

use super::outcome::CallOutcome;
use super::tally::wait_word;

/// What is known of a call when it decides something: what its last attempt ended in.
#[derive(Debug, Clone, Default)]
pub(super) struct Around {
    pub(super) attempt: u32,
    pub(super) model: Option<ModelId>,
    pub(super) size: Option<ImageSize>,
    pub(super) outcome: Option<Outcome>,
    pub(super) charge: Option<Charge>,
}

/// The fields of an event; what is `None` is not recorded.
#[derive(Default)]
struct Fields<'a> {
    attempt: Option<u32>,
    model: Option<&'a str>,
    size: Option<&'a str>,
    status: Option<u16>,
    outcome: Option<&'a str>,
    charge: Option<&'a str>,
    quota: Option<&'a str>,
    reason: Option<&'a str>,
    delay_ms: Option<u64>,
    why: Option<&'a str>,
    from: Option<&'a str>,
    to: Option<&'a str>,
    cost: Option<Cost>,
    took: Option<Duration>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn emit(level: Level, call: &str, step: &'static str, fields: &Fields<'_>, message: &str) {
    // The one list of names: a level is part of a call site, so there is a site for each.
    macro_rules! at {
        ($level:expr) => {
            tracing::event!(
                target: "tower_gemini::observe",
                $level,
                call,
                step,
                attempt = fields.attempt,
                model = fields.model,
                size = fields.size,
                status = fields.status,
                outcome = fields.outcome,
                charge = fields.charge,
                quota = fields.quota,
                reason = fields.reason,
                delay_ms = fields.delay_ms,
                why = fields.why,
                from = fields.from,
                to = fields.to,
                cost_at_least_microusd = fields.cost.map(|cost| cost.at_least_microusd),
                cost_at_most_microusd = fields.cost.and_then(|cost| cost.at_most_microusd),
                took_ms = fields.took.map(millis),
                "{message}"
            )
        };
    }
    match level {
        Level::WARN => at!(Level::WARN),
        Level::INFO => at!(Level::INFO),
        _ => at!(Level::DEBUG),
    }
}

/// The machine word of a reason: its variant's name, as trails are written as JSON.
pub(super) fn word<T: Serialize>(reason: &T) -> Cow<'static, str> {
    match serde_json::to_value(reason) {
        Ok(serde_json::Value::String(word)) => word.into(),
        Ok(serde_json::Value::Object(one)) => {
            one.into_iter().next().map_or("other".into(), |(word, _)| word.into())
        }
        _ => "other".into(),
    }
}

/// The event of one step. `step` is clean of secrets already.
pub(super) fn of_step(call: &str, around: &Around, step: &Step) {
    let base = Fields {
        attempt: Some(around.attempt).filter(|&attempt| attempt > 0),
        model: around.model.as_ref().map(ModelId::as_str),
        size: around.size.map(ImageSize::as_str),
        outcome: around.outcome.map(Outcome::as_str),
        charge: around.charge.map(Charge::as_str),
        ..Fields::default()
    };
    match step {
        Step::Attempt(attempt) => of_attempt(call, around.attempt, attempt),
        Step::Preferred { asked, model, why } => {
            let why = word(why);
            let fields = Fields {
                from: Some(asked.as_str()),
                to: Some(model.as_str()),
                why: Some(&why),
                ..base
            };
            emit(Level::DEBUG, call, "preferred", &fields, "another model leads");
        }
        Step::Signed { restored, placeholders } => {
            let message = format!(
                "signatures written into the request: {restored} restored, {placeholders} placeholders"
            );
            emit(Level::DEBUG, call, "signed", &base, &message);
        }
        Step::Waited { delay, why } => {
            let fields =
                Fields { delay_ms: Some(millis(*delay)), why: Some(wait_word(*why)), ..base };
            emit(Level::DEBUG, call, "waited", &fields, "waiting before the next attempt");
        }
        Step::FellBack { from, to, why } => {
            let fields =
                Fields { from: Some(from), to: Some(to), outcome: Some(why.as_str()), ..base };
            emit(Level::INFO, call, "fell_back", &fields, "falling back to another target");
        }
        Step::Skipped { target, why } => {
            let left = match why {
                SkipReason::CircuitOpen { left } => Some(millis(*left)),
                _ => None,
            };
            let why = word(why);
            let fields = Fields { to: Some(target), why: Some(&why), delay_ms: left, ..base };
            emit(Level::DEBUG, call, "skipped", &fields, "target passed over");
        }
        Step::Degraded { given_up } => {
            let given_up: Vec<_> = given_up.iter().map(ToString::to_string).collect();
            let given_up = given_up.join(", ");
            let fields = Fields { why: Some(&given_up), ..base };
            emit(
                Level::INFO,
                call,
                "degraded",
                &fields,
                "asking for something else than the caller did",
            );
        }
        Step::Succeeded { model, successor } => {
            let fields = Fields { from: Some(model), to: Some(successor), ..base };
            emit(
                Level::DEBUG,
                call,
                "succeeded",
                &fields,
                "the model is retired, and its successor takes its place",
            );
        }
        Step::Stopped { why } => {
            let why = word(why);
            emit(
                Level::DEBUG,
                call,
                "stopped",
                &Fields { why: Some(&why), ..base },
                "nothing more is sent",
            );
        }
        Step::CallerLeft => {
            emit(
                Level::INFO,
                call,
                "caller_left",
                &base,
                "the caller went away: the attempt is finished without it",
            );
        }
        Step::Kept { bytes } => {
            let message = format!(
                "the answer is kept for the caller's next identical request ({bytes} bytes)"
            );
            emit(Level::INFO, call, "kept", &base, &message);
        }
        Step::NotKept { why } => {
            let why = word(why);
            emit(
                Level::INFO,
                call,
                "not_kept",
                &Fields { why: Some(&why), ..base },
                "the answer is not kept",
            );
        }
        Step::Redeemed { age, cost, .. } => {
            let fields = Fields { cost: Some(*cost), took: Some(*age), ..base };
            emit(
                Level::INFO,
                call,
                "redeemed",
                &fields,
                "given the answer to an earlier, identical request",
            );
        } // A step that a later core knows is still an event.
    }
}

fn of_attempt(call: &str, number: u32, attempt: &Attempt) {
    let fields = Fields {
        attempt: Some(number),
        model: attempt.model.as_ref().map(ModelId::as_str),
        size: attempt.size.map(ImageSize::as_str),
        status: attempt.status,
        outcome: attempt.outcome.map(Outcome::as_str),
        charge: Some(attempt.charge.as_str()),
        quota: Some(attempt.quota.as_str()),
        reason: attempt.reason.as_deref(),
        cost: Some(attempt.cost),
        took: Some(attempt.took),
        ..Fields::default()
    };
    emit(Level::DEBUG, call, "attempt", &fields, "attempt ended");
}

/// The event of a call's end, with the sentence about it as its message.
#[derive(Debug)]
pub(super) struct CallEnd<'a> {
    pub(super) call: &'a str,
    pub(super) around: &'a Around,
    pub(super) outcome: CallOutcome,
    pub(super) charge: Charge,
    pub(super) cost: Cost,
    pub(super) took: Duration,
    pub(super) is_systemic: bool,
    pub(super) sentence: &'a str,
}

pub(super) fn of_call(end: &CallEnd<'_>) {
    let fields = Fields {
        attempt: Some(end.around.attempt),
        model: end.around.model.as_ref().map(ModelId::as_str),
        size: end.around.size.map(ImageSize::as_str),
        outcome: Some(end.outcome.as_str()),
        charge: Some(end.charge.as_str()),
        cost: Some(end.cost),
        took: Some(end.took),
        ..Fields::default()
    };
    let level = if end.is_systemic { Level::WARN } else { Level::INFO };
    emit(level, end.call, "call", &fields, end.sentence);
}

#[cfg(test)]
mod tests {
    use crate::trail::{NotKeptReason, PreferReason, StopReason};
    use tower_gemini_core::target::Unfit;

    use super::*;

    #[test]
    fn reasons_have_the_words_that_trails_have() {
        assert_eq!(word(&StopReason::AttemptsUsedUp), "attempts_used_up");
        assert_eq!(word(&NotKeptReason::TooLate), "too_late");
        assert_eq!(word(&PreferReason::PeakHours), "peak_hours");
        assert_eq!(word(&SkipReason::Gone), "gone");
        assert_eq!(word(&SkipReason::CircuitOpen { left: Duration::from_secs(1) }), "circuit_open");
        // Which of the reasons for being unfit is no label: the trail tells.
        assert_eq!(word(&SkipReason::Unfit(Unfit::CannotEdit)), "unfit");
    }
}
