//! What must be known of paid calls after the process that sent them is gone.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tower_gemini_core::cost::Cost;

use super::StoreError;
use crate::calendar::unix_ms;
use crate::clock::{Clock, SystemClock, millis};

/// The future of a [`Journal`]'s methods.
pub type JournalFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Identifies what is asked for and by whom: two requests with one fingerprint are the same.
pub type CallFingerprint = [u8; 32];

/// Records calls that are or may be charged, so that they are known after a crash, and to other
/// processes.
///
/// A change takes effect in the order of the calls of [`write`](Self::write), when it is called;
/// the future says when it is durable, and dropping it takes nothing back. No method blocks.
///
/// A record belongs to one process, its owner: the one that sent the call, and later the one that
/// [claimed](Self::claim) it. Where the owner is gone, a record of a call in flight is one of a
/// call that is lost.
pub trait Journal: fmt::Debug + Send + Sync {
    /// Changes the record of a call. `false` where this process has no such record: another one
    /// claimed it, or it is forgotten.
    fn write(&self, call: u128, change: JournalChange) -> JournalFuture<bool>;

    /// Takes over one record with this fingerprint from another process: a stored response first,
    /// then a loss; at last, for a request that is marked as a resend, one that was delivered.
    fn claim(&self, fingerprint: CallFingerprint, is_resend: bool) -> JournalFuture<Claim>;

    /// Reads the response of a call that this process owns.
    fn read(&self, call: u128) -> JournalFuture<Option<JournalResponse>>;
}

/// What a journal knows of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JournalRecord {
    /// Names the call; no other call has this number, in any process.
    #[serde(with = "hex")]
    pub call: u128,
    /// What it is found by: of the request, or of its `Idempotency-Key`.
    pub fingerprint: CallFingerprint,
    /// The request that an `Idempotency-Key` was used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyed_request: Option<CallFingerprint>,
    /// Who sent it.
    pub caller: CallFingerprint,
    /// The model and size of the last attempt.
    pub target: String,
    /// The most that the last attempt can cost, in millionths of a US dollar. `None`: unknown.
    pub at_most_microusd: Option<u64>,
    /// What the attempt came to, once that is known: a charge and its bounds in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// How far it has come.
    pub state: JournalState,
    /// When it came there, in milliseconds since 1970.
    pub since_ms: u64,
    /// How long the record is of use from then on, in milliseconds.
    pub keep_for_ms: u64,
}

impl JournalRecord {
    /// A record of a call in flight that begins now. For tests of stores.
    #[must_use]
    pub fn new(call: u128, fingerprint: CallFingerprint, keep_for: Duration) -> Self {
        Self {
            call,
            fingerprint,
            keyed_request: None,
            caller: [0; 32],
            target: String::new(),
            at_most_microusd: None,
            outcome: None,
            state: JournalState::InFlight { detached: false },
            since_ms: u64::try_from(unix_ms(SystemClock.now())).unwrap_or(0),
            keep_for_ms: millis(keep_for),
        }
    }

    /// What an attempt came to, as records say it.
    #[must_use]
    pub fn in_words(cost: Cost) -> String {
        let least = cost.at_least_microusd;
        match cost.at_most_microusd {
            Some(most) => format!("charged {least} to {most} microusd"),
            None => format!("charged at least {least} microusd"),
        }
    }
}

/// How far a call has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum JournalState {
    /// Nothing is sent that may be charged, and its `Idempotency-Key` is taken.
    Waiting,
    /// An attempt was or is about to be sent.
    InFlight {
        /// Its client disconnected: the response will be for the next identical request.
        detached: bool,
    },
    /// It was or may have been charged, and there is no response.
    Lost,
    /// The response is in the store.
    Stored {
        /// Status, headers and cost of the response, as its writer encodes them.
        head: String,
        /// It is on its way to a client.
        taken: bool,
    },
    /// A client has the response, as far as could be seen: it is for a marked resend only.
    Delivered {
        /// As above; `None` where the store never had the response.
        head: Option<String>,
    },
}

impl JournalState {
    /// The head of the response that the store has.
    #[must_use]
    pub fn head(&self) -> Option<&str> {
        match self {
            Self::Stored { head, .. } => Some(head),
            Self::Delivered { head } => head.as_deref(),
            _ => None,
        }
    }
}

