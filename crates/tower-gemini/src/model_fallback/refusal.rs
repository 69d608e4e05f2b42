//! Saying no as Google says it, where no target was left to ask: pure.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::Body;
use tower_gemini_core::body::{JudgedBody, KeptRequest};
use tower_gemini_core::error::BoxError;
use tower_gemini_core::verdict::{Detail, Outcome, Verdict, WaitHint, WaitSource};

/// The `domain` of our `ErrorInfo`, by which a refusal of ours is told from one of Google's.
const DOMAIN: &str = "tower-gemini";

/// A 503 in Google's form. `wait` is the time until the first target may be tried again.
pub(super) fn refuse<B>(kept: &KeptRequest, wait: Option<Duration>) -> Response<JudgedBody<B>>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    // Whole seconds, rounded up: what Google's clients read.
    let seconds = wait.map(|wait| wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)));
    let model = kept.call().model.as_ref().map_or("", |model| model.as_str());
    // `{:?}` of a model's name is a JSON string for every name that a path can hold.
    let name: String = model.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')).collect();
    let message = match seconds {
        Some(seconds) => format!("No target is left for {name}: all of them rest after failures. Please retry in {seconds}s."),
        None => format!("No target is left for {name}: none of them can answer this request."),
    };
    let retry_info = seconds.map_or_else(String::new, |seconds| {
        format!(r#",{{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"{seconds}s"}}"#)
    });
    let body = format!(
        r#"{{"error":{{"code":503,"message":"{message}","status":"UNAVAILABLE","details":[{{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"NO_TARGET_LEFT","domain":"{DOMAIN}","metadata":{{"model":"{name}"}}}}{retry_info}]}}}}"#
    );
    let mut detail = Detail::default();
    detail.reason = Some("NO_TARGET_LEFT".to_owned());
    detail.message = Some(message);
    let hint = seconds.map(|seconds| WaitHint::new(Duration::from_secs(seconds), WaitSource::RetryAfter));
    let verdict = Verdict::refused_locally(Outcome::Overloaded, hint, false, detail);
    let body = JudgedBody::local(Bytes::from(body), verdict, kept.call().clone(), kept.context().clone());
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    response
}
