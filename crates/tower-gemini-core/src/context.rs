//! What one call carries through all its attempts: a deadline, the risk its caller allowed, and the
//! trail.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::call::ModelId;
use crate::target::MustKeep;
use crate::trail::Trail;
use crate::verdict::{Charge, ResendPermit, Verdict};

/// How many times a call may be sent again although the attempt before *may* have been paid for.
///
/// Default 0: nothing that may have been paid for is ever sent again. One allowance is shared by
/// all layers and clones that work on the same call, so retry and fallback together never pass it.
///
/// ```
/// use tower_gemini_core::{context::Allowance, verdict::Verdict};
///
/// let allowance = Allowance::of(1);
/// let cut_off = Verdict::interrupted();
/// assert!(allowance.buy(&cut_off).is_some());
/// assert!(allowance.buy(&cut_off).is_none());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Allowance(
    /// `None` is nothing allowed: there is nothing to share, and the usual call allocates nothing
    /// for it.
    Option<Arc<AtomicU32>>,
);

impl Allowance {
    /// Leave for `resends` sends after an attempt that may have been charged.
    #[must_use]
    pub fn of(resends: u32) -> Self {
        Self((resends > 0).then(|| Arc::new(AtomicU32::new(resends))))
    }

    /// How many are left.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.0.as_ref().map_or(0, |left| left.load(Ordering::Acquire))
    }

    /// A permit for what this verdict left: free where surely nothing was paid, one unit of the
    /// allowance where it may have been, and `None` where it was, or the allowance is spent.
    #[must_use]
    pub fn buy(&self, verdict: &Verdict) -> Option<ResendPermit> {
        match verdict.charge() {
            Charge::None | Charge::Waived => verdict.resend_permit(),
            Charge::Charged => None,
            Charge::Maybe => self
                .0
                .as_ref()?
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1))
                .ok()
                .map(|_| ResendPermit::bought()),
        }
    }
}

/// What one call carries through all its attempts. O(1) to clone; the clones share it.
#[derive(Debug, Clone, Default)]
pub struct CallContext {
    deadline: Option<Instant>,
    /// Shared by the clones: a fallback's next target must not be given a new one by the retry
    /// inside it.
    allowance: Arc<OnceLock<Allowance>>,
    trail: Trail,
    must_keep: MustKeep,
}

impl CallContext {
    /// A context without a deadline, without allowance, with an empty trail.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The moment at which the caller stops waiting for the whole call, in the runtime's time.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Sets a deadline, or brings an earlier one forward: a deadline never moves back.
    pub fn limit_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(self.deadline.map_or(deadline, |at| at.min(deadline)));
    }

    /// The caller's allowance, where one was set for this call.
    #[must_use]
    pub fn allowance(&self) -> Option<&Allowance> {
        self.allowance.get()
    }

    /// Sets the allowance of this call, for all clones of this context. The caller's own (set
    /// first) wins over a layer's default.
    pub fn set_allowance_if_unset(&mut self, allowance: Allowance) {
        self.allowance.get_or_init(|| allowance);
    }

    /// What the caller insists on, whatever a fallback would give up.
    #[must_use]
    pub fn must_keep(&self) -> MustKeep {
        self.must_keep
    }

    /// What has been decided so far.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Writes into the given trail from here on. A caller who keeps a clone can read it even after
    /// dropping the call.
    #[must_use]
    pub fn with_trail(mut self, trail: Trail) -> Self {
        self.trail = trail;
        self
    }
}

/// Which model should be tried first, put into the request's extensions by whoever knows better
/// than the caller which one answers at this hour. A fallback that reads it starts its chain there;
/// without one it changes nothing.
///
/// ```
/// use tower_gemini_core::{call::ModelId, context::PreferModel};
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(PreferModel(ModelId::new("gemini-3-pro-image")));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferModel(pub ModelId);

/// The caller is in no hurry: the call may wait this long for an hour in which it is likelier to
/// succeed. Put into the request's extensions; read by `PeakHourRouter`.
///
/// ```
/// use std::time::Duration;
/// use tower_gemini_core::context::Deferrable;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(Deferrable::for_up_to(Duration::from_secs(6 * 3600)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deferrable {
    patience: std::time::Duration,
}

