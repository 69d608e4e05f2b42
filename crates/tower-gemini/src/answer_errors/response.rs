//! What an error becomes as a response, and what clients with retries of their own read in it:
//! pure.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;
use tower_gemini_core::verdict::{Outcome, Verdict};

use crate::calendar::PacificDay;
use crate::error::Error;
use crate::refusal::{Refusal, clients_retry, json_response};

/// Read by openai's clients and by the Interactions clients of google-genai 1.x and `@google/genai`
/// 1.x.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const X_UPSTREAM_STATUS: HeaderName = HeaderName::from_static("x-upstream-status");
/// Seconds until a wait ends that is too long to be waited out. No client reads it.
const X_CLOSED_FOR: HeaderName = HeaderName::from_static("x-closed-for");

/// What clients with retries of their own are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryHeaders {
    /// The status of an error that was or may have been charged.
    pub charged: StatusCode,
    /// The longest wait that `Retry-After` states.
    pub longest_retry_after: Duration,
}

impl Default for RetryHeaders {
    /// 424, and 120 s.
    fn default() -> Self {
        Self {
            charged: StatusCode::FAILED_DEPENDENCY,
            longest_retry_after: Duration::from_secs(120),
        }
    }
}

/// Turns an error into a response in Google's form. The text is the error's own, without secrets.
///
/// `charged` is the status of an error that was or may have been charged. An error that holds the
/// upstream's own response becomes that response.
#[must_use]
pub fn error_response(error: &Error, charged: StatusCode) -> Response<Bytes> {
    let verdict = error.verdict();
    let (status, word) = match error.status() {
        // The caller asked for an image and not for a response, and this is the response.
        Some(status) => {
            return json_response(status, error.upstream_body().cloned().unwrap_or_default());
        }
        None if !verdict.charge().is_surely_free() => (charged, "ABORTED"),
        None if error.is_timeout() => (StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED"),
        None if error.is_request_body() => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
        None if verdict.outcome() == Outcome::NotSent => {
            (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE")
        }
        None => (StatusCode::BAD_GATEWAY, "UNAVAILABLE"),
    };
    let outcome = verdict.outcome().as_str().to_uppercase();
    let refusal = Refusal {
        status,
        word,
        message: error.to_string(),
        reason: if error.is_not_recorded() { "STATE_NOT_WRITABLE" } else { &outcome },
        metadata: json!({ "charge": verdict.charge().as_str() }),
        details: Vec::new(),
    };
    refusal.into_bytes_response()
}

/// How many whole seconds a client should wait before it sends again. `None` where nothing is known
/// or no waiting helps.
///
/// A day's limit ends at midnight Pacific, whatever the response's own hint says.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_gemini::answer_errors::seconds_to_wait;
/// use tower_gemini::verdict::{Detail, Outcome, Verdict, WaitHint, WaitSource};
///
/// let hint = WaitHint::new(Duration::from_millis(12_300), WaitSource::Message);
/// let minute = Verdict::refused_locally(Outcome::RateLimitedMinute, Some(hint), true, Detail::default());
/// assert_eq!(seconds_to_wait(&minute, SystemTime::UNIX_EPOCH), Some(13));
/// let day = Verdict::refused_locally(Outcome::RateLimitedDay, Some(hint), true, Detail::default());
/// // 1970-01-01T00:00Z is eight hours before midnight in California.
/// assert_eq!(seconds_to_wait(&day, SystemTime::UNIX_EPOCH), Some(8 * 3600));
/// ```
#[must_use]
pub fn seconds_to_wait(verdict: &Verdict, now: SystemTime) -> Option<u64> {
    let wait = match verdict.outcome() {
        Outcome::QuotaZeroOrBilling => return None,
        Outcome::RateLimitedDay => {
            let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            let left = PacificDay::holding(now).end_ms().saturating_sub(now);
            Duration::from_millis(u64::try_from(left).unwrap_or(0))
        }
        _ => verdict.wait()?.not_before(),
    };
    Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
}

/// Sets the status and the headers that clients with retries of their own go by, as the table of
/// the [module](super) says.
///
/// Where clients would retry the status and the response was or may have been charged, the status
/// becomes that of `told`, and the upstream's own stands in `x-upstream-status`. `x-should-retry` and
/// `Retry-After` are set; a wait beyond [`RetryHeaders::longest_retry_after`] stands in
/// `x-closed-for` in place of `Retry-After`, since there are clients that sleep whatever it says.
pub fn set_retry_headers(
    status: &mut StatusCode,
    headers: &mut HeaderMap,
    verdict: Option<&Verdict>,
    told: &RetryHeaders,
    now: SystemTime,
) {
    let upstream = *status;
    let may_be_charged = verdict.is_some_and(|verdict| !verdict.charge().is_surely_free());
    // Most clients go by the status alone.
    if may_be_charged && clients_retry(upstream) {
        *status = told.charged;
        headers.insert(X_UPSTREAM_STATUS, HeaderValue::from(upstream.as_u16()));
    }
    if clients_retry(*status) || (may_be_charged && !status.is_success()) {
        headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    let verdict = verdict.filter(|_| clients_retry(*status));
    if let Some(seconds) = verdict.and_then(|verdict| seconds_to_wait(verdict, now)) {
        if seconds <= told.longest_retry_after.as_secs() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        } else {
            headers.remove(header::RETRY_AFTER);
            headers.insert(X_CLOSED_FOR, HeaderValue::from(seconds));
        }
    }
}

#[cfg(test)]
mod tests {
    use tower_gemini_core::verdict::{Detail, WaitHint, WaitSource};

    use super::*;

    #[test]
    fn only_waits_worth_making_are_stated() {
        let told = |seconds, longest| {
            let hint = WaitHint::new(Duration::from_secs(seconds), WaitSource::Message);
            let outcome = Outcome::RateLimitedMinute;
            let verdict = Verdict::refused_locally(outcome, Some(hint), true, Detail::default());
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("9999"));
            let told = RetryHeaders {
                longest_retry_after: Duration::from_secs(longest),
                ..RetryHeaders::default()
            };
            let mut status = StatusCode::TOO_MANY_REQUESTS;
            let now = SystemTime::UNIX_EPOCH;
            set_retry_headers(&mut status, &mut headers, Some(&verdict), &told, now);
            assert_eq!(headers["x-should-retry"], "false");
            let of = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (of("retry-after"), of("x-closed-for"))
        };
        assert_eq!(told(120, 120), (Some("120".to_owned()), None));
        assert_eq!(told(121, 120), (None, Some("121".to_owned())));
        assert_eq!(told(121, 300), (Some("121".to_owned()), None));
    }
}
