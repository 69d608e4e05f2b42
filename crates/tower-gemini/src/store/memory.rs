use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{
    Exchange, ExchangeFuture, QuotaStore, RecordStore, SpendAsk, SpendReply, SpendSettlement,
    SpendingBooks, SpendingFuture, SpendingStore, StoredCounts, StoredSpending,
};
use crate::calendar::unix_ms;
use crate::clock::{Clock, SystemClock, millis};
use crate::quota_guard::admission::Moment;
use crate::quota_guard::limits::{QuotaAmounts, QuotaKey};

/// Counts in this process, for every layer that is given the store.
///
/// ```
/// use std::sync::Arc;
/// use tower_gemini::quota_guard::{Limits, QuotaGuardLayer};
/// use tower_gemini::store::MemoryStore;
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
    counts: Mutex<HashMap<QuotaKey, StoredCounts>>,
    spending: Mutex<HashMap<String, StoredSpending>>,
    records: Mutex<HashMap<&'static str, HashMap<String, String>>>,
}

impl MemoryStore {
    /// Starts empty, with the system's clock.
    #[must_use]
    pub fn new() -> Self {
        let (epoch, clock) = (Instant::now(), Arc::new(SystemClock));
        let (counts, spending, records) = Default::default();
        Self { epoch, clock, counts, spending, records }
    }

    /// Reads days from this clock. Default: the system's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    fn now(&self) -> Moment {
        Moment { steady_ms: millis(self.epoch.elapsed()), wall_ms: unix_ms(self.clock.now()) }
    }

    /// Returns what is counted for this key now, for tests and displays.
    #[must_use]
    pub fn taken(&self, key: &QuotaKey) -> QuotaAmounts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get_mut(key).map(|counts| counts.taken(self.now())).unwrap_or_default()
    }
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
    fn exchange(&self, exchange: Exchange) -> ExchangeFuture {
        let now = self.now();
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = all
            .entry(exchange.key.clone())
            .or_insert_with(|| StoredCounts::new(now, exchange.margin));
        Box::pin(std::future::ready(Ok(counts.exchange(now, &exchange))))
    }
}

impl MemoryStore {
    fn spending<R>(
        &self,
        books: &Arc<SpendingBooks>,
        change: impl FnOnce(&mut StoredSpending) -> R,
    ) -> R {
        let mut all = self.spending.lock().unwrap_or_else(PoisonError::into_inner);
        let account = all.entry(books.ledger.clone());
        change(account.or_insert_with(|| StoredSpending::new(books.clone())))
    }
}

impl SpendingStore for MemoryStore {
    fn reserve(&self, ask: SpendAsk) -> SpendingFuture<SpendReply> {
        let now = self.clock.now();
        let reply = self.spending(&ask.books, |account| account.reserve(now, &ask));
        Box::pin(std::future::ready(Ok(reply)))
    }

    fn settle(&self, settlement: SpendSettlement) -> SpendingFuture<()> {
        let now = self.clock.now();
        self.spending(&settlement.books, |account| account.settle(now, &settlement));
        Box::pin(std::future::ready(Ok(())))
    }
}

impl RecordStore for MemoryStore {
    fn change(
        &self,
        table: &'static str,
        records: Vec<(String, Option<String>)>,
    ) -> SpendingFuture<()> {
        self.records(table, |known| {
            for (key, text) in records {
                match text {
                    Some(text) => known.insert(key, text),
                    None => known.remove(&key),
                };
            }
        })
    }

    fn get(&self, table: &'static str, keys: Vec<String>) -> SpendingFuture<Vec<Option<String>>> {
        self.records(table, |known| keys.iter().map(|key| known.get(key).cloned()).collect())
    }

    fn all(&self, table: &'static str) -> SpendingFuture<Vec<(String, String)>> {
        self.records(table, |known| known.clone().into_iter().collect())
    }
}

impl MemoryStore {
    fn records<R: Send + 'static>(
        &self,
        table: &'static str,
        change: impl FnOnce(&mut HashMap<String, String>) -> R,
    ) -> SpendingFuture<R> {
        let mut tables = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(tables.entry(table).or_default());
        Box::pin(std::future::ready(Ok(result)))
    }
}
