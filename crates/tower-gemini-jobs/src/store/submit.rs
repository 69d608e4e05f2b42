//! Submitting a job: all of it, or nothing.

use std::collections::HashMap;

use sqlx::Row as _;

use super::{JobStore, NEVER, NONE, StoreError, job_of, json};
use crate::item::Item;
use crate::job::{Job, JobOptions};
use crate::lane::Lane;

/// A job to submit.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewJob {
    /// Who submits it; empty for the command line.
    pub owner: String,
    /// Its settings.
    pub options: JobOptions,
    /// When, in milliseconds since 1970.
    pub now_ms: i64,
    /// What makes a resend of the same submission the same job. Default: nothing does.
    pub key: Option<RequestKey>,
}

/// What identifies a submission: an owner has one job for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestKey {
    /// What the client says, as in `Idempotency-Key`.
    pub key: String,
    /// A digest of what it asked for: the same key for something else is a mistake.
    pub digest: String,
}

impl RequestKey {
    /// This key, for a request with this digest.
    #[must_use]
    pub fn new(key: impl Into<String>, digest: impl Into<String>) -> Self {
        Self { key: key.into(), digest: digest.into() }
    }
}

impl NewJob {
    /// A job with these settings that is submitted now.
    #[must_use]
    pub fn new(owner: impl Into<String>, options: JobOptions, now_ms: i64) -> Self {
        Self { owner: owner.into(), options, now_ms, key: None }
    }

    /// Makes a resend with this key the same job.
    #[must_use]
    pub fn key(mut self, key: Option<RequestKey>) -> Self {
        self.key = key;
        self
    }
}

/// An item to submit, with what was decided of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewItem {
    /// What it asks for.
    pub item: Item,
    /// The model that draws it.
    pub model: String,
    /// Its lane.
    pub lane: Lane,
    /// The most that one call for it can cost, in millionths of a US dollar.
    pub worst_microusd: u64,
    /// When it may be sent at the earliest, in milliseconds since 1970; 0 for at once.
    pub not_before_ms: i64,
}

impl NewItem {
    /// An item that is sent at once.
    #[must_use]
    pub fn new(item: Item, model: impl Into<String>, lane: Lane, worst_microusd: u64) -> Self {
        Self { item, model: model.into(), lane, worst_microusd, not_before_ms: 0 }
    }
}

/// Caps as columns.
pub(super) fn caps(options: &JobOptions) -> (i64, i64) {
    #[allow(clippy::cast_possible_truncation, reason = "saturates, far above any bill")]
    let money = options.max_usd.map_or(NONE, |usd| (usd * 1e6).round() as i64);
    (money, options.max_requests.map_or(NONE, i64::from))
}

impl JobStore {
    /// The job that an owner submitted with this key, if any.
    ///
    /// # Errors
    ///
    /// The store failed, or the key belongs to another request.
    pub async fn submitted(
        &self,
        owner: &str,
        key: &RequestKey,
    ) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query("SELECT * FROM jobs WHERE owner = $1 AND request_key = $2")
            .bind(owner)
            .bind(&key.key)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        if row.try_get::<Option<String>, _>("request_digest")?.as_ref() != Some(&key.digest) {
            return Err(StoreError::new("the idempotency key belongs to another request"));
        }
        job_of(&row).map(Some)
    }

    /// Submits a job with its items, in one transaction; the first error takes all of it back.
    /// Memory: the names of the outputs. A key that another submission takes at the same moment is
    /// a failure of the store: look for its job by [`submitted`](Self::submitted).
    ///
    /// # Errors
    ///
    /// What `items` gives as an error, two items with one output name, an `item:` that is none of
    /// the items before, and a store that fails.
    pub async fn submit<I>(&self, job: NewJob, items: I) -> Result<Job, StoreError>
    where
        I: Iterator<Item = Result<NewItem, StoreError>> + Send,
    {
        job.options.check().map_err(StoreError::new)?;
        let id = crate::random_name()?;
        let (money, requests) = caps(&job.options);
        let mut begun = self.begin().await?;
        let mut outputs: HashMap<String, i64> = HashMap::new();
        let mut number = 0;
        for new in items {
            let new = new?;
            number += 1;
            let output = output_of(&new.item, number);
            let mut missing = 0;
            for name in new.item.waits_for() {
                let waits_for = outputs.get(stem(name)).ok_or_else(|| {
                    StoreError::new(format_args!(
                        "item {number} waits for `{name}`, which is the output of no item before it"
                    ))
                })?;
                let added = sqlx::query(
                    "INSERT INTO waits (job, item, waits_for) VALUES ($1, $2, $3) \
                     ON CONFLICT DO NOTHING",
                )
                .bind(&id)
                .bind(number)
                .bind(waits_for)
                .execute(&mut *begun)
                .await?;
                missing += i64::try_from(added.rows_affected()).unwrap_or(0);
            }
            if let Some(other) = outputs.insert(output.clone(), number) {
                return Err(StoreError::new(format_args!(
                    "items {other} and {number} have the same output `{output}`"
                )));
            }
            let deadline = new.item.deadline.map_or(NEVER, |one| one.unix_ms(job.now_ms));
            sqlx::query(
                "INSERT INTO items (job, number, spec, model, output, lane, state, not_before_ms, \
                 deadline_ms, missing, failures, resends, worst_microusd, reserved_microusd, \
                 reserved_requests, least_microusd, most_microusd, requests, lease_ms, started_ms) \
                 VALUES ($1, $2, $3, $4, $5, $6, 'waiting', $7, $8, $9, 0, 0, $10, 0, 0, 0, 0, 0, 0, 0)",
            )
            .bind(&id)
            .bind(number)
            .bind(json(&new.item)?)
            .bind(&new.model)
            .bind(&output)
            .bind(new.lane.as_str())
            .bind(new.not_before_ms)
            .bind(deadline)
            .bind(missing)
            .bind(i64::try_from(new.worst_microusd).unwrap_or(i64::MAX))
            .execute(&mut *begun)
            .await?;
        }
        if number == 0 {
            return Err(StoreError::new("the job has no items"));
        }
        sqlx::query(
            "INSERT INTO jobs (id, owner, options, state, created_ms, claimed_ms, notified, items, \
             running, max_running, max_microusd, max_requests, reserved_microusd, \
             reserved_requests, least_microusd, most_microusd, requests, request_key, \
             request_digest) \
             VALUES ($1, $2, $3, 'active', $4, 0, 0, $5, 0, $6, $7, $8, 0, 0, 0, 0, 0, $9, $10)",
        )
        .bind(&id)
        .bind(&job.owner)
        .bind(json(&job.options)?)
        .bind(job.now_ms)
        .bind(number)
        .bind(i64::from(job.options.max_concurrent))
        .bind(money)
        .bind(requests)
        .bind(job.key.as_ref().map(|key| key.key.as_str()))
        .bind(job.key.as_ref().map(|key| key.digest.as_str()))
        .execute(&mut *begun)
        .await?;
        begun.commit().await?;
        self.job(&id).await?.ok_or_else(|| StoreError::new("the job is gone"))
    }
}

/// A file name without the extension of an image.
pub(crate) fn stem(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, "png" | "jpg" | "jpeg" | "webp")) => stem,
        _ => name,
    }
}

fn output_of(item: &Item, number: i64) -> String {
    item.output.as_deref().map_or_else(|| format!("{number:05}"), |name| stem(name).to_owned())
}
