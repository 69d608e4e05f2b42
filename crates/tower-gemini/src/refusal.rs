//! Refusals of our own in the form of Google's errors, which every client behind a gateway
//! understands.

use std::sync::Arc;
use std::time::Duration;

use crate::body::JudgedBody;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use tower_gemini_core::call::Call;
use tower_gemini_core::verdict::{Detail, Outcome, Verdict, WaitHint};

use crate::call_state::CallState;
use crate::headers::for_changed_body;
use crate::stage::UpstreamBody;

/// The `domain` of the `ErrorInfo` in refusals of our own: nothing was sent.
pub const REFUSAL_DOMAIN: &str = "tower-gemini";

/// What a refusal of our own says.
pub(crate) struct Refusal<'a> {
    pub(crate) status: StatusCode,
    /// `RESOURCE_EXHAUSTED`, `INVALID_ARGUMENT` …
    pub(crate) word: &'static str,
    pub(crate) message: String,
    /// `ErrorInfo.reason`.
    pub(crate) reason: &'a str,
    /// `ErrorInfo.metadata`.
    pub(crate) metadata: Value,
    /// Other details, such as a `RetryInfo`.
    pub(crate) details: Vec<Value>,
}

/// Whole seconds, rounded up: what Google's clients read.
pub(crate) fn whole_seconds(wait: Duration) -> Duration {
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    Duration::from_secs(seconds)
}

/// Google's `RetryInfo`, which its clients read.
pub(crate) fn retry_info(wait: Duration) -> Value {
    let delay = match wait.subsec_millis() {
        0 => format!("{}s", wait.as_secs()),
        millis => format!("{}.{millis:03}s", wait.as_secs()),
    };
    json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay })
}

impl Refusal<'_> {
    /// The verdict on the call: nothing was sent. `elsewhere` says whether another model may help.
    pub(crate) fn verdict(
        &self,
        outcome: Outcome,
        wait: Option<WaitHint>,
        elsewhere: bool,
    ) -> Verdict {
        Verdict::refused_locally(outcome, wait, elsewhere, self.detail())
    }

    pub(crate) fn detail(&self) -> Detail {
        let mut detail = Detail::default();
        detail.reason = Some(self.reason.to_owned());
        detail.message = Some(self.message.clone());
        detail
    }

    /// The response of a layer below `ClassifyGeminiError`'s verdicts.
    pub(crate) fn into_response<B: UpstreamBody>(
        self,
        verdict: Verdict,
        call: Arc<Call>,
        state: &CallState,
    ) -> Response<JudgedBody<B>> {
        self.into_bytes_response()
            .map(|bytes| JudgedBody::local(bytes, verdict, call, state.clone()))
    }

    /// The response itself.
    pub(crate) fn into_bytes_response(self) -> Response<Bytes> {
        let mut info = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": self.reason,
            "domain": REFUSAL_DOMAIN,
        });
        if !self.metadata.is_null() {
            info["metadata"] = self.metadata;
        }
        let mut details = vec![info];
        details.extend(self.details);
        let body = json!({ "error": {
            "code": self.status.as_u16(),
            "message": self.message,
            "status": self.word,
            "details": details,
        }});
        json_response(self.status, Bytes::from(body.to_string()))
    }
}

/// A response of our own with this JSON.
pub(crate) fn json_response(status: StatusCode, json: Bytes) -> Response<Bytes> {
    let length = json.len() as u64;
    let mut response = Response::new(json);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for_changed_body(headers, Some(length));
    headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    response
}

/// Whether clients that were measured (2026-11) retry after this status.
pub(crate) fn clients_retry(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 429)
}
