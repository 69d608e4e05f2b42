//! Decides whether a call falls back after a response, and to what. Pure.

use std::time::Duration;

use tokio::time::Instant;
use tower_gemini_core::target::Signatures;
use tower_gemini_core::verdict::{Charge, Outcome, Scope, Verdict};

use super::ladder::Ladder;
use crate::trail::StopReason;

/// What a call does after an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Falls back to the next target.
    FallBack,
    /// Returns the response.
    Stop,
}

/// Which verdicts make a call fall back. See [`model_fallback`](crate::model_fallback) for the
/// defaults.
///
/// A policy only narrows what may be sent at all: after a charge no call falls back, and after a
/// possible charge only within the caller's allowance.
#[derive(Debug, Clone)]
pub struct FallbackPolicy {
    reactions: Vec<(Outcome, Reaction)>,
    empty_answers: u32,
    pub(super) deadline: Duration,
    pub(super) maybe_charged: Option<u32>,
    pub(super) signatures: Signatures,
    pub(super) waits: bool,
    pub(super) most_waiting: usize,
}

/// What follows a target's last response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is returned. `None` where there is nothing to say about that.
    Stop(Option<StopReason>),
    /// The call goes on.
    Continue(Ways),
}

/// Where a call may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ways {
    /// To other targets of the chain.
    pub(super) targets: bool,
    /// To smaller sizes of the same target.
    pub(super) sizes: bool,
    /// The whole account was refused: to targets of other accounts only.
    pub(super) account_closed: bool,
    /// To the same model for another account of the same service: what failed is the account or its
    /// quota.
    pub(super) other_accounts: bool,
}

impl Ways {
    /// Nowhere else.
    pub(super) const NONE: Self =
        Self { targets: false, sizes: false, account_closed: false, other_accounts: false };
}

/// Where a call stands when its last response has been judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    pub(super) verdict: &'a Verdict,
    /// Whether there is a chain to follow.
    pub(super) has_chain: bool,
    pub(super) ladder: Option<&'a Ladder>,
    pub(super) allowance_left: u32,
    /// How often this call went on after a response without an image.
    pub(super) empty_answers: u32,
    pub(super) now: Instant,
    pub(super) deadline: Option<Instant>,
}

impl FallbackPolicy {
    /// The defaults listed in [`model_fallback`](crate::model_fallback).
    #[must_use]
    pub fn recommended() -> Self {
        Self {
            reactions: Vec::new(),
            empty_answers: 1,
            deadline: Duration::from_secs(30 * 60),
            maybe_charged: None,
            signatures: Signatures::default(),
            waits: true,
            most_waiting: 1_000,
        }
    }

    /// What a call does after this outcome, whatever the verdict says about other models.
    #[must_use]
    pub fn on(mut self, outcome: Outcome, reaction: Reaction) -> Self {
        self.reactions.retain(|(known, _)| *known != outcome);
        self.reactions.push((outcome, reaction));
        self
    }

    /// How many times a call falls back after a response without an image that the API waives.
    #[must_use]
    pub fn empty_answers(mut self, fallbacks: u32) -> Self {
        self.empty_answers = fallbacks;
        self
    }

    /// The time a call may take from its start, all targets included, where the caller sets none.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How many times a call may be sent again after an attempt that may have been charged, where
    /// the caller sets no allowance.
    #[must_use]
    pub fn maybe_charged_resends(mut self, resends: u32) -> Self {
        self.maybe_charged = Some(resends);
        self
    }

    /// What happens to thought signatures.
    #[must_use]
    pub fn signatures(mut self, signatures: Signatures) -> Self {
        self.signatures = signatures;
        self
    }

    /// Refuses a call at once while all circuits are open, and returns the last response when every
    /// target has failed. By default one call probes a target whose capacity may be back, and the
    /// others wait for the first circuit to close, within their deadline.
    #[must_use]
    pub fn refuse_when_all_open(mut self) -> Self {
        self.waits = false;
        self
    }

    /// How many calls may wait for a target. Further ones get the last response, or are refused:
    /// they would take the places of calls for other models.
    #[must_use]
    pub fn most_waiting(mut self, calls: usize) -> Self {
        self.most_waiting = calls;
        self
    }

    /// Decides what follows.
    pub(super) fn next(&self, at: &Situation<'_>) -> Decision {
        let (verdict, outcome) = (at.verdict, at.verdict.outcome());
        let sizes = at.ladder.is_some_and(|ladder| ladder.steps_down_after(outcome));
        if outcome.is_success() || !(at.has_chain || sizes) {
            return Decision::Stop(None);
        }
        let account_closed = verdict.scope() == Scope::Account && !verdict.another_model_helps();
        let own = self.reactions.iter().find(|(known, _)| *known == outcome);
        let targets = at.has_chain
            && own.map_or(account_closed || verdict.another_model_helps(), |(_, reaction)| {
                *reaction == Reaction::FallBack
            });
        let charge = verdict.charge();
        let is_late = at.deadline.is_some_and(|deadline| deadline <= at.now);
        let reasons = [
            (charge == Charge::Charged, StopReason::Charged),
            (!(targets || sizes), StopReason::NotRetryable),
            (charge == Charge::Maybe && at.allowance_left == 0, StopReason::MaybeCharged),
            (
                outcome == Outcome::NoImage && at.empty_answers >= self.empty_answers,
                StopReason::AttemptsUsedUp,
            ),
            (is_late, StopReason::DeadlineTooNear),
        ];
        if let Some((_, why)) = reasons.into_iter().find(|(applies, _)| *applies) {
            return Decision::Stop(Some(why));
        }
        let other_accounts = account_closed || is_quota(outcome);
        Decision::Continue(Ways { targets, sizes, account_closed, other_accounts })
    }
}

/// Whether another account would have a quota of its own for it.
fn is_quota(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::RateLimitedMinute
            | Outcome::RateLimited
            | Outcome::RateLimitedDay
            | Outcome::SpendRateLimited
            | Outcome::QuotaZeroOrBilling
    )
}

impl Default for FallbackPolicy {
    fn default() -> Self {
        Self::recommended()
    }
}
