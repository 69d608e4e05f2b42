//! Who is still to be told that a job has ended or reached its cap.

use std::time::Duration;

use sqlx::Row as _;

use super::{JobStore, StoreError, job_of};
use crate::job::Job;

/// What a job comes to from now on is told again, under another id.
pub(super) const NEWS: &str =
    "notified = 0, notice = notice + 1, notify_attempts = 0, notify_at_ms = 0";

/// Before each further attempt. Ours, shaped as the schedule that the Standard Webhooks
/// specification (2023-12) suggests: a receiver that restarts misses nothing, and one that is gone
/// is left alone.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
];

/// How long nobody else tells what was taken: longer than any exchange with a receiver.
const TAKEN: Duration = Duration::from_secs(120);

/// A job that has ended or reached its cap, of which somebody is to be told.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Notice {
    /// The job as it stands.
    pub job: Job,
    /// The same for each attempt to tell of the same event.
    pub id: String,
    number: i64,
    attempts: usize,
}

impl JobStore {
    /// Takes the next notice that is due. Nobody else gets it within two minutes; it comes again
    /// until [`told`](Self::told) says otherwise.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn next_notice(&self, now_ms: i64) -> Result<Option<Notice>, StoreError> {
        let mut begun = self.begin().await?;
        let lock = if self.is_postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        // What is in flight in a cancelled job, or in a batch of it, still costs something.
        let text = format!(
            "SELECT * FROM jobs WHERE state IN ('finished', 'cancelled', 'capped') \
             AND notified = 0 AND reserved_requests = 0 AND notify_at_ms <= $1 \
             ORDER BY notify_at_ms, id LIMIT 1 {lock}"
        );
        let row =
            sqlx::query(sqlx::AssertSqlSafe(text)).bind(now_ms).fetch_optional(&mut *begun).await?;
        let Some(row) = row else { return Ok(None) };
        let job = job_of(&row)?;
        let number: i64 = row.try_get("notice")?;
        let attempts: i64 = row.try_get("notify_attempts")?;
        sqlx::query("UPDATE jobs SET notify_at_ms = $2 WHERE id = $1")
            .bind(&job.id)
            .bind(now_ms.saturating_add(crate::millis(TAKEN)))
            .execute(&mut *begun)
            .await?;
        begun.commit().await?;
        let id = format!("job_{}_{number}", job.id);
        Ok(Some(Notice { job, id, number, attempts: usize::try_from(attempts).unwrap_or(0) }))
    }

    /// Says that a notice needs no further attempt.
    ///
    /// # Errors
    ///
    /// The store failed: it is told again.
    pub async fn told(&self, notice: &Notice) -> Result<(), StoreError> {
        sqlx::query("UPDATE jobs SET notified = 1 WHERE id = $1 AND notice = $2")
            .bind(&notice.job.id)
            .bind(notice.number)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Says that an attempt failed. After 1 min, 5 min, 30 min and 2 h there is another; then the
    /// notice is abandoned, and this is `None`.
    ///
    /// # Errors
    ///
    /// The store failed: there is another attempt in two minutes.
    pub async fn not_told(
        &self,
        notice: &Notice,
        now_ms: i64,
    ) -> Result<Option<Duration>, StoreError> {
        let Some(pause) = PAUSES.get(notice.attempts).copied() else {
            self.told(notice).await?;
            return Ok(None);
        };
        sqlx::query(
            "UPDATE jobs SET notify_attempts = notify_attempts + 1, notify_at_ms = $3 \
             WHERE id = $1 AND notice = $2",
        )
        .bind(&notice.job.id)
        .bind(notice.number)
        .bind(now_ms.saturating_add(crate::millis(pause)))
        .execute(&self.pool)
        .await?;
        Ok(Some(pause))
    }
}
