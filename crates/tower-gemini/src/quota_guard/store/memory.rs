use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use tokio::time::Instant;

use super::{Exchange, Exchanging, QuotaStore, Reply, exchange_with};
use crate::clock::SystemClock;
use crate::quota_guard::admission::{Admission, Moment};
use crate::quota_guard::limits::QuotaKey;
use crate::quota_guard::pacific::PacificDay;

/// A count in this process, shared by every layer it is given to.
///
/// ```
/// use std::sync::Arc;
/// use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, store::MemoryStore};
///
/// let store = Arc::new(MemoryStore::new());
/// let limits = Limits::unlimited().rpm(60);
/// let (thumbnails, posters) = (
///     QuotaGuardLayer::new(limits).store(store.clone()),
///     QuotaGuardLayer::new(limits).store(store),
/// );
/// # let _ = (thumbnails, posters);
/// ```
pub struct MemoryStore {
    epoch: Instant,
    clock: Arc<dyn Clock>,
    counts: Mutex<HashMap<QuotaKey, Admission>>,
}

impl MemoryStore {
    /// An empty count, by the machine's own clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// An empty count, by this clock.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { epoch: Instant::now(), clock, counts: Mutex::default() }
    }

    fn answer(&self, exchange: &Exchange) -> Reply {
        let wall_ms = wall_ms(&*self.clock);
        let steady_ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = Moment { steady_ms, wall_ms };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let margin_ms = u64::try_from(exchange.margin.as_millis()).unwrap_or(0);
        let admission = counts
            .entry(exchange.key.clone())
            .or_insert_with(|| Admission::new(exchange.limits, margin_ms));
        exchange_with(admission, now, exchange)
    }

    /// What is counted for this key, by day and by minute, for tests and displays.
    #[must_use]
    pub fn taken(&self, key: &QuotaKey) -> crate::quota_guard::Amounts {
        let steady_ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = Moment { steady_ms, wall_ms: wall_ms(&*self.clock) };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get_mut(key).map(|admission| admission.taken(now)).unwrap_or_default()
    }

    /// The Pacific day by this store's clock.
    #[must_use]
    pub fn day(&self) -> PacificDay {
        PacificDay::holding(wall_ms(&*self.clock))
    }
}

pub(crate) fn wall_ms(clock: &dyn Clock) -> i64 {
    clock
        .now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map(|since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
        .unwrap_or(0)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl QuotaStore for MemoryStore {
    fn exchange(&self, exchange: Exchange) -> Exchanging {
        Box::pin(std::future::ready(Ok(self.answer(&exchange))))
    }
}
