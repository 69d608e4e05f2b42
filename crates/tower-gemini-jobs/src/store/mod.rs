//! Where jobs are kept: a SQLite file, or Postgres for many workers on many machines.
//!
//! Every change is one transaction. An item belongs to one worker at a time: it is claimed with
//! `SKIP LOCKED` (Postgres) or under SQLite's one writer, and the claim reserves what its call can
//! cost at most from the job's cap in the same transaction. Two workers never run an item at once,
//! and no cap is passed however many there are.
//!
//! Whoever changes a job and its items locks the job's row first, and one job a transaction, so that
//! no two wait for each other.

mod batches;
mod claim;
mod notify;
mod submit;

use std::fmt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::{Any, AnyPool, Row as _, Transaction};

pub(crate) use batches::{BatchLimits, BatchStep, StoredBatch};
pub(crate) use claim::{Ask, Claimed, Holder, Settlement};
pub use notify::Notice;
pub(crate) use submit::stem;
pub use submit::{NewItem, NewJob, RequestKey};

use crate::item::Item;
use crate::job::{Counts, ItemState, Job, JobState, Spent};
use crate::lane::Lane;

/// A store that failed, or does not know what is asked for.
#[derive(Debug)]
pub struct StoreError {
    what: String,
    is_failure: bool,
}

impl StoreError {
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), is_failure: false }
    }

    /// Whether the store itself failed. Otherwise what was asked of it cannot be done.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.is_failure
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for StoreError {}

impl From<String> for StoreError {
    fn from(what: String) -> Self {
        Self::new(what)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self { what: format!("the store of jobs failed: {error}"), is_failure: true }
    }
}

/// No cap.
pub(crate) const NONE: i64 = -1;

/// No deadline.
pub(crate) const NEVER: i64 = i64::MAX;

/// What `schema.sql` makes last: where it is, all is.
const LAST_MADE: &str = "items_by_output";

/// A store of jobs. Clones share it.
#[derive(Debug, Clone)]
pub struct JobStore {
    pool: AnyPool,
    is_postgres: bool,
    /// The file of SQLite.
    file: Option<PathBuf>,
}

/// An item as it is stored.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StoredItem {
    /// Its job.
    pub job: String,
    /// Its number in the job, from 1.
    pub number: i64,
    /// What it asks for.
    pub item: Item,
    /// The model that draws it.
    pub model: String,
    /// The name of its image files, without extension.
    pub output: String,
    /// Its lane.
    pub lane: Lane,
    /// How it stands.
    pub state: ItemState,
    /// It is not called earlier, in milliseconds since 1970.
    pub not_before_ms: i64,
    /// Its deadline, likewise; `None` where it has none.
    pub deadline_ms: Option<i64>,
    /// Free failures so far.
    pub failures: u32,
    /// How often it was sent again although it may have been charged.
    pub resends: u32,
    /// The most that one call for it can cost.
    pub worst_microusd: u64,
    /// What it cost.
    pub spent: Spent,
    /// Requests sent for it.
    pub requests: u64,
    /// When it was last claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
    /// The batch that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// Why it waits or ended, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its line of the manifest, once it has one.
    #[serde(skip)]
    pub result: Option<String>,
    /// What its claim reserved.
    #[serde(skip)]
    pub(crate) reserved_microusd: u64,
    /// When its claim ends.
    #[serde(skip)]
    pub(crate) lease_ms: i64,
    /// Requests that its claim reserved.
    #[serde(skip)]
    pub(crate) reserved_requests: u32,
}

