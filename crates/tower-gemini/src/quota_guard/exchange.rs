//! Exchanges with the shared store: one at a time for each key, and none is lost.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;

use tokio::time::sleep_until;

use super::admission::{Moment, SLOT_MS};
use super::gate::Ask;
use super::handle::QuotaHandle;
use super::lease::LeasePool;
use super::limits::QuotaAmounts;
use super::state::KeyState;
use super::usage::count;
use crate::store::{ExchangeFuture, QuotaStore, Reply, StoreError};

/// An exchange that is under way.
pub(crate) struct Flight {
    future: Pin<Box<dyn Future<Output = Result<Reply, StoreError>> + Send>>,
    sent: Moment,
    need: QuotaAmounts,
    unreported: QuotaAmounts,
    asked: bool,
}

/// An exchange that is being awaited; dropped before its end it goes back to where the next in the
/// queue finds it.
struct Held<'a> {
    key: &'a KeyState,
    flight: Option<Flight>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take() {
            *self.key.flight.lock().unwrap_or_else(PoisonError::into_inner) = Some(flight);
        }
    }
}

impl QuotaHandle {
    /// Asks the store on behalf of whoever is first in the queue. An exchange that was left behind
    /// is finished first.
    pub(crate) async fn exchange(&self, ask: Option<Ask>) {
        let Some(store) = &self.state.settings.store else { return };
        let left = self.key.flight.lock().unwrap_or_else(PoisonError::into_inner).take();
        let flight = left.unwrap_or_else(|| self.depart(&**store, ask));
        let mut held = Held { key: &self.key, flight: Some(flight) };
        let result = poll_fn(|cx| match &mut held.flight {
            Some(flight) => flight.future.as_mut().poll(cx),
            None => Poll::Pending,
        })
        .await;
        if let Some(flight) = held.flight.take() {
            self.arrive(&flight, result);
        }
    }

    fn depart(&self, store: &dyn QuotaStore, ask: Option<Ask>) -> Flight {
        count(&self.state.counters.store_exchanges);
        let settings = &self.state.settings;
        let sent = self.state.now();
        let exchange = self.key.gate.look(|_, hooks| {
            let limits = hooks.learned.current();
            let need = ask.map(|ask| (ask.amounts, ask.day_reserve));
            let begin = |pool: &mut LeasePool| {
                pool.begin(sent, &self.key.key, limits, settings.margin, need)
            };
            hooks.pool.as_mut().map(begin)
        });
        let need = ask.map(|ask| ask.amounts).unwrap_or_default();
        let unreported = exchange.as_ref().map(|exchange| exchange.unreported).unwrap_or_default();
        // A reply that arrives after the lease it grants has expired would grant nothing, again and
        // again.
        let limit = settings.store_timeout.min(settings.lease / 5 * 4);
        let exchange: ExchangeFuture = match exchange {
            Some(exchange) => store.exchange(exchange),
            None => Box::pin(std::future::ready(Ok(Reply::default()))),
        };
        let future = Box::pin(async move {
            match tokio::time::timeout(limit, exchange).await {
                Ok(result) => result,
                Err(_) => Err(StoreError::timed_out(limit)),
            }
        });
        Flight { future, sent, need, unreported, asked: ask.is_some() }
    }

    fn arrive(&self, flight: &Flight, result: Result<Reply, StoreError>) {
        let now = self.state.now();
        match result {
            Ok(reply) => {
                let recovered = self.key.gate.change(|admission, hooks| {
                    let Some(pool) = &mut hooks.pool else { return false };
                    let recovered = pool.apply(flight.sent, now, flight.need, flight.asked, &reply);
                    if recovered {
                        admission.set_limits(hooks.learned.current());
                    }
                    recovered
                });
                if recovered {
                    tracing::warn!(model = %self.key.model(), "the quota store answers again");
                }
                if reply.granted > 0 {
                    self.flush_later();
                }
            }
            Err(error) => {
                count(&self.state.counters.store_failures);
                tracing::error!(
                    model = %self.key.model(),
                    error = %error,
                    policy = ?self.state.settings.store_failure,
                    "the quota store does not answer"
                );
                self.key.gate.change(|admission, hooks| {
                    let Some(pool) = &mut hooks.pool else { return };
                    if let Some(limits) = pool.fail(now, flight.unreported, admission) {
                        admission.set_limits(limits);
                    }
                });
            }
        }
    }

    /// Refunds what an idle process has left of its lease. One short task a key, which ends by
    /// itself.
    fn flush_later(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let begun = self.key.gate.look(|_, hooks| {
            hooks.pool.as_mut().is_some_and(|pool| !std::mem::replace(&mut pool.flushing, true))
        });
        if !begun {
            return;
        }
        let (state, key) = (Arc::downgrade(&self.state), Arc::downgrade(&self.key));
        runtime.spawn(async move {
            loop {
                let (Some(state), Some(key)) = (state.upgrade(), key.upgrade()) else { return };
                let handle = QuotaHandle { state, key };
                let now = handle.state.now().steady_ms;
                let expires_ms = handle.key.gate.look(|_, hooks| {
                    let pool = hooks.pool.as_mut()?;
                    let expires_ms = pool.expires_ms().filter(|&at_ms| at_ms > now);
                    pool.flushing = expires_ms.is_some();
                    expires_ms
                });
                let Some(at_ms) = expires_ms else {
                    // Somebody in the queue asks soon, and reports with it.
                    if handle.key.gate.waiting() == 0 {
                        handle.flush().await;
                    }
                    return;
                };
                let at = handle.state.instant_at(at_ms.saturating_add(SLOT_MS));
                drop(handle);
                sleep_until(at).await;
            }
        });
    }

    /// Refunds to the store what is left of the lease.
    pub(crate) async fn flush(&self) {
        let wants = |pool: &LeasePool| pool.wants_flush();
        if self.key.gate.look(|_, hooks| hooks.pool.as_ref().is_some_and(wants)) {
            self.exchange(None).await;
        }
    }
}
