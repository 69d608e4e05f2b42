//! What a finished call came to, and which kind of failure an outcome is: pure.

use std::fmt;

use crate::trail::{Step, StopReason};
use tower_gemini_core::call::{Call, Verb};
use tower_gemini_core::verdict::Outcome;

/// What a call came to, all its attempts together, as its caller saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallOutcome {
    /// As its last attempt ended.
    Ended(Outcome),
    /// It was given the answer to the same caller's earlier, identical request.
    Redeemed,
    /// Not sent: our own count says that the quota is used up.
    OwnQuota,
    /// Not sent: it might have passed a spending cap.
    SpendingCap,
    /// Not sent: every target of the fallback rests or is out of the question.
    NoTarget,
    /// Not sent: an earlier, identical request may have been paid for, and its answer was lost.
    LostBefore,
    /// Not sent, for another reason of ours that the trail does not tell; the answer does.
    RefusedHere,
    /// The caller went away before the answer was whole: neither a success nor a failure.
    CallerLeft,
}

impl CallOutcome {
    /// How many there are.
    pub(super) const COUNT: usize = Outcome::ALL.len() + 7;

    /// Every one, in the order of [`index`](Self::index).
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Outcome::ALL.iter().map(|&outcome| Self::Ended(outcome)).chain([
            Self::Redeemed,
            Self::OwnQuota,
            Self::SpendingCap,
            Self::NoTarget,
            Self::LostBefore,
            Self::RefusedHere,
            Self::CallerLeft,
        ])
    }

    /// Its place in [`all`](Self::all).
    pub(super) fn index(self) -> usize {
        let of = |n: usize| Outcome::ALL.len() + n;
        match self {
            Self::Ended(outcome) => place(outcome),
            Self::Redeemed => of(0),
            Self::OwnQuota => of(1),
            Self::SpendingCap => of(2),
            Self::NoTarget => of(3),
            Self::LostBefore => of(4),
            Self::RefusedHere => of(5),
            Self::CallerLeft => of(6),
        }
    }

    /// The word used in logs, metrics and reports: that of the [`Outcome`], or `redeemed`,
    /// `own_quota`, `spending_cap`, `no_target`, `lost_before`, `refused_here`, `caller_left`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended(outcome) => outcome.as_str(),
            Self::Redeemed => "redeemed",
            Self::OwnQuota => "own_quota",
            Self::SpendingCap => "spending_cap",
            Self::NoTarget => "no_target",
            Self::LostBefore => "lost_before",
            Self::RefusedHere => "refused_here",
            Self::CallerLeft => "caller_left",
        }
    }

    /// Whether the caller got what it asked for.
    #[must_use]
    pub fn is_success(self) -> bool {
        match self {
            Self::Ended(outcome) => outcome.is_success(),
            other => other == Self::Redeemed,
        }
    }

    /// Whether the caller did not get it, and was there to notice.
    #[must_use]
    pub fn is_failure(self) -> bool {
        !self.is_success() && self != Self::CallerLeft
    }

    /// Whether an image was delivered.
    pub(super) fn is_image(self) -> bool {
        matches!(self, Self::Ended(Outcome::Image) | Self::Redeemed)
    }
}

impl fmt::Display for CallOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An outcome's place in [`Outcome::ALL`].
pub(super) fn place(outcome: Outcome) -> usize {
    Outcome::ALL.iter().position(|&one| one == outcome).unwrap_or(Outcome::ALL.len() - 1)
}

/// What kind of failure an attempt ended in: what people tell apart, by what has to be done about
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FailureKind {
    /// A limit of your own: the 429s that are about your project, and spending limits.
    RateLimited,
    /// The model has no capacity: 503s, and the 429s that mean the same.
    Overloaded,
    /// A fault or a deadline inside the service: 500, 502, 504.
    ServerFault,
    /// The prompt or the picture was refused.
    Refused,
    /// An answer without the image that was asked for.
    NoImage,
    /// The request is malformed, too large, or asks for what the model cannot do.
    BadRequest,
    /// The conversation lacks its thought signatures.
    Signatures,
    /// The key, its permissions, or the region.
    Key,
    /// No such model, any more.
    Gone,
    /// It was not sent, or broke off.
    Transport,
    /// Nothing known fits.
    Other,
}

