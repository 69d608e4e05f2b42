//! Which verdicts move a call on to another target: pure.

use std::time::{Duration, Instant};

use crate::trail::StopReason;
use tower_gemini_core::target::Signatures;
use tower_gemini_core::verdict::{Charge, Outcome, Scope, Verdict};

/// What one outcome does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// On to the next target.
    On,
    /// The answer stands.
    Stop,
}

/// Which verdicts move a call on. See the [module](super) for the defaults.
///
/// A policy is advice on top of what may be sent at all: what was charged never moves on, and what
/// may have been only out of the caller's allowance.
#[derive(Debug, Clone)]
pub struct FallbackPolicy {
    outcomes: Vec<(Outcome, Move)>,
    empty_answers: u32,
    deadline: Option<Duration>,
    maybe_charged: Option<u32>,
    pub(super) signatures: Signatures,
    pub(super) probes_when_all_rest: bool,
}

/// What follows on a target's last answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// It stands. `None` where it was a success.
    Stop(Option<StopReason>),
    /// On to another target, of another account where this one was refused as a whole.
    MoveOn { account_closed: bool },
}

impl FallbackPolicy {
    /// The defaults listed in the [module](super).
    #[must_use]
    pub fn recommended() -> Self {
        Self {
            outcomes: Vec::new(),
            empty_answers: 1,
            deadline: Some(Duration::from_secs(30 * 60)),
            maybe_charged: None,
            signatures: Signatures::default(),
            probes_when_all_rest: true,
        }
    }

    /// What this outcome does, whatever the verdict thinks of other models.
    #[must_use]
    pub fn on(mut self, outcome: Outcome, then: Move) -> Self {
        self.outcomes.retain(|(known, _)| *known != outcome);
        self.outcomes.push((outcome, then));
        self
    }

    /// How many times an answer without an image that the API waives moves a call on.
    #[must_use]
    pub fn empty_answers(mut self, moves: u32) -> Self {
        self.empty_answers = moves;
        self
    }

    /// The time a call may take, all targets included, where the caller does not set one.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How many sends may follow on one that may have been charged, for callers who set no
    /// allowance of their own.
    #[must_use]
    pub fn maybe_charged_resends(mut self, resends: u32) -> Self {
        self.maybe_charged = Some(resends);
        self
    }

    /// What becomes of thought signatures.
    #[must_use]
    pub fn signatures(mut self, signatures: Signatures) -> Self {
        self.signatures = signatures;
        self
    }

    /// Refuses at once when every target rests, rather than trying the one that has rested longest.
    #[must_use]
    pub fn refuse_when_all_rest(mut self) -> Self {
        self.probes_when_all_rest = false;
        self
    }

    pub(super) fn call_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    pub(super) fn allowance(&self) -> Option<u32> {
        self.maybe_charged
    }

    /// Decides what follows. `empty` counts the moves after answers without an image.
    pub(super) fn next(
        &self,
        empty: &mut u32,
        verdict: &Verdict,
        allowance: u32,
        now: Instant,
        deadline: Option<Instant>,
    ) -> Decision {
        let outcome = verdict.outcome();
        if outcome.is_success() {
            return Decision::Stop(None);
        }
        if verdict.charge() == Charge::Charged {
            return Decision::Stop(Some(StopReason::Charged));
        }
        let own = self.outcomes.iter().find(|(known, _)| *known == outcome).map(|(_, then)| *then);
        let account_closed = verdict.scope() == Scope::Account && !verdict.another_model_helps();
        let moves = match own {
            Some(then) => then == Move::On,
            None => account_closed || verdict.another_model_helps(),
        };
        if !moves {
            return Decision::Stop(Some(StopReason::NotRetryable));
        }
        if verdict.charge() == Charge::Maybe && allowance == 0 {
            return Decision::Stop(Some(StopReason::MaybeCharged));
        }
        if outcome == Outcome::NoImage {
            if *empty >= self.empty_answers {
                return Decision::Stop(Some(StopReason::AttemptsUsedUp));
            }
            *empty += 1;
        }
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Decision::Stop(Some(StopReason::DeadlineTooNear));
        }
        Decision::MoveOn { account_closed }
    }
}

impl Default for FallbackPolicy {
    fn default() -> Self {
        Self::recommended()
    }
}
