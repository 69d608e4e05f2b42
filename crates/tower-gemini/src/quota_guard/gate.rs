//! The counts of one key and the calls that wait for them, behind one lock.
//!
//! Nothing here waits and no timer runs: an entry of the queue learns when to come back, and is
//! woken when its turn may have come. The tests that try every interleaving therefore compile this
//! file against another `Mutex`.

use std::task::Waker;

use super::admission::{Admission, Booking, Denied, Moment, Receipt, RestReason};
use super::hooks::KeyHooks;
use super::lease::Draw;
use super::limits::QuotaAmounts;
use super::queue::{WaitQueue, wake};
use super::sync::{Mutex, MutexGuard, PoisonError};

/// What one call asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) amounts: QuotaAmounts,
    /// Requests of the day that must be left over: retries leave them to first attempts.
    pub(crate) day_reserve: u64,
}

/// What was taken, and by what it is covered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) receipt: Receipt,
    /// The lease that covers it.
    pub(crate) lease: Option<Booking>,
    /// Whether an alert is to be sent.
    pub(crate) alert: bool,
}

#[derive(Debug)]
pub(crate) enum Try {
    Taken(Taken),
    Denied(Denied),
    /// Others wait already, or the store must be asked: join the queue.
    Queue,
}

#[derive(Debug)]
pub(crate) enum Turn {
    Taken(Taken),
    /// Others are before this entry; it is woken when they are gone.
    Queued,
    /// First in the queue; nothing fits before the moment given.
    Later(Denied),
    /// First in the queue; the store must be asked.
    Fetch,
}

pub(crate) struct Gate {
    inner: Mutex<Inner>,
}

struct Inner {
    admission: Admission,
    hooks: KeyHooks,
    queue: WaitQueue<Ask>,
    /// The counts as they will be when the whole queue has been served.
    plan: Option<Plan>,
}

struct Plan {
    admission: Admission,
    at: Moment,
}

/// Up to this many entries a plan is made anew when one leaves the queue; beyond, the old plan is
/// kept, which predicts times that are too late rather than too early. Planning an entry takes less
/// than a microsecond.
const REPLAN_UP_TO: usize = 1_024;

impl Inner {
    fn denied(&self, now: Moment, ask: Ask) -> Denied {
        self.admission.denied(now, ask.amounts, ask.day_reserve)
    }

    fn take(&mut self, now: Moment, ask: Ask) -> Try {
        let review_at = self.hooks.review_at();
        if review_at.is_some_and(|at| at <= now.steady_ms) {
            return Try::Queue;
        }
        if !self.admission.fits(now, ask.amounts, ask.day_reserve) {
            let mut denied = self.denied(now, ask);
            denied.at_ms = sooner(denied.at_ms, review_at);
            return Try::Denied(denied);
        }
        match self.hooks.draw(now, ask.amounts) {
            Draw::Covered(lease) => Try::Taken(self.record(now, ask, lease)),
            Draw::Later(at_ms) => {
                let mut denied = self.denied(now, ask);
                denied.at_ms = Some(at_ms.max(now.steady_ms + 1));
                denied.rest = Some(RestReason::Store);
                Try::Denied(denied)
            }
            Draw::Fetch => Try::Queue,
        }
    }

    fn record(&mut self, now: Moment, ask: Ask, lease: Option<Booking>) -> Taken {
        let receipt = self.admission.force(now, ask.amounts, now.steady_ms);
        let alert = self.hooks.after_take(&mut self.admission, now);
        Taken { receipt, lease, alert }
    }

    fn planned(&mut self, now: Moment, ask: Ask) -> Option<u64> {
        let Self { plan, admission, queue, hooks } = self;
        let plan = plan.get_or_insert_with(|| {
            let mut plan = Plan { admission: admission.clone(), at: now };
            for ask in queue.asks() {
                plan.book(now, *ask);
            }
            plan
        });
        let planned = plan.admission.earliest(plan.from(now), ask.amounts, ask.day_reserve);
        sooner(planned, hooks.review_at().map(|at| at.max(now.steady_ms)))
    }

    fn forget_plan(&mut self) {
        if self.queue.len() <= REPLAN_UP_TO {
            self.plan = None;
        }
    }
}

impl Plan {
    fn from(&self, now: Moment) -> Moment {
        if self.at.steady_ms > now.steady_ms { self.at } else { now }
    }

    fn book(&mut self, now: Moment, ask: Ask) {
        let from = self.from(now);
        if let Some(at_ms) = self.admission.earliest(from, ask.amounts, ask.day_reserve) {
            self.at = from.after_ms(at_ms.saturating_sub(from.steady_ms));
            let _ = self.admission.force(self.at, ask.amounts, self.at.steady_ms);
        }
    }
}