/// A change of a record.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum JournalChange {
    /// An attempt is about to be sent, or a key is taken. Must be durable before the future is ready.
    /// `false` where another process has the key.
    Begin(Box<JournalRecord>),
    /// The attempt was or may have been charged this.
    Charged(Cost),
    /// The client disconnected, or came back.
    Detached(bool),
    /// There is no response; of use for this long.
    Lost(Duration),
    /// The response is here, to be kept this long.
    Stored {
        /// The response.
        response: JournalResponse,
        /// A client waits for it.
        taken: bool,
        /// How long it is of use.
        keep_for: Duration,
    },
    /// The stored response is given to a client (`true`), or the client did not receive it. One that
    /// had been delivered before is of use for this long again.
    Taken(bool, Duration),
    /// A client has the response, as far as can be seen; of use to a marked resend for this long.
    Delivered(Duration),
    /// A client has the response, or nothing was charged.
    Forget,
}

/// A stored response.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalResponse {
    /// Status, headers and cost.
    pub head: String,
    /// The body.
    pub chunks: Vec<Bytes>,
}

impl JournalChange {
    /// The response is here, to be kept this long. `taken`: a client waits for it.
    #[must_use]
    pub fn stored(response: JournalResponse, taken: bool, keep_for: Duration) -> Self {
        Self::Stored { response, taken, keep_for }
    }
}

impl JournalResponse {
    /// A response with this head and body.
    #[must_use]
    pub fn new(head: String, chunks: Vec<Bytes>) -> Self {
        Self { head, chunks }
    }

    /// How many bytes the body has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
}

/// What other processes know of a request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Claim {
    /// Nothing.
    Nothing,
    /// A call of a process that is gone, or a response that waited in another: it belongs to this
    /// process now. Without a response it is lost.
    Call(Box<JournalRecord>, Option<JournalResponse>),
    /// Another process works on it.
    InFlight {
        /// Its client disconnected.
        detached: bool,
        /// How long ago the other process was last heard of.
        heard: Duration,
    },
}

/// The records of a journal as data, for implementations of [`Journal`]: pure, without the bytes of
/// responses.
#[derive(Debug, Default)]
pub struct JournalTable {
    rows: HashMap<u128, Row>,
    by_fingerprint: HashMap<CallFingerprint, Vec<u128>>,
    expiry: BTreeSet<(u64, u128)>,
}

#[derive(Debug)]
struct Row {
    record: JournalRecord,
    owner: u64,
}

/// What a change of a [`JournalTable`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    /// This owner has no such record.
    NotOurs,
    /// The record is as it was.
    Unchanged,
    /// The record is to be written.
    Changed,
    /// The record is gone, and its response with it.
    Removed,
}

impl JournalTable {
    /// Takes in what was read from a file.
    pub fn insert(&mut self, owner: u64, record: JournalRecord) {
        self.remove(record.call);
        self.by_fingerprint.entry(record.fingerprint).or_default().push(record.call);
        self.expiry.insert((end_of(&record), record.call));
        self.rows.insert(record.call, Row { record, owner });
    }

    /// Returns the record of a call.
    #[must_use]
    pub fn get(&self, call: u128) -> Option<&JournalRecord> {
        self.rows.get(&call).map(|row| &row.record)
    }

    /// Returns how many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Removes a record.
    pub fn remove(&mut self, call: u128) {
        let Some(Row { record, .. }) = self.rows.remove(&call) else { return };
        self.expiry.remove(&(end_of(&record), call));
        if let Some(calls) = self.by_fingerprint.get_mut(&record.fingerprint) {
            calls.retain(|&other| other != call);
            if calls.is_empty() {
                self.by_fingerprint.remove(&record.fingerprint);
            }
        }
    }

    fn is_taken(&self, owner: u64, key: CallFingerprint) -> bool {
        let calls = self.by_fingerprint.get(&key).map_or(&[][..], Vec::as_slice);
        calls.iter().any(|call| self.rows.get(call).is_some_and(|row| row.owner != owner))
    }