impl FailureKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::RateLimited,
        Self::Overloaded,
        Self::ServerFault,
        Self::Refused,
        Self::NoImage,
        Self::BadRequest,
        Self::Signatures,
        Self::Key,
        Self::Gone,
        Self::Transport,
        Self::Other,
    ];

    /// The kind of an outcome; `None` of a success.
    #[must_use]
    pub fn of(outcome: Outcome) -> Option<Self> {
        Some(match outcome {
            Outcome::Image | Outcome::Answered => return None,
            Outcome::RateLimitedMinute
            | Outcome::RateLimitedDay
            | Outcome::RateLimited
            | Outcome::SpendRateLimited
            | Outcome::QuotaZeroOrBilling => Self::RateLimited,
            Outcome::Overloaded => Self::Overloaded,
            Outcome::Internal | Outcome::Deadline | Outcome::BadGateway => Self::ServerFault,
            Outcome::ContentBlocked | Outcome::PromptBlocked => Self::Refused,
            Outcome::NoImage | Outcome::OutOfTokens => Self::NoImage,
            Outcome::BadRequest | Outcome::PayloadTooLarge => Self::BadRequest,
            Outcome::MissingThoughtSignature => Self::Signatures,
            Outcome::Auth | Outcome::Permission | Outcome::Region => Self::Key,
            Outcome::NotFound => Self::Gone,
            Outcome::NotSent | Outcome::Interrupted | Outcome::StreamError => Self::Transport,
            _ => Self::Other,
        })
    }

    /// A few words for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RateLimited => "429, limits of your own",
            Self::Overloaded => "503, no capacity",
            Self::ServerFault => "500, 502 or 504",
            Self::Refused => "refused content",
            Self::NoImage => "no image in the answer",
            Self::BadRequest => "400, bad request",
            Self::Signatures => "400, thought signatures",
            Self::Key => "401 or 403, key or region",
            Self::Gone => "404, no such model",
            Self::Transport => "connection",
            Self::Other => "other",
        }
    }

    /// Whether the service is at fault, and not the request, the account or the way to it.
    pub(super) fn is_service(self) -> bool {
        matches!(self, Self::Overloaded | Self::ServerFault)
    }
}

/// How a call ended, as the outermost layer saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The answer was read to its end.
    Complete,
    /// There was no answer, or its body broke off; with the outcome that the error holds, where it
    /// is one of ours.
    Failed(Option<Outcome>),
    /// The caller dropped the call before its head had come, or its body before that had ended.
    Left,
}

/// What a call came to, from its trail, its end and the status that its caller saw.
pub(super) fn outcome_of(steps: &[Step], how: How, status: Option<u16>) -> CallOutcome {
    let came_to = came_to(steps, how, status);
    // Who drops a call before its head has come, or the body of a success before it has ended, does
    // not want it any more. Of a failure the head is all there is to read.
    if how == How::Left && (status.is_none() || came_to.is_success()) {
        CallOutcome::CallerLeft
    } else {
        came_to
    }
}

fn came_to(steps: &[Step], how: How, status: Option<u16>) -> CallOutcome {
    let succeeded = status.is_none_or(|status| (200..300).contains(&status));
    let said = match how {
        How::Failed(said) => said.filter(|outcome| !outcome.is_success()),
        _ => None,
    };
    let failed = matches!(how, How::Failed(_)) || !succeeded;
    // The last thing that decides: what a fallback passed by before it does not count.
    let last = steps.iter().rev().find_map(|step| match step {
        Step::Attempt(attempt) => Some(match attempt.outcome {
            Some(outcome) if outcome.is_success() && failed => {
                CallOutcome::Ended(said.unwrap_or(Outcome::Interrupted))
            }
            Some(outcome) => CallOutcome::Ended(outcome),
            None => CallOutcome::Ended(said.unwrap_or(Outcome::Interrupted)),
        }),
        Step::Redeemed { outcome: Outcome::Image, .. } if !failed => Some(CallOutcome::Redeemed),
        Step::Redeemed { outcome, .. } if !failed => Some(CallOutcome::Ended(*outcome)),
        Step::Stopped { why: StopReason::QuotaUsedUp } => Some(CallOutcome::OwnQuota),
        Step::Stopped { why: StopReason::SpendingCap } => Some(CallOutcome::SpendingCap),
        Step::Stopped { why: StopReason::LostBefore } => Some(CallOutcome::LostBefore),
        _ => None,
    });
    let none_left =
        || steps.iter().any(|step| matches!(step, Step::Stopped { why: StopReason::NoTargetLeft }));
    match (last, said) {
        (Some(last), _) => last,
        (None, _) if none_left() => CallOutcome::NoTarget,
        (None, Some(said)) => CallOutcome::Ended(said),
        (None, None) if failed && status.is_none() => CallOutcome::Ended(Outcome::NotSent),
        (None, None) if failed => CallOutcome::RefusedHere,
        (None, None) => CallOutcome::Ended(Outcome::Answered),
    }
}

