//! The account and the calls that wait for it, behind one lock.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{MutexGuard, PoisonError};
use std::task::{Poll, Waker, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::SpendAmounts;
use super::account::{Account, BlockedBy, CapReached, SpendReservation};
use super::layer::Shared;
use crate::reservation::queue::{WaitQueue, wake};

#[derive(Debug)]
pub(super) struct SpendGate {
    pub(super) account: Account,
    queue: WaitQueue<()>,
}

impl SpendGate {
    pub(super) fn new(account: Account) -> Self {
        Self { account, queue: WaitQueue::new() }
    }
}

/// What came of asking for a reservation.
pub(super) enum Asked {
    Granted(SpendReservation),
    /// Only reservations of running attempts are in the way, or calls that came before.
    Wait(QueuedSpend),
    Refused(CapReached),
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, SpendGate> {
        // Every change is whole: none of them panics half-way.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves at once, joins the queue where waiting may help, or refuses.
    pub(super) fn ask(&self, amounts: SpendAmounts) -> Asked {
        let now = self.clock.now();
        let mut gate = self.lock();
        let may_pass = gate.queue.is_empty();
        match gate.account.reserve(now, amounts) {
            Ok(reservation) if may_pass => return Asked::Granted(reservation),
            // Others came first.
            Ok(reservation) => gate.account.settle(reservation, SpendAmounts::NONE, 0),
            Err(reached) if reached.blocked_by != BlockedBy::Reservations => {
                gate.account.count_refusal(&reached);
                return Asked::Refused(reached);
            }
            Err(_) => {}
        }
        let ticket = gate.queue.join(());
        Asked::Wait(QueuedSpend { shared: self.clone(), ticket, amounts })
    }

    /// Replaces a reservation by what its attempt came to.
    pub(super) fn settle(&self, reservation: SpendReservation, came_to: SpendAmounts, images: u64) {
        let mut gate = self.lock();
        gate.account.settle(reservation, came_to, images);
        let first = gate.queue.first_waker();
        drop(gate);
        wake(first);
    }
}

/// A call in the FIFO wait queue. Dropped, it leaves the queue.
pub(super) struct QueuedSpend {
    shared: Shared,
    ticket: u64,
    amounts: SpendAmounts,
}

enum Turn {
    Over(Result<SpendReservation, CapReached>),
    /// Not yet; looks again when it is woken, at the latest after this time.
    Wait(Option<Duration>),
}

impl QueuedSpend {
    /// Waits until the reservation fits, what is spent blocks it, or the deadline passes.
    pub(super) async fn served(self, deadline: Instant) -> Result<SpendReservation, CapReached> {
        let mut timer = pin!(sleep_until(deadline));
        poll_fn(|cx| {
            loop {
                let now = Instant::now();
                let wait = match self.turn(now >= deadline, cx.waker()) {
                    Turn::Over(result) => return Poll::Ready(result),
                    Turn::Wait(wait) => wait.and_then(|wait| now.checked_add(wait)),
                };
                timer.as_mut().reset(wait.map_or(deadline, |at| at.min(deadline)));
                ready!(timer.as_mut().poll(cx));
            }
        })
        .await
    }

    fn turn(&self, is_last: bool, waker: &Waker) -> Turn {
        let now = self.shared.clock.now();
        let mut gate = self.shared.lock();
        let SpendGate { account, queue } = &mut *gate;
        if !is_last && queue.if_first(self.ticket).is_none() {
            queue.park(self.ticket, waker);
            return Turn::Wait(None);
        }
        let result = account.reserve(now, self.amounts);
        if let Err(reached) = &result {
            if !is_last && reached.blocked_by == BlockedBy::Reservations {
                queue.park(self.ticket, waker);
                return Turn::Wait(reached.wait);
            }
            account.count_refusal(reached);
        }
        queue.leave(self.ticket);
        let next = queue.first_waker();
        drop(gate);
        wake(next);
        Turn::Over(result)
    }
}

impl Drop for QueuedSpend {
    fn drop(&mut self) {
        let mut gate = self.shared.lock();
        // After its turn it is no longer in the queue.
        let next = if gate.queue.leave(self.ticket) { gate.queue.first_waker() } else { None };
        drop(gate);
        wake(next);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::super::{Caps, SpendingLayer};
    use super::*;

    fn attempts(attempts: u64) -> SpendAmounts {
        SpendAmounts { attempts, ..SpendAmounts::NONE }
    }

    fn shared(cap: u64) -> Shared {
        SpendingLayer::new().total(Caps::none().attempts(cap)).shared
    }

    fn granted(asked: Asked) -> SpendReservation {
        match asked {
            Asked::Granted(reservation) => reservation,
            Asked::Wait(_) => panic!("waits"),
            Asked::Refused(reached) => panic!("{reached}"),
        }
    }

    fn queued(asked: Asked) -> QueuedSpend {
        match asked {
            Asked::Wait(queued) => queued,
            _ => panic!("does not wait"),
        }
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_ask_does_not_overtake_a_large_one_that_waits() {
        let shared = shared(4);
        let held = granted(shared.ask(attempts(3)));
        let large = queued(shared.ask(attempts(2)));
        let small = queued(shared.ask(attempts(1)));
        let mut large = std::pin::pin!(large.served(in_a_minute()));
        let mut small = std::pin::pin!(small.served(in_a_minute()));
        assert!(small.as_mut().now_or_never().is_none() && large.as_mut().now_or_never().is_none());
        shared.settle(held, SpendAmounts::NONE, 0);
        // Woken by what was settled, and then by the one before it.
        let (large, small) = tokio::join!(large, small);
        assert_eq!(large.unwrap().amounts(), attempts(2));
        assert_eq!(small.unwrap().amounts(), attempts(1));
        assert!(shared.lock().queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_queue_lets_the_next_through() {
        let shared = shared(4);
        let _held = granted(shared.ask(attempts(3)));
        let large = queued(shared.ask(attempts(2)));
        let small = queued(shared.ask(attempts(1)));
        let small = tokio::spawn(small.served(in_a_minute()));
        tokio::task::yield_now().await;
        drop(large);
        assert_eq!(small.await.unwrap().unwrap().amounts(), attempts(1));
        assert!(shared.lock().queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_refused_when_what_is_spent_comes_to_block_it_or_time_is_up() {
        let shared = shared(4);
        let held = granted(shared.ask(attempts(3)));
        let blocked = tokio::spawn(queued(shared.ask(attempts(2))).served(in_a_minute()));
        let began = Instant::now();
        tokio::task::yield_now().await;
        shared.settle(held, attempts(3), 0);
        assert_eq!(blocked.await.unwrap().unwrap_err().blocked_by, BlockedBy::Spent);
        assert_eq!(began.elapsed(), Duration::ZERO);

        let _held = granted(shared.ask(attempts(1)));
        let shared = self::shared(1);
        let _held = granted(shared.ask(attempts(1)));
        let late = queued(shared.ask(attempts(1))).served(in_a_minute()).await;
        assert_eq!(late.unwrap_err().blocked_by, BlockedBy::Reservations);
        assert_eq!(began.elapsed(), Duration::from_secs(60));
        let now = shared.clock.now();
        assert_eq!(shared.lock().account.spent(now)[1].refused, 1);
    }

    // A new period starts with nothing reserved, and nobody is there to wake who waits.
    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_when_a_new_period_starts() {
        let clock = crate::clock::RuntimeClock::starting_at(std::time::UNIX_EPOCH);
        let every = super::super::Period::Every(Duration::from_secs(50));
        let layer = SpendingLayer::new().clock(clock).per(every, Caps::none().attempts(1));
        let _held = granted(layer.shared.ask(attempts(1)));
        let began = Instant::now();
        let served = queued(layer.shared.ask(attempts(1))).served(in_a_minute()).await;
        assert!(served.is_ok() && began.elapsed() == Duration::from_secs(50));
    }
}
