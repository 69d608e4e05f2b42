use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Script, Value};
use tower_gemini::store::{
    CallFingerprint, Claim, Journal, JournalChange, JournalFuture, JournalRecord, JournalResponse,
    JournalState, StoreError,
};

use super::RedisStore;
use crate::lanes::{JournalWriter, LEASE};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("journal.lua")));

/// How long a replica may take to confirm a write, where that is asked for.
const REPLICA_LIMIT: Duration = Duration::from_millis(1_000);

impl RedisStore {
    /// Sets how many bytes of stored responses the server holds for a journal. The ones that end
    /// first make room. Default: 256 MiB.
    #[must_use]
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.max_response_bytes = bytes;
        self
    }

    /// Waits until so many replicas have confirmed what a journal must not lose, within a second.
    /// Default: 0, a failover can lose what the replica had not received.
    #[must_use]
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    fn on_journal(
        &self,
        op: &str,
        call: u128,
        fingerprint: Option<CallFingerprint>,
    ) -> redis::ScriptInvocation<'static> {
        let mut script = SCRIPT.prepare_invoke();
        script.key(self.name("journal", ":")).arg(op).arg(&self.owner);
        script.arg(format!("{call:032x}")).arg(fingerprint.map(hex).unwrap_or_default());
        script
    }

    async fn invoke(
        &self,
        script: redis::ScriptInvocation<'static>,
    ) -> Result<Vec<Value>, StoreError> {
        self.run(async |mut connection: MultiplexedConnection| {
            script.invoke_async(&mut connection).await
        })
        .await
    }

    /// Waits until enough replicas have what was written.
    async fn replicated(&self) -> Result<(), StoreError> {
        if self.replicas == 0 {
            return Ok(());
        }
        let (replicas, limit) = (self.replicas, ms(REPLICA_LIMIT));
        let wait = async |mut connection: MultiplexedConnection| {
            redis::cmd("WAIT").arg(replicas).arg(limit).query_async::<u32>(&mut connection).await
        };
        match self.run(wait).await? {
            confirmed if confirmed >= replicas => Ok(()),
            confirmed => Err(StoreError::new(format!(
                "{confirmed} of {replicas} replicas confirmed a write within {limit} ms"
            ))),
        }
    }

    fn fingerprints(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<u128, CallFingerprint>> {
        self.fingerprints.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn take_over(
        &self,
        fingerprint: CallFingerprint,
        is_resend: bool,
    ) -> Result<Claim, StoreError> {
        let claim = self.on_journal("claim", 0, Some(fingerprint));
        let claim = with(with(claim, u8::from(is_resend)), ms(LEASE));
        let reply = self.invoke(claim).await?;
        let malformed = || StoreError::new("the journal's script replied in another form");
        match (number(reply.first()), reply.as_slice()) {
            (Some(0), _) => Ok(Claim::Nothing),
            (Some(2), [_, detached, heard]) => Ok(Claim::InFlight {
                detached: number(Some(detached)) == Some(1),
                heard: Duration::from_millis(
                    number(Some(heard)).and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0),
                ),
            }),
            (Some(1), [_, record, state, since, head, outcome, body]) => {
                let record = bytes(record).ok_or_else(malformed)?;
                let mut record: JournalRecord =
                    serde_json::from_slice(record).map_err(StoreError::new)?;
                let text =
                    |value| bytes(value).map(|text| String::from_utf8_lossy(text).into_owned());
                let head = text(head).filter(|head| !head.is_empty());
                record.since_ms =
                    text(since).and_then(|since| since.parse().ok()).unwrap_or(record.since_ms);
                record.outcome = text(outcome).filter(|outcome| !outcome.is_empty());
                record.state = match bytes(state) {
                    Some(b"l") => JournalState::Lost,
                    Some(b"v") => JournalState::Delivered { head },
                    _ => JournalState::Stored { head: head.unwrap_or_default(), taken: true },
                };
                self.fingerprints().insert(record.call, record.fingerprint);
                let head = record.state.head().map(str::to_owned);
                let response = head
                    .zip(bytes(body))
                    .map(|(head, body)| JournalResponse::new(head, vec![body.to_vec().into()]));
                Ok(Claim::Call(Box::new(record), response))
            }
            _ => Err(malformed()),
        }
    }
}

