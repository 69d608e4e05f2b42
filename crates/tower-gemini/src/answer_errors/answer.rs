//! What is answered: pure.

use std::time::{Duration, SystemTime};

use crate::body::JudgedBody;
use crate::error::Error;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;
use tower_gemini_core::verdict::{Outcome, Verdict};

use crate::calendar::PacificDay;
use crate::final_image_extract::StrippedBody;
use crate::quota_guard::REFUSAL_DOMAIN;

/// Read by openai's clients and by the Interactions clients of google-genai 1.x and `@google/genai`
/// 1.x.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const X_UPSTREAM_STATUS: HeaderName = HeaderName::from_static("x-upstream-status");

/// A body whose answer was judged.
pub trait HasVerdict {
    /// What the answer means, where it is known.
    fn verdict(&self) -> Option<&Verdict>;
}

impl<B> HasVerdict for JudgedBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        Some(self.verdict())
    }
}

impl<B> HasVerdict for StrippedBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        Some(self.verdict())
    }
}

/// The answer that says what an error says, in Google's form. The text is the error's own, without
/// secrets.
///
/// `charged` is the status where money is or may be gone.
#[must_use]
pub fn answer_to(error: &Error, charged: StatusCode) -> Response<Bytes> {
    let verdict = error.verdict();
    let (status, word) = match error.status() {
        // The caller asked for an image and not for a response, and this is the response.
        Some(status) => {
            let body = error.upstream_body().cloned().unwrap_or_default();
            let mut response = Response::new(body);
            *response.status_mut() = status;
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json; charset=UTF-8"),
            );
            return response;
        }
        None if !verdict.charge().is_surely_free() => (charged, "ABORTED"),
        None if error.is_timeout() => (StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED"),
        None if error.is_request_body() => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
        None if verdict.outcome() == Outcome::NotSent => {
            (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE")
        }
        None => (StatusCode::BAD_GATEWAY, "UNAVAILABLE"),
    };
    let body = json!({ "error": {
        "code": status.as_u16(),
        "message": error.to_string(),
        "status": word,
        "details": [{
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": verdict.outcome().as_str().to_uppercase(),
            "domain": REFUSAL_DOMAIN,
            "metadata": { "charge": verdict.charge().as_str() },
        }],
    }});
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    response
}

/// How many whole seconds a caller should wait before it asks again; `None` where nothing is known
/// or no waiting helps.
///
/// A day's limit ends at midnight Pacific, whatever the answer's own hint says.
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

/// Tells clients with retries of their own what they may do, by the table of the [module](super):
/// the status becomes `charged` where they would send again after it and money is or may be gone
/// (the upstream's own is then in `x-upstream-status`), and `x-should-retry` and `Retry-After` are
/// set.
pub fn advise(
    status: &mut StatusCode,
    headers: &mut HeaderMap,
    verdict: Option<&Verdict>,
    charged: StatusCode,
    now: SystemTime,
) {
    let said = *status;
    let money_is_gone = verdict.is_some_and(|verdict| !verdict.charge().is_surely_free());
    // Most clients go by the status alone.
    if money_is_gone && clients_retry(said) {
        *status = charged;
        headers.insert(X_UPSTREAM_STATUS, HeaderValue::from(said.as_u16()));
    }
    if clients_retry(*status) || (money_is_gone && !status.is_success()) {
        headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    if let Some(seconds) =
        verdict.filter(|_| clients_retry(*status)).and_then(|verdict| seconds_to_wait(verdict, now))
    {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
}

/// Whether clients that were measured send again after this status.
pub(crate) fn clients_retry(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 429)
}
