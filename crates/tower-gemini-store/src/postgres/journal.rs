use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Error;
use tower_gemini::store::{
    CallFingerprint, Claim, Journal, JournalChange, JournalFuture, JournalRecord, JournalResponse,
    JournalState, JournalTable, StoreError, TableChange,
};

use super::PostgresStore;
use super::connection::{Transaction, int, limited, unreadable};
use crate::lanes::{JournalWriter, LEASE, Lanes};

impl JournalWriter for PostgresStore {
    async fn make(&self, call: u128, change: JournalChange) -> Result<bool, StoreError> {
        match change {
            JournalChange::Begin(record) => limited(self.begin_call(*record)).await,
            JournalChange::Stored { ref response, .. }
                if response.bytes() > self.max_response_bytes =>
            {
                let what = "a response is larger than all that postgres may hold";
                Err(StoreError::new(what))
            }
            change => limited(self.change(call, change)).await,
        }
    }

    /// Removes what is of no use any more, too: a record that nobody asks for stays otherwise.
    async fn beat(&self) -> Result<(), StoreError> {
        let beat = async {
            let mut transaction = self.connections.begin().await?;
            self.beat_unless_within(Duration::ZERO, &mut transaction).await?;
            transaction.commit().await
        };
        limited(beat).await?;
        limited(self.sweep()).await
    }
}

impl PostgresStore {
    /// Adds a record, unless its key belongs to another process.
    async fn begin_call(&self, mut record: JournalRecord) -> Result<bool, Error> {
        let mut transaction = self.connections.begin().await?;
        let is_keyed = record.keyed_request.is_some();
        if is_keyed {
            // Whoever else begins with this key waits until this one is seen.
            let [a, b, c, d, e, f, g, h, ..] = record.fingerprint;
            let key = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(key);
            lock.execute(&mut *transaction).await?;
        }
        let now_ms = transaction.now_ms().await?;
        record.since_ms = now_ms;
        let begin = "INSERT INTO tower_gemini_calls \
                         (prefix, call, fingerprint, owner, record, ends_ms) \
                     SELECT $1::text, $2::bytea, $3::bytea, $4::bigint, $5::text, $6::bigint \
                     WHERE NOT ($7 AND EXISTS ( \
                         SELECT FROM tower_gemini_calls WHERE prefix = $1 AND fingerprint = $3 \
                         AND owner <> $4 AND ends_ms > $8)) \
                     ON CONFLICT (prefix, call) DO UPDATE SET \
                         fingerprint = excluded.fingerprint, owner = excluded.owner, \
                         record = excluded.record, ends_ms = excluded.ends_ms, \
                         bytes = NULL, body = NULL";
        let begin = sqlx::query(begin)
            .bind(&self.prefix)
            .bind(record.call.to_be_bytes())
            .bind(record.fingerprint)
            .bind(self.owner)
            .bind(json(&record)?)
            .bind(end_of(&record))
            .bind(is_keyed)
            .bind(int(now_ms));
        let begun = begin.execute(&mut *transaction).await?.rows_affected() > 0;
        self.beat_unless_within(LEASE / 2, &mut transaction).await?;
        transaction.commit().await?;
        Ok(begun)
    }

    /// Says that this process is alive, unless it said so within this time: another one would take
    /// its call for lost otherwise. Were it written each time, all calls of this process would wait
    /// for one another's flush of the disk. The last row that a transaction locks.
    async fn beat_unless_within(
        &self,
        time: Duration,
        transaction: &mut Transaction,
    ) -> Result<(), Error> {
        let beat = "INSERT INTO tower_gemini_owners (prefix, owner, heard) \
                    SELECT $1::text, $2::bigint, clock_timestamp() WHERE NOT EXISTS ( \
                        SELECT FROM tower_gemini_owners WHERE prefix = $1 AND owner = $2 \
                        AND heard > clock_timestamp() - $3 * interval '1 s') \
                    ON CONFLICT (prefix, owner) DO UPDATE SET heard = excluded.heard";
        let beat = sqlx::query(beat).bind(&self.prefix).bind(self.owner).bind(time.as_secs_f64());
        beat.execute(&mut **transaction).await.map(drop)
    }