impl Gate {
    pub(crate) fn new(admission: Admission, hooks: KeyHooks) -> Self {
        Self { inner: Mutex::new(Inner { admission, hooks, queue: WaitQueue::new(), plan: None }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock can panic half-way: counts are changed by saturating arithmetic,
        // the queue by one push or remove.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change, then wakes the first in the queue, outside the lock, if it may fit now.
    fn with<R>(&self, change: impl FnOnce(&mut Inner) -> (R, bool)) -> R {
        let mut inner = self.lock();
        let (result, may_fit) = change(&mut inner);
        let first = if may_fit { inner.queue.first_waker() } else { None };
        drop(inner);
        wake(first);
        result
    }

    /// Takes at once, or says why not. Whoever comes while others wait joins the queue.
    pub(crate) fn try_take(&self, now: Moment, ask: Ask) -> Try {
        let mut inner = self.lock();
        if !inner.queue.is_empty() {
            return Try::Queue;
        }
        inner.take(now, ask)
    }

    /// The refusal of a call that does not wait while others do: it says when its turn would come.
    pub(crate) fn refusal(&self, now: Moment, ask: Ask) -> Denied {
        let mut inner = self.lock();
        let at_ms = inner.planned(now, ask);
        let mut denied = inner.denied(now, ask);
        denied.at_ms = at_ms.map(|at| at.max(now.steady_ms + 1));
        denied
    }

    /// Takes whether it fits or not.
    pub(crate) fn force(&self, now: Moment, ask: Ask) -> Taken {
        let mut inner = self.lock();
        let lease = match inner.hooks.draw(now, ask.amounts) {
            Draw::Covered(lease) => lease,
            _ => None,
        };
        inner.record(now, ask, lease)
    }

    /// Joins the end of the queue. Returns the ticket and when its turn is expected.
    ///
    /// # Errors
    ///
    /// [`Denied`] where that would be after `latest_ms`, or never: then nothing joins.
    pub(crate) fn join(
        &self,
        now: Moment,
        ask: Ask,
        latest_ms: Option<u64>,
    ) -> Result<(u64, u64), Denied> {
        let mut inner = self.lock();
        let planned = inner.planned(now, ask);
        let in_time = |at: &u64| latest_ms.is_none_or(|latest| *at <= latest);
        let Some(at_ms) = planned.filter(in_time) else {
            let mut denied = inner.denied(now, ask);
            denied.at_ms = planned;
            return Err(denied);
        };
        if let Some(plan) = &mut inner.plan {
            plan.book(now, ask);
        }
        Ok((inner.queue.join(ask), at_ms))
    }

    /// Whether it is this ticket's turn. An entry that must wait is woken through `waker` when
    /// something changed.
    pub(crate) fn turn(&self, now: Moment, ticket: u64, waker: &Waker) -> Turn {
        self.with(|inner| {
            let Some(&ask) = inner.queue.if_first(ticket) else {
                inner.queue.park(ticket, waker);
                return (Turn::Queued, false);
            };
            match inner.take(now, ask) {
                Try::Taken(taken) => {
                    inner.queue.leave(ticket);
                    if inner.queue.is_empty() {
                        inner.plan = None;
                    }
                    (Turn::Taken(taken), true)
                }
                Try::Denied(denied) => {
                    inner.queue.park(ticket, waker);
                    (Turn::Later(denied), false)
                }
                Try::Queue => {
                    inner.queue.park(ticket, waker);
                    (Turn::Fetch, false)
                }
            }
        })
    }

    /// Leaves the queue.
    pub(crate) fn leave(&self, ticket: u64) {
        self.with(|inner| {
            let left = inner.queue.leave(ticket);
            if left {
                inner.forget_plan();
            }
            ((), left)
        });
    }

    /// Records that the call was counted, or may have been.
    pub(crate) fn settle(&self, taken: &Taken, tokens: Option<u64>) {
        self.with(|inner| {
            inner.admission.settle(taken.receipt, tokens);
            inner.hooks.settled(taken.lease, taken.receipt.amounts(), tokens);
            // Fewer tokens than estimated may let the first in the queue through.
            ((), tokens.is_some())
        });
    }

    /// Records that the call was surely not counted.
    pub(crate) fn give_back(&self, now: Moment, taken: &Taken) {
        self.with(|inner| {
            inner.admission.give_back(taken.receipt);
            inner.hooks.put_back(now, taken.lease, taken.receipt.amounts());
            inner.forget_plan();
            ((), true)
        });
    }

    /// Changes limits, rests or leases, and lets the first in the queue look again.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Admission, &mut KeyHooks) -> R) -> R {
        self.with(|inner| {
            let result = change(&mut inner.admission, &mut inner.hooks);
            inner.forget_plan();
            (result, true)
        })
    }

    /// Looks, and changes nothing that anybody waits for.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&mut Admission, &mut KeyHooks) -> R) -> R {
        let inner = &mut *self.lock();
        look(&mut inner.admission, &mut inner.hooks)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().queue.len()
    }
}

/// Our own counts are not the last word while they wait for the store's.
fn sooner(counted: Option<u64>, review_at: Option<u64>) -> Option<u64> {
    match (counted, review_at) {
        (Some(counted), Some(review)) => Some(counted.min(review)),
        (counted, review) => counted.or(review),
    }
}
