//! Circuits that processes share through a store: what only time or people close.

use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::circuit_states::CircuitState;
use crate::clock::Clock;
use crate::store::{Closure, ClosureStore, StoreError};

/// Where circuits are published.
pub(super) struct Publisher {
    store: Arc<dyn ClosureStore>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Publisher {
    pub(super) fn new(store: Arc<dyn ClosureStore>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }

    /// What others closed and is closed still.
    pub(super) async fn closed(&self) -> Result<Vec<(String, CircuitState)>, StoreError> {
        let closures = self.store.closures().await?;
        let (now, wall) = (Instant::now(), self.clock.now());
        let open = |closure| {
            let Closure { name, until, trips, cause } = closure;
            let left = until.duration_since(wall).ok().filter(|left| !left.is_zero())?;
            let until = now.checked_add(left)?;
            Some((name, CircuitState::Open { until, trips, cause }))
        };
        Ok(closures.into_iter().filter_map(open).collect())
    }

    pub(super) fn close(&self, name: &str, state: CircuitState, now: Instant) {
        let CircuitState::Open { until, trips, cause } = state else { return };
        let left = until.saturating_duration_since(now);
        let Some(until) = self.clock.now().checked_add(left) else { return };
        self.send(self.store.close(Closure::new(name.to_owned(), until, trips, cause)));
    }

    pub(super) fn reopen(&self, names: Vec<String>) {
        if !names.is_empty() {
            self.send(self.store.reopen(names));
        }
    }

    fn send(&self, change: crate::store::SpendingFuture<()>) {
        // Without a runtime nobody waits for it; it is on its way as far as the store can.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = change.await {
                tracing::warn!(%error, "others do not hear of a circuit");
            }
        });
    }
}
