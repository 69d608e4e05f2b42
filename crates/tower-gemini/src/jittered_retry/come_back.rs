//! A resend that a fallback outside makes: it waits where it can see all of its targets.

use tokio::time::Instant;
use tower_gemini_core::verdict::{Outcome, Verdict};

use super::{RetryBudget, RetryState};
use crate::trail::WaitReason;

/// What is remembered of the attempts that a call has made at one target.
#[derive(Debug, Clone, Default)]
pub(crate) struct Before {
    pub(super) retries: RetryState,
    /// When the first of them started.
    pub(super) started: Option<Instant>,
}

/// When an attempt that failed is due again, by the retry's policy, and what that policy remembers.
#[derive(Debug)]
pub(crate) struct ComeBack {
    pub(super) before: Before,
    /// Not before this.
    pub(crate) due: Instant,
    /// Why.
    pub(crate) why: WaitReason,
    /// Nor, while the target is known to be overloaded, before this: the last attempt is kept for
    /// the middle of the time that is left, since other calls may find out for it.
    pub(crate) probes_from: Instant,
    /// Not after this.
    pub(crate) latest: Instant,
    /// What its tokens were taken from; they are given back where it is not made after all.
    pub(super) paid: Option<RetryBudget>,
}

impl ComeBack {
    /// It is made.
    pub(crate) fn go(mut self) -> Before {
        self.paid = None;
        std::mem::take(&mut self.before)
    }
}

impl Drop for ComeBack {
    fn drop(&mut self) {
        if let Some(budget) = &self.paid {
            budget.give_back();
        }
    }
}

/// Whether only time cures this: a fault of the service is often over in a second, and no other
/// target is worth a thought meanwhile.
pub(super) fn lasts(verdict: &Verdict) -> bool {
    matches!(
        verdict.outcome(),
        Outcome::Overloaded
            | Outcome::RateLimitedMinute
            | Outcome::RateLimited
            | Outcome::SpendRateLimited
    )
}
