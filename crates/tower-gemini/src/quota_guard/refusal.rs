//! The response to a call that does not fit, in the form of Google's own. Pure.

use std::sync::Arc;
use std::time::Duration;

use crate::body::JudgedBody;
use http::{Response, StatusCode};
use serde_json::json;
use tower_gemini_core::call::Call;
use tower_gemini_core::verdict::{Outcome, QuotaDetail, Verdict, WaitHint, WaitSource};

use super::admission::{Denied, RestReason};
use super::limits::{QuotaDimension, QuotaKey};
use crate::call_state::CallState;
use crate::refusal::{REFUSAL_DOMAIN, Refusal, retry_info};
use crate::stage::UpstreamBody;

/// What a refusal means to retry and fallback.
pub(crate) fn outcome_of(denied: &Denied) -> (Outcome, bool) {
    let violates =
        |dimension| denied.violations.iter().any(|violation| violation.dimension == dimension);
    match denied.rest {
        Some(RestReason::Account) => (Outcome::SpendRateLimited, false),
        Some(RestReason::DayExhausted | RestReason::KeptForFirstAttempts) => {
            (Outcome::RateLimitedDay, true)
        }
        // Google's lack of capacity, remembered: what a 503 would have been.
        Some(RestReason::Capacity) => (Outcome::Overloaded, true),
        _ if denied.violations.iter().any(|violation| violation.limit == 0) => {
            (Outcome::QuotaZeroOrBilling, true)
        }
        _ if violates(QuotaDimension::RequestsPerDay) => (Outcome::RateLimitedDay, true),
        Some(RestReason::Store) => (Outcome::RateLimited, true),
        _ => (Outcome::RateLimitedMinute, true),
    }
}