    /// Changes a record of this process, by the rules of the one table.
    async fn change(&self, call: u128, change: JournalChange) -> Result<bool, Error> {
        let mut transaction = self.connections.begin().await?;
        let read = "SELECT record, (extract(epoch FROM clock_timestamp()) * 1000)::bigint \
                    FROM tower_gemini_calls WHERE prefix = $1 AND call = $2 AND owner = $3 \
                    FOR UPDATE";
        let read = sqlx::query_as(read).bind(&self.prefix).bind(call.to_be_bytes());
        let row: Option<(String, i64)> =
            read.bind(self.owner).fetch_optional(&mut *transaction).await?;
        let mut changed = TableChange::NotOurs;
        if let Some((record, now_ms)) = row {
            let mut table = JournalTable::default();
            table.insert(self.table_owner(), self::record(&record)?);
            let now_ms = u64::try_from(now_ms).unwrap_or(0);
            changed = table.change(self.table_owner(), call, &change, now_ms);
            match (&changed, table.get(call)) {
                (TableChange::Changed, Some(record)) => {
                    self.keep(&mut transaction, record).await?;
                    match change {
                        JournalChange::Stored { response, .. } => {
                            let body = response.chunks.concat();
                            self.put_body(&mut transaction, call, Some(body)).await?;
                            self.make_room(&mut transaction, call).await?;
                        }
                        JournalChange::Lost(_) => {
                            self.put_body(&mut transaction, call, None).await?;
                        }
                        _ => {}
                    }
                }
                (TableChange::Removed, _) => self.remove(&mut transaction, call).await?,
                _ => {}
            }
        }
        transaction.commit().await?;
        Ok(changed != TableChange::NotOurs)
    }

    /// Takes over a record of another process, by the rules of the one table. Whoever else asks for
    /// this fingerprint, or changes a record with it, waits meanwhile.
    async fn take_over(
        &self,
        fingerprint: CallFingerprint,
        is_resend: bool,
    ) -> Result<Claim, Error> {
        let mut transaction = self.connections.begin().await?;
        let read = "SELECT owner, record FROM tower_gemini_calls \
                    WHERE prefix = $1 AND fingerprint = $2 AND owner <> $3 \
                    ORDER BY call FOR UPDATE";
        let read = sqlx::query_as(read).bind(&self.prefix).bind(fingerprint).bind(self.owner);
        let rows: Vec<(i64, String)> = read.fetch_all(&mut *transaction).await?;
        let (mut table, mut calls) = (JournalTable::default(), Vec::new());
        for (owner, record) in &rows {
            let record = self::record(record)?;
            calls.push(record.call);
            table.insert(owner.unsigned_abs(), record);
        }
        let mut claim = Claim::Nothing;
        if !calls.is_empty() {
            table.expire(self.table_owner(), transaction.now_ms().await?);
            let owners = rows.into_iter().map(|(owner, _)| owner).collect();
            let heard = self.heard(&mut transaction, owners).await?;
            let heard = |owner| heard.get(&owner).copied();
            claim = table.claim(self.table_owner(), fingerprint, is_resend, heard);
        }
        for call in calls.into_iter().filter(|call| table.get(*call).is_none()) {
            self.remove(&mut transaction, call).await?;
        }
        if let Claim::Call(record, response) = &mut claim {
            self.keep(&mut transaction, record).await?;
            *response = self.response(&mut transaction, record).await?;
            self.beat_unless_within(LEASE / 2, &mut transaction).await?;
        }
        transaction.commit().await?;
        Ok(claim)
    }

