//! What a failure cost, by who reports it.

use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::*;
use crate::charge_rules::ChargeRules;
use crate::verdict::{Scope, WaitHint, WaitSource};

fn image_call(rules: ChargeRules) -> Call {
    Call { wants_image: true, charge_rules: rules, ..Call::unrecognised() }
}

fn judged(status: u16, body: &str) -> Verdict {
    let status = StatusCode::from_u16(status).unwrap();
    classify(&image_call(ChargeRules::unknown()), status, &HeaderMap::new(), body.as_bytes())
}

/// Google's own failures: free.
fn googles() -> Vec<String> {
    let error = |code: u16, status: &str, message: &str| {
        json!({"error": {"code": code, "message": message, "status": status}}).to_string()
    };
    vec![
        error(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        error(503, "UNAVAILABLE", "words that are new"),
        error(500, "INTERNAL", "An internal error has occurred."),
        error(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
        error(503, "UNAVAILABLE", "Deadline expired before operation could complete."),
        "<!DOCTYPE html><html><title>Error 502 (Server Error)!!1</title><p>Please try again in \
         30 seconds.</html>"
            .to_owned(),
        "rpc error: code = Unavailable desc = The service is currently unavailable.".to_owned(),
    ]
}

/// What proves that nothing was sent: free.
const NEVER_SENT: [&str; 8] = [
    "Post \"https://h/v1beta/models/m:generateContent\": dial tcp 1.2.3.4:443: connect: connection refused",
    "dial tcp: lookup h on 127.0.0.11:53: no such host",
    "net/http: TLS handshake timeout",
    "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
    "getaddrinfo ENOTFOUND generativelanguage.googleapis.com",
    "Cannot connect to host h:443 ssl:default [Connect call failed]",
    "curl: (7) Failed to connect to h port 443",
    "no healthy upstream",
];

/// A relay's words about what it sent: maybe.
const MAYBE: [&str; 16] = [
    "<html><head><title>502 Bad Gateway</title></head><center>nginx</center></html>",
    "<html><title>504 Gateway Time-out</title></html>",
    "<!DOCTYPE html><title>example.com | 520: Web server is returning an unknown error</title>",
    "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
    "Server disconnected without sending a response.",
    "Post \"https://h/v1beta/models/m:generateContent\": EOF",
    "unexpected EOF",
    "curl: (28) Operation timed out after 30002 milliseconds with 0 bytes received",
    "Response payload is not completed: <TransferEncodingError: 400, message='Not enough data'>",
    "read tcp 10.0.0.1:1->1.2.3.4:443: read: connection reset by peer",
    "socket hang up",
    "Unexpected token < in JSON at position 0",
    "context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
    "returned no content frame",
    "something new went wrong",
    "",
];

/// The ways in which relays wrap what they report, with a status of their own.
const WRAPPERS: [fn(u16, &str) -> String; 8] = [
    |_, inner| inner.to_owned(),
    |_, inner| json!({"error": {"message": inner, "type": "upstream_error"}}).to_string(),
    |_, inner| {
        json!({"error": {"message": format!("litellm.InternalServerError: VertexAIException - {inner}"), "code": "500"}})
            .to_string()
    },
    |_, inner| json!({"detail": inner}).to_string(),
    |_, inner| json!([{"error": {"message": inner, "code": null}}]).to_string(),
    |status, inner| {
        json!({"error": {"message": "failed", "upstreamStatus": status, "upstreamResponse": inner}})
            .to_string()
    },
    |_, inner| {
        let inner: Value = serde_json::from_str(inner).unwrap_or_else(|_| inner.into());
        json!({"error": {"message": "x", "type": "internal_server_error", "param": inner}})
            .to_string()
    },
    |status, inner| format!("Max retries exhausted. Last error: upstream error {status}: {inner}"),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_failure_is_free_only_if_google_reports_it_or_nothing_was_sent(
        (inner, is_free) in prop_oneof![
            select(googles()).prop_map(|body| (body, true)),
            select(NEVER_SENT.to_vec()).prop_map(|body| (body.to_owned(), true)),
            select(MAYBE.to_vec()).prop_map(|body| (body.to_owned(), false)),
        ],
        wrapper in select(WRAPPERS.to_vec()),
        status in select(vec![500, 502, 503, 504, 520, 521, 522, 524, 529, 599]),
    ) {
        let body = wrapper(status, &inner);
        let verdict = judged(status, &body);
        prop_assert!(verdict.charge() != Charge::Charged);
        // A wrapper may lose what proves that it was free; none may make something free.
        prop_assert!(is_free || !verdict.charge().is_surely_free(), "{status} {body}");
        prop_assert!(verdict.is_retryable() || verdict.charge() != Charge::Maybe, "{status} {body}");
    }
}

#[test]
fn what_is_free_stays_free_in_the_usual_wrappings() {
    let free = googles().into_iter().chain(NEVER_SENT.map(str::to_owned));
    for inner in free {
        for wrapper in &WRAPPERS[..5] {
            let body = wrapper(500, &inner);
            assert_eq!(judged(500, &body).charge(), Charge::None, "{body}");
        }
    }
}

#[test]
fn googles_format_around_a_relays_broken_connection_does_not_make_it_free() {
    for message in ["connection reset by peer", "unexpected EOF", "upstream: socket hang up"] {
        let body = json!({"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}})
            .to_string();
        assert_eq!(judged(503, &body).charge(), Charge::Maybe, "{message}");
    }
}

#[test]
fn a_cancellation_of_googles_has_an_unknown_charge() {
    let body = json!({"error": {"code": 499, "message": "The operation was cancelled.", "status": "CANCELLED"}});
    let verdict = judged(499, &body.to_string());
    assert_eq!((verdict.outcome(), verdict.charge()), (Outcome::Cancelled, Charge::Maybe));
}

#[test]
fn an_upstreams_rules_decide_what_nobody_says() {
    let charge = |rules: &str, body: &str| {
        let call = image_call(ChargeRules::named(rules).unwrap());
        classify(&call, StatusCode::BAD_GATEWAY, &HeaderMap::new(), body.as_bytes()).charge()
    };
    assert_eq!(charge("google", ""), Charge::None);
    assert_eq!(charge("vertex", ""), Charge::Maybe);
    assert_eq!(charge("unknown", ""), Charge::Maybe);
    // No rule makes a broken connection free, and one says that it is paid for.
    assert_eq!(charge("google", "unexpected EOF"), Charge::Maybe);
    assert_eq!(charge("apiyi", "unexpected EOF"), Charge::Charged);
    let empty = |rules: &str| {
        let call = image_call(ChargeRules::named(rules).unwrap());
        classify(&call, StatusCode::OK, &HeaderMap::new(), b"{}").charge()
    };
    assert_eq!((empty("laozhang"), empty("google")), (Charge::Charged, Charge::Maybe));
    let apiyi = image_call(ChargeRules::named("apiyi").unwrap());
    assert_eq!(limit_charge(&apiyi, Verdict::interrupted()).charge(), Charge::Charged);
    assert_eq!(limit_charge(&apiyi, Verdict::not_sent()).charge(), Charge::None);
}

#[test]
fn a_relay_that_found_no_image_reports_a_missing_image() {
    for message in [
        "litellm.InternalServerError: image generation response does not contain 'predictions', got {}",
        "upstream returned no content frame",
    ] {
        let verdict = judged(500, &json!({"error": {"message": message}}).to_string());
        assert_eq!((verdict.outcome(), verdict.charge()), (Outcome::NoImage, Charge::Maybe));
    }
}

#[test]
fn a_file_that_is_closed_closes_the_request_only() {
    for (status, message) in [
        (403, "You do not have permission to access the File abc or it may not exist."),
        (403, "You do not have permission to access CachedContent or it may not exist."),
        (403, "x does not have storage.objects.get access to the Google Cloud Storage object."),
        (400, "Cached content is too small."),
    ] {
        let body =
            json!({"error": {"code": status, "message": message, "status": "PERMISSION_DENIED"}});
        let verdict = judged(status, &body.to_string());
        assert_eq!(verdict.outcome(), Outcome::BadRequest, "{message}");
        assert_eq!(verdict.scope(), Scope::Request);
        assert!(!verdict.is_retryable() && !verdict.another_model_helps());
    }
}

#[test]
fn what_is_not_ready_is_waited_for() {
    let wait = |message: &str| {
        let body =
            json!({"error": {"code": 400, "message": message, "status": "FAILED_PRECONDITION"}});
        let verdict = judged(400, &body.to_string());
        assert!(verdict.is_retryable() && verdict.charge() == Charge::None, "{message}");
        assert!(!verdict.another_model_helps());
        verdict.wait().map(|hint| (hint.stated().as_secs(), hint.source()))
    };
    assert_eq!(
        wait("The File abc is not in an ACTIVE state and usage is not allowed."),
        Some((5, WaitSource::Estimate))
    );
    assert_eq!(
        wait("Service agents are being provisioned. Please try again in a few minutes."),
        Some((60, WaitSource::Estimate))
    );
}

#[test]
fn limits_that_no_waiting_clears_are_final() {
    for (status, body) in [
        (429, "429 X doesn't have a free quota tier. [retry_delay {\n  seconds: 33\n}\n]"),
        (
            429,
            r#"{"error":{"message":"Budget has been exceeded! Max budget: 2.5","type":"budget_exceeded"}}"#,
        ),
        (400, r#"{"error":{"message":"ExceededBudget: User is over budget","code":"400"}}"#),
        (429, r#"{"error":{"message":"Your account is not active","type":"billing_not_active"}}"#),
        (429, r#"{"error":{"message":"You have exhausted your credits"}}"#),
    ] {
        let verdict = judged(status, body);
        assert_eq!(verdict.outcome(), Outcome::QuotaZeroOrBilling, "{body}");
        assert!(!verdict.is_retryable() && verdict.wait().is_none(), "{body}");
    }
}

#[test]
fn a_blocked_referrer_is_a_permission_whatever_its_reason() {
    let body = r#"{"error":{"code":403,"message":"Requests from referer <empty> are blocked.","errors":[{"domain":"usageLimits","reason":"rateLimitExceeded"}],"status":"PERMISSION_DENIED"}}"#;
    assert_eq!(judged(403, body).outcome(), Outcome::Permission);
}

#[test]
fn refusals_that_come_as_a_400_are_refusals_and_free() {
    for message in [
        "Image generation failed with the following error: The response is blocked, as it may violate our policies. Error Code: 58061214",
        "The request was refused: IMAGE_SAFETY",
    ] {
        let body =
            json!({"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}});
        let verdict = judged(400, &body.to_string());
        assert_eq!((verdict.outcome(), verdict.charge()), (Outcome::ContentBlocked, Charge::None));
        assert!(!verdict.is_retryable());
    }
}

#[test]
fn waits_in_json_bodies_are_read_with_their_unit() {
    for (field, seconds) in [
        (json!({"retry_after": 60}), 60.0),
        (json!({"retry_after": "45"}), 45.0),
        (json!({"retryAfter": "1m30s"}), 90.0),
        (json!({"retry_after_ms": 1500}), 1.5),
        (json!({"retry_after": 2.5}), 2.5),
    ] {
        let mut body = json!({"title": "Error 502", "status": 502});
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        let verdict = judged(502, &body.to_string());
        assert_eq!(verdict.wait().map(|hint| hint.stated().as_secs_f64()), Some(seconds), "{body}");
        assert_eq!(verdict.wait().map(|hint| WaitHint::source(&hint)), Some(WaitSource::Body));
    }
}

#[test]
fn an_empty_success_is_an_error_in_every_dialect() {
    for body in ["{}", r#"{"candidates":null}"#, r#"{"success":false}"#, ""] {
        let verdict = judged(200, body);
        assert!(!verdict.outcome().is_success(), "{body}");
        assert_eq!(verdict.charge(), Charge::Maybe, "{body}");
    }
}
