//! One lock, one line: who came first is served first, and nobody who leaves takes anything along.
//!
//! Nothing here waits and no timer runs: a place in line is told when to come back, and is woken
//! when its turn may have come. That is why the same file is compiled against another `Mutex` by
//! the tests that try every interleaving.

use std::collections::VecDeque;
use std::task::Waker;

use super::admission::{Admission, Denied, Moment, Receipt, RestReason};
use super::limits::Amounts;
use super::sync::{Mutex, MutexGuard, PoisonError};

/// What one call asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) amounts: Amounts,
    /// Requests of the day that must be left over: retries leave them to first attempts.
    pub(crate) day_reserve: u64,
}

/// What stands beside the counts and has a say: the lease from a shared store, the alerts.
pub(crate) trait Beside {
    /// What a taken amount was covered by.
    type Tag: Copy;

    /// Whether the shared store covers this too.
    fn draw(&mut self, now: Moment, amounts: Amounts) -> Draw<Self::Tag>;

    /// While the shared store does not answer, and our own counts are held down for that: when to
    /// ask it again.
    fn review_at(&self) -> Option<u64>;

    /// Called after something was taken. `true` if there is something to tell, once the lock is
    /// free.
    fn after_take(&mut self, admission: &mut Admission, now: Moment) -> bool;

    /// It was surely not counted.
    fn put_back(&mut self, now: Moment, tag: Self::Tag, amounts: Amounts);

    /// It was counted, with this many tokens instead of those reserved.
    fn settled(&mut self, tag: Self::Tag, amounts: Amounts, tokens: Option<u64>);
}

/// Whether a shared store covers what is asked for.
#[derive(Debug)]
pub(crate) enum Draw<T> {
    Covered(T),
    /// Not before this moment.
    Later(u64),
    /// It must be asked.
    Fetch,
}

/// What was taken, and by what it is covered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken<T> {
    pub(crate) receipt: Receipt,
    pub(crate) tag: T,
    /// Whether an alert is to be told.
    pub(crate) tell: bool,
}

#[derive(Debug)]
pub(crate) enum Try<T> {
    Taken(Taken<T>),
    Denied(Denied),
    /// Others wait already, or the store must be asked: get in line.
    Line,
}

#[derive(Debug)]
pub(crate) enum Turn<T> {
    Taken(Taken<T>),
    /// Others are before us; we are woken when they are gone.
    InLine,
    /// First in line; nothing fits before the moment told.
    Later(Denied),
    /// First in line; the store must be asked.
    Fetch,
}

pub(crate) struct Gate<B> {
    inner: Mutex<Inner<B>>,
}

struct Inner<B> {
    admission: Admission,
    beside: B,
    line: VecDeque<Place>,
    next_ticket: u64,
    /// The counts as they will be when everybody in line has been served.
    plan: Option<Plan>,
}

struct Place {
    ticket: u64,
    ask: Ask,
    waker: Option<Waker>,
}

struct Plan {
    admission: Admission,
    at: Moment,
}

/// Up to this many places a plan is made anew when somebody left the line; beyond, the old one is
/// kept, which tells times that are too late rather than too early. Planning a place takes below a
/// microsecond.
const REPLAN_UP_TO: usize = 1_024;

impl<B: Beside> Inner<B> {
    fn take(&mut self, now: Moment, ask: Ask) -> Try<B::Tag> {
        let review_at = self.beside.review_at();
        if review_at.is_some_and(|at| at <= now.steady_ms) {
            return Try::Line;
        }
        if !self.admission.fits(now, ask.amounts, ask.day_reserve) {
            let mut denied = self.admission.denied(now, ask.amounts, ask.day_reserve);
            denied.at_ms = sooner(denied.at_ms, review_at);
            return Try::Denied(denied);
        }
        match self.beside.draw(now, ask.amounts) {
            Draw::Covered(tag) => {
                let receipt = self.admission.force(now, ask.amounts, now.steady_ms);
                let tell = self.beside.after_take(&mut self.admission, now);
                Try::Taken(Taken { receipt, tag, tell })
            }
            Draw::Later(at_ms) => {
                let mut denied = self.admission.denied(now, ask.amounts, ask.day_reserve);
                denied.at_ms = Some(at_ms.max(now.steady_ms + 1));
                denied.rest = Some(RestReason::Store);
                Try::Denied(denied)
            }
            Draw::Fetch => Try::Line,
        }
    }

