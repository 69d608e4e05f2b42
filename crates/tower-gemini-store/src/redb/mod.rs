use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableTable, StorageBackend, TableDefinition};
use tokio::time::Instant;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::quota_guard::Moment;
use tower_gemini::store::StoreError;

use self::commit::{Writer, boxed};
use crate::random;

mod commit;
mod journal;
mod quota;
mod records;
mod spending;

/// Opens a database, or makes one. What a process left that was killed while it made the file is made
/// anew: redb writes the first bytes last, so nothing was ever kept in it.
fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
    // It holds a lock on the file from here on.
    let file = FileBackend::new(file)?;
    if file.len()? > 0 && file.read(0, MARK)?.iter().all(|byte| *byte == 0) {
        file.set_len(0)?;
    }
    Database::builder().create_with_backend(file)
}

/// The length of what every finished file begins with (design document of redb).
const MARK: usize = 9;

/// Keeps counts of quotas and what is spent in a file that outlives the process: after a kill -9 the
/// day goes on where it was.
///
/// A grant is on the disk before it is used; grants that are asked for at the same time share one
/// flush of the disk. One process at a time: a second is refused when it opens the file, with an
/// error that says so. Processes that share a quota need a `RedisStore`. As a
/// [`Journal`](tower_gemini::store::Journal) it holds stored responses in a directory beside the
/// file, with the extension `responses`. Clones share the file; the last one that is dropped waits until everything is written.
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
    writer: Writer,
    clock: Arc<dyn Clock>,
    epoch: Instant,
    /// The wall clock when the file was opened: the beginning of the steady clock that slots are
    /// dated by.
    opened_ms: u64,
    quota: Arc<quota::Counts>,
    spending: Arc<spending::Accounts>,
    journal: Arc<journal::Records>,
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
        let database = open_database(path.as_ref()).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::new(
                "the file is open in another process or store; processes that share a quota need a redis store",
            ),
            other => StoreError::new(other),
        })?;
        let opened_ms = unix_ms(&clock);
        let journal = Arc::new(journal::Records::open(path.as_ref(), &database, opened_ms)?);
        let writer = Writer::start(path.as_ref().to_owned(), database)?;
        let quota = Arc::new(quota::Counts::new(writer.failures()));
        let run = u128::from_le_bytes(random()) as u64;
        let spending = Arc::new(spending::Accounts::new(run, writer.failures()));
        let (clock, epoch) = (Arc::new(clock), Instant::now());
        let inner = Inner { writer, clock, epoch, opened_ms, quota, spending, journal };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Lets the disk lag behind by this much: a grant is used before it is on the disk, and a crash
    /// of the process or the machine forgets what was granted in that time. Default: zero, which
    /// waits for the disk.
    #[must_use]
    pub fn flush_within(self, delay: Duration) -> Self {
        self.inner.writer.flush_within(delay);
        self
    }

    /// Why nothing can be written, where the last write failed. Every write tries again.
    #[must_use]
    pub fn problem(&self) -> Option<StoreError> {
        self.inner.writer.problem()
    }

    /// Writes what waits and closes the file, whoever has clones of the store: every later use of
    /// them is an error, and the file can be opened again. It blocks on the disk.
    pub fn close(&self) {
        self.inner.writer.close();
    }

    /// Writes a row, to find out whether that is possible.
    ///
    /// # Errors
    ///
    /// Where it is not: a full or failing disk.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let now = self.inner.now().steady_ms;
        let probe = self.inner.writer.change(move |write| {
            write.open_table(PROBE).map_err(boxed)?.insert((), now).map_err(boxed)?;
            Ok(())
        });
        probe.await
    }

    /// Random bytes that stay the same as long as the file exists, for
    /// [`project_by_credential`](tower_gemini::QuotaGuardLayer::project_by_credential): a count of a
    /// credential is found again after a restart. They are made at the first call.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written.
    pub async fn shared_secret(&self) -> Result<[u8; 16], StoreError> {
        let secret = self.inner.writer.change(|write| {
            let mut table = write.open_table(SECRET).map_err(boxed)?;
            let known = table.get(()).map_err(boxed)?.map(|row| row.value());
            let secret = known.unwrap_or_else(random);
            table.insert((), secret).map_err(boxed)?;
            Ok(secret)
        });
        secret.await
    }
}

/// The one row is [`RedbStore::shared_secret`].
const SECRET: TableDefinition<'_, (), [u8; 16]> = TableDefinition::new("secret");

/// When the file was last probed, in milliseconds since 1970.
const PROBE: TableDefinition<'_, (), u64> = TableDefinition::new("probe");

impl Inner {
    /// Now, by a steady clock that starts at the wall clock's time of opening.
    fn now(&self) -> Moment {
        let elapsed = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        let wall_ms = i64::try_from(unix_ms(&*self.clock)).unwrap_or(i64::MAX);
        Moment { steady_ms: self.opened_ms + elapsed, wall_ms }
    }
}

fn unix_ms(clock: &dyn Clock) -> u64 {
    let since = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").finish_non_exhaustive()
    }
}
