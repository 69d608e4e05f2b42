//! What is consulted beside the counts of one key: the lease from a shared store, the alerts, the
//! learned limits.

use super::admission::{Admission, Booking, Moment};
use super::alerts::Alerts;
use super::learn::Learned;
use super::lease::{Draw, LeasePool};
use super::limits::QuotaAmounts;

/// The lease, the alerts and the learned limits of one key.
pub(crate) struct KeyHooks {
    pub(crate) pool: Option<LeasePool>,
    pub(crate) alerts: Alerts,
    pub(crate) learned: Learned,
}

impl KeyHooks {
    /// Whether the shared store covers this too.
    pub(crate) fn draw(&mut self, now: Moment, amounts: QuotaAmounts) -> Draw {
        match &mut self.pool {
            None => Draw::Covered(None),
            Some(pool) => pool.draw(now, amounts),
        }
    }

    /// While the shared store does not answer, and our own limits are lowered for that: when to ask
    /// it again.
    pub(crate) fn review_at(&self) -> Option<u64> {
        self.pool.as_ref().and_then(LeasePool::review_at)
    }

    /// Called after something was taken. `true` if an alert is to be sent once the lock is free.
    pub(crate) fn after_take(&mut self, admission: &mut Admission, now: Moment) -> bool {
        if self.learned.probe(now) && !self.pool.as_ref().is_some_and(|pool| pool.emergency) {
            admission.set_limits(self.learned.current());
        }
        self.alerts.check(admission, now)
    }

    /// Records that what a lease covered was surely not counted.
    pub(crate) fn put_back(&mut self, now: Moment, lease: Option<Booking>, amounts: QuotaAmounts) {
        if let (Some(pool), Some(lease)) = (&mut self.pool, lease) {
            pool.put_back(now, lease, amounts);
        }
    }

    /// Records that it was counted, with this many tokens instead of those reserved.
    pub(crate) fn settled(
        &mut self,
        lease: Option<Booking>,
        amounts: QuotaAmounts,
        tokens: Option<u64>,
    ) {
        if let (Some(pool), Some(lease), Some(tokens)) = (&mut self.pool, lease, tokens) {
            pool.settled(lease, amounts, tokens);
        }
    }
}
