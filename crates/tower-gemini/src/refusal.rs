//! Saying no as Google says it, so that every client behind a gateway understands.

use std::sync::Arc;

use crate::body::JudgedBody;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use tower_gemini_core::call::Call;
use tower_gemini_core::verdict::Verdict;

use crate::call_state::CallState;
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

impl Refusal<'_> {
    /// The answer that says it.
    pub(crate) fn into_response<B>(
        self,
        verdict: Verdict,
        call: Arc<Call>,
        state: &CallState,
    ) -> Response<JudgedBody<B>>
    where
        B: UpstreamBody,
    {
        let mut details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": self.reason,
            "domain": REFUSAL_DOMAIN,
            "metadata": self.metadata,
        })];
        details.extend(self.details);
        let body = json!({ "error": {
            "code": self.status.as_u16(),
            "message": self.message,
            "status": self.word,
            "details": details,
        }});
        let bytes = Bytes::from(body.to_string());
        let length = bytes.len();
        let mut response = Response::new(JudgedBody::local(bytes, verdict, call, state.clone()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=UTF-8"),
        );
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        response
    }
}
