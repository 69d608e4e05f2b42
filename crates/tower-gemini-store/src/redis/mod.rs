use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tower_gemini::calendar::PacificDay;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::quota_guard::QuotaKey;
use tower_gemini::store::{CallFingerprint, StoreError};

use crate::lanes::Lanes;

mod journal;
mod quota;
mod records;
mod spending;

/// Counts quota and spending in Redis (6.2 or later) or Valkey, for every process that reaches the
/// server.
///
/// Each change is one script, run atomically over all keys of an (upstream, project, model) or of an
/// account, on the server's clock. Keys carry a hash tag, so that they share a slot of a cluster; they expire by
/// themselves. Their names hold the project as it is configured, or its keyed fingerprint, never a
/// credential.
///
/// ```no_run
/// use std::sync::Arc;
/// use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, StoreFailure};
/// use tower_gemini_store::RedisStore;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisStore::open("redis://127.0.0.1/")?.prefix("images");
/// let layer = QuotaGuardLayer::new(Limits::unlimited().rpm(300).rpd(1_500))
///     .store(Arc::new(store))
///     .on_store_failure(StoreFailure::OpenOnLastLease);
/// # let _ = layer;
/// # Ok(()) }
/// ```
///
/// # A server that forgets
///
/// A restarted server may have forgotten the last minute. It is not trusted until a window has
/// passed since its start ([`restart_hold`](Self::restart_hold)); meanwhile it grants nothing. The
/// clients restore the day's count: each reports what it last received. What no client received is
/// lost, so a server that must keep the day across its own crash should write an append-only file.
/// A failover to a lagging replica loses what the replica had not received. What is spent is not
/// restored by clients: a cap is as durable as the server is.
///
/// # A client that dies
///
/// What was left of its lease stays counted until it leaves the window; of the daily requests that
/// is at most one lease. Spending that it had reserved counts as spent at its worst case after
/// [`give_up_after`](Self::give_up_after).
#[derive(Clone)]
pub struct RedisStore {
    client: Client,
    prefix: String,
    clock: Arc<dyn Clock>,
    restart_hold: Duration,
    give_up_after: Duration,
    link: Arc<Mutex<Link>>,
    /// Names this process in a journal.
    owner: String,
    max_response_bytes: usize,
    replicas: u32,
    lanes: Arc<Lanes>,
    /// Of the calls that this process has records of.
    fingerprints: Arc<std::sync::Mutex<HashMap<u128, CallFingerprint>>>,
}

/// How long connecting may take. The guard has the time limit of an exchange; five times this only
/// frees what hangs for good.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Link {
    connection: Option<MultiplexedConnection>,
    number: u64,
    hold_until: Option<Instant>,
    /// Which run of the server we are connected to.
    run: Option<String>,
    /// Another run than before may have lost the day: which keys were reported to it since.
    reported: Option<HashSet<QuotaKey>>,
    /// The server's clock minus ours, as last heard.
    skew_ms: i64,
}

impl RedisStore {
    /// Makes a store at this URL (`redis://host:port/db`). It connects at the first exchange.
    ///
    /// # Errors
    ///
    /// Where the URL cannot be read.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let client = Client::open(url).map_err(|error| not_a_url(&error))?;
        Ok(Self {
            client,
            prefix: "tower-gemini".to_owned(),
            clock: Arc::new(SystemClock),
            // The window, the longest margin and the longest lease.
            restart_hold: Duration::from_secs(65),
            // No attempt takes longer than `AttemptTimeout`'s 20 minutes.
            give_up_after: Duration::from_secs(30 * 60),
            link: Arc::default(),
            owner: crate::random().iter().map(|byte| format!("{byte:02x}")).collect(),
            max_response_bytes: 256 * 1024 * 1024,
            replicas: 0,
            lanes: Arc::default(),
            fingerprints: Arc::default(),
        })
    }

    /// Sets what every key begins with. Default `tower-gemini`.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.replace(['{', '}'], "_");
        // What was reported was reported under other keys.
        self.link = Arc::default();
        self
    }

    /// Sets how long after its start a server is not trusted. Default 65 s: a window, with margin
    /// and lease.
    #[must_use]
    pub fn restart_hold(mut self, hold: Duration) -> Self {
        self.restart_hold = hold;
        self.link = Arc::default();
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

    /// Sets the password, in place of one in the URL.
    ///
    /// # Errors
    ///
    /// None that is known: the client is made anew.
    pub fn password(mut self, password: &str) -> Result<Self, StoreError> {
        let info = self.client.get_connection_info().clone();
        let settings = info.redis_settings().clone().set_password(password);
        let made = Client::open(info.set_redis_settings(settings));
        self.client = made.map_err(|error| not_a_url(&error))?;
        self.link = Arc::default();
        Ok(self)
    }

    /// Reads the day from this clock, corrected by the server's at the first exchange. Default: the
    /// system's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
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
        let name = self.name("secret", "");
        let random = crate::random();
        let share = async |mut connection: MultiplexedConnection| {
            let mut set = redis::cmd("SET");
            set.arg(&name).arg(&random[..]).arg("NX").exec_async(&mut connection).await?;
            redis::cmd("GET").arg(&name).query_async::<Vec<u8>>(&mut connection).await
        };
        let shared = self.run(share).await?;
        shared.try_into().map_err(|_| StoreError::new("the shared secret has another form"))
    }

    /// Writes a key that expires, to find out whether that is possible.
    ///
    /// # Errors
    ///
    /// Where it is not: a server that cannot be reached, is out of memory, or only reads.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let name = self.name("probe", "");
        let write = async |mut connection| {
            redis::cmd("SET").arg(name).arg(1).arg("EX").arg(60).query_async(&mut connection).await
        };
        self.run(write).await
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's own Debug shows the password.
        f.debug_struct("RedisStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Drops the connection unless the exchange over it came to its end: one that was given up may
/// never answer.
struct Probation<'a> {
    link: &'a Mutex<Link>,
    number: u64,
    passed: bool,
}