impl JobStore {
    /// Opens the store at a path (SQLite; the file is made) or a URL (`postgres://…`), and makes
    /// its tables where there are none.
    ///
    /// # Errors
    ///
    /// A file that cannot be written, a server that cannot be reached, a kind that this build
    /// lacks.
    pub async fn open(place: &str) -> Result<Self, StoreError> {
        let is_postgres = Self::is_shared_place(place);
        let lacks = |feature: &str| {
            StoreError::new(format_args!("this build has no {feature}; build it with that feature"))
        };
        if is_postgres && !cfg!(feature = "postgres") {
            return Err(lacks("`postgres`"));
        }
        if !is_postgres && !cfg!(feature = "sqlite") {
            return Err(lacks("`sqlite`"));
        }
        // A second call changes nothing; the drivers are the same.
        let _ = sqlx::any::install_drivers(
            const {
                &[
                    #[cfg(feature = "sqlite")]
                    sqlx::sqlite::any::DRIVER,
                    #[cfg(feature = "postgres")]
                    sqlx::postgres::any::DRIVER,
                ]
            },
        );
        let url = if is_postgres { place.to_owned() } else { sqlite_url(place) };
        let options =
            AnyPoolOptions::new().max_connections(8).after_connect(move |connection, _| {
                Box::pin(async move {
                    if !is_postgres {
                        // Readers do not wait for the writer.
                        sqlx::query("PRAGMA journal_mode = WAL").execute(&mut *connection).await?;
                        sqlx::query("PRAGMA busy_timeout = 30000")
                            .execute(&mut *connection)
                            .await?;
                    }
                    Ok(())
                })
            });
        let pool = options.connect(&url).await.map_err(|error| {
            // The URL may hold a password.
            let place = if is_postgres { "Postgres" } else { place };
            StoreError::new(format_args!("the store of jobs ({place}) cannot be opened: {error}"))
        })?;
        let file = (!is_postgres).then(|| PathBuf::from(place));
        let store = Self { pool, is_postgres, file };
        store.make_tables().await?;
        Ok(store)
    }

    async fn make_tables(&self) -> Result<(), StoreError> {
        let mut begun = self.begin().await?;
        if self.is_postgres {
            // `IF NOT EXISTS` races between two that start at once.
            sqlx::query("SELECT pg_advisory_xact_lock(7489127)").execute(&mut *begun).await?;
            // `CREATE INDEX` locks its table before it looks, and waits for workers that wait for it.
            let made = sqlx::query(
                "SELECT 1 FROM pg_catalog.pg_class WHERE relname = $1 \
                 AND pg_catalog.pg_table_is_visible(oid)",
            );
            if made.bind(LAST_MADE).fetch_optional(&mut *begun).await?.is_some() {
                return Ok(());
            }
        }
        for statement in include_str!("schema.sql").split(';').map(str::trim) {
            if !statement.is_empty() {
                sqlx::query(statement).execute(&mut *begun).await?;
            }
        }
        Ok(begun.commit().await?)
    }

    /// Whether what is at this path or URL can be shared by workers on several machines.
    #[must_use]
    pub fn is_shared_place(place: &str) -> bool {
        ["postgres://", "postgresql://"].iter().any(|scheme| place.starts_with(scheme))
    }

