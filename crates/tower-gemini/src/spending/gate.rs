//! The account and the calls that wait for it, behind one lock.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;

use super::account::{Account, BlockedBy, CapReached, Period, SpendReservation};
use super::{Caps, SpendAmounts};
use crate::clock::Clock;
use crate::reservation::queue::{WaitQueue, wake};
use crate::reservation::turn::wait_for_turn;
use crate::sync::{Mutex, PoisonError};

#[derive(Clone)]
pub(super) struct SpendGate {
    pub(super) clock: Arc<dyn Clock>,
    inner: Arc<Mutex<(Account, WaitQueue<()>)>>,
}

/// What came of asking for a reservation.
pub(super) enum Asked {
    Granted(SpendReservation),
    /// Only reservations of running attempts are in the way, or calls that came before.
    Wait(QueuedSpend),
    Refused(CapReached),
}

impl SpendGate {
    pub(super) fn new(clock: Arc<dyn Clock>, account: Account) -> Self {
        Self { clock, inner: Arc::new(Mutex::new((account, WaitQueue::new()))) }
    }

    /// Makes a change, then wakes the first in the queue, outside the lock, if it may fit now.
    fn with<R>(&self, change: impl FnOnce(&mut Account, &mut WaitQueue<()>) -> (R, bool)) -> R {
        // Every change is whole: none of them panics half-way.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (account, queue) = &mut *inner;
        let (result, may_fit) = change(account, queue);
        let first = if may_fit { queue.first_waker() } else { None };
        drop(inner);
        wake(first);
        result
    }

    /// Looks, and changes nothing that anybody waits for.
    pub(super) fn look<R>(&self, look: impl FnOnce(&mut Account) -> R) -> R {
        self.with(|account, _| (look(account), false))
    }

    /// Reserves at once, joins the queue where waiting may help, or refuses.
    pub(super) fn ask(&self, amounts: SpendAmounts) -> Asked {
        let now = self.clock.now();
        let ask = |account: &mut Account, queue: &mut WaitQueue<()>| {
            match account.reserve(now, amounts) {
                Ok(reservation) if queue.is_empty() => return Asked::Granted(reservation),
                // Others came first.
                Ok(reservation) => account.settle(reservation, SpendAmounts::NONE, 0),
                Err(reached) if reached.blocked_by != BlockedBy::Reservations => {
                    account.count_refusal(&reached);
                    return Asked::Refused(reached);
                }
                Err(_) => {}
            }
            Asked::Wait(QueuedSpend { gate: self.clone(), ticket: queue.join(()), amounts })
        };
        self.with(|account, queue| (ask(account, queue), false))
    }

    /// Replaces caps; a higher one may let the first in the queue through.
    pub(super) fn set_caps(&self, period: &Period, caps: Caps) -> bool {
        self.with(|account, _| (account.set_caps(period, caps), true))
    }

    /// Replaces a reservation by what its attempt came to.
    pub(super) fn settle(&self, reservation: SpendReservation, came_to: SpendAmounts, images: u64) {
        self.with(|account, _| (account.settle(reservation, came_to, images), true));
    }
}

/// A call in the FIFO wait queue. Dropped, it leaves the queue.
pub(super) struct QueuedSpend {
    gate: SpendGate,
    ticket: u64,
    amounts: SpendAmounts,
}

impl QueuedSpend {
    /// Waits until the reservation fits, what is spent blocks it, or the deadline passes.
    pub(super) async fn served(self, deadline: Instant) -> Result<SpendReservation, CapReached> {
        wait_for_turn(|waker| self.turn(deadline, waker)).await
    }

    fn turn(
        &self,
        deadline: Instant,
        waker: &Waker,
    ) -> ControlFlow<Result<SpendReservation, CapReached>, Instant> {
        let (wall, now) = (self.gate.clock.now(), Instant::now());
        let is_late = now >= deadline;
        self.gate.with(|account, queue| {
            if !is_late && queue.if_first(self.ticket).is_none() {
                queue.park(self.ticket, waker);
                return (ControlFlow::Continue(deadline), false);
            }
            let result = account.reserve(wall, self.amounts);
            if let Err(reached) = &result {
                if !is_late && reached.blocked_by == BlockedBy::Reservations {
                    queue.park(self.ticket, waker);
                    let next_period = reached.wait.and_then(|wait| now.checked_add(wait));
                    let until = next_period.map_or(deadline, |at| at.min(deadline));
                    return (ControlFlow::Continue(until), false);
                }
                account.count_refusal(reached);
            }
            queue.leave(self.ticket);
            (ControlFlow::Break(result), true)
        })
    }
}

