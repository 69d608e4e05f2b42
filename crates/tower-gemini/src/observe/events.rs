//! Emits one `tracing` event per decision, with the same field names everywhere. The table is in the
//! [module](super).

use std::borrow::Cow;
use std::time::Duration;

use crate::trail::{Attempt, SkipReason, Step, WaitReason};
use serde::Serialize;
use tower_gemini_core::call::{ImageSize, ModelId, ServiceTier};
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Charge, Outcome};
use tracing::Level;

use super::observer::{CallEnd, charge_of, cost_of, is_systemic};

/// The fields of an event; `None` is not recorded.
#[derive(Default)]
struct Fields<'a> {
    attempt: Option<u32>,
    model: Option<&'a str>,
    /// The model that the request named, where another one responded.
    asked: Option<&'a str>,
    /// The service tier, where it is not the one asked for.
    tier: Option<&'a str>,
    size: Option<&'a str>,
    status: Option<u16>,
    outcome: Option<&'a str>,
    charge: Option<&'a str>,
    quota: Option<&'a str>,
    reason: Option<&'a str>,
    delay_ms: Option<u64>,
    why: Option<Cow<'a, str>>,
    from: Option<&'a str>,
    to: Option<&'a str>,
    cost: Option<Cost>,
    took: Option<Duration>,
}

/// The model that the request named, where the response names another one.
fn asked(attempt: &Attempt) -> Option<&ModelId> {
    attempt.model.as_ref().filter(|_| attempt.served_by.is_some())
}

impl<'a> Fields<'a> {
    /// The fields of every event: the number of attempts so far, and what the last one came to.
    fn new(attempt: u32, last: Option<&'a Attempt>) -> Self {
        Self {
            attempt: Some(attempt).filter(|&attempt| attempt > 0),
            model: last.and_then(Attempt::responder).map(ModelId::as_str),
            asked: last.and_then(asked).map(ModelId::as_str),
            tier: last.and_then(|last| last.served_tier).map(ServiceTier::as_str),
            size: last.and_then(|last| last.size).map(ImageSize::as_str),
            outcome: last.and_then(|last| last.outcome).map(Outcome::as_str),
            charge: last.map(|last| last.charge.as_str()),
            ..Self::default()
        }
    }

