//! The response to a call for which no target was left. Pure.

use std::time::Duration;

use http::{Response, StatusCode};
use serde_json::json;
use tower_gemini_core::call::ModelId;
use tower_gemini_core::verdict::{Detail, Outcome, Verdict, WaitHint, WaitSource};

use crate::body::{JudgedBody, RequestTemplate};
use crate::refusal::Refusal;
use crate::stage::UpstreamBody;

/// `ErrorInfo.reason` of this refusal.
const REASON: &str = "NO_TARGET_LEFT";

/// A 503 in Google's form. `wait` is the time until the first target may be tried again.
pub(super) fn refuse<B: UpstreamBody>(
    template: &RequestTemplate,
    wait: Option<Duration>,
) -> Response<JudgedBody<B>> {
    // Whole seconds, rounded up: what Google's clients read.
    let seconds =
        wait.map(|wait| wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)));
    let name = template.call().model.as_ref().map_or("", ModelId::as_str);
    let message = match seconds {
        Some(seconds) => format!(
            "No target is left for {name}: all of them are cooling down after failures. Please retry in {seconds}s."
        ),
        None => format!("No target is left for {name}: none of them can answer this request."),
    };
    let retry_info = |seconds| {
        let delay = format!("{seconds}s");
        json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay })
    };
    let mut detail = Detail::default();
    detail.reason = Some(REASON.to_owned());
    detail.message = Some(message.clone());
    let hint =
        seconds.map(|seconds| WaitHint::new(Duration::from_secs(seconds), WaitSource::RetryAfter));
    let verdict = Verdict::refused_locally(Outcome::Overloaded, hint, false, detail);
    let refusal = Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        word: "UNAVAILABLE",
        message,
        reason: REASON,
        metadata: json!({ "model": name }),
        details: seconds.map(retry_info).into_iter().collect(),
    };
    refusal.into_response(verdict, template.call().clone(), template.state())
}
