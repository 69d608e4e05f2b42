//! What is stored of a call, and which responses are worth storing.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Outcome, Verdict};

use super::fingerprint::Fingerprint;
use crate::refusal::clients_retry;
use crate::store::{JournalResponse, StoreError};

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

/// A stored response without its body, as it is written down.
#[derive(Serialize, Deserialize)]
pub(super) struct ResponseHead {
    status: u16,
    headers: Vec<(String, String)>,
    at_least_microusd: u64,
    at_most_microusd: Option<u64>,
    outcome: String,
    pub(super) bytes: usize,
}

impl ResponseHead {
    pub(super) fn of(response: &StoredResponse) -> Self {
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.to_string(), value.to_str().ok()?.to_owned()))
        };
        Self {
            status: response.status.as_u16(),
            headers: response.headers.iter().filter_map(text).collect(),
            at_least_microusd: response.cost.at_least_microusd,
            at_most_microusd: response.cost.at_most_microusd,
            outcome: response.outcome.as_str().to_owned(),
            bytes: response.bytes,
        }
    }

    /// The response with this body, which another process received at that moment.
    pub(super) fn with_body(self, body: Bytes, completed_at: Instant) -> StoredResponse {
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers {
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::try_from(value))
            {
                headers.append(name, value);
            }
        }
        let outcome = Outcome::ALL.iter().find(|outcome| outcome.as_str() == self.outcome);
        StoredResponse {
            status: StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK),
            headers,
            bytes: body.len(),
            chunks: last_byte_apart(vec![body]),
            completed_at,
            cost: Cost {
                at_least_microusd: self.at_least_microusd,
                at_most_microusd: self.at_most_microusd,
            },
            outcome: outcome.copied().unwrap_or(Outcome::Other),
            verdict: None,
        }
    }
}

/// A response as a journal holds it.
pub(super) fn encode(response: &StoredResponse) -> Result<JournalResponse, StoreError> {
    let head = serde_json::to_string(&ResponseHead::of(response)).map_err(StoreError::new)?;
    Ok(JournalResponse::new(head, response.chunks.clone()))
}

/// Reads what a journal holds. `None` where it is not whole.
pub(super) fn decode(stored: JournalResponse, since: Instant) -> Option<Arc<StoredResponse>> {
    let head: ResponseHead = serde_json::from_str(&stored.head).ok()?;
    let body = match <[Bytes; 1]>::try_from(stored.chunks) {
        Ok([body]) => body,
        Err(chunks) => chunks.concat().into(),
    };
    (head.bytes == body.len()).then(|| Arc::new(head.with_body(body, since)))
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

/// The same chunks with the last byte in one of its own: before it is read, what a client has does
/// not count as all, also where it stands for a part of several responses.
pub(super) fn last_byte_apart(mut chunks: Vec<Bytes>) -> Vec<Bytes> {
    if let Some(last) = chunks.last_mut().filter(|last| last.len() > 1) {
        let end = last.split_off(last.len() - 1);
        chunks.push(end);
    }
    chunks
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