impl Drop for QueuedSpend {
    fn drop(&mut self) {
        // After its turn it is no longer in the queue.
        self.gate.with(|_, queue| ((), queue.leave(self.ticket)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::super::SpendingLayer;
    use super::*;

    fn attempts(attempts: u64) -> SpendAmounts {
        SpendAmounts { attempts, ..SpendAmounts::NONE }
    }

    fn gate(cap: u64) -> SpendGate {
        SpendingLayer::new().total(Caps::none().attempts(cap)).shared.gate
    }

    fn waiting(gate: &SpendGate) -> usize {
        gate.with(|_, queue| (queue.len(), false))
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
        let gate = gate(4);
        let held = granted(gate.ask(attempts(3)));
        let large = queued(gate.ask(attempts(2)));
        let small = queued(gate.ask(attempts(1)));
        let mut large = std::pin::pin!(large.served(in_a_minute()));
        let mut small = std::pin::pin!(small.served(in_a_minute()));
        assert!(small.as_mut().now_or_never().is_none() && large.as_mut().now_or_never().is_none());
        gate.settle(held, SpendAmounts::NONE, 0);
        // Woken by what was settled, and then by the one before it.
        let (large, small) = tokio::join!(large, small);
        assert_eq!(large.unwrap().amounts(), attempts(2));
        assert_eq!(small.unwrap().amounts(), attempts(1));
        assert_eq!(waiting(&gate), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_leaves_the_queue_lets_the_next_through() {
        let gate = gate(4);
        let _held = granted(gate.ask(attempts(3)));
        let large = queued(gate.ask(attempts(2)));
        let small = queued(gate.ask(attempts(1)));
        let small = tokio::spawn(small.served(in_a_minute()));
        tokio::task::yield_now().await;
        drop(large);
        assert_eq!(small.await.unwrap().unwrap().amounts(), attempts(1));
        assert_eq!(waiting(&gate), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_call_is_refused_when_spending_blocks_it_or_its_deadline_passes() {
        let gate = gate(4);
        let held = granted(gate.ask(attempts(3)));
        let blocked = tokio::spawn(queued(gate.ask(attempts(2))).served(in_a_minute()));
        let began = Instant::now();
        tokio::task::yield_now().await;
        gate.settle(held, attempts(3), 0);
        assert_eq!(blocked.await.unwrap().unwrap_err().blocked_by, BlockedBy::Spent);
        assert_eq!(began.elapsed(), Duration::ZERO);

        let _held = granted(gate.ask(attempts(1)));
        let gate = self::gate(1);
        let _held = granted(gate.ask(attempts(1)));
        let late = queued(gate.ask(attempts(1))).served(in_a_minute()).await;
        assert_eq!(late.unwrap_err().blocked_by, BlockedBy::Reservations);
        assert_eq!(began.elapsed(), Duration::from_secs(60));
        let now = gate.clock.now();
        assert_eq!(gate.look(|account| account.spent(now))[1].refused, 1);
    }

    // A new period starts with nothing reserved, and nobody is there to wake who waits.
    #[tokio::test(start_paused = true)]
    async fn a_waiting_call_is_served_when_a_new_period_starts() {
        let clock = crate::clock::RuntimeClock::starting_at(std::time::UNIX_EPOCH);
        let every = super::super::Period::Every(Duration::from_secs(50));
        let layer = SpendingLayer::new().clock(clock).per(every, Caps::none().attempts(1));
        let _held = granted(layer.shared.gate.ask(attempts(1)));
        let began = Instant::now();
        let served = queued(layer.shared.gate.ask(attempts(1))).served(in_a_minute()).await;
        assert!(served.is_ok() && began.elapsed() == Duration::from_secs(50));
    }
}