    fn planned(&mut self, now: Moment, ask: Ask) -> Option<u64> {
        if self.plan.is_none() {
            let mut plan = Plan { admission: self.admission.clone(), at: now };
            for place in &self.line {
                plan.book(now, place.ask);
            }
            self.plan = Some(plan);
        }
        let plan = self.plan.as_mut()?;
        let from = if plan.at.steady_ms > now.steady_ms { plan.at } else { now };
        let planned = plan.admission.earliest(from, ask.amounts, ask.day_reserve);
        sooner(planned, self.beside.review_at().map(|at| at.max(now.steady_ms)))
    }

    fn forget_plan(&mut self) {
        if self.line.len() <= REPLAN_UP_TO {
            self.plan = None;
        }
    }

    fn first_waker(&mut self) -> Option<Waker> {
        self.line.front_mut().and_then(|place| place.waker.take())
    }
}

impl Plan {
    fn book(&mut self, now: Moment, ask: Ask) {
        let from = if self.at.steady_ms > now.steady_ms { self.at } else { now };
        if let Some(at_ms) = self.admission.earliest(from, ask.amounts, ask.day_reserve) {
            self.at = from.after_ms(at_ms.saturating_sub(from.steady_ms));
            let _ = self.admission.force(self.at, ask.amounts, self.at.steady_ms);
        }
    }
}