/// The response to a call that does not fit. `wait` is the time until it would, and `may_wait` how
/// long the caller lets it wait: a longer wait is reported to clients, and our own retry does not
/// wait for it.
pub(crate) fn refuse<B: UpstreamBody>(
    denied: &Denied,
    wait: Option<Duration>,
    may_wait: Duration,
    key: &QuotaKey,
    call: Arc<Call>,
    state: &CallState,
) -> Response<JudgedBody<B>> {
    let (outcome, elsewhere) = outcome_of(denied);
    let model = key.model.as_str();
    let reason = denied.rest.map_or("RATE_LIMIT_EXCEEDED", |rest| words(rest).0);
    let violations: Vec<_> = denied
        .violations
        .iter()
        .map(|violation| {
            json!({
                "quotaMetric": format!("{REFUSAL_DOMAIN}/{}", violation.dimension),
                "quotaId": violation.dimension.quota_id(),
                "quotaDimensions": { "model": model },
                "quotaValue": violation.limit.to_string(),
            })
        })
        .collect();
    let mut details = Vec::new();
    if !violations.is_empty() {
        details.push(json!({ "@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations }));
    }
    details.extend(wait.map(retry_info));
    let refusal = Refusal {
        status: StatusCode::TOO_MANY_REQUESTS,
        word: "RESOURCE_EXHAUSTED",
        message: message(denied, wait, model),
        reason,
        // The project is left out: its name may tell who the caller's caller is.
        metadata: json!({ "model": model }),
        details,
    };
    let hint = wait.map(|wait| WaitHint::new(wait, WaitSource::QuotaResetDelay));
    let mut detail = refusal.detail();
    if let Some(violation) = denied.violations.first() {
        let mut quota = QuotaDetail::default();
        quota.id = Some(violation.dimension.quota_id().to_owned());
        quota.metric = Some(format!("{REFUSAL_DOMAIN}/{}", violation.dimension));
        quota.value = Some(violation.limit);
        quota.dimensions = vec![("model".to_owned(), model.to_owned())];
        (detail.reason, detail.quota) = (quota.id.clone(), Some(quota));
    }
    let mut verdict = Verdict::refused_locally(outcome, hint, elsewhere, detail);
    if wait.is_some_and(|wait| wait > may_wait) {
        verdict = verdict.not_retried();
    }
    refusal.into_response(verdict, call, state)
}

/// `ErrorInfo.reason`, and what the message says.
fn words(rest: RestReason) -> (&'static str, &'static str) {
    match rest {
        RestReason::DayExhausted => {
            ("QUOTA_EXHAUSTED", "the API reported that the day's requests are exhausted")
        }
        RestReason::MinuteExhausted => {
            ("RATE_LIMIT_EXCEEDED", "the API reported that this minute's limit is reached")
        }
        RestReason::Capacity => {
            ("MODEL_CAPACITY_EXHAUSTED", "the API reported that it has no capacity now")
        }
        RestReason::Account => (
            "SPEND_RATE_LIMIT_EXCEEDED",
            "the API reported that the account may not spend more now",
        ),
        RestReason::KeptForFirstAttempts => {
            ("KEPT_FOR_FIRST_ATTEMPTS", "what is left of the day is kept for first attempts")
        }
        RestReason::Store => {
            ("QUOTA_STORE_UNAVAILABLE", "the shared count does not allow it, or does not answer")
        }
    }
}

fn message(denied: &Denied, wait: Option<Duration>, model: &str) -> String {
    let counts = denied.violations.iter().map(|violation| {
        format!("{} of {} {} are taken", violation.used, violation.limit, violation.dimension)
    });
    let counts = counts.collect::<Vec<_>>().join(", ");
    let rest = denied.rest.map(|rest| words(rest).1.to_owned());
    let why = [Some(counts).filter(|counts| !counts.is_empty()), rest];
    let why = match why.into_iter().flatten().collect::<Vec<_>>() {
        why if why.is_empty() => "other calls are before this one".to_owned(),
        why => why.join("; "),
    };
    let retry = wait.map_or_else(String::new, |wait| {
        format!(" Please retry in {}.{:03}s.", wait.as_secs(), wait.subsec_millis())
    });
    format!("Not sent, to stay within the quota: {why} (model {model}).{retry}")
}

#[cfg(test)]
mod tests {
    use super::super::admission::{Admission, Moment};
    use super::super::limits::{Limits, QuotaAmounts};
    use super::*;
    use http_body_util::{BodyExt, Full};
    use tower_gemini_core::verdict::{Charge, QuotaCharge};

    fn denied(limits: Limits) -> Denied {
        let now = Moment { steady_ms: 0, wall_ms: 1_773_000_000_000 };
        let mut admission = Admission::new(limits, 0);
        let one = QuotaAmounts::for_call(10, 1);
        while admission.take(now, one, 0).is_ok() {}
        admission.take(now, one, 0).unwrap_err()
    }

    #[tokio::test]
    async fn a_refusal_reads_like_googles_and_costs_nothing() {
        let denied = denied(Limits::unlimited().rpm(3).ipm(5));
        let key = QuotaKey::new("p", "gemini-3-pro-image");
        let call = Arc::new(Call::unrecognised());
        let state = CallState::new(crate::CallOptions::new());
        let wait = Duration::from_millis(60_250);
        let refuse = |may_wait| {
            refuse::<Full<bytes::Bytes>>(&denied, Some(wait), may_wait, &key, call.clone(), &state)
        };
        let response = refuse(wait);
        assert_eq!(response.status(), 429);
        let verdict = response.body().verdict().clone();
        assert_eq!(
            (verdict.outcome(), verdict.charge(), verdict.quota()),
            (Outcome::RateLimitedMinute, Charge::None, QuotaCharge::None)
        );
        assert!(
            verdict.is_retryable()
                && verdict.another_model_helps()
                && state.permit_after(&verdict).is_some()
        );
        // Told all the same, and not waited out by our own retry.
        let longer = refuse(wait - Duration::from_millis(1));
        let longer = longer.body().verdict();
        assert!(!longer.is_retryable() && longer.another_model_helps());
        assert_eq!(longer.wait(), verdict.wait());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let details = &json["error"]["details"];
        assert_eq!(json["error"]["status"], "RESOURCE_EXHAUSTED");
        assert_eq!(details[0]["domain"], "tower-gemini");
        assert_eq!(
            details[1]["violations"][0]["quotaId"],
            "GenerateRequestsPerMinutePerProjectPerModel"
        );
        assert_eq!(details[1]["violations"][0]["quotaValue"], "3");
        assert_eq!(details[2]["retryDelay"], "60.250s");
    }

    #[test]
    fn a_day_is_not_retried_and_a_zero_quota_never_waits() {
        let (outcome, elsewhere) = outcome_of(&denied(Limits::unlimited().rpd(1)));
        assert_eq!((outcome, elsewhere), (Outcome::RateLimitedDay, true));
        let zero = denied(Limits::unlimited().rpm(0));
        assert_eq!((outcome_of(&zero).0, zero.at_ms), (Outcome::QuotaZeroOrBilling, None));
    }
}
