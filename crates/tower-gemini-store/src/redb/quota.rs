use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use tower_gemini::quota_guard::Moment;
#[cfg(doc)]
use tower_gemini::quota_guard::QuotaKey;
use tower_gemini::store::{Exchange, ExchangeFuture, QuotaStore, Reply, StoredCounts};

use super::RedbStore;
use super::commit::{Failure, boxed};

/// The counts of each [`QuotaKey`], as [`StoredCounts::to_bytes`] writes them.
const COUNTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("quota_counts_v3");

/// The counts as they are in the file, once they were read. Only the thread that writes uses them.
pub(super) struct Counts {
    failures: Arc<AtomicU64>,
    cached: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    /// Valid for this number of failures: after another one, what is here may not be in the file.
    failures: u64,
    counts: HashMap<String, StoredCounts>,
}

impl Counts {
    pub(super) fn new(failures: Arc<AtomicU64>) -> Self {
        Self { failures, cached: Mutex::default() }
    }

    fn exchange(
        &self,
        write: &WriteTransaction,
        now: Moment,
        exchange: &Exchange,
    ) -> Result<Reply, Failure> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = self.failures.load(Ordering::Acquire);
        if cached.failures != failures {
            *cached = Cached { failures, counts: HashMap::new() };
        }
        let mut table = write.open_table(COUNTS).map_err(boxed)?;
        let key = exchange.key.to_string();
        let known = match cached.counts.remove(&key) {
            Some(known) => Some(known),
            None => {
                let row = table.get(key.as_str()).map_err(boxed)?;
                row.and_then(|row| StoredCounts::from_bytes(row.value(), now))
            }
        };
        let mut counts = known.unwrap_or_else(|| StoredCounts::new(now, exchange.margin));
        let reply = counts.exchange(now, exchange);
        table.insert(key.as_str(), counts.to_bytes().as_slice()).map_err(boxed)?;
        cached.counts.insert(key, counts);
        Ok(reply)
    }
}

impl QuotaStore for RedbStore {
    fn exchange(&self, exchange: Exchange) -> ExchangeFuture {
        let (counts, now) = (self.inner.quota.clone(), self.inner.now());
        let exchange = move |write: &WriteTransaction| counts.exchange(write, now, &exchange);
        self.inner.writer.change(exchange)
    }
}
