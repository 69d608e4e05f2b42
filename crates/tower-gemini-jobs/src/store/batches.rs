//! Batches: which items are in which, and how far each is known to be.

use sqlx::{Any, Row as _, Transaction};

use super::claim::{Ask, Room};
use super::{JobStore, StoreError, StoredItem, damaged, from_json, item_of};
use crate::job::{JobOptions, JobState};

/// How far a batch is known to be. Each step is durable before the next is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchStep {
    /// Nothing was sent that could make a batch.
    Forming,
    /// Its creation was or is about to be sent.
    Sent,
    /// Google has it, by this name.
    Open,
    /// Its items are settled.
    Closed,
}

impl BatchStep {
    fn as_str(self) -> &'static str {
        match self {
            Self::Forming => "forming",
            Self::Sent => "sent",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }

    fn named(word: &str) -> Option<Self> {
        [Self::Forming, Self::Sent, Self::Open, Self::Closed]
            .into_iter()
            .find(|step| step.as_str() == word)
    }
}

/// How soon a batch that was just made is asked how far it is: small ones end within a minute or
/// two (an operation recorded in 2025-12 took 90 s).
const YOUNG_MS: i64 = 5_000;

/// A batch.
#[derive(Debug, Clone)]
pub(crate) struct StoredBatch {
    /// Ours: part of the display name, by which it is found again.
    pub(crate) id: String,
    pub(crate) job: String,
    pub(crate) model: String,
    pub(crate) step: BatchStep,
    /// Google's name for it.
    pub(crate) name: Option<String>,
    pub(crate) created_ms: i64,
    /// It was asked to stop.
    pub(crate) is_cancelled: bool,
    pub(crate) options: JobOptions,
    pub(crate) job_state: JobState,
}

/// How large a batch may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    /// Batches that are open at once.
    pub(crate) open: i64,
    /// Bytes of results.
    pub(crate) bytes: u64,
    pub(crate) items: usize,
}

impl JobStore {
    /// Makes a batch of waiting items of one job and model, and reserves what they can cost.
    pub(crate) async fn form_batch(
        &self,
        ask: &Ask<'_>,
        limits: BatchLimits,
        bytes_of: impl Fn(&StoredItem) -> u64,
    ) -> Result<Option<StoredBatch>, StoreError> {
        let open = sqlx::query("SELECT COUNT(*) AS n FROM batches WHERE state <> 'closed'")
            .fetch_one(&self.pool)
            .await?;
        if open.try_get::<i64, _>("n")? >= limits.open {
            return Ok(None);
        }
        let jobs = sqlx::query(
            "SELECT id FROM jobs WHERE state = 'active' AND EXISTS (SELECT 1 FROM items \
             WHERE items.job = jobs.id AND items.state = 'waiting' AND items.lane = 'batch' \
             AND items.missing = 0 AND items.not_before_ms <= $1 AND items.deadline_ms > $1) \
             ORDER BY claimed_ms, id",
        )
        .bind(ask.now_ms)
        .fetch_all(&self.pool)
        .await?;
        for job in jobs {
            let formed = self.form_batch_of(job.try_get("id")?, ask, limits, &bytes_of).await?;
            if formed.is_some() {
                return Ok(formed);
            }
        }
        Ok(None)
    }

    async fn form_batch_of(
        &self,
        id: &str,
        ask: &Ask<'_>,
        limits: BatchLimits,
        bytes_of: impl Fn(&StoredItem) -> u64,
    ) -> Result<Option<StoredBatch>, StoreError> {
        let mut begun = self.begin().await?;
        let Some(job) = self.lock_active(&mut begun, id).await? else { return Ok(None) };
        let Some(room) = Room::for_batches(&job)? else { return Ok(None) };
        let rows = sqlx::query(
            "SELECT * FROM items WHERE job = $1 AND state = 'waiting' AND lane = 'batch' \
             AND missing = 0 AND not_before_ms <= $2 AND deadline_ms > $2 \
             ORDER BY not_before_ms, number LIMIT $3",
        )
        .bind(id)
        .bind(ask.now_ms)
        .bind(i64::try_from(limits.items).unwrap_or(i64::MAX))
        .fetch_all(&mut *begun)
        .await?;
        let waiting = rows.iter().map(item_of).collect::<Result<Vec<_>, _>>()?;
        let chosen = choose(waiting, &room, limits, bytes_of);
        let Some(first) = chosen.first() else { return Ok(None) };
        let batch = StoredBatch {
            id: crate::random_name()?,
            job: id.to_owned(),
            model: first.model.clone(),
            step: BatchStep::Forming,
            name: None,
            created_ms: ask.now_ms,
            is_cancelled: false,
            options: from_json(job.try_get("options")?)?,
            job_state: JobState::Active,
        };
        insert(&mut begun, &batch, &chosen, ask).await?;
        begun.commit().await?;
        Ok(Some(batch))
    }

