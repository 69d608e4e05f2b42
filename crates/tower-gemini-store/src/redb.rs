use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use redb::{Database, DatabaseError, ReadableTable, TableDefinition};
use tokio::time::Instant;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::quota_guard::Moment;
#[cfg(doc)]
use tower_gemini::quota_guard::QuotaKey;
use tower_gemini::store::{Exchange, ExchangeFuture, QuotaStore, Reply, StoreError, StoredCounts};

/// The counts of each [`QuotaKey`], as [`StoredCounts::to_bytes`] writes them.
const COUNTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("quota_counts_v3");

/// Counts quota in a file that outlives the process: after a kill -9 the day goes on where it was.
///
/// A grant is on the disk before it is used. One process at a time: a second is refused when it
/// opens the file, with an error that says so. Processes that share a quota need a `RedisStore`.
///
/// ```
/// use std::sync::Arc;
/// use tower_gemini::quota_guard::{Limits, QuotaGuardLayer};
/// use tower_gemini_store::RedbStore;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = std::env::temp_dir().join(format!("tower-gemini-doc-{}.redb", std::process::id()));
/// let store = RedbStore::open(&path)?;
/// assert!(RedbStore::open(&path).unwrap_err().to_string().contains("another process"));
/// let layer = QuotaGuardLayer::new(Limits::unlimited().rpd(1_000)).store(Arc::new(store));
/// # drop(layer);
/// # std::fs::remove_file(path)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedbStore {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    clock: Arc<dyn Clock>,
    epoch: Instant,
    /// The wall clock when the file was opened: the beginning of the steady clock that slots are
    /// dated by.
    opened_ms: u64,
    counts: Mutex<HashMap<String, StoredCounts>>,
}

impl RedbStore {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    ///
    /// Where it cannot be opened, is no such file, or another process has it open.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with_clock(path, SystemClock)
    }

    /// Opens the file, or creates it, and reads the day from this clock.
    ///
    /// # Errors
    ///
    /// Where it cannot be opened, is no such file, or another process has it open.
    pub fn open_with_clock(
        path: impl AsRef<Path>,
        clock: impl Clock + 'static,
    ) -> Result<Self, StoreError> {
        let database = Database::create(path.as_ref()).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::new(
                "the file is open in another process or store; processes that share a quota need a redis store",
            ),
            other => StoreError::new(other),
        })?;
        let opened_ms = unix_ms(&clock);
        let now = moment(opened_ms, opened_ms);
        let counts = Mutex::new(load(&database, now).map_err(StoreError::new)?);
        let clock = Arc::new(clock);
        let inner = Inner { database, clock, epoch: Instant::now(), opened_ms, counts };
        Ok(Self { inner: Arc::new(inner) })
    }
}

fn unix_ms(clock: &dyn Clock) -> u64 {
    let since = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn moment(steady_ms: u64, wall_ms: u64) -> Moment {
    Moment { steady_ms, wall_ms: i64::try_from(wall_ms).unwrap_or(i64::MAX) }
}

/// The errors of redb are large.
fn boxed(error: impl Into<redb::Error>) -> Box<redb::Error> {
    Box::new(error.into())
}

fn load(
    database: &Database,
    now: Moment,
) -> Result<HashMap<String, StoredCounts>, Box<redb::Error>> {
    let mut counts = HashMap::new();
    let write = database.begin_write().map_err(boxed)?;
    for row in write.open_table(COUNTS).map_err(boxed)?.iter().map_err(boxed)? {
        let (key, value) = row.map_err(boxed)?;
        let stored = StoredCounts::from_bytes(value.value(), now);
        counts.extend(stored.map(|stored| (key.value().to_owned(), stored)));
    }
    write.commit().map_err(boxed)?;
    Ok(counts)
}

impl Inner {
    fn answer(&self, exchange: &Exchange) -> Result<Reply, StoreError> {
        let elapsed = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        let now = moment(self.opened_ms + elapsed, unix_ms(&*self.clock));
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // Changed on a copy: what is not on the disk was not granted.
        let key = exchange.key.to_string();
        let mut changed = match counts.get(&key) {
            Some(known) => known.clone(),
            None => StoredCounts::new(now, exchange.margin),
        };
        let reply = changed.exchange(now, exchange);
        self.write(&key, &changed.to_bytes()).map_err(StoreError::new)?;
        counts.insert(key, changed);
        Ok(reply)
    }

    fn write(&self, key: &str, value: &[u8]) -> Result<(), Box<redb::Error>> {
        let write = self.database.begin_write().map_err(boxed)?;
        write.open_table(COUNTS).map_err(boxed)?.insert(key, value).map_err(boxed)?;
        // Durable at once: a grant that a crash forgets would be granted twice.
        write.commit().map_err(boxed)?;
        Ok(())
    }
}

impl QuotaStore for RedbStore {
    fn exchange(&self, exchange: Exchange) -> ExchangeFuture {
        let inner = self.inner.clone();
        // A commit waits for the disk, so it leaves the runtime's threads.
        let task = tokio::task::spawn_blocking(move || inner.answer(&exchange));
        Box::pin(async move {
            task.await.unwrap_or_else(|_| {
                Err(StoreError::new("the task that writes the file was cancelled"))
            })
        })
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").finish_non_exhaustive()
    }
}