impl<B: Beside> Gate<B> {
    pub(crate) fn new(admission: Admission, beside: B) -> Self {
        Self {
            inner: Mutex::new(Inner {
                admission,
                beside,
                line: VecDeque::new(),
                next_ticket: 0,
                plan: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<B>> {
        // Nothing under the lock can panic half-way: counts are changed by saturating arithmetic,
        // the line by one push or remove.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes at once, or says why not. Whoever comes while others wait gets in line behind them.
    pub(crate) fn try_take(&self, now: Moment, ask: Ask) -> Try<B::Tag> {
        let mut inner = self.lock();
        if !inner.line.is_empty() {
            return Try::Line;
        }
        inner.take(now, ask)
    }

    /// What a call that does not wait is told while others wait: when its turn would come.
    pub(crate) fn refusal(&self, now: Moment, ask: Ask) -> Denied {
        let mut inner = self.lock();
        let at_ms = inner.planned(now, ask);
        let mut denied = inner.admission.denied(now, ask.amounts, ask.day_reserve);
        denied.at_ms = at_ms.map(|at| at.max(now.steady_ms + 1));
        denied
    }

    /// Takes whether it fits or not.
    pub(crate) fn force(&self, now: Moment, ask: Ask) -> Taken<B::Tag>
    where
        B::Tag: Default,
    {
        let mut inner = self.lock();
        let Inner { admission, beside, .. } = &mut *inner;
        let receipt = admission.force(now, ask.amounts, now.steady_ms);
        let tag = match beside.draw(now, ask.amounts) {
            Draw::Covered(tag) => tag,
            _ => B::Tag::default(),
        };
        let tell = beside.after_take(admission, now);
        Taken { receipt, tag, tell }
    }

    /// A place at the end of the line, and when its turn is expected.
    ///
    /// # Errors
    ///
    /// [`Denied`] where that would be after `latest_ms`, or never: then there is no place either.
    pub(crate) fn join(
        &self,
        now: Moment,
        ask: Ask,
        latest_ms: Option<u64>,
    ) -> Result<(u64, u64), Denied> {
        let mut inner = self.lock();
        let planned = inner.planned(now, ask);
        let late = planned.is_none_or(|at| latest_ms.is_some_and(|latest| at > latest));
        let Some(at_ms) = planned.filter(|_| !late) else {
            let mut denied = inner.admission.denied(now, ask.amounts, ask.day_reserve);
            denied.at_ms = planned;
            return Err(denied);
        };
        if let Some(plan) = &mut inner.plan {
            plan.book(now, ask);
        }
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        inner.line.push_back(Place { ticket, ask, waker: None });
        Ok((ticket, at_ms))
    }

    /// Whether it is this ticket's turn. Whoever is told to wait is woken through `waker` when
    /// something changed.
    pub(crate) fn turn(&self, now: Moment, ticket: u64, waker: &Waker) -> Turn<B::Tag> {
        let mut inner = self.lock();
        let Some(first) = inner.line.front() else {
            return Turn::InLine;
        };
        if first.ticket != ticket {
            if let Some(place) = inner.line.iter_mut().find(|place| place.ticket == ticket) {
                place.waker = Some(waker.clone());
            }
            return Turn::InLine;
        }
        let ask = first.ask;
        match inner.take(now, ask) {
            Try::Taken(taken) => {
                inner.line.pop_front();
                if inner.line.is_empty() {
                    inner.plan = None;
                }
                let next = inner.first_waker();
                drop(inner);
                wake(next);
                Turn::Taken(taken)
            }
            other => {
                if let Some(first) = inner.line.front_mut() {
                    first.waker = Some(waker.clone());
                }
                match other {
                    Try::Denied(denied) => Turn::Later(denied),
                    _ => Turn::Fetch,
                }
            }
        }
    }

    /// Gives a place up. Whoever is first then is woken.
    pub(crate) fn leave(&self, ticket: u64) {
        let mut inner = self.lock();
        let Some(at) = inner.line.iter().position(|place| place.ticket == ticket) else {
            return;
        };
        inner.line.remove(at);
        inner.forget_plan();
        let next = inner.first_waker();
        drop(inner);
        wake(next);
    }

    /// The call was counted, or may have been.
    pub(crate) fn settle(&self, taken: &Taken<B::Tag>, tokens: Option<u64>) {
        let mut inner = self.lock();
        inner.admission.settle(taken.receipt, tokens);
        inner.beside.settled(taken.tag, taken.receipt.amounts(), tokens);
        // Fewer tokens than estimated may let the first in line through.
        let next = if tokens.is_some() { inner.first_waker() } else { None };
        drop(inner);
        wake(next);
    }

    /// The call was surely not counted.
    pub(crate) fn give_back(&self, now: Moment, taken: &Taken<B::Tag>) {
        let mut inner = self.lock();
        inner.admission.give_back(taken.receipt);
        inner.beside.put_back(now, taken.tag, taken.receipt.amounts());
        inner.forget_plan();
        let next = inner.first_waker();
        drop(inner);
        wake(next);
    }

    /// Changes limits, rests or leases, and lets the first in line look again.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Admission, &mut B) -> R) -> R {
        let mut inner = self.lock();
        let Inner { admission, beside, .. } = &mut *inner;
        let result = change(admission, beside);
        inner.forget_plan();
        let next = inner.first_waker();
        drop(inner);
        wake(next);
        result
    }

    /// Looks, and changes nothing that anybody waits for.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&mut Admission, &mut B) -> R) -> R {
        let mut inner = self.lock();
        let Inner { admission, beside, .. } = &mut *inner;
        look(admission, beside)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().line.len()
    }
}

/// What our own counts say is not the last word while they wait for the store's.
fn sooner(counted: Option<u64>, review_at: Option<u64>) -> Option<u64> {
    match (counted, review_at) {
        (Some(counted), Some(review)) => Some(counted.min(review)),
        (counted, review) => counted.or(review),
    }
}

/// After the lock is free: a waker may run its task at once, on this thread.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
