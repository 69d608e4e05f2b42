//! Exchanges with the shared store: one at a time for each key, and none is lost.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

use super::admission::SLOT_MS;
use super::gate::Ask;
use super::handle::QuotaHandle;
use super::lease::LeasePool;
use crate::store::{QuotaStore, StoreError};

impl QuotaHandle {
    /// Asks the store on behalf of the first in the queue, unless it is being asked. Whoever waits
    /// is woken by what comes of it.
    pub(crate) fn fetch(&self, ask: Ask) {
        if let Ok(turn) = self.key.exchanging.clone().try_lock_owned() {
            self.begin_exchange(Some(ask), turn);
        }
    }

    /// Refunds to the store what is left of the lease.
    pub(crate) async fn flush(&self) {
        let turn = self.key.exchanging.clone().lock_owned().await;
        let wants = |pool: &LeasePool| pool.wants_flush();
        if self.key.gate.look(|_, hooks| hooks.pool.as_ref().is_some_and(wants)) {
            let _ = self.begin_exchange(None, turn).await;
        }
    }

    /// Makes an exchange on a task of its own: a grant is not lost because the call that asked for
    /// it went away.
    fn begin_exchange(&self, ask: Option<Ask>, turn: OwnedMutexGuard<()>) -> JoinHandle<()> {
        let handle = self.clone();
        tokio::spawn(async move {
            if let Some(store) = handle.state.settings.store.clone() {
                handle.exchange(&*store, ask).await;
            }
            drop(turn);
            // The first in the queue may need the next exchange, and could not begin it yet.
            handle.key.gate.change(|_, _| ());
        })
    }

    async fn exchange(&self, store: &dyn QuotaStore, ask: Option<Ask>) {
        self.state.count(|counts| counts.store_exchanges += 1);
        let settings = &self.state.settings;
        let sent = self.state.now();
        let need = ask.map(|ask| (ask.amounts, ask.day_reserve));
        let exchange = self.key.gate.look(|_, hooks| {
            let limits = hooks.learned.current();
            let pool = hooks.pool.as_mut()?;
            Some(pool.begin(sent, &self.key.key, limits, settings.margin, need))
        });
        let Some(exchange) = exchange else { return };
        let unreported = exchange.unreported;
        // A reply that arrives after the lease it grants has expired would grant nothing, again and
        // again.
        let limit = settings.store_timeout.min(settings.lease / 5 * 4);
        let reply = match timeout(limit, store.exchange(exchange)).await {
            Ok(reply) => reply,
            Err(_) => Err(StoreError::new(format_args!("no answer within {limit:?}"))),
        };
        let now = self.state.now();
        match reply {
            Ok(reply) => {
                let recovered = self.key.gate.look(|admission, hooks| {
                    let Some(pool) = &mut hooks.pool else { return false };
                    let recovered = pool.apply(sent, now, ask.map(|ask| ask.amounts), &reply);
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
                self.state.count(|counts| counts.store_failures += 1);
                tracing::error!(
                    model = %self.key.model(),
                    error = %error,
                    policy = ?settings.store_failure,
                    "the quota store does not answer"
                );
                self.key.gate.look(|admission, hooks| {
                    let Some(pool) = &mut hooks.pool else { return };
                    if let Some(limits) = pool.fail(now, unreported, admission) {
                        admission.set_limits(limits);
                    }
                });
            }
        }
    }

    /// Refunds what an idle process has left of its lease. One short task a key, which ends by
    /// itself.
    fn flush_later(&self) {
        let begun = self.key.gate.look(|_, hooks| {
            hooks.pool.as_mut().is_some_and(|pool| !std::mem::replace(&mut pool.flushing, true))
        });
        if !begun {
            return;
        }
        let (state, key) = (Arc::downgrade(&self.state), Arc::downgrade(&self.key));
        tokio::spawn(async move {
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
}