impl Deferrable {
    /// May wait this long, from when it is called.
    #[must_use]
    pub fn for_up_to(patience: std::time::Duration) -> Self {
        Self { patience }
    }

    /// How long it may wait.
    #[must_use]
    pub fn patience(self) -> std::time::Duration {
        self.patience
    }
}

/// What the caller wants of one call, put into the request's extensions.
///
/// ```
/// use std::time::Duration;
/// use tower_gemini_core::{context::CallOptions, trail::Trail};
///
/// let trail = Trail::new();
/// let options = CallOptions::new()
///     .deadline(Duration::from_secs(120))
///     .maybe_charged_resends(1)
///     .trail(trail.clone());
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(options);
/// ```
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    pub(crate) deadline: Option<std::time::Duration>,
    pub(crate) maybe_charged_resends: Option<u32>,
    pub(crate) trail: Option<Trail>,
    pub(crate) must_keep: MustKeep,
}

impl CallOptions {
    /// No wishes: the layers' own settings hold.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The time the whole call may take, all attempts and waits included.
    #[must_use]
    pub fn deadline(mut self, within: std::time::Duration) -> Self {
        self.deadline = Some(within);
        self
    }

    /// How many times the call may be sent again after an attempt that may have been paid for.
    /// Default 0.
    #[must_use]
    pub fn maybe_charged_resends(mut self, resends: u32) -> Self {
        self.maybe_charged_resends = Some(resends);
        self
    }

    /// Writes the trail of this call here too, readable even when the call is dropped or fails.
    #[must_use]
    pub fn trail(mut self, trail: Trail) -> Self {
        self.trail = Some(trail);
        self
    }

    /// What no fallback may give up. Default: everything may be given up for an image.
    #[must_use]
    pub fn must_keep(mut self, must_keep: MustKeep) -> Self {
        self.must_keep = must_keep;
        self
    }

    /// The time the whole call may take, where it was set.
    #[must_use]
    pub fn deadline_within(&self) -> Option<std::time::Duration> {
        self.deadline
    }

    /// The trail that was set, or one that is set now: for layers outside the one that starts the
    /// call.
    pub fn trail_mut(&mut self) -> &mut Trail {
        self.trail.get_or_insert_default()
    }

    /// The context that these wishes make for a call that starts at `now`.
    #[must_use]
    pub fn into_context(self, now: Instant) -> CallContext {
        CallContext {
            deadline: self.deadline.and_then(|within| now.checked_add(within)),
            allowance: Arc::new(
                self.maybe_charged_resends
                    .map(Allowance::of)
                    .map_or_else(OnceLock::new, OnceLock::from),
            ),
            trail: self.trail.unwrap_or_default(),
            must_keep: self.must_keep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_allowance_never_buys_what_was_charged() {
        let allowance = Allowance::of(5);
        assert!(allowance.buy(&Verdict::delivering()).is_none());
        assert_eq!(allowance.left(), 5);
    }

    #[test]
    fn what_is_surely_free_costs_no_allowance() {
        let allowance = Allowance::of(1);
        for _ in 0..3 {
            assert!(allowance.buy(&Verdict::not_sent()).is_some_and(|p| !p.is_bought_risk()));
        }
        assert_eq!(allowance.left(), 1);
    }

    // Without sharing, each target of a fallback got an allowance of its own from the retry inside
    // it.
    #[test]
    fn clones_of_a_context_share_one_allowance_even_if_it_is_set_later() {
        let mut context = CallContext::new();
        let mut later = context.clone();
        context.set_allowance_if_unset(Allowance::of(1));
        later.set_allowance_if_unset(Allowance::of(7));
        assert!(context.allowance().unwrap().buy(&Verdict::interrupted()).is_some());
        assert_eq!(later.allowance().unwrap().left(), 0);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any instant will do: only the order is tested")]
    fn a_deadline_never_moves_back() {
        let now = Instant::now();
        let mut context = CallContext::new();
        context.limit_deadline(now + Duration::from_secs(5));
        context.limit_deadline(now + Duration::from_secs(9));
        assert_eq!(context.deadline(), Some(now + Duration::from_secs(5)));
    }
}