impl Drop for Probation<'_> {
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        // Whoever holds the lock connects anew anyway.
        if let Ok(mut link) = self.link.try_lock() {
            if link.number == self.number {
                link.connection = None;
            }
        }
    }
}

impl RedisStore {
    fn wall_ms(&self) -> i64 {
        let since = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn today(&self, skew_ms: i64) -> PacificDay {
        PacificDay::holding(self.wall_ms().saturating_add(skew_ms))
    }

    /// Connects where there is no connection, and says what is known of the server.
    async fn connected(&self) -> Result<Connected<'_>, StoreError> {
        let mut link = self.link.lock().await;
        if link.connection.is_none() {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT_TIMEOUT))
                .set_response_timeout(Some(CONNECT_TIMEOUT * 5));
            let mut connection = self
                .client
                .get_multiplexed_async_connection_with_config(&config)
                .await
                .map_err(failed)?;
            link.hold_until = None;
            let info: Result<String, _> =
                redis::cmd("INFO").arg("server").query_async(&mut connection).await;
            let info = info.ok();
            let run = info.as_deref().and_then(|info| field(info, "run_id:")).map(str::to_owned);
            // The first server is no loss; another one, or one that does not say, may be.
            if link.number > 0 && (run.is_none() || run != link.run) {
                link.reported = Some(HashSet::new());
            }
            link.run = run;
            // It is floored, so the server is at least that old.
            let up = info
                .as_deref()
                .and_then(|info| field(info, "uptime_in_seconds:")?.parse().ok())
                .map(Duration::from_secs);
            match up {
                Some(up) if up < self.restart_hold => {
                    link.hold_until = Some(Instant::now() + (self.restart_hold - up))
                }
                Some(_) => {}
                None => tracing::warn!(
                    "the store's redis does not report its uptime: a restart would go unnoticed"
                ),
            }
            link.number += 1;
            link.connection = Some(connection);
        }
        let hold = link
            .hold_until
            .map(|until| until.saturating_duration_since(Instant::now()))
            .filter(|left| !left.is_zero());
        let Some(connection) = link.connection.clone() else {
            return Err(StoreError::new("not connected"));
        };
        let probation = Probation { link: &self.link, number: link.number, passed: false };
        Ok(Connected { connection, probation, hold, skew_ms: link.skew_ms })
    }

    /// Runs one command or script to its end.
    async fn run<T>(
        &self,
        run: impl AsyncFnOnce(MultiplexedConnection) -> redis::RedisResult<T>,
    ) -> Result<T, StoreError> {
        let Connected { connection, mut probation, .. } = self.connected().await?;
        let answer = run(connection).await.map_err(failed)?;
        probation.passed = true;
        Ok(answer)
    }

    /// The name of a key. Keys of one `group` share a slot of a cluster.
    fn name(&self, group: &str, rest: &str) -> String {
        // Braces would begin another hash tag.
        let group = group.replace('{', "%7B").replace('}', "%7D");
        format!("{}:{{{group}}}{rest}", self.prefix)
    }
}

/// A connection on [`Probation`], with what is known of the server.
struct Connected<'a> {
    connection: MultiplexedConnection,
    probation: Probation<'a>,
    /// How long the server is not trusted yet.
    hold: Option<Duration>,
    skew_ms: i64,
}

/// The URL may hold a password: the error must not repeat it.
fn not_a_url(error: &redis::RedisError) -> StoreError {
    StoreError::new(format!("not a redis URL ({:?})", error.kind()))
}

fn failed(error: redis::RedisError) -> StoreError {
    StoreError::new(error.to_string())
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