    /// Makes a change in the name of this owner.
    pub fn change(
        &mut self,
        owner: u64,
        call: u128,
        change: &JournalChange,
        now_ms: u64,
    ) -> TableChange {
        if let JournalChange::Begin(record) = change {
            if record.keyed_request.is_some() && self.is_taken(owner, record.fingerprint) {
                return TableChange::NotOurs;
            }
            self.insert(owner, (**record).clone());
            return TableChange::Changed;
        }
        let Some(row) = self.rows.get(&call).filter(|row| row.owner == owner) else {
            return TableChange::NotOurs;
        };
        let before = &row.record;
        let mut record = before.clone();
        let mut stay = |state, keep_for: Duration| {
            (record.state, record.since_ms, record.keep_for_ms) = (state, now_ms, millis(keep_for));
        };
        match change {
            JournalChange::Begin(_) => {}
            JournalChange::Charged(cost) => record.outcome = Some(JournalRecord::in_words(*cost)),
            JournalChange::Lost(keep_for) => stay(JournalState::Lost, *keep_for),
            JournalChange::Stored { response, taken, keep_for } => {
                let head = response.head.clone();
                stay(JournalState::Stored { head, taken: *taken }, *keep_for);
            }
            JournalChange::Detached(now) => {
                if let JournalState::InFlight { detached } = &mut record.state {
                    *detached = *now;
                }
            }
            JournalChange::Taken(now, keep_for) => {
                let stored =
                    |head: &String| JournalState::Stored { head: head.clone(), taken: *now };
                match &before.state {
                    JournalState::Stored { head, .. } => record.state = stored(head),
                    JournalState::Delivered { head: Some(head) } => stay(stored(head), *keep_for),
                    _ => {}
                }
            }
            JournalChange::Delivered(keep_for) => {
                let head = before.state.head().map(str::to_owned);
                stay(JournalState::Delivered { head }, *keep_for);
            }
            JournalChange::Forget => {
                self.remove(call);
                return TableChange::Removed;
            }
        }
        if record == *before {
            return TableChange::Unchanged;
        }
        self.insert(owner, record);
        TableChange::Changed
    }

    /// Takes over a record from another owner; `heard` says how long ago an owner was heard of,
    /// `None` of one that is gone. A claimed response is still to be read.
    pub fn claim(
        &mut self,
        owner: u64,
        fingerprint: CallFingerprint,
        is_resend: bool,
        heard: impl Fn(u64) -> Option<Duration>,
    ) -> Claim {
        let (mut lost, mut free, mut delivered) = (None, None, None);
        // Whether another process works on it without a client, and how long ago it was heard of.
        let mut elsewhere: Option<(bool, Duration)> = None;
        let mut works = |detached, heard| {
            let before = elsewhere.is_some_and(|(detached, _)| detached);
            elsewhere = Some((before || detached, heard));
        };
        let calls = self.by_fingerprint.get(&fingerprint).map_or(&[][..], Vec::as_slice);
        for (call, row) in calls.iter().filter_map(|call| Some((*call, self.rows.get(call)?))) {
            if row.owner == owner {
                continue;
            }
            let is_key = row.record.keyed_request.is_some();
            match (&row.record.state, heard(row.owner)) {
                (JournalState::Waiting, None) => free = Some(call),
                (JournalState::Waiting, Some(heard)) => works(is_key, heard),
                (JournalState::Delivered { .. }, _) if is_resend => delivered = Some(call),
                (JournalState::Delivered { .. }, _) => {}
                (JournalState::Stored { taken, .. }, heard) if heard.is_none() || !taken => {
                    return self.take_over(owner, call);
                }
                (JournalState::Lost, _) | (JournalState::InFlight { .. }, None) => {
                    lost = lost.or(Some(call));
                }
                (JournalState::InFlight { detached }, Some(heard)) => {
                    works(*detached || is_key, heard);
                }
                (JournalState::Stored { .. }, heard) => works(is_key, heard.unwrap_or_default()),
            }
        }
        if let Some(call) = free {
            self.remove(call);
        }
        match (lost.or(delivered), elsewhere) {
            (Some(call), None | Some((false, _))) => self.take_over(owner, call),
            // It may yet come to a response.
            (_, Some((detached, heard))) => Claim::InFlight { detached, heard },
            (None, None) => Claim::Nothing,
        }
    }

    fn take_over(&mut self, owner: u64, call: u128) -> Claim {
        let Some(row) = self.rows.get_mut(&call) else { return Claim::Nothing };
        row.owner = owner;
        match &mut row.record.state {
            JournalState::Stored { taken, .. } => *taken = row.record.keyed_request.is_none(),
            // Until it is given to a client.
            JournalState::Delivered { .. } => {}
            state => *state = JournalState::Lost,
        }
        Claim::Call(Box::new(row.record.clone()), None)
    }

