use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Error};
use tower_gemini::store::StoreError;

use self::connection::{Connections, Transaction, limited, unreadable};
use crate::lanes::Lanes;

mod connection;
mod journal;
mod quota;
mod records;
mod spending;

/// Keeps quota, spending and the journal of paid calls in Postgres (11 or later; tested with 15),
/// for every process that reaches the server.
///
/// Each change is one transaction, on the server's clock. It takes effect when it is committed, so
/// it survives whatever a committed transaction survives there: with the default
/// `synchronous_commit = on`, a crash of the server. The tables are created at the first use
/// ([`SCHEMA`](Self::SCHEMA)); they hold the project as it is configured, or its keyed fingerprint,
/// never a credential.
///
/// ```no_run
/// use std::sync::Arc;
/// use tower_gemini::quota_guard::{Limits, QuotaGuardLayer};
/// use tower_gemini_store::PostgresStore;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = PostgresStore::open("postgres://images@127.0.0.1/images")?.prefix("images");
/// let limits = Limits::unlimited().rpm(300).rpd(1_500);
/// let layer = QuotaGuardLayer::new(limits).store(Arc::new(store));
/// # let _ = layer;
/// # Ok(()) }
/// ```
///
/// # A server that fails
///
/// Every method is an error then, within 10 s, and the next one connects anew. A failover to a
/// replica that lags behind loses what the replica had not received, unless the server waits for it
/// (`synchronous_standby_names`).
///
/// # A client that dies
///
/// Nobody hears of it for 8 s then, and its calls in flight count as lost. What was left of its
/// lease of quota stays counted until it leaves the window; of the daily requests that is at most
/// one lease. Spending that it had reserved counts as spent at its worst case after
/// [`give_up_after`](Self::give_up_after).
///
/// # Poolers
///
/// A pooler between here and the server has to pass on prepared statements (PgBouncer 1.21 or
/// later, `max_prepared_statements`), and the startup parameter `extra_float_digits`.
#[derive(Clone)]
pub struct PostgresStore {
    connections: Arc<Connections>,
    prefix: String,
    give_up_after: Duration,
    max_response_bytes: usize,
    /// Names this process in a journal; not negative.
    owner: i64,
    lanes: Arc<Lanes>,
}

/// Connections of one process: changes that wait for the disk share one flush there, and each
/// connection is a process of the server, which admits 100 by default (`max_connections`).
const MAX_CONNECTIONS: usize = 8;

impl PostgresStore {
    /// The tables, as SQL. They are created at the first use; a user who may not create tables
    /// needs an administrator to run this before, in the schema that the user's `search_path`
    /// finds.
    pub const SCHEMA: &'static str = include_str!("schema.sql");

    /// Makes a store at this URL (`postgres://user:password@host:port/database`). It connects at
    /// the first use. What the URL leaves out is taken from the variables of `libpq` (`PGUSER`,
    /// `PGPASSWORD`, …). With the feature `postgres-tls` it uses TLS where the server offers it;
    /// `?sslmode=verify-full` insists on that, and on the server's certificate.
    ///
    /// # Errors
    ///
    /// Where the URL cannot be read.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        // The URL may hold a password: the error must not repeat it.
        let options: PgConnectOptions =
            url.parse().map_err(|_| StoreError::new("not a postgres URL"))?;
        // Statements are the same all the time, and their logs would hide everything else.
        let options = options.disable_statement_logging();
        let [a, b, c, d, e, f, g, h, ..] = crate::random();
        Ok(Self {
            connections: Connections::new(options, MAX_CONNECTIONS),
            prefix: "tower-gemini".to_owned(),
            // No attempt takes longer than `AttemptTimeout`'s 20 minutes.
            give_up_after: Duration::from_secs(30 * 60),
            max_response_bytes: 256 * 1024 * 1024,
            owner: i64::from_le_bytes([a, b, c, d, e, f, g, h]) & i64::MAX,
            lanes: Arc::default(),
        })
    }

    /// Sets the name that every row of this store begins with: stores with another one share
    /// nothing with it. Default `tower-gemini`.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// Sets the password, in place of one in the URL.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        let options = self.connections.options().clone().password(password);
        self.connections = Connections::new(options, MAX_CONNECTIONS);
        self
    }

    /// Sets after which time a reservation of spending belongs to a process that is gone: it counts
    /// as spent at its worst case then, and nobody waits for it any more. Default 30 min. One that
    /// was only cut off can settle it for a day more.
    #[must_use]
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.give_up_after = time;
        self
    }

    /// Sets how many bytes of stored responses the server holds for a journal. The ones that end
    /// first make room. Default: 256 MiB.
    #[must_use]
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.max_response_bytes = bytes;
        self
    }

    /// Random bytes that all processes with this server and prefix share, for
    /// [`project_by_credential`](tower_gemini::QuotaGuardLayer::project_by_credential): they count a
    /// credential together. They are made at the first call, and stay as long as the server keeps
    /// them.
    ///
    /// # Errors
    ///
    /// Where the server cannot be reached or written.
    pub async fn shared_secret(&self) -> Result<[u8; 16], StoreError> {
        let share = async {
            let mut transaction = self.connections.begin().await?;
            let mut secret = self.locked(&mut transaction, "secret", "").await?;
            if secret.is_empty() {
                secret = crate::random().to_vec();
                self.put(&mut transaction, "secret", "", &secret).await?;
            }
            transaction.commit().await?;
            secret.try_into().map_err(|_| unreadable("the shared secret"))
        };
        limited(share).await
    }

    /// Writes a row, to find out whether that is possible.
    ///
    /// # Errors
    ///
    /// Where it is not: a server that cannot be reached, has a full disk, or only reads.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let write = async {
            let mut transaction = self.connections.begin().await?;
            self.put(&mut transaction, "probe", "", &[]).await?;
            transaction.commit().await
        };
        limited(write).await
    }

    /// Locks a value until the end of the transaction, and reads it: empty where there was none.
    async fn locked(
        &self,
        transaction: &mut Transaction,
        kind: &str,
        name: &str,
    ) -> Result<Vec<u8>, Error> {
        loop {
            let read = "SELECT value FROM tower_gemini_values \
                        WHERE prefix = $1 AND kind = $2 AND name = $3 FOR UPDATE";
            let read = sqlx::query_scalar(read).bind(&self.prefix).bind(kind).bind(name);
            if let Some(value) = read.fetch_optional(&mut **transaction).await? {
                return Ok(value);
            }
            let add = "INSERT INTO tower_gemini_values (prefix, kind, name, value) \
                       VALUES ($1, $2, $3, '') ON CONFLICT DO NOTHING";
            let add = sqlx::query(add).bind(&self.prefix).bind(kind).bind(name);
            add.execute(&mut **transaction).await?;
        }
    }

    /// Writes a value.
    async fn put(
        &self,
        transaction: &mut Transaction,
        kind: &str,
        name: &str,
        value: &[u8],
    ) -> Result<(), Error> {
        let put = "INSERT INTO tower_gemini_values (prefix, kind, name, value) \
                   VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (prefix, kind, name) DO UPDATE SET value = excluded.value";
        let put = sqlx::query(put).bind(&self.prefix).bind(kind).bind(name).bind(value);
        put.execute(&mut **transaction).await.map(drop)
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options' own Debug shows the password.
        f.debug_struct("PostgresStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