    /// How long ago those of these owners were heard of that are alive. Apart from what locks their
    /// rows: a join there would show the owner before the wait.
    async fn heard(
        &self,
        transaction: &mut Transaction,
        owners: Vec<i64>,
    ) -> Result<HashMap<u64, Duration>, Error> {
        let read = "SELECT owner, (extract(epoch FROM clock_timestamp() - heard) * 1000)::bigint \
                    FROM tower_gemini_owners WHERE prefix = $1 AND owner = ANY($2)";
        let read = sqlx::query_as(read).bind(&self.prefix).bind(owners);
        let rows: Vec<(i64, i64)> = read.fetch_all(&mut **transaction).await?;
        let heard = |(owner, ms): (i64, i64)| {
            (owner.unsigned_abs(), Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
        };
        Ok(rows.into_iter().map(heard).filter(|(_, ago)| *ago < LEASE).collect())
    }

    async fn response_of(&self, call: u128) -> Result<Option<JournalResponse>, Error> {
        let mut transaction = self.connections.begin().await?;
        let read = "SELECT record FROM tower_gemini_calls WHERE prefix = $1 AND call = $2";
        let read = sqlx::query_scalar(read).bind(&self.prefix).bind(call.to_be_bytes());
        let record: Option<String> = read.fetch_optional(&mut *transaction).await?;
        let response = match record {
            Some(record) => self.response(&mut transaction, &self::record(&record)?).await?,
            None => None,
        };
        transaction.commit().await?;
        Ok(response)
    }

    /// Writes a record as one of this process.
    async fn keep(
        &self,
        transaction: &mut Transaction,
        record: &JournalRecord,
    ) -> Result<(), Error> {
        let keep = "UPDATE tower_gemini_calls SET owner = $3, record = $4, ends_ms = $5 \
                    WHERE prefix = $1 AND call = $2";
        let keep = sqlx::query(keep).bind(&self.prefix).bind(record.call.to_be_bytes());
        let keep = keep.bind(self.owner).bind(json(record)?).bind(end_of(record));
        keep.execute(&mut **transaction).await.map(drop)
    }

    /// Reads the response that is stored with a record.
    async fn response(
        &self,
        transaction: &mut Transaction,
        record: &JournalRecord,
    ) -> Result<Option<JournalResponse>, Error> {
        let Some(head) = record.state.head() else { return Ok(None) };
        let read = "SELECT body FROM tower_gemini_calls WHERE prefix = $1 AND call = $2";
        let read = sqlx::query_scalar(read).bind(&self.prefix).bind(record.call.to_be_bytes());
        let body: Option<Option<Vec<u8>>> = read.fetch_optional(&mut **transaction).await?;
        let response = |body: Vec<u8>| JournalResponse::new(head.to_owned(), vec![body.into()]);
        Ok(body.flatten().map(response))
    }

    async fn put_body(
        &self,
        transaction: &mut Transaction,
        call: u128,
        body: Option<Vec<u8>>,
    ) -> Result<(), Error> {
        let put = "UPDATE tower_gemini_calls SET bytes = octet_length($3::bytea), body = $3 \
                   WHERE prefix = $1 AND call = $2";
        let put = sqlx::query(put).bind(&self.prefix).bind(call.to_be_bytes()).bind(body);
        put.execute(&mut **transaction).await.map(drop)
    }

    async fn remove(&self, transaction: &mut Transaction, call: u128) -> Result<(), Error> {
        let remove = "DELETE FROM tower_gemini_calls WHERE prefix = $1 AND call = $2";
        let remove = sqlx::query(remove).bind(&self.prefix).bind(call.to_be_bytes());
        remove.execute(&mut **transaction).await.map(drop)
    }

    /// Removes the bodies that end first, until all of them are within their bytes.
    async fn make_room(&self, transaction: &mut Transaction, call: u128) -> Result<(), Error> {
        // Until the commit: each of those who store sees what the others have stored. Taken after
        // the body is written, which may take long.
        let lock = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
        let lock = sqlx::query(lock).bind(format!("tower-gemini bodies {}", self.prefix));
        lock.execute(&mut **transaction).await?;
        let held = "SELECT coalesce(sum(bytes), 0)::bigint FROM tower_gemini_calls \
                    WHERE prefix = $1 AND bytes IS NOT NULL";
        let held = sqlx::query_scalar(held).bind(&self.prefix);
        let mut held: i64 = held.fetch_one(&mut **transaction).await?;
        while held > i64::try_from(self.max_response_bytes).unwrap_or(i64::MAX) {
            // One that is being changed is left alone: its change may be waiting for our lock.
            let first = "SELECT record, bytes FROM tower_gemini_calls \
                         WHERE prefix = $1 AND call <> $2 AND bytes IS NOT NULL \
                         ORDER BY ends_ms LIMIT 1 FOR UPDATE SKIP LOCKED";
            let first = sqlx::query_as(first).bind(&self.prefix).bind(call.to_be_bytes());
            let first: Option<(String, i64)> = first.fetch_optional(&mut **transaction).await?;
            let Some((record, bytes)) = first else { break };
            let mut record = self::record(&record)?;
            // A client has what was delivered: that is no loss.
            if !matches!(record.state, JournalState::Delivered { .. }) {
                record.state = JournalState::Lost;
            }
            let remove = "UPDATE tower_gemini_calls SET record = $3, bytes = NULL, body = NULL \
                          WHERE prefix = $1 AND call = $2";
            let remove = sqlx::query(remove).bind(&self.prefix).bind(record.call.to_be_bytes());
            remove.bind(json(&record)?).execute(&mut **transaction).await?;
            held = held.saturating_sub(bytes);
        }
        Ok(())
    }

    /// Removes some of the records that are of no use any more, but for those of this process,
    /// which says so itself, and owners that had no record for long.
    async fn sweep(&self) -> Result<(), Error> {
        let mut transaction = self.connections.begin().await?;
        let now_ms = transaction.now_ms().await?;
        let sweep = "WITH gone AS (DELETE FROM tower_gemini_owners \
                         WHERE prefix = $1 AND heard < clock_timestamp() - interval '1 hour') \
                     DELETE FROM tower_gemini_calls WHERE prefix = $1 AND call IN ( \
                         SELECT call FROM tower_gemini_calls \
                         WHERE prefix = $1 AND ends_ms <= $2 AND owner <> $3 \
                         ORDER BY ends_ms LIMIT 100 FOR UPDATE SKIP LOCKED)";
        let sweep = sqlx::query(sweep).bind(&self.prefix).bind(int(now_ms)).bind(self.owner);
        sweep.execute(&mut *transaction).await?;
        transaction.commit().await
    }

    /// This process, as the table names owners.
    fn table_owner(&self) -> u64 {
        self.owner.unsigned_abs()
    }
}

/// Records in a table, with their responses, for every process that reaches the server.
impl Journal for PostgresStore {
    fn write(&self, call: u128, change: JournalChange) -> JournalFuture<bool> {
        // Without the lanes of this one: they end with its last clone.
        let writer = || Self { lanes: Arc::new(Lanes::default()), ..self.clone() };
        self.lanes.write(writer, call, change)
    }

    fn claim(&self, fingerprint: CallFingerprint, is_resend: bool) -> JournalFuture<Claim> {
        let store = self.clone();
        Box::pin(async move { limited(store.take_over(fingerprint, is_resend)).await })
    }

    fn read(&self, call: u128) -> JournalFuture<Option<JournalResponse>> {
        let store = self.clone();
        Box::pin(async move { limited(store.response_of(call)).await })
    }
}

fn record(json: &str) -> Result<JournalRecord, Error> {
    serde_json::from_str(json).map_err(|_| unreadable("a record of the journal"))
}

fn json(record: &JournalRecord) -> Result<String, Error> {
    serde_json::to_string(record).map_err(|error| Error::Encode(Box::new(error)))
}

fn end_of(record: &JournalRecord) -> i64 {
    int(record.since_ms.saturating_add(record.keep_for_ms))
}
