//! Connections to the server, and transactions over them.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Error, Executor, PgConnection};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tower_gemini::store::StoreError;

/// How long connecting may take, and all that is done for one method of a store. The layers have
/// time limits of their own; five times the first only frees what hangs for good, as with Redis.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(10);

/// An idle connection is not used again after this time: routers between here and the server forget
/// it silently, the first ones after 350 s (AWS's load balancers and NAT gateways, 2025).
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// Ends what a client that hangs would hold, once [`LIMIT`] is over for it too.
const SESSION: &str =
    "SET statement_timeout = '10s'; SET idle_in_transaction_session_timeout = '10s'";

/// Serializes the creation of the tables: "tower-ge" as a number, since any one will do.
const CREATE_LOCK: i64 = 0x746f_7765_722d_6765;

/// Idle connections, and places for those in use.
#[derive(Debug)]
pub(super) struct Connections {
    options: PgConnectOptions,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<(Instant, PgConnection)>>,
    has_tables: OnceCell<()>,
}

impl Connections {
    pub(super) fn new(options: PgConnectOptions, most: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(most.max(1)));
        Arc::new(Self { options, places, idle: Mutex::default(), has_tables: OnceCell::new() })
    }

    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, PgConnection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a transaction; connects, and creates the tables, where that has not happened yet.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<Transaction, Error> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| Error::PoolClosed)?;
        let connection = match self.begun_on_idle().await {
            Some(connection) => connection,
            None => {
                let connecting = timeout(CONNECT_TIMEOUT, self.options.connect());
                let late = |_| Error::Io(std::io::ErrorKind::TimedOut.into());
                let mut connection = connecting.await.map_err(late)??;
                connection.execute(SESSION).await?;
                self.has_tables.get_or_try_init(|| create_tables(&mut connection)).await?;
                connection.execute(BEGIN).await?;
                connection
            }
        };
        Ok(Transaction { connection, home: self.clone(), _place: place })
    }

    /// The connection that was used last. Where that one is dead, the others are too: the server
    /// was restarted.
    async fn begun_on_idle(&self) -> Option<PgConnection> {
        let (since, mut connection) = self.idle().pop()?;
        if since.elapsed() < IDLE_LIMIT && connection.execute(BEGIN).await.is_ok() {
            return Some(connection);
        }
        self.idle().clear();
        None
    }
}

/// Each statement sees what is committed before it, whatever the server's default is: what is read
/// after a lock was waited for is what its holder wrote.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

async fn create_tables(connection: &mut PgConnection) -> Result<(), Error> {
    // Asked first, so that a user who may create nothing can use tables that are there.
    // `to_regclass` would say what was known before the lock was waited for.
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class \
                 WHERE relname = 'tower_gemini_values' AND pg_catalog.pg_table_is_visible(oid))";
    if sqlx::query_scalar(there).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    connection.execute(BEGIN).await?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(CREATE_LOCK);
    lock.execute(&mut *connection).await?;
    if !sqlx::query_scalar(there).fetch_one(&mut *connection).await? {
        sqlx::raw_sql(super::PostgresStore::SCHEMA).execute(&mut *connection).await?;
    }
    connection.execute("COMMIT").await.map(drop)
}

/// A transaction. Dropped before its [commit](Self::commit), it closes its connection, which may
/// never answer; the server takes everything back then.
pub(super) struct Transaction {
    connection: PgConnection,
    home: Arc<Connections>,
    _place: OwnedSemaphorePermit,
}

impl Transaction {
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        self.connection.execute("COMMIT").await?;
        self.home.idle().push((Instant::now(), self.connection));
        Ok(())
    }

    /// The server's clock, in milliseconds since 1970.
    pub(super) async fn now_ms(&mut self) -> Result<u64, Error> {
        let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        let now: i64 = sqlx::query_scalar(now).fetch_one(&mut **self).await?;
        Ok(u64::try_from(now).unwrap_or(0))
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Bounds the time of what a method of a store does, and says what failed.
pub(super) async fn limited<T>(
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    match timeout(LIMIT, work).await {
        Ok(result) => result.map_err(StoreError::new),
        Err(_) => {
            let limit = LIMIT.as_secs();
            Err(StoreError::new(format!("postgres did not answer within {limit} s")))
        }
    }
}

/// What another version of this crate wrote, or another program.
pub(super) fn unreadable(what: &str) -> Error {
    Error::Protocol(format!("{what} in postgres cannot be read"))
}

/// Milliseconds as the server counts them.
pub(super) fn int(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