fn with(
    mut script: redis::ScriptInvocation<'static>,
    arg: impl redis::ToRedisArgs,
) -> redis::ScriptInvocation<'static> {
    script.arg(arg);
    script
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2).max(1)
}

fn hex(fingerprint: CallFingerprint) -> String {
    fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number(value: Option<&Value>) -> Option<i64> {
    match value? {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

impl JournalWriter for RedisStore {
    async fn make(&self, call: u128, change: JournalChange) -> Result<bool, StoreError> {
        let must_stay = matches!(&change, JournalChange::Begin(_) | JournalChange::Stored { .. });
        let fingerprint = match &change {
            JournalChange::Begin(record) => {
                self.fingerprints().insert(call, record.fingerprint);
                Some(record.fingerprint)
            }
            _ => self.fingerprints().get(&call).copied(),
        };
        let script = |op| self.on_journal(op, call, fingerprint);
        let script = match change {
            JournalChange::Begin(record) => {
                let json = serde_json::to_string(&*record).map_err(StoreError::new)?;
                let keyed = u8::from(record.keyed_request.is_some());
                let state = if record.state == JournalState::Waiting { "w" } else { "i" };
                let mut script = script("begin");
                script.arg(json).arg(keyed).arg(record.keep_for_ms).arg(state).arg(ms(LEASE));
                script
            }
            JournalChange::Stored { response, taken, keep_for } => {
                let mut script = script("stored");
                script.arg(ms(keep_for)).arg(if taken { "t" } else { "s" }).arg(response.head);
                script.arg(response.chunks.concat()).arg(self.max_response_bytes);
                script
            }
            JournalChange::Charged(cost) => with(script("charged"), JournalRecord::in_words(cost)),
            JournalChange::Detached(now) => with(script("detached"), if now { "d" } else { "i" }),
            JournalChange::Taken(now, keep_for) => {
                with(with(script("taken"), if now { "t" } else { "s" }), ms(keep_for))
            }
            JournalChange::Delivered(keep_for) => with(script("delivered"), ms(keep_for)),
            JournalChange::Lost(keep_for) => with(script("lost"), ms(keep_for)),
            JournalChange::Forget => {
                self.fingerprints().remove(&call);
                script("forget")
            }
            _ => return Err(StoreError::new("a change that this version does not know")),
        };
        let reply = self.invoke(script).await?;
        match number(reply.first()) {
            Some(0) => {
                self.fingerprints().remove(&call);
                Ok(false)
            }
            Some(1) if must_stay => self.replicated().await.map(|()| true),
            Some(3) => Err(StoreError::new("a response is larger than all that redis may hold")),
            _ => Ok(true),
        }
    }

    async fn beat(&self) -> Result<(), StoreError> {
        let beat = with(self.on_journal("beat", 0, None), ms(LEASE));
        self.invoke(beat).await.map(drop)
    }
}

/// Records on the server, for every process that reaches it; a response is one string there.
impl Journal for RedisStore {
    fn write(&self, call: u128, change: JournalChange) -> JournalFuture<bool> {
        // Without the lanes of this one: they end with its last clone.
        let writer = || Self { lanes: Arc::default(), ..self.clone() };
        self.lanes.write(writer, call, change)
    }

    fn claim(&self, fingerprint: CallFingerprint, is_resend: bool) -> JournalFuture<Claim> {
        let store = self.clone();
        Box::pin(async move { store.take_over(fingerprint, is_resend).await })
    }

    fn read(&self, call: u128) -> JournalFuture<Option<JournalResponse>> {
        let store = self.clone();
        Box::pin(async move {
            let (response, row) = (store.name("journal", &format!(":r:{call:032x}")), call);
            let row = store.name("journal", &format!(":c:{row:032x}"));
            let get = async |mut connection: MultiplexedConnection| {
                let mut pipe = redis::pipe();
                pipe.cmd("HGET").arg(row).arg("head").cmd("GET").arg(response);
                pipe.query_async::<(Option<String>, Option<Vec<u8>>)>(&mut connection)
                    .await
                    .map_err(|error: RedisError| error)
            };
            let (head, body) = store.run(get).await?;
            Ok(head.zip(body).map(|(head, body)| JournalResponse::new(head, vec![body.into()])))
        })
    }
}
