//! Decides what a finished call came to.

use std::any::Any;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{BoxError, Error};
use crate::trail::{Step, StopReason};
use tower_gemini_core::verdict::Outcome;

/// The outcome of a call for its client, all attempts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CallOutcome {
    /// The outcome of its last attempt.
    Ended(Outcome),
    /// The stored response to the same client's earlier, identical request was replayed.
    Replayed,
    /// Not sent: the quota is used up by our own count.
    OwnQuota,
    /// Not sent: it could exceed a spending cap.
    SpendingCap,
    /// Not sent: every target of the fallback is cooling down or unsuitable.
    NoTarget,
    /// Not sent: an earlier, identical request may have been charged and its response was lost.
    EarlierResponseLost,
    /// Not sent: what is paid for could not be recorded first.
    NotRecorded,
    /// Rejected by a layer for a reason that is in the response, not in the trail.
    Rejected,
    /// The client disconnected before the response was complete: neither success nor failure.
    ClientDisconnected,
}

impl CallOutcome {
    /// Returns the name used in logs, metrics and reports: that of the [`Outcome`], or `replayed`,
    /// `own_quota`, `spending_cap`, `no_target`, `earlier_response_lost`, `not_recorded`,
    /// `rejected`, `client_disconnected`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended(outcome) => outcome.as_str(),
            Self::Replayed => "replayed",
            Self::OwnQuota => "own_quota",
            Self::SpendingCap => "spending_cap",
            Self::NoTarget => "no_target",
            Self::EarlierResponseLost => "earlier_response_lost",
            Self::NotRecorded => "not_recorded",
            Self::Rejected => "rejected",
            Self::ClientDisconnected => "client_disconnected",
        }
    }

    /// Whether the client got what it requested.
    #[must_use]
    pub fn is_success(self) -> bool {
        match self {
            Self::Ended(outcome) => outcome.is_success(),
            other => other == Self::Replayed,
        }
    }

    /// Whether the client was connected and did not get it.
    #[must_use]
    pub fn is_failure(self) -> bool {
        !self.is_success() && self != Self::ClientDisconnected
    }

    /// Whether an image was delivered.
    #[must_use]
    pub fn is_image(self) -> bool {
        matches!(self, Self::Ended(Outcome::Image) | Self::Replayed)
    }
}

impl fmt::Display for CallOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a call ended for the outermost layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HowEnded {
    /// The response was read to its end.
    Complete,
    /// There was no response, or its body failed; with the outcome in the error, if it is ours.
    Failed(Option<Outcome>),
    /// It was not sent, since it could not be recorded.
    NotRecorded,
    /// The call or its response's body was dropped before its end.
    Dropped,
}

impl HowEnded {
    /// The call failed with this error, which may be one of ours, boxed or not.
    pub(super) fn failed<E: 'static>(error: &E) -> Self {
        let error: &dyn Any = error;
        let ours = match error.downcast_ref::<BoxError>() {
            Some(boxed) => boxed.downcast_ref::<Error>(),
            None => error.downcast_ref::<Error>(),
        };
        match ours {
            Some(error) if error.is_not_recorded() => Self::NotRecorded,
            ours => Self::Failed(ours.map(|error| error.verdict().outcome())),
        }
    }
}

/// Decides by the trail, the end and the status that the client saw.
pub(super) fn outcome_of(steps: &[Step], how: HowEnded, status: Option<u16>) -> CallOutcome {
    let outcome = outcome_if_read(steps, how, status);
    // A client that drops a call before its head, or the body of a success before its end, has
    // disconnected. Of a failure the head is all there is to read.
    if how == HowEnded::Dropped && (status.is_none() || outcome.is_success()) {
        CallOutcome::ClientDisconnected
    } else {
        outcome
    }
}