    /// Whether workers on several machines may share it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.is_postgres
    }

    /// Keeps other processes from working on the same file: a worker takes whatever runs at its start
    /// for what a dead one left.
    pub(crate) fn lock_for_worker(&self) -> Result<Option<File>, StoreError> {
        let Some(file) = &self.file else { return Ok(None) };
        let mut path = file.clone().into_os_string();
        path.push(".worker");
        let failed = |error: &dyn fmt::Display| {
            StoreError::new(format_args!("{}: {error}", Path::new(&path).display()))
        };
        let lock = File::create(&path).map_err(|error| failed(&error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Err(StoreError::new(format_args!(
                "another process works on the jobs in {}: let it, or stop it first",
                file.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed(&error)),
        }
    }

    /// Closes its connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction that writes.
    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let statement = if self.is_postgres { "BEGIN" } else { "BEGIN IMMEDIATE" };
        Ok(self.pool.begin_with(statement).await?)
    }

    /// Locks a job's row until the transaction ends: only who holds it changes what the job has
    /// reserved, or ends its items.
    async fn lock_job(
        &self,
        begun: &mut Transaction<'static, Any>,
        job: &str,
    ) -> Result<Option<AnyRow>, StoreError> {
        let lock = if self.is_postgres { "FOR UPDATE" } else { "" };
        let text = format!("SELECT * FROM jobs WHERE id = $1 {lock}");
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(job);
        Ok(query.fetch_optional(&mut **begun).await?)
    }

    /// The same of a job that may be worked on; `None` of any other.
    async fn lock_active(
        &self,
        begun: &mut Transaction<'static, Any>,
        job: &str,
    ) -> Result<Option<AnyRow>, StoreError> {
        let Some(job) = self.lock_job(begun, job).await? else { return Ok(None) };
        Ok((job.try_get::<&str, _>("state")? == JobState::Active.as_str()).then_some(job))
    }

    /// The jobs of an owner, or all; the newest first.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn jobs(&self, owner: Option<&str>) -> Result<Vec<Job>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM jobs WHERE $1 = 1 OR owner = $2 ORDER BY created_ms DESC, id LIMIT 1000",
        )
        .bind(i64::from(owner.is_none()))
        .bind(owner.unwrap_or(""))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(job_of).collect()
    }

    /// One job.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query("SELECT * FROM jobs WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(job_of).transpose()
    }

    /// How its items stand.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn counts(&self, job: &str) -> Result<Counts, StoreError> {
        let rows =
            sqlx::query("SELECT state, COUNT(*) AS n FROM items WHERE job = $1 GROUP BY state")
                .bind(job)
                .fetch_all(&self.pool)
                .await?;
        let mut counts = Counts::default();
        for row in rows {
            counts.add(state_of(&row)?, unsigned(&row, "n")?);
        }
        Ok(counts)
    }

    /// Up to `limit` items of a job behind number `after`, in order; only those in `state` where
    /// one is given.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn items(
        &self,
        job: &str,
        state: Option<ItemState>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredItem>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM items WHERE job = $1 AND number > $2 AND ($3 = '' OR state = $3) \
             ORDER BY number LIMIT $4",
        )
        .bind(job)
        .bind(after)
        .bind(state.map_or("", ItemState::as_str))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(item_of).collect()
    }

    /// One item.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn item(&self, job: &str, number: i64) -> Result<Option<StoredItem>, StoreError> {
        let row = sqlx::query("SELECT * FROM items WHERE job = $1 AND number = $2")
            .bind(job)
            .bind(number)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(item_of).transpose()
    }

    /// The item of a job that waits for its time and is due first.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn next_wait(&self, job: &str) -> Result<Option<StoredItem>, StoreError> {
        let row = sqlx::query(
            "SELECT * FROM items WHERE job = $1 AND state = 'waiting' AND missing = 0 \
             ORDER BY not_before_ms, number LIMIT 1",
        )
        .bind(job)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(item_of).transpose()
    }

    /// The most that what is left of a job can cost, a call an item, in millionths of a US dollar.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn to_come(&self, job: &str) -> Result<u64, StoreError> {
        let row = sqlx::query(
            "SELECT CAST(COALESCE(SUM(worst_microusd), 0) AS BIGINT) AS worst FROM items \
             WHERE job = $1 AND state IN ('waiting', 'running', 'in_batch')",
        )
        .bind(job)
        .fetch_one(&self.pool)
        .await?;
        unsigned(&row, "worst")
    }

    /// The line of the manifest of the item with this output.
    pub(crate) async fn result_of(
        &self,
        job: &str,
        output: &str,
    ) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT result FROM items WHERE job = $1 AND output = $2")
            .bind(job)
            .bind(output)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| row.try_get("result")).transpose()?.flatten())
    }

    /// Pauses a job: what is in flight ends, nothing more is started. `false` where it has ended.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn pause(&self, job: &str) -> Result<bool, StoreError> {
        self.change(job, JobState::Paused, "state = 'active'").await
    }

    /// Lets a paused or capped job go on. `false` where it has ended.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn resume(&self, job: &str) -> Result<bool, StoreError> {
        self.change(job, JobState::Active, "state IN ('paused', 'capped')").await
    }

    /// Ends a job: what is in flight ends and stays, what waits is never sent. `false` where it had
    /// ended.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn cancel(&self, job: &str, now_ms: i64) -> Result<bool, StoreError> {
        let mut begun = self.begin().await?;
        let text = format!(
            "UPDATE jobs SET state = 'cancelled', finished_ms = $2, stopped = NULL, {} \
             WHERE id = $1 AND state IN ('active', 'paused', 'capped')",
            notify::NEWS
        );
        let done = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(job)
            .bind(now_ms)
            .execute(&mut *begun)
            .await?;
        sqlx::query(
            "UPDATE items SET state = 'cancelled', ended_ms = $2 WHERE job = $1 \
             AND state = 'waiting' AND EXISTS (SELECT 1 FROM jobs WHERE id = $1 AND state = 'cancelled')",
        )
        .bind(job)
        .bind(now_ms)
        .execute(&mut *begun)
        .await?;
        begun.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes a job with its items, and then what `files` removes, or nothing of it. `false` where
    /// it has not ended: its calls and batches still cost something.
    pub(crate) async fn delete(
        &self,
        job: &str,
        files: impl FnOnce() -> std::io::Result<()>,
    ) -> Result<bool, StoreError> {
        let mut begun = self.begin().await?;
        let Some(row) = self.lock_job(&mut begun, job).await? else { return Ok(false) };
        let state = JobState::named(row.try_get("state")?);
        let has_ended = matches!(state, Some(JobState::Finished | JobState::Cancelled));
        if !has_ended || unsigned(&row, "reserved_requests")? > 0 {
            return Ok(false);
        }
        for table in ["items", "waits", "batches"] {
            let text = format!("DELETE FROM {table} WHERE job = $1");
            sqlx::query(sqlx::AssertSqlSafe(text)).bind(job).execute(&mut *begun).await?;
        }
        sqlx::query("DELETE FROM jobs WHERE id = $1").bind(job).execute(&mut *begun).await?;
        files().map_err(|error| {
            StoreError::new(format_args!("the images of job {job} cannot be removed: {error}"))
        })?;
        begun.commit().await?;
        Ok(true)
    }

    /// Jobs that ended before a time, of which nothing is in flight.
    pub(crate) async fn ended_before(&self, ms: i64) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM jobs WHERE state IN ('finished', 'cancelled') \
             AND reserved_requests = 0 AND finished_ms < $1 ORDER BY finished_ms LIMIT 100",
        )
        .bind(ms)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }

    async fn change(
        &self,
        job: &str,
        to: JobState,
        from: &'static str,
    ) -> Result<bool, StoreError> {
        let text = format!(
            "UPDATE jobs SET state = $2, stopped = NULL, {} WHERE id = $1 AND {from}",
            notify::NEWS
        );
        let done = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(job)
            .bind(to.as_str())
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Changes the caps of a job; `None` leaves one as it is.
    ///
    /// # Errors
    ///
    /// The store failed, or there is no such job.
    pub async fn set_caps(
        &self,
        job: &str,
        max_usd: Option<f64>,
        max_requests: Option<u32>,
    ) -> Result<(), StoreError> {
        let found = self.job(job).await?.ok_or_else(|| StoreError::new("no such job"))?;
        let mut options = found.options;
        options.max_usd = max_usd.or(options.max_usd);
        options.max_requests = max_requests.or(options.max_requests);
        options.check().map_err(StoreError::new)?;
        let (money, requests) = submit::caps(&options);
        sqlx::query(
            "UPDATE jobs SET options = $2, max_microusd = $3, max_requests = $4 WHERE id = $1",
        )
        .bind(job)
        .bind(json(&options)?)
        .bind(money)
        .bind(requests)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Calls items again that failed, and, only where `unknown` says so, those that may have been
    /// paid for: they may be paid for twice. Each gets one call, whatever its own caps. The number of
    /// items; none of a cancelled job.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn retry(&self, job: &str, unknown: bool) -> Result<u64, StoreError> {
        let mut begun = self.begin().await?;
        self.lock_job(&mut begun, job).await?;
        // Items that failed only since another did wait for that one again.
        let done = sqlx::query(
            "UPDATE items SET state = 'waiting', failures = 0, not_before_ms = 0, ended_ms = NULL, \
             reason = NULL, batch = NULL, resends = resends + 1, \
             missing = (SELECT COUNT(*) FROM waits w JOIN items o ON o.job = w.job AND \
             o.number = w.waits_for WHERE w.job = items.job AND w.item = items.number \
             AND o.state <> 'done') \
             WHERE job = $1 AND (state = 'failed' OR ($2 = 1 AND state = 'unknown')) \
             AND EXISTS (SELECT 1 FROM jobs WHERE id = $1 AND state <> 'cancelled')",
        )
        .bind(job)
        .bind(i64::from(unknown))
        .execute(&mut *begun)
        .await?;
        if done.rows_affected() > 0 {
            let text = format!(
                "UPDATE jobs SET state = 'active', finished_ms = NULL, stopped = NULL, {} \
                 WHERE id = $1 AND state = 'finished'",
                notify::NEWS
            );
            sqlx::query(sqlx::AssertSqlSafe(text)).bind(job).execute(&mut *begun).await?;
        }
        begun.commit().await?;
        Ok(done.rows_affected())
    }
}

