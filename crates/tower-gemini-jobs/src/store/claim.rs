//! Claiming items, keeping the claim, and settling what became of them.

use sqlx::{Any, Row as _, Transaction};

use super::{JobStore, NONE, StoreError, StoredItem, from_json, item_of};
use crate::job::{ItemState, JobOptions, Spent};
use crate::lane::Lane;

/// Who asks for an item, and when.
#[derive(Debug, Clone)]
pub(crate) struct Ask<'a> {
    pub(crate) worker: &'a str,
    pub(crate) now_ms: i64,
    /// The claim ends then, unless the worker is heard of.
    pub(crate) lease_ms: i64,
    /// Models that rest for a job, in this worker's experience: `,job a,job b,`; empty for none.
    /// What one owner's budget refuses, another's may pay for.
    pub(crate) resting: &'a str,
}

/// An item that a worker has.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) stored: StoredItem,
    pub(crate) options: JobOptions,
}

/// Who has an item.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Holder<'a> {
    /// A worker, by its name.
    Worker(&'a str),
    /// A batch, by its id.
    Batch(&'a str),
}

/// What became of a claimed item.
#[derive(Debug, Clone)]
pub(crate) struct Settlement {
    pub(crate) state: ItemState,
    /// Its lane from now on, and the most that a call can cost in it.
    pub(crate) lane: Lane,
    pub(crate) worst_microusd: u64,
    pub(crate) not_before_ms: i64,
    pub(crate) failures: u32,
    pub(crate) resends: u32,
    /// What this claim's call cost.
    pub(crate) spent: Spent,
    pub(crate) requests: u32,
    pub(crate) reason: Option<String>,
    /// The line of the manifest.
    pub(crate) result: Option<String>,
}

impl JobStore {
    /// Claims the item that is next: of the job that was served longest ago, the one that waits
    /// longest. Its worst case is reserved from the job's caps in the same transaction.
    pub(crate) async fn claim(&self, ask: &Ask<'_>) -> Result<Option<Claimed>, StoreError> {
        let jobs = sqlx::query(
            "SELECT id FROM jobs WHERE state = 'active' AND running < max_running AND EXISTS \
             (SELECT 1 FROM items WHERE job = jobs.id AND state = 'waiting' AND missing = 0 \
             AND not_before_ms <= $1 AND lane <> 'batch' AND deadline_ms > $1) \
             ORDER BY claimed_ms, id LIMIT 1000",
        )
        .bind(ask.now_ms)
        .fetch_all(&self.pool)
        .await?;
        for job in jobs {
            let claimed = self.claim_of(job.try_get("id")?, ask).await?;
            if claimed.is_some() {
                return Ok(claimed);
            }
        }
        Ok(None)
    }

    async fn claim_of(&self, job: &str, ask: &Ask<'_>) -> Result<Option<Claimed>, StoreError> {
        let mut begun = self.begin().await?;
        let Some(job) = self.lock_active(&mut begun, job).await? else { return Ok(None) };
        let Some(room) = Room::of(&job)? else { return Ok(None) };
        let lock = if self.is_postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        let text = format!(
            "SELECT * FROM items WHERE job = $1 AND state = 'waiting' AND missing = 0 \
             AND not_before_ms <= $2 AND lane <> 'batch' AND deadline_ms > $2 \
             AND worst_microusd <= $3 AND $4 NOT LIKE '%,' || job || ' ' || model || ',%' \
             ORDER BY not_before_ms, number LIMIT 1 {lock}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(job.try_get::<&str, _>("id")?)
            .bind(ask.now_ms)
            .bind(room.microusd)
            .bind(ask.resting)
            .fetch_optional(&mut *begun)
            .await?;
        let Some(mut stored) = row.as_ref().map(item_of).transpose()? else { return Ok(None) };
        let options: JobOptions = from_json(job.try_get("options")?)?;
        reserve(&mut begun, &mut stored, &options, &room, ask).await?;
        begun.commit().await?;
        Ok(Some(Claimed { stored, options }))
    }

    /// Takes over an item whose worker is gone: its lease has ended, or `all` says that there is no
    /// other worker. The reservation stays.
    pub(crate) async fn take_over(
        &self,
        ask: &Ask<'_>,
        all: bool,
    ) -> Result<Option<Claimed>, StoreError> {
        let mut begun = self.begin().await?;
        let lock = if self.is_postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        let text = format!(
            "SELECT * FROM items WHERE state = 'running' AND worker <> $1 \
             AND (lease_ms < $2 OR $3 = 1) ORDER BY lease_ms LIMIT 1 {lock}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(ask.worker)
            .bind(ask.now_ms)
            .bind(i64::from(all))
            .fetch_optional(&mut *begun)
            .await?;
        let Some(stored) = row.as_ref().map(item_of).transpose()? else { return Ok(None) };
        sqlx::query("UPDATE items SET worker = $3, lease_ms = $4 WHERE job = $1 AND number = $2")
            .bind(&stored.job)
            .bind(stored.number)
            .bind(ask.worker)
            .bind(ask.lease_ms)
            .execute(&mut *begun)
            .await?;
        let options: String = sqlx::query("SELECT options FROM jobs WHERE id = $1")
            .bind(&stored.job)
            .fetch_one(&mut *begun)
            .await?
            .try_get("options")?;
        begun.commit().await?;
        Ok(Some(Claimed { stored, options: from_json(&options)? }))
    }

    /// Says that a worker is alive: its claims hold until then.
    pub(crate) async fn beat(&self, worker: &str, lease_ms: i64) -> Result<(), StoreError> {
        // An item that is being settled needs no longer claim.
        let lock = if self.is_postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        let text = format!(
            "UPDATE items SET lease_ms = $2 WHERE (job, number) IN (SELECT job, number FROM items \
             WHERE state = 'running' AND worker = $1 {lock})"
        );
        sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(worker)
            .bind(lease_ms)
            .execute(&self.pool)
            .await?;
        sqlx::query("UPDATE batches SET lease_ms = $2 WHERE state <> 'closed' AND worker = $1")
            .bind(worker)
            .bind(lease_ms)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Settles a claimed item: what it reserved goes back, what it cost is counted. `false` where
    /// the worker has lost the claim: somebody else settles it.
    pub(crate) async fn settle(
        &self,
        holder: Holder<'_>,
        item: &StoredItem,
        settlement: &Settlement,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut begun = self.begin().await?;
        let Some(job) = self.lock_job(&mut begun, &item.job).await? else { return Ok(false) };
        let mut state = settlement.state;
        if job.try_get::<&str, _>("state")? == "cancelled" && !state.has_ended() {
            // Nothing more is sent of it.
            state = ItemState::Cancelled;
        }
        let ended = state.has_ended();
        let done = sqlx::query(
            "UPDATE items SET state = $4, not_before_ms = $5, failures = $6, resends = $7, \
             least_microusd = least_microusd + $8, most_microusd = most_microusd + $9, \
             requests = requests + $10, reason = $11, result = $12, ended_ms = $13, lane = $14, \
             worst_microusd = $15, worker = NULL, reserved_microusd = 0, reserved_requests = 0 \
             WHERE job = $1 AND number = $2 AND ((state = 'running' AND worker = $3) \
             OR (state = 'in_batch' AND batch = $3))",
        )
        .bind(&item.job)
        .bind(item.number)
        .bind(match holder {
            Holder::Worker(name) | Holder::Batch(name) => name,
        })
        .bind(state.as_str())
        .bind(settlement.not_before_ms)
        .bind(i64::from(settlement.failures))
        .bind(i64::from(settlement.resends))
        .bind(signed(settlement.spent.at_least_microusd))
        .bind(signed(settlement.spent.at_most_microusd))
        .bind(i64::from(settlement.requests))
        .bind(&settlement.reason)
        .bind(&settlement.result)
        .bind(ended.then_some(now_ms))
        .bind(settlement.lane.as_str())
        .bind(signed(settlement.worst_microusd))
        .execute(&mut *begun)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(
            "UPDATE jobs SET running = running - $7, reserved_microusd = reserved_microusd - $2, \
             reserved_requests = reserved_requests - $3, least_microusd = least_microusd + $4, \
             most_microusd = most_microusd + $5, requests = requests + $6 WHERE id = $1",
        )
        .bind(&item.job)
        .bind(signed(item.reserved_microusd))
        .bind(i64::from(item.reserved_requests))
        .bind(signed(settlement.spent.at_least_microusd))
        .bind(signed(settlement.spent.at_most_microusd))
        .bind(i64::from(settlement.requests))
        .bind(i64::from(matches!(holder, Holder::Worker(_))))
        .execute(&mut *begun)
        .await?;
        if ended {
            release_dependents(&mut begun, &item.job, item.number, state, now_ms).await?;
        }
        finish_job(&mut begun, &item.job, now_ms).await?;
        begun.commit().await?;
        Ok(true)
    }

    /// Ends what waited past its deadline, and stops jobs whose caps leave no room for any item
    /// that is left.
    pub(crate) async fn expire(&self, now_ms: i64) -> Result<(), StoreError> {
        let jobs = sqlx::query(
            "SELECT DISTINCT job FROM items WHERE state = 'waiting' AND deadline_ms <= $1",
        )
        .bind(now_ms)
        .fetch_all(&self.pool)
        .await?;
        for job in jobs {
            self.expire_items(job.try_get("job")?, now_ms).await?;
        }
        // Nothing is in flight that could give money back, and nothing that waits fits.
        let full = "state = 'active' AND reserved_requests = 0 \
             AND (max_microusd >= 0 OR max_requests >= 0) \
             AND EXISTS (SELECT 1 FROM items WHERE job = jobs.id AND state = 'waiting') \
             AND ((max_requests >= 0 AND requests >= max_requests) \
              OR (max_microusd >= 0 AND NOT EXISTS (SELECT 1 FROM items WHERE job = jobs.id \
                  AND state = 'waiting' \
                  AND worst_microusd <= jobs.max_microusd - jobs.most_microusd)))";
        let text = format!("SELECT id FROM jobs WHERE {full}");
        for job in sqlx::query(sqlx::AssertSqlSafe(text)).fetch_all(&self.pool).await? {
            let text = format!(
                "UPDATE jobs SET state = 'capped', \
                 stopped = 'its cap on money or requests is reached' WHERE id = $1 AND {full}"
            );
            let id: &str = job.try_get("id")?;
            sqlx::query(sqlx::AssertSqlSafe(text)).bind(id).execute(&self.pool).await?;
        }
        Ok(())
    }

    async fn expire_items(&self, job: &str, now_ms: i64) -> Result<(), StoreError> {
        let mut begun = self.begin().await?;
        self.lock_job(&mut begun, job).await?;
        let late = sqlx::query(
            "UPDATE items SET state = 'failed', ended_ms = $2, \
             reason = 'its deadline passed before it could be sent' \
             WHERE job = $1 AND state = 'waiting' AND deadline_ms <= $2 RETURNING number",
        )
        .bind(job)
        .bind(now_ms)
        .fetch_all(&mut *begun)
        .await?;
        for row in late {
            let number = row.try_get("number")?;
            release_dependents(&mut begun, job, number, ItemState::Failed, now_ms).await?;
        }
        finish_job(&mut begun, job, now_ms).await?;
        Ok(begun.commit().await?)
    }

    /// When the next item that waits may be sent, in milliseconds since 1970.
    pub(crate) async fn next_due(&self) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query(
            "SELECT MIN(i.not_before_ms) AS due FROM items i JOIN jobs j ON j.id = i.job \
             WHERE i.state = 'waiting' AND i.missing = 0 AND j.state = 'active' \
             AND i.lane <> 'batch'",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("due")?)
    }

    /// Whether anything is left to do, in any job that is worked on.
    pub(crate) async fn is_idle(&self) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT COUNT(*) AS n FROM jobs WHERE state = 'active' OR reserved_requests > 0",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get::<i64, _>("n")? == 0)
    }
}

/// What a job's caps leave for one more call.
pub(super) struct Room {
    pub(super) microusd: i64,
    pub(super) requests: i64,
}

impl Room {
    /// `None` where no request is left, or enough items are in flight.
    fn of(job: &sqlx::any::AnyRow) -> Result<Option<Self>, StoreError> {
        let running: i64 = job.try_get("running")?;
        let is_full = running >= job.try_get("max_running")?;
        Ok(if is_full { None } else { Self::for_batches(job)? })
    }

    /// `None` where no request is left. Items in batches are not in flight.
    pub(super) fn for_batches(job: &sqlx::any::AnyRow) -> Result<Option<Self>, StoreError> {
        let get = |column| job.try_get::<i64, _>(column);
        let left = |cap: i64, used: i64| if cap == NONE { i64::MAX } else { cap - used };
        let money = get("most_microusd")? + get("reserved_microusd")?;
        let sent = get("requests")? + get("reserved_requests")?;
        let microusd = left(get("max_microusd")?, money);
        let requests = left(get("max_requests")?, sent);
        Ok((requests > 0).then_some(Self { microusd, requests }))
    }
}

/// Takes what an item may cost out of its job's caps.
async fn reserve(
    begun: &mut Transaction<'static, Any>,
    stored: &mut StoredItem,
    options: &JobOptions,
    room: &Room,
    ask: &Ask<'_>,
) -> Result<(), StoreError> {
    let worst = signed(stored.worst_microusd);
    let requests = i64::from(options.attempts_per_call).min(room.requests);
    // It is used up only after a `retry`, which says that the item may be called again.
    let own = stored.item.max_requests.map(|most| i64::from(most) - signed(stored.requests));
    let requests = own.map_or(requests, |own| requests.min(own.max(1)));
    sqlx::query(
        "UPDATE jobs SET running = running + 1, reserved_microusd = reserved_microusd + $2, \
         reserved_requests = reserved_requests + $3, claimed_ms = $4 WHERE id = $1",
    )
    .bind(&stored.job)
    .bind(worst)
    .bind(requests)
    .bind(ask.now_ms)
    .execute(&mut **begun)
    .await?;
    sqlx::query(
        "UPDATE items SET state = 'running', worker = $3, lease_ms = $4, started_ms = $5, \
         reserved_microusd = $6, reserved_requests = $7, reason = NULL \
         WHERE job = $1 AND number = $2",
    )
    .bind(&stored.job)
    .bind(stored.number)
    .bind(ask.worker)
    .bind(ask.lease_ms)
    .bind(ask.now_ms)
    .bind(worst)
    .bind(requests)
    .execute(&mut **begun)
    .await?;
    stored.state = ItemState::Running;
    stored.started_ms = Some(ask.now_ms);
    stored.reserved_microusd = stored.worst_microusd;
    stored.reserved_requests = u32::try_from(requests).unwrap_or(u32::MAX);
    Ok(())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Lets the items go that waited for this one; where it has no image, they have none either.
pub(super) async fn release_dependents(
    begun: &mut Transaction<'static, Any>,
    job: &str,
    number: i64,
    state: ItemState,
    now_ms: i64,
) -> Result<(), StoreError> {
    if state == ItemState::Done {
        sqlx::query(
            "UPDATE items SET missing = missing - 1 WHERE job = $1 AND number IN \
             (SELECT item FROM waits WHERE job = $1 AND waits_for = $2)",
        )
        .bind(job)
        .bind(number)
        .execute(&mut **begun)
        .await?;
        return Ok(());
    }
    let mut failed = vec![number];
    while let Some(number) = failed.pop() {
        let rows = sqlx::query("SELECT item FROM waits WHERE job = $1 AND waits_for = $2")
            .bind(job)
            .bind(number)
            .fetch_all(&mut **begun)
            .await?;
        for row in rows {
            let item: i64 = row.try_get("item")?;
            let done = sqlx::query(
                "UPDATE items SET state = 'failed', ended_ms = $3, reason = $4 \
                 WHERE job = $1 AND number = $2 AND state = 'waiting'",
            )
            .bind(job)
            .bind(item)
            .bind(now_ms)
            .bind(format!("it waits for item {number}, which has no image"))
            .execute(&mut **begun)
            .await?;
            if done.rows_affected() > 0 {
                failed.push(item);
            }
        }
    }
    Ok(())
}

/// A job whose items have all ended is finished.
pub(super) async fn finish_job(
    begun: &mut Transaction<'static, Any>,
    job: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE jobs SET state = 'finished', finished_ms = $2, stopped = NULL \
         WHERE id = $1 AND state IN ('active', 'paused', 'capped') AND NOT EXISTS \
         (SELECT 1 FROM items WHERE job = $1 AND state IN ('waiting', 'running', 'in_batch'))",
    )
    .bind(job)
    .bind(now_ms)
    .execute(&mut **begun)
    .await?;
    Ok(())
}