    /// A batch that is due, for this worker; it is due again after `again_ms` at the latest, and
    /// sooner while it is young.
    pub(crate) async fn next_batch(
        &self,
        ask: &Ask<'_>,
        again_ms: i64,
    ) -> Result<Option<StoredBatch>, StoreError> {
        let mut begun = self.begin().await?;
        let lock = if self.is_postgres { "FOR UPDATE OF b SKIP LOCKED" } else { "" };
        let text = format!(
            "SELECT b.*, j.options AS options, j.state AS job_state FROM batches b \
             JOIN jobs j ON j.id = b.job WHERE b.state <> 'closed' AND b.due_ms <= $1 \
             AND (b.worker IS NULL OR b.worker = $2 OR b.lease_ms < $1) \
             ORDER BY b.due_ms LIMIT 1 {lock}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(ask.now_ms)
            .bind(ask.worker)
            .fetch_optional(&mut *begun)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let batch = StoredBatch {
            id: row.try_get("id")?,
            job: row.try_get("job")?,
            model: row.try_get("model")?,
            step: BatchStep::named(row.try_get("state")?).ok_or_else(|| damaged("batch"))?,
            name: row.try_get("name")?,
            created_ms: row.try_get("created_ms")?,
            is_cancelled: row.try_get::<Option<String>, _>("reason")?.is_some(),
            options: from_json(row.try_get("options")?)?,
            job_state: JobState::named(row.try_get("job_state")?)
                .ok_or_else(|| damaged("state"))?,
        };
        sqlx::query("UPDATE batches SET worker = $2, lease_ms = $3, due_ms = $4 WHERE id = $1")
            .bind(&batch.id)
            .bind(ask.worker)
            .bind(ask.lease_ms)
            .bind(ask.now_ms + again_ms.min((ask.now_ms - batch.created_ms) / 2 + YOUNG_MS))
            .execute(&mut *begun)
            .await?;
        begun.commit().await?;
        Ok(Some(batch))
    }

    /// Records that the creation of a batch is about to be sent. `false` where the worker has lost
    /// the batch meanwhile: another has released its items, and nothing may be sent.
    pub(crate) async fn may_create(
        &self,
        batch: &StoredBatch,
        worker: &str,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE batches SET state = 'sent' WHERE id = $1 AND worker = $2 AND state = 'forming'",
        )
        .bind(&batch.id)
        .bind(worker)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Records how far a batch is. Durable before anything else happens.
    pub(crate) async fn batch_is(
        &self,
        batch: &StoredBatch,
        step: BatchStep,
        name: Option<&str>,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE batches SET state = $2, name = COALESCE($3, name) WHERE id = $1")
            .bind(&batch.id)
            .bind(step.as_str())
            .bind(name)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Records that Google was asked to stop a batch.
    pub(crate) async fn batch_was_cancelled(&self, batch: &StoredBatch) -> Result<(), StoreError> {
        sqlx::query("UPDATE batches SET reason = 'cancelled' WHERE id = $1")
            .bind(&batch.id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Has every batch looked after at once, as after a webhook.
    pub(crate) async fn check_batches_now(&self) -> Result<(), StoreError> {
        sqlx::query("UPDATE batches SET due_ms = 0 WHERE state <> 'closed'")
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The items that are still in a batch.
    pub(crate) async fn items_of_batch(
        &self,
        batch: &StoredBatch,
    ) -> Result<Vec<StoredItem>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM items WHERE job = $1 AND batch = $2 AND state = 'in_batch' ORDER BY number",
        )
        .bind(&batch.job)
        .bind(&batch.id)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(item_of).collect()
    }
}

/// Items of the first one's model, as many as fit into a batch and under the job's caps.
fn choose(
    waiting: Vec<StoredItem>,
    room: &Room,
    limits: BatchLimits,
    bytes_of: impl Fn(&StoredItem) -> u64,
) -> Vec<StoredItem> {
    let (mut bytes, mut microusd, mut requests) = (0_u64, 0_i64, 0_i64);
    let mut chosen: Vec<StoredItem> = Vec::new();
    for item in waiting {
        if chosen.first().is_some_and(|first| first.model != item.model) {
            continue;
        }
        let worst = i64::try_from(item.worst_microusd).unwrap_or(i64::MAX);
        let next = (bytes + bytes_of(&item), microusd.saturating_add(worst), requests + 1);
        let is_full = !chosen.is_empty() && next.0 > limits.bytes;
        if is_full || next.1 > room.microusd || next.2 > room.requests {
            break;
        }
        (bytes, microusd, requests) = next;
        chosen.push(item);
    }
    chosen
}

async fn insert(
    begun: &mut Transaction<'static, Any>,
    batch: &StoredBatch,
    chosen: &[StoredItem],
    ask: &Ask<'_>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO batches (id, job, model, state, created_ms, due_ms, worker, lease_ms) \
         VALUES ($1, $2, $3, 'forming', $4, $4, $5, $6)",
    )
    .bind(&batch.id)
    .bind(&batch.job)
    .bind(&batch.model)
    .bind(ask.now_ms)
    .bind(ask.worker)
    .bind(ask.lease_ms)
    .execute(&mut **begun)
    .await?;
    let mut reserved = 0_i64;
    for item in chosen {
        let worst = i64::try_from(item.worst_microusd).unwrap_or(i64::MAX);
        reserved = reserved.saturating_add(worst);
        sqlx::query(
            "UPDATE items SET state = 'in_batch', batch = $3, reserved_microusd = $4, \
             reserved_requests = 1, started_ms = $5, reason = NULL WHERE job = $1 AND number = $2",
        )
        .bind(&item.job)
        .bind(item.number)
        .bind(&batch.id)
        .bind(worst)
        .bind(ask.now_ms)
        .execute(&mut **begun)
        .await?;
    }
    sqlx::query(
        "UPDATE jobs SET reserved_microusd = reserved_microusd + $2, \
         reserved_requests = reserved_requests + $3, claimed_ms = $4 WHERE id = $1",
    )
    .bind(&batch.job)
    .bind(reserved)
    .bind(i64::try_from(chosen.len()).unwrap_or(i64::MAX))
    .bind(ask.now_ms)
    .execute(&mut **begun)
    .await?;
    Ok(())
}