    /// Removes what is of no use any more, except what belongs to `owner`, which says so itself.
    /// Returns the numbers of the calls.
    pub fn expire(&mut self, owner: u64, now_ms: u64) -> Vec<u128> {
        let over = self.expiry.iter().take_while(|(end, _)| *end <= now_ms);
        let foreign = |call: &u128| self.rows.get(call).is_some_and(|row| row.owner != owner);
        let calls: Vec<_> = over.map(|&(_, call)| call).filter(foreign).collect();
        calls.iter().for_each(|&call| self.remove(call));
        calls
    }
}

fn end_of(record: &JournalRecord) -> u64 {
    record.since_ms.saturating_add(record.keep_for_ms)
}

/// A journal in memory: shared by layers of one process, and gone with it. For tests, and for
/// stacks that share one process.
///
/// ```
/// # #[cfg(feature = "keep-paid")] {
/// use std::sync::Arc;
/// use tower_gemini::KeepPaidLayer;
/// use tower_gemini::store::MemoryJournal;
///
/// let journal = MemoryJournal::new();
/// let first = KeepPaidLayer::new().journal(Arc::new(journal.clone()));
/// // A second stack of the same process: what the first one has stored is given by this one too.
/// let second = KeepPaidLayer::new().journal(Arc::new(journal.replica()));
/// # let _ = (first, second);
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryJournal {
    owner: u64,
    shared: Arc<Mutex<Shared>>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Shared {
    table: JournalTable,
    responses: HashMap<u128, JournalResponse>,
    owners: u64,
    /// Owners below it are gone.
    first_alive: u64,
    fails: bool,
}

impl MemoryJournal {
    /// Starts empty.
    #[must_use]
    pub fn new() -> Self {
        Self { owner: 0, shared: Arc::default(), clock: Arc::new(SystemClock) }
    }

    /// Reads the time from this clock. Default: the system's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Returns the same journal as another process sees it.
    #[must_use]
    pub fn replica(&self) -> Self {
        let mut shared = self.shared();
        shared.owners += 1;
        Self { owner: shared.owners, shared: self.shared.clone(), clock: self.clock.clone() }
    }

    /// Returns the same journal as a process sees it that is started after all others were killed.
    #[must_use]
    pub fn after_a_crash(&self) -> Self {
        let after = self.replica();
        after.shared().first_alive = after.owner;
        after
    }

    /// From now on nothing can be written (`true`), or again.
    pub fn set_failing(&self, fails: bool) {
        self.shared().fails = fails;
    }

    /// Returns how many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared().table.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        // Every change is whole: none of them panics half-way.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(unix_ms(self.clock.now())).unwrap_or(0)
    }
}

impl Default for MemoryJournal {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryJournal").field("owner", &self.owner).finish_non_exhaustive()
    }
}

fn done<T: Send + 'static>(result: Result<T, StoreError>) -> JournalFuture<T> {
    Box::pin(std::future::ready(result))
}

impl Journal for MemoryJournal {
    fn write(&self, call: u128, change: JournalChange) -> JournalFuture<bool> {
        let mut shared = self.shared();
        // The dead write nothing.
        if shared.fails || self.owner < shared.first_alive {
            return done(Err(StoreError::new("the journal takes nothing")));
        }
        let changed = shared.table.change(self.owner, call, &change, self.now_ms());
        match (&changed, change) {
            (TableChange::Changed, JournalChange::Stored { response, .. }) => {
                shared.responses.insert(call, response);
            }
            (TableChange::Removed, _) => drop(shared.responses.remove(&call)),
            _ => {}
        }
        done(Ok(changed != TableChange::NotOurs))
    }

    fn claim(&self, fingerprint: CallFingerprint, is_resend: bool) -> JournalFuture<Claim> {
        let mut shared = self.shared();
        for call in shared.table.expire(self.owner, self.now_ms()) {
            shared.responses.remove(&call);
        }
        let first_alive = shared.first_alive;
        let heard = |owner| (owner >= first_alive).then_some(Duration::ZERO);
        let claim = match shared.table.claim(self.owner, fingerprint, is_resend, heard) {
            Claim::Call(record, _) => {
                let response = shared.responses.get(&record.call).cloned();
                Claim::Call(record, response)
            }
            other => other,
        };
        done(Ok(claim))
    }

    fn read(&self, call: u128) -> JournalFuture<Option<JournalResponse>> {
        done(Ok(self.shared().responses.get(&call).cloned()))
    }
}

/// A call's number as text: JSON's numbers are too small for it.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{number:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
