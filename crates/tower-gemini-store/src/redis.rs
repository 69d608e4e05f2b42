use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tower_gemini::calendar::PacificDay;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::quota_guard::{QuotaAmounts, QuotaDimension, QuotaKey, SLOT_MS, WINDOW_MS};
use tower_gemini::store::{Booking, Exchange, ExchangeFuture, QuotaStore, Reply, StoreError};

/// Counts quota in Redis (6.2 or later) or Valkey, for every process that reaches the server.
///
/// Each exchange is one script, run atomically over all keys of an (upstream, project, model), on
/// the server's clock. Keys carry a hash tag, so that they share a slot of a cluster; they expire by
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
/// A failover to a lagging replica loses what the replica had not received.
///
/// # A client that dies
///
/// What was left of its lease stays counted until it leaves the window; of the daily requests that
/// is at most one lease.
#[derive(Clone)]
pub struct RedisStore {
    client: Client,
    prefix: String,
    script: Arc<Script>,
    clock: Arc<dyn Clock>,
    restart_hold: Duration,
    link: Arc<Mutex<Link>>,
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
        // The URL may hold a password: the error must not repeat it.
        let client = Client::open(url)
            .map_err(|error| StoreError::new(format!("not a redis URL ({:?})", error.kind())))?;
        Ok(Self {
            client,
            prefix: "tower-gemini".to_owned(),
            script: Arc::new(Script::new(include_str!("redis.lua"))),
            clock: Arc::new(SystemClock),
            // The window, the longest margin and the longest lease.
            restart_hold: Duration::from_secs(65),
            link: Arc::default(),
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

    /// Reads the day from this clock, corrected by the server's at the first exchange. Default: the
    /// system's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's own Debug shows the password.
        f.debug_struct("RedisStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl QuotaStore for RedisStore {
    fn exchange(&self, exchange: Exchange) -> ExchangeFuture {
        let store = self.clone();
        Box::pin(async move { store.ask(exchange).await })
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
    async fn ask(&self, mut exchange: Exchange) -> Result<Reply, StoreError> {
        let (mut connection, number, hold, mut skew_ms) = self.connection().await?;
        if let (Some(left), true) = (hold, exchange.most > 0) {
            let day = self.today(skew_ms).number();
            tracing::warn!(
                left_ms = left.as_millis(),
                "the quota's redis has just started: it may have forgotten the last minute"
            );
            let heard =
                exchange.day_floor.filter(|(heard, _)| *heard == day).map_or(0, |(_, taken)| taken);
            return Ok(Reply::refused(Some(left), QuotaAmounts([0, 0, 0, heard]), day));
        }
        {
            let mut link = self.link.lock().await;
            if !link.reported.as_mut().is_some_and(|reported| reported.insert(exchange.key.clone()))
            {
                exchange.day_floor = None;
            }
        }
        let mut probation = Probation { link: &self.link, number, passed: false };
        // Twice at most: the second time by the server's own clock.
        for _ in 0..2 {
            let today = self.today(skew_ms);
            let answer: Vec<i64> = self
                .invocation(&exchange, &today)
                .invoke_async(&mut connection)
                .await
                .map_err(|error| StoreError::new(error.to_string()))?;
            match answer.as_slice() {
                [-1, server_ms] => {
                    skew_ms = server_ms.saturating_sub(self.wall_ms());
                    tracing::warn!(
                        skew_ms,
                        "our clock and the quota store's are in different days"
                    );
                    self.link.lock().await.skew_ms = skew_ms;
                }
                &[granted, slot, day, both, retry_ms, t0, t1, t2, t3] => {
                    probation.passed = true;
                    let amount = |value: i64| u64::try_from(value).unwrap_or(0);
                    let day = i32::try_from(day).unwrap_or(0);
                    let taken = QuotaAmounts([t0, t1, t2, t3].map(amount));
                    let booking = Booking { slot: amount(slot), day, both_days: both == 1 };
                    let after = |ms: u64| Duration::from_millis(ms.max(1));
                    return Ok(match u32::try_from(granted).unwrap_or(0) {
                        0 => Reply::refused(u64::try_from(retry_ms).ok().map(after), taken, day),
                        granted => Reply::new(granted, booking, taken, day),
                    });
                }
                _ => return Err(StoreError::new("the script's reply has another form")),
            }
        }
        Err(StoreError::new("the server's clock moves between days"))
    }

    fn wall_ms(&self) -> i64 {
        let since = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn today(&self, skew_ms: i64) -> PacificDay {
        PacificDay::holding(self.wall_ms().saturating_add(skew_ms))
    }

    async fn connection(
        &self,
    ) -> Result<(MultiplexedConnection, u64, Option<Duration>, i64), StoreError> {
        let mut link = self.link.lock().await;
        if link.connection.is_none() {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT_TIMEOUT))
                .set_response_timeout(Some(CONNECT_TIMEOUT * 5));
            let failed = |error: redis::RedisError| StoreError::new(error.to_string());
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
                    "the quota's redis does not report its uptime: a restart would go unnoticed"
                ),
            }
            link.number += 1;
            link.connection = Some(connection);
        }
        let hold = link
            .hold_until
            .map(|until| until.saturating_duration_since(Instant::now()))
            .filter(|left| !left.is_zero());
        match &link.connection {
            Some(connection) => Ok((connection.clone(), link.number, hold, link.skew_ms)),
            None => Err(StoreError::new("not connected")),
        }
    }

    fn invocation<'a>(
        &'a self,
        exchange: &Exchange,
        today: &PacificDay,
    ) -> redis::ScriptInvocation<'a> {
        let mut script = self.script.prepare_invoke();
        let base = self.base(&exchange.key);
        let number = i64::from(today.number());
        script.key(format!("{base}:w")).key(format!("{base}:q"));
        for day in number - 1..=number + 1 {
            script.key(format!("{base}:d{day}"));
        }
        script.key(format!("{base}:c"));
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let int = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        let margin_ms = ms(exchange.margin);
        let stay = (WINDOW_MS + margin_ms.unsigned_abs()).div_ceil(SLOT_MS);
        script.arg(stay).arg(SLOT_MS).arg(ms(exchange.lease)).arg(margin_ms);
        for limit in QuotaDimension::ALL.map(|dimension| exchange.limits.get(dimension)) {
            // Lua counts in doubles, exact to 2^53: limits beyond are none.
            script.arg(limit.filter(|&limit| limit < 1 << 53).map_or(-1, int));
        }
        for amount in exchange.need.0 {
            script.arg(int(amount));
        }
        script
            .arg(exchange.most)
            .arg(int(exchange.day_reserve))
            .arg(exchange.close_day.map_or(0, |close| if close { 1 } else { 2 }));
        script
            .arg(number - 1)
            .arg(number)
            .arg(number + 1)
            .arg(today.start_ms())
            .arg(today.end_ms());
        let (heard, taken) =
            exchange.day_floor.map_or((-1, 0), |(day, taken)| (i64::from(day), int(taken)));
        script.arg(heard).arg(taken);
        for amount in exchange.unreported.0 {
            script.arg(int(amount));
        }
        script.arg(exchange.refunds.len());
        for refund in &exchange.refunds {
            let Booking { slot, day, both_days } = refund.booking;
            script.arg(int(slot)).arg(day).arg(u8::from(both_days));
            for amount in refund.unused.0 {
                script.arg(int(amount));
            }
            script.arg(int(refund.extra_tokens));
        }
        script
    }

    fn base(&self, key: &QuotaKey) -> String {
        // Braces would begin another hash tag.
        let key = key.to_string().replace('{', "%7B").replace('}', "%7D");
        format!("{}:{{{key}}}", self.prefix)
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
