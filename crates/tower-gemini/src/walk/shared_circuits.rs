//! Circuits that processes share through a store: what only time or people close.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::time::Instant;

use tower_gemini_core::verdict::Outcome;

use super::circuit_states::CircuitState;
use crate::clock::Clock;
use crate::store::{RecordStore, SpendingFuture, StoreError};

/// The table of open circuits by their names: until when, in milliseconds since 1970; how many
/// times in a row they opened; and their cause.
const TABLE: &str = "closures";

/// Where circuits are published.
pub(super) struct Publisher {
    store: Arc<dyn RecordStore>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Publisher {
    pub(super) fn new(store: Arc<dyn RecordStore>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }

    /// What others closed and is closed still. What is over is removed.
    pub(super) async fn closed(&self) -> Result<Vec<(String, CircuitState)>, StoreError> {
        let closures = self.store.all(TABLE).await?;
        let (now, wall) = (Instant::now(), self.clock.now());
        let (mut closed, mut over) = (Vec::new(), Vec::new());
        for (name, text) in closures {
            let state = read(&text).and_then(|(until, trips, cause)| {
                let left = until.duration_since(wall).ok().filter(|left| !left.is_zero())?;
                Some(CircuitState::Open { until: now.checked_add(left)?, trips, cause })
            });
            match state {
                Some(state) => closed.push((name, state)),
                None => over.push((name, None)),
            }
        }
        if !over.is_empty() {
            self.store.change(TABLE, over).await?;
        }
        Ok(closed)
    }

    pub(super) fn close(&self, name: &str, state: CircuitState, now: Instant) {
        let CircuitState::Open { until, trips, cause } = state else { return };
        let left = until.saturating_duration_since(now);
        let Some(until) = self.clock.now().checked_add(left) else { return };
        let text = text(until, trips, cause);
        self.send(self.store.change(TABLE, vec![(name.to_owned(), Some(text))]));
    }

    pub(super) fn reopen(&self, names: Vec<String>) {
        if !names.is_empty() {
            let names = names.into_iter().map(|name| (name, None));
            self.send(self.store.change(TABLE, names.collect()));
        }
    }

    fn send(&self, change: SpendingFuture<()>) {
        // Without a runtime nobody waits for it; it is on its way as far as the store can.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = change.await {
                tracing::warn!(%error, "others do not hear of a circuit");
            }
        });
    }
}

fn text(until: SystemTime, trips: u32, cause: Outcome) -> String {
    let since = until.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} {trips} {}", since.as_millis(), cause.as_str())
}

fn read(text: &str) -> Option<(SystemTime, u32, Outcome)> {
    let mut parts = text.splitn(3, ' ');
    let until = Duration::from_millis(parts.next()?.parse().ok()?);
    let (trips, cause) = (parts.next()?.parse().ok()?, parts.next()?);
    let cause = Outcome::ALL.iter().copied().find(|outcome| outcome.as_str() == cause)?;
    Some((UNIX_EPOCH.checked_add(until)?, trips, cause))
}