    fn emit(&self, level: Level, call: &str, step: &'static str, message: &str) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // A level is part of a call site, so each level has its own; this is the one list of names.
        macro_rules! at {
            ($level:expr) => {
                tracing::event!(
                    target: "tower_gemini::observe",
                    $level,
                    call,
                    step,
                    attempt = self.attempt,
                    model = self.model,
                    asked = self.asked,
                    tier = self.tier,
                    size = self.size,
                    status = self.status,
                    outcome = self.outcome,
                    charge = self.charge,
                    quota = self.quota,
                    reason = self.reason,
                    delay_ms = self.delay_ms,
                    why = self.why.as_deref(),
                    from = self.from,
                    to = self.to,
                    cost_at_least_microusd = self.cost.map(|cost| cost.at_least_microusd),
                    cost_at_most_microusd = self.cost.and_then(|cost| cost.at_most_microusd),
                    took_ms = self.took.map(millis),
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
}

/// Returns the machine-readable name of a reason: its variant's name, as in a trail's JSON.
#[must_use]
pub fn reason_name<T: Serialize>(reason: &T) -> Cow<'static, str> {
    match serde_json::to_value(reason) {
        Ok(serde_json::Value::String(name)) => name.into(),
        Ok(serde_json::Value::Object(one)) => {
            one.into_iter().next().map_or("other".into(), |(name, _)| name.into())
        }
        _ => "other".into(),
    }
}

/// Returns the name of a wait's reason in logs, metrics and reports.
#[must_use]
pub fn wait_name(why: WaitReason) -> &'static str {
    match why {
        WaitReason::QuietHours => "quiet_hours",
        WaitReason::Backoff => "backoff",
        WaitReason::ServerHint => "server_hint",
        WaitReason::OwnQuota => "own_quota",
        WaitReason::Pacing => "pacing",
        WaitReason::SpendingCap => "spending_cap",
        WaitReason::Cooldown => "cooldown",
        WaitReason::Outage => "outage",
    }
}

/// Emits the event of a step, which is redacted already.
pub(super) fn step(call: &str, attempt: u32, last: Option<&Attempt>, step: &Step) {
    let base = Fields::new(attempt, last);
    let (level, name, message, fields): (_, _, Cow<'_, str>, _) = match step {
        Step::Attempt(of) => {
            let fields = Fields {
                status: of.status,
                quota: Some(of.quota.as_str()),
                reason: of.reason.as_deref(),
                cost: Some(of.cost),
                took: Some(of.took),
                ..base
            };
            (Level::DEBUG, "attempt", "attempt ended".into(), fields)
        }
        Step::Preferred { asked, model, why } => {
            let (from, to) = (Some(asked.as_str()), Some(model.as_str()));
            let fields = Fields { from, to, why: Some(reason_name(why)), ..base };
            (Level::DEBUG, "preferred", "another model is tried first".into(), fields)
        }
        Step::Signed { restored, placeholders } => {
            let message = format!(
                "thought signatures added to the request: {restored} restored, {placeholders} \
                 placeholders"
            );
            (Level::DEBUG, "signed", message.into(), base)
        }
        Step::Waited { delay, why } => {
            let delay_ms = u64::try_from(delay.as_millis()).ok();
            let fields = Fields { delay_ms, why: Some(wait_name(*why).into()), ..base };
            (Level::DEBUG, "waited", "waiting before the next attempt".into(), fields)
        }
        Step::FellBack { from, to, why } => {
            let outcome = Some(why.as_str());
            let fields = Fields { from: Some(from), to: Some(to), outcome, ..base };
            (Level::INFO, "fell_back", "falling back to another target".into(), fields)
        }
        Step::Skipped { target, why } => {
            let delay_ms = match why {
                SkipReason::CircuitOpen { left } => u64::try_from(left.as_millis()).ok(),
                _ => None,
            };
            let fields = Fields { to: Some(target), why: Some(reason_name(why)), delay_ms, ..base };
            (Level::DEBUG, "skipped", "target skipped".into(), fields)
        }
        Step::Degraded { given_up } => {
            let given_up: Vec<_> = given_up.iter().map(ToString::to_string).collect();
            let fields = Fields { why: Some(given_up.join(", ").into()), ..base };
            (Level::INFO, "degraded", "the next attempt requests less".into(), fields)
        }
        Step::Replaced { model, successor } => {
            let fields = Fields { from: Some(model), to: Some(successor), ..base };
            let message = "the model is retired and replaced by its successor";
            (Level::DEBUG, "replaced", message.into(), fields)
        }
        Step::Stopped { why } => {
            let fields = Fields { why: Some(reason_name(why)), ..base };
            (Level::DEBUG, "stopped", "nothing more is sent".into(), fields)
        }
        Step::Continued { attempts } => {
            let message = format!("goes on with a call that failed after {attempts} attempts");
            (Level::DEBUG, "continued", message.into(), base)
        }
        Step::Interaction { id } => {
            let fields = Fields { reason: Some(id), ..base };
            (Level::DEBUG, "interaction", "the response named its interaction".into(), fields)
        }
        Step::Fetched { how, status, said } => {
            let why = Some(reason_name(how));
            let fields = Fields { status: *status, reason: said.as_deref(), why, ..base };
            (
                Level::INFO,
                "fetched",
                "fetched an interaction whose response broke off".into(),
                fields,
            )
        }
        Step::ClientDisconnected => {
            let message = "the client disconnected; the attempt is completed without it";
            (Level::INFO, "client_disconnected", message.into(), base)
        }
        Step::Stored { bytes } => {
            let message =
                format!("the response is stored for an identical request ({bytes} bytes)");
            (Level::INFO, "stored", message.into(), base)
        }
        Step::NotStored { why } => {
            let fields = Fields { why: Some(reason_name(why)), ..base };
            (Level::INFO, "not_stored", "the response is not stored".into(), fields)
        }
        Step::Replayed { age, cost, .. } => {
            let fields = Fields { cost: Some(*cost), took: Some(*age), ..base };
            (Level::INFO, "replayed", "stored response replayed".into(), fields)
        }
    };
    fields.emit(level, call, name, &message);
}

/// Emits the event of a call's end, with its sentence as the message.
pub(super) fn end(
    call: &str,
    attempts: u32,
    last: Option<&Attempt>,
    steps: &[Step],
    end: &CallEnd<'_>,
) {
    let charge: Charge = charge_of(steps);
    let fields = Fields {
        attempt: Some(attempts),
        outcome: Some(end.outcome.as_str()),
        charge: Some(charge.as_str()),
        cost: Some(cost_of(steps)),
        took: Some(end.took),
        ..Fields::new(attempts, last)
    };
    let level = if is_systemic(steps) { Level::WARN } else { Level::INFO };
    fields.emit(level, call, "call", end.sentence);
}

#[cfg(test)]
mod tests {
    use crate::trail::{NotStoredReason, PreferReason, StopReason};
    use tower_gemini_core::target::Unfit;

    use super::*;

    #[test]
    fn reasons_have_the_names_that_trails_have() {
        assert_eq!(reason_name(&StopReason::AttemptsUsedUp), "attempts_used_up");
        assert_eq!(reason_name(&NotStoredReason::TooLate), "too_late");
        assert_eq!(reason_name(&PreferReason::PeakHours), "peak_hours");
        assert_eq!(reason_name(&SkipReason::Gone), "gone");
        assert_eq!(
            reason_name(&SkipReason::CircuitOpen { left: Duration::from_secs(1) }),
            "circuit_open"
        );
        // Which misfit it is would make too many series: the trail has it.
        assert_eq!(reason_name(&SkipReason::Unfit(Unfit::CannotEdit)), "unfit");
        assert_eq!(reason_name(&WaitReason::OwnQuota), wait_name(WaitReason::OwnQuota));
    }
}
