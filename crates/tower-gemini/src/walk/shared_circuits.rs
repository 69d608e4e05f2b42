//! Circuits that processes share through a store: what only time or people close.

use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::circuits::{CircuitState, Circuits, can_recover_early};
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

/// Whether a circuit is worth telling others: open, for a cause that time or people cure.
pub(super) fn is_shared(state: &CircuitState) -> bool {
    match state {
        CircuitState::Open { cause, .. } | CircuitState::HalfOpen { cause, .. } => {
            !can_recover_early(*cause)
        }
        CircuitState::Failing { .. } => false,
    }
}

impl Publisher {
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

impl Circuits {
    /// Shares circuits that only time or people close through this store: a restart, or another
    /// process, does not try what was refused anew. Call it once, and then
    /// [`refresh`](Self::refresh) now and then. A second store is ignored.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tower_gemini::ModelFallbackLayer;
    /// use tower_gemini::clock::SystemClock;
    /// use tower_gemini::model_fallback::Chain;
    /// use tower_gemini::store::MemoryStore;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_gemini::store::StoreError> {
    /// let layer = ModelFallbackLayer::new(Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]));
    /// layer.circuits().share(Arc::new(MemoryStore::new()), SystemClock);
    /// assert_eq!(layer.circuits().refresh().await?, 0, "nothing is closed");
    /// # Ok(()) }
    /// ```
    pub fn share(&self, store: Arc<dyn ClosureStore>, clock: impl Clock + 'static) {
        let _ = self.publisher().set(Publisher { store, clock: Arc::new(clock) });
    }

    /// Takes over what others closed since. Returns how many circuits opened. Without a store there
    /// is nothing to take over.
    ///
    /// # Errors
    ///
    /// Where the store fails.
    pub async fn refresh(&self) -> Result<usize, StoreError> {
        let Some(Publisher { store, clock }) = self.publisher().get() else { return Ok(0) };
        let closures = store.closures().await?;
        let (now, wall) = (Instant::now(), clock.now());
        let adopted = closures.into_iter().filter_map(|closure| {
            let Closure { name, until, trips, cause } = closure;
            let left = until.duration_since(wall).ok().filter(|left| !left.is_zero())?;
            let until = now.checked_add(left)?;
            Some((name, CircuitState::Open { until, trips, cause }))
        });
        Ok(self.adopt(adopted))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::circuit_tests::{at, bad_key, overloaded, spent_day};
    use super::super::circuits::Cooldowns;
    use super::*;
    use crate::clock::RuntimeClock;
    use crate::store::MemoryStore;
    use crate::trail::SkipReason;
    use tower_gemini_core::call::ImageSize;
    use tower_gemini_core::verdict::Verdict;

    const HOUR: Duration = Duration::from_secs(3600);

    struct World {
        store: Arc<MemoryStore>,
        clock: RuntimeClock,
    }

    impl World {
        fn new() -> Self {
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_773_000_000);
            let clock = RuntimeClock::starting_at(start);
            Self { store: Arc::new(MemoryStore::new().clock(clock)), clock }
        }

        /// A process that has just started.
        async fn process(&self) -> Circuits {
            let circuits = Circuits::default();
            circuits.share(self.store.clone(), self.clock);
            circuits.refresh().await.unwrap();
            circuits
        }
    }

    async fn fail(circuits: &Circuits, verdict: &Verdict, times: usize) {
        for _ in 0..times {
            let guard = circuits.admit(at(ImageSize::K1, "payer"), Instant::now(), false).unwrap();
            guard.settle(Instant::now(), verdict, 5 * HOUR, &Cooldowns::recommended());
        }
        tokio::task::yield_now().await;
    }

    fn is_open(circuits: &Circuits) -> Option<Duration> {
        match circuits.check(&at(ImageSize::K1, "payer"), Instant::now(), false) {
            Err(SkipReason::CircuitOpen { left }) => Some(left),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_spent_day_is_not_tried_anew_after_a_restart_until_midnight() {
        let world = World::new();
        fail(&world.process().await, &spent_day(), 1).await;
        tokio::time::advance(2 * HOUR).await;
        let restarted = world.process().await;
        assert_eq!(is_open(&restarted), Some(3 * HOUR));
        tokio::time::advance(3 * HOUR).await;
        assert_eq!(is_open(&restarted), None, "one call may probe it");
        assert_eq!(world.process().await.snapshot(), [], "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_is_refused_rests_in_every_process_until_it_works() {
        let world = World::new();
        let (ours, theirs) = (world.process().await, world.process().await);
        fail(&ours, &bad_key(), 2).await;
        assert_eq!(theirs.refresh().await.unwrap(), 1);
        assert!(is_open(&theirs).is_some());
        tokio::time::advance(HOUR).await;
        let probe = ours.admit(at(ImageSize::K1, "payer"), Instant::now(), false).unwrap();
        probe.settle(Instant::now(), &Verdict::delivering(), HOUR, &Cooldowns::recommended());
        tokio::task::yield_now().await;
        assert_eq!(world.process().await.snapshot(), []);
        // An operator opens all of them.
        fail(&ours, &bad_key(), 2).await;
        assert!(is_open(&world.process().await).is_some());
        ours.reset();
        tokio::task::yield_now().await;
        assert_eq!(world.process().await.snapshot(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn an_overload_is_nobody_elses_business() {
        let world = World::new();
        let ours = world.process().await;
        fail(&ours, &overloaded(), 3).await;
        assert!(is_open(&ours).is_some());
        assert_eq!(world.process().await.snapshot(), []);
    }
}
