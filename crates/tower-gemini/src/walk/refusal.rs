//! The response to a call for which no target was left. Pure.

use std::time::Duration;

use http::{Response, StatusCode};
use serde_json::json;
use tower_gemini_core::call::ModelId;
use tower_gemini_core::verdict::{Outcome, WaitHint, WaitSource};

use crate::body::{JudgedBody, RequestTemplate};
use crate::refusal::{Refusal, retry_info, whole_seconds};
use crate::stage::UpstreamBody;

/// A 503 in Google's form. `wait` is the time until the first target may be tried again.
pub(super) fn refuse<B: UpstreamBody>(
    template: &RequestTemplate,
    wait: Option<Duration>,
) -> Response<JudgedBody<B>> {
    let wait = wait.map(whole_seconds);
    let name = template.call().model.as_ref().map_or("", ModelId::as_str);
    let message = match wait.as_ref().map(Duration::as_secs) {
        Some(seconds) => format!(
            "No target is left for {name}: all of them are cooling down after failures. Please retry in {seconds}s."
        ),
        None => format!("No target is left for {name}: none of them can answer this request."),
    };
    let refusal = Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        word: "UNAVAILABLE",
        message,
        reason: "NO_TARGET_LEFT",
        metadata: json!({ "model": name }),
        details: wait.map(retry_info).into_iter().collect(),
    };
    let hint = wait.map(|wait| WaitHint::new(wait, WaitSource::RetryAfter));
    let verdict = refusal.verdict(Outcome::Overloaded, hint, false);
    refusal.into_response(verdict, template.call().clone(), template.state())
}