/// Whether a call asks a model to make something. Only such calls count in rates: a thousand token
/// counts that succeed do not make images come.
pub(super) fn is_generating(call: &Call) -> bool {
    matches!(call.verb, Verb::Generate | Verb::StreamGenerate | Verb::Predict)
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
    fn every_outcome_has_a_place_and_a_word_of_its_own() {
        let all: Vec<_> = CallOutcome::all().collect();
        assert_eq!(all.len(), CallOutcome::COUNT);
        for (place, outcome) in all.iter().enumerate() {
            assert_eq!(outcome.index(), place);
        }
        let mut words: Vec<_> = all.iter().map(|outcome| outcome.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), CallOutcome::COUNT);
    }

    #[test]
    fn every_failed_outcome_has_a_kind_and_no_success_has_one() {
        for &outcome in Outcome::ALL {
            assert_eq!(FailureKind::of(outcome).is_none(), outcome.is_success(), "{outcome}");
        }
    }

    #[test]
    fn a_call_comes_to_what_its_last_attempt_or_refusal_decided() {
        let image = attempt(&Verdict::delivering());
        let cut_off = attempt(&Verdict::interrupted());
        let ended = CallOutcome::Ended;
        for (steps, how, status, expected) in [
            (steps(std::slice::from_ref(&image)), How::Complete, Some(200), ended(Outcome::Image)),
            (
                steps(&[cut_off.clone(), image.clone()]),
                How::Complete,
                Some(200),
                ended(Outcome::Image),
            ),
            (
                steps(std::slice::from_ref(&cut_off)),
                How::Failed(Some(Outcome::Interrupted)),
                None,
                ended(Outcome::Interrupted),
            ),
            // Somebody else's error above a delivered image: the caller did not get it.
            (
                steps(std::slice::from_ref(&image)),
                How::Failed(None),
                Some(200),
                ended(Outcome::Interrupted),
            ),
            (steps(std::slice::from_ref(&image)), How::Left, Some(200), CallOutcome::CallerLeft),
            (Vec::new(), How::Left, None, CallOutcome::CallerLeft),
            // The head of an error is all of it, and a refusal is known by then.
            (
                steps(std::slice::from_ref(&cut_off)),
                How::Left,
                Some(503),
                ended(Outcome::Interrupted),
            ),
            (
                steps(std::slice::from_ref(&cut_off)),
                How::Left,
                Some(200),
                ended(Outcome::Interrupted),
            ),
            (steps(std::slice::from_ref(&cut_off)), How::Left, None, CallOutcome::CallerLeft),
            (
                steps(&[stopped(StopReason::QuotaUsedUp)]),
                How::Complete,
                Some(429),
                CallOutcome::OwnQuota,
            ),
            (
                steps(&[stopped(StopReason::SpendingCap)]),
                How::Complete,
                Some(402),
                CallOutcome::SpendingCap,
            ),
            (
                steps(&[stopped(StopReason::LostBefore)]),
                How::Failed(Some(Outcome::Interrupted)),
                None,
                CallOutcome::LostBefore,
            ),
            (
                steps(&[stopped(StopReason::NoTargetLeft)]),
                How::Complete,
                Some(503),
                CallOutcome::NoTarget,
            ),
            // The quota of one target was used up, and another answered.
            (
                steps(&[stopped(StopReason::QuotaUsedUp), image.clone()]),
                How::Complete,
                Some(200),
                ended(Outcome::Image),
            ),
            (
                steps(&[cut_off, stopped(StopReason::QuotaUsedUp)]),
                How::Complete,
                Some(429),
                CallOutcome::OwnQuota,
            ),
            (Vec::new(), How::Complete, Some(400), CallOutcome::RefusedHere),
            (Vec::new(), How::Complete, Some(200), ended(Outcome::Answered)),
            (Vec::new(), How::Failed(Some(Outcome::NotSent)), None, ended(Outcome::NotSent)),
            (Vec::new(), How::Failed(None), None, ended(Outcome::NotSent)),
            (
                vec![Step::Redeemed {
                    age: Duration::ZERO,
                    cost: Cost::exactly(1),
                    outcome: Outcome::Image,
                }],
                How::Complete,
                Some(200),
                CallOutcome::Redeemed,
            ),
        ] {
            assert_eq!(outcome_of(&steps, how, status), expected, "{steps:?} {how:?} {status:?}");
        }
    }

    #[test]
    fn a_caller_that_left_is_neither_a_success_nor_a_failure() {
        assert!(!CallOutcome::CallerLeft.is_success() && !CallOutcome::CallerLeft.is_failure());
    }
}