/// SQLite's URL of a path, whatever characters it has.
fn sqlite_url(path: &str) -> String {
    let path = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    format!("sqlite://{path}?mode=rwc")
}

fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(StoreError::new)
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| {
        StoreError::new(format_args!("the store of jobs has a row that is damaged: {error}"))
    })
}

fn unsigned(row: &AnyRow, column: &str) -> Result<u64, StoreError> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

fn small(row: &AnyRow, column: &str) -> Result<u32, StoreError> {
    Ok(u32::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

fn damaged(what: &str) -> StoreError {
    StoreError::new(format_args!("the store of jobs has a row with an unknown {what}"))
}

fn state_of(row: &AnyRow) -> Result<ItemState, StoreError> {
    ItemState::named(row.try_get("state")?).ok_or_else(|| damaged("state"))
}

fn spent_of(row: &AnyRow) -> Result<Spent, StoreError> {
    Ok(Spent {
        at_least_microusd: unsigned(row, "least_microusd")?,
        at_most_microusd: unsigned(row, "most_microusd")?,
    })
}

fn job_of(row: &AnyRow) -> Result<Job, StoreError> {
    Ok(Job {
        id: row.try_get("id")?,
        owner: row.try_get("owner")?,
        options: from_json(row.try_get("options")?)?,
        state: JobState::named(row.try_get("state")?).ok_or_else(|| damaged("state"))?,
        stopped: row.try_get("stopped")?,
        created_ms: row.try_get("created_ms")?,
        finished_ms: row.try_get("finished_ms")?,
        items: unsigned(row, "items")?,
        spent: spent_of(row)?,
        reserved_microusd: unsigned(row, "reserved_microusd")?,
        requests: unsigned(row, "requests")?,
    })
}

fn item_of(row: &AnyRow) -> Result<StoredItem, StoreError> {
    let deadline: i64 = row.try_get("deadline_ms")?;
    let started: i64 = row.try_get("started_ms")?;
    Ok(StoredItem {
        job: row.try_get("job")?,
        number: row.try_get("number")?,
        item: from_json(row.try_get("spec")?)?,
        model: row.try_get("model")?,
        output: row.try_get("output")?,
        lane: Lane::named(row.try_get("lane")?).ok_or_else(|| damaged("lane"))?,
        state: state_of(row)?,
        not_before_ms: row.try_get("not_before_ms")?,
        deadline_ms: Some(deadline).filter(|deadline| *deadline != NEVER),
        failures: small(row, "failures")?,
        resends: small(row, "resends")?,
        worst_microusd: unsigned(row, "worst_microusd")?,
        spent: spent_of(row)?,
        requests: unsigned(row, "requests")?,
        started_ms: Some(started).filter(|started| *started > 0),
        ended_ms: row.try_get("ended_ms")?,
        batch: row.try_get("batch")?,
        reason: row.try_get("reason")?,
        result: row.try_get("result")?,
        reserved_microusd: unsigned(row, "reserved_microusd")?,
        lease_ms: row.try_get("lease_ms")?,
        reserved_requests: small(row, "reserved_requests")?,
    })
}
