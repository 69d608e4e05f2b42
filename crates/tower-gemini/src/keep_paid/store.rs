//! Where responses are held: a trait, and its implementation in memory, within a bound.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Outcome, Verdict};

use super::fingerprint::Fingerprint;
use super::progress::CallProgress;
use crate::refusal::clients_retry;

/// Names one call: what it is found by, and a number that no other call has, in any process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CallId {
    pub(super) fingerprint: Fingerprint,
    pub(super) number: u128,
}

/// A whole response.
#[derive(Debug, Clone)]
pub(super) struct StoredResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) chunks: Vec<Bytes>,
    pub(super) bytes: usize,
    pub(super) completed_at: Instant,
    /// What all attempts of the call cost.
    pub(super) cost: Cost,
    pub(super) outcome: Outcome,
    /// `None` where another process received the response.
    pub(super) verdict: Option<Arc<Verdict>>,
}

impl StoredResponse {
    /// Whether the response may be given to a later request.
    pub(super) fn is_worth_storing(&self) -> bool {
        is_worth_storing(self.status, self.outcome)
    }
}

/// Whether a response is what was paid for, whatever its status: a refusal that was charged is a
/// 200 of Google's and an error of other APIs. An error that may have been charged (a front end's
/// 504) is worth nothing to anybody, and a status after which clients retry would make them ask for
/// it without end.
pub(super) fn is_worth_storing(status: StatusCode, outcome: Outcome) -> bool {
    if status.is_success() {
        return !matches!(outcome, Outcome::Interrupted | Outcome::StreamError);
    }
    // 425 too: it asks the client to send again later.
    let is_final =
        status.is_client_error() && !clients_retry(status) && status != StatusCode::TOO_EARLY;
    let is_result = matches!(
        outcome,
        Outcome::Image
            | Outcome::Answered
            | Outcome::NoImage
            | Outcome::OutOfTokens
            | Outcome::ContentBlocked
            | Outcome::PromptBlocked
    );
    is_final && is_result
}

/// Which responses make room first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// A client has it, as far as can be seen from here, or a file.
    Delivered,
    /// It is nowhere else.
    Undelivered,
}

/// Responses that had to make room.
pub(super) type Evicted = Vec<(CallId, Arc<StoredResponse>)>;

/// Records the progress of calls and holds their responses.
///
/// A call is [recorded](Self::record) as `Foreground` before the first byte of its request is sent,
/// with its outcome after, when its response is stored, and when that was delivered. A durable
/// implementation writes each record down before it returns.
pub(super) trait ResponseStore: fmt::Debug + Send {
    /// Records the progress of a call; `None`: the call is over.
    fn record(&mut self, _call: CallId, _progress: Option<CallProgress>) {}

    /// Stores a response, or changes its rank. Gives the responses that had to make room: the new
    /// one itself where it is larger than the bound, or where only responses of a higher rank could
    /// make room for it.
    fn put(&mut self, call: CallId, response: Arc<StoredResponse>, rank: Rank) -> Evicted;

    fn get(&self, call: CallId) -> Option<Arc<StoredResponse>>;

    fn remove(&mut self, call: CallId) -> Option<Arc<StoredResponse>>;

    /// How many bytes are held.
    fn bytes(&self) -> usize;

    /// Whether so many more bytes fit without another response making room.
    fn has_room(&self, bytes: usize) -> bool;
}

/// Responses in memory.
#[derive(Debug)]
pub(super) struct MemoryStore {
    max_bytes: usize,
    bytes: usize,
    responses: HashMap<CallId, ((Rank, u64), Arc<StoredResponse>)>,
    /// The first one makes room first.
    order: BTreeMap<(Rank, u64), CallId>,
    next: u64,
}

impl MemoryStore {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, responses: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }
}

impl ResponseStore for MemoryStore {
    fn put(&mut self, call: CallId, response: Arc<StoredResponse>, rank: Rank) -> Evicted {
        self.remove(call);
        let mut evicted = Vec::new();
        while !self.has_room(response.bytes) {
            let first = self.order.first_key_value().filter(|((first, _), _)| *first <= rank);
            let Some((_, &victim)) = first.filter(|_| response.bytes <= self.max_bytes) else {
                evicted.push((call, response));
                return evicted;
            };
            evicted.extend(self.remove(victim).map(|response| (victim, response)));
        }
        self.bytes += response.bytes;
        let place = (rank, self.next);
        self.next += 1;
        self.order.insert(place, call);
        self.responses.insert(call, (place, response));
        evicted
    }

    fn get(&self, call: CallId) -> Option<Arc<StoredResponse>> {
        self.responses.get(&call).map(|(_, response)| response.clone())
    }

    fn remove(&mut self, call: CallId) -> Option<Arc<StoredResponse>> {
        let (place, response) = self.responses.remove(&call)?;
        self.order.remove(&place);
        self.bytes -= response.bytes;
        Some(response)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes.checked_add(bytes).is_some_and(|bytes| bytes <= self.max_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_final_status_with_a_result_is_worth_storing() {
        for &outcome in Outcome::ALL {
            for status in (200..600).filter_map(|code| StatusCode::from_u16(code).ok()) {
                let retried =
                    status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429);
                let worth = is_worth_storing(status, outcome);
                assert!(
                    !(worth && (retried || outcome == Outcome::Interrupted)),
                    "{status} {outcome:?}"
                );
                let refused = matches!(
                    outcome,
                    Outcome::ContentBlocked | Outcome::PromptBlocked | Outcome::NoImage
                );
                if refused && (status == 200 || status == 400) {
                    assert!(worth, "{status} {outcome:?}");
                }
            }
        }
        assert!(!is_worth_storing(StatusCode::FAILED_DEPENDENCY, Outcome::Other));
    }
}