fn outcome_if_read(steps: &[Step], how: HowEnded, status: Option<u16>) -> CallOutcome {
    if how == HowEnded::NotRecorded {
        return CallOutcome::NotRecorded;
    }
    let succeeded = status.is_none_or(|status| (200..300).contains(&status));
    let said = match how {
        HowEnded::Failed(said) => said.filter(|outcome| !outcome.is_success()),
        _ => None,
    };
    let failed = matches!(how, HowEnded::Failed(_)) || !succeeded;
    // The last decisive step: what a fallback got past before it does not count.
    let last = steps.iter().rev().find_map(|step| match step {
        Step::Attempt(attempt) => Some(match attempt.outcome {
            Some(outcome) if outcome.is_success() && failed => {
                CallOutcome::Ended(said.unwrap_or(Outcome::Interrupted))
            }
            Some(outcome) => CallOutcome::Ended(outcome),
            None => CallOutcome::Ended(said.unwrap_or(Outcome::Interrupted)),
        }),
        Step::Replayed { outcome: Outcome::Image, .. } if !failed => Some(CallOutcome::Replayed),
        Step::Replayed { outcome, .. } if !failed => Some(CallOutcome::Ended(*outcome)),
        Step::Stopped { why: StopReason::QuotaUsedUp } => Some(CallOutcome::OwnQuota),
        Step::Stopped { why: StopReason::SpendingCap } => Some(CallOutcome::SpendingCap),
        Step::Stopped { why: StopReason::EarlierResponseLost } => {
            Some(CallOutcome::EarlierResponseLost)
        }
        _ => None,
    });
    let none_left =
        || steps.iter().any(|step| matches!(step, Step::Stopped { why: StopReason::NoTargetLeft }));
    match (last, said) {
        (Some(last), _) => last,
        (None, _) if none_left() => CallOutcome::NoTarget,
        (None, Some(said)) => CallOutcome::Ended(said),
        (None, None) if failed && status.is_none() => CallOutcome::Ended(Outcome::NotSent),
        (None, None) if failed => CallOutcome::Rejected,
        (None, None) => CallOutcome::Ended(Outcome::Answered),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::trail::Trail;
    use tower_gemini_core::cost::Cost;
    use tower_gemini_core::verdict::Verdict;

    use super::*;

    fn steps(of: &[Step]) -> Vec<Step> {
        of.to_vec()
    }

    fn attempt(verdict: &Verdict) -> Step {
        let trail = Trail::new();
        trail.begin_attempt(None, None).end(None, verdict, Cost::ZERO, Duration::ZERO);
        trail.steps().remove(0)
    }

    fn stopped(why: StopReason) -> Step {
        Step::Stopped { why }
    }

    #[test]
    fn the_last_attempt_or_refusal_decides_the_outcome() {
        let image = attempt(&Verdict::delivering());
        let cut_off = attempt(&Verdict::interrupted());
        let ended = CallOutcome::Ended;
        for (steps, how, status, expected) in [
            (
                steps(std::slice::from_ref(&image)),
                HowEnded::Complete,
                Some(200),
                ended(Outcome::Image),
            ),
            (
                steps(&[cut_off.clone(), image.clone()]),
                HowEnded::Complete,
                Some(200),
                ended(Outcome::Image),
            ),
            (
                steps(std::slice::from_ref(&cut_off)),
                HowEnded::Failed(Some(Outcome::Interrupted)),
                None,
                ended(Outcome::Interrupted),
            ),
            // Another layer's error over a delivered image: the client did not get it.
            (
                steps(std::slice::from_ref(&image)),
                HowEnded::Failed(None),
                Some(200),
                ended(Outcome::Interrupted),
            ),
            (
                steps(std::slice::from_ref(&image)),
                HowEnded::Dropped,
                Some(200),
                CallOutcome::ClientDisconnected,
            ),
            (Vec::new(), HowEnded::Dropped, None, CallOutcome::ClientDisconnected),
            // The head of an error is all of it, and a refusal is known by then.
            (
                steps(std::slice::from_ref(&cut_off)),
                HowEnded::Dropped,
                Some(503),
                ended(Outcome::Interrupted),
            ),
            (
                steps(std::slice::from_ref(&cut_off)),
                HowEnded::Dropped,
                Some(200),
                ended(Outcome::Interrupted),
            ),
            (
                steps(std::slice::from_ref(&cut_off)),
                HowEnded::Dropped,
                None,
                CallOutcome::ClientDisconnected,
            ),
            (
                steps(&[stopped(StopReason::QuotaUsedUp)]),
                HowEnded::Complete,
                Some(429),
                CallOutcome::OwnQuota,
            ),
            (
                steps(&[stopped(StopReason::SpendingCap)]),
                HowEnded::Complete,
                Some(402),
                CallOutcome::SpendingCap,
            ),
            (
                steps(&[stopped(StopReason::EarlierResponseLost)]),
                HowEnded::Failed(Some(Outcome::Interrupted)),
                None,
                CallOutcome::EarlierResponseLost,
            ),
            // Its attempt is in the trail as not sent.
            (
                steps(&[attempt(&Verdict::not_sent())]),
                HowEnded::NotRecorded,
                None,
                CallOutcome::NotRecorded,
            ),
            (
                steps(&[stopped(StopReason::NoTargetLeft)]),
                HowEnded::Complete,
                Some(503),
                CallOutcome::NoTarget,
            ),
            // The quota of one target was used up, and another responded.
            (
                steps(&[stopped(StopReason::QuotaUsedUp), image.clone()]),
                HowEnded::Complete,
                Some(200),
                ended(Outcome::Image),
            ),
            (
                steps(&[cut_off, stopped(StopReason::QuotaUsedUp)]),
                HowEnded::Complete,
                Some(429),
                CallOutcome::OwnQuota,
            ),
            (Vec::new(), HowEnded::Complete, Some(400), CallOutcome::Rejected),
            (Vec::new(), HowEnded::Complete, Some(200), ended(Outcome::Answered)),
            (Vec::new(), HowEnded::Failed(Some(Outcome::NotSent)), None, ended(Outcome::NotSent)),
            (Vec::new(), HowEnded::Failed(None), None, ended(Outcome::NotSent)),
            (
                vec![Step::Replayed {
                    age: Duration::ZERO,
                    cost: Cost::exactly(1),
                    outcome: Outcome::Image,
                }],
                HowEnded::Complete,
                Some(200),
                CallOutcome::Replayed,
            ),
        ] {
            assert_eq!(outcome_of(&steps, how, status), expected, "{steps:?} {how:?} {status:?}");
        }
    }

    #[test]
    fn a_disconnected_client_is_neither_a_success_nor_a_failure() {
        assert!(
            !CallOutcome::ClientDisconnected.is_success()
                && !CallOutcome::ClientDisconnected.is_failure()
        );
    }
}
