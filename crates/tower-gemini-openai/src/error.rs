//! Errors in OpenAI's format: always an object, never an array.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tower_gemini_core::call::{Call, Dialect};
use tower_gemini_core::classify::classify;
use tower_gemini_core::redact::redact;
use tower_gemini_core::verdict::Outcome;

use super::json::{self, Json, object};

/// The longest error body whose details are kept: the largest collected one has 11 KB.
const MAX_PARSED_BYTES: usize = 256 * 1024;
/// How many characters of a page that is not JSON are shown.
const MAX_SHOWN_CHARS: usize = 300;

/// Says why a request cannot be translated. Nothing was sent for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAiError {
    message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl OpenAiError {
    /// Rejects the request as a whole.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: "invalid_request_error", param: None, code: None }
    }

    /// Rejects the value of a member.
    pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), code: Some("invalid_value"), ..Self::new(message) }
    }

    /// Rejects a member that Gemini has no equivalent for.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// Reports a response without an image.
    pub(super) fn no_image(message: String, code: &'static str) -> Self {
        Self { kind: "image_generation_user_error", code: Some(code), ..Self::new(message) }
    }

    /// Returns the status to respond with: 400, which no client retries.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }

    /// Returns what is wrong and what to do about it.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the status and JSON body to respond with.
    #[must_use]
    pub fn into_parts(self) -> (StatusCode, Bytes) {
        let status = self.status();
        let error = error_object(self.message, self.kind, self.param.into(), self.code, None);
        (status, Bytes::from(error.to_bytes(512)))
    }
}

impl fmt::Display for OpenAiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpenAiError {}

/// The call of a response of which only this is known: it came from Gemini for an image.
pub(super) fn image_call() -> Call {
    let mut call = Call::unrecognised();
    call.dialect = Dialect::GeminiApi;
    call.wants_image = true;
    call
}

/// Returns OpenAI's `type` and `code` for an outcome.
fn type_and_code(outcome: Outcome, status: StatusCode) -> (&'static str, Option<&'static str>) {
    use Outcome as O;
    const LIMITED: (&str, Option<&str>) = ("rate_limit_error", Some("rate_limit_exceeded"));
    const INVALID: &str = "invalid_request_error";
    const NO_IMAGE: &str = "image_generation_user_error";
    match outcome {
        O::RateLimitedMinute | O::RateLimited | O::SpendRateLimited => LIMITED,
        O::RateLimitedDay | O::QuotaZeroOrBilling => {
            ("insufficient_quota", Some("insufficient_quota"))
        }
        O::Auth => ("authentication_error", Some("invalid_api_key")),
        O::Permission => ("permission_error", Some("permission_denied")),
        O::Region => ("request_forbidden", Some("unsupported_country_region_territory")),
        O::NotFound => ("not_found_error", Some("model_not_found")),
        O::PayloadTooLarge => (INVALID, Some("payload_too_large")),
        O::MissingThoughtSignature => (INVALID, Some("missing_thought_signature")),
        O::BadRequest => (INVALID, None),
        O::PromptBlocked => (NO_IMAGE, Some("content_policy_violation")),
        O::ContentBlocked => (NO_IMAGE, Some("moderation_blocked")),
        O::OutOfTokens | O::NoImage => (NO_IMAGE, Some(outcome.as_str())),
        // Whatever it means upstream, a client waits after a 429.
        _ if status == StatusCode::TOO_MANY_REQUESTS => LIMITED,
        O::Overloaded
        | O::Cancelled
        | O::Deadline
        | O::Internal
        | O::BadGateway
        | O::StreamError
        | O::Interrupted
        | O::NotSent => ("server_error", Some(outcome.as_str())),
        _ if status.is_client_error() => (INVALID, None),
        _ => ("server_error", None),
    }
}

/// Translates an error of Google's (an object, an array as its own OpenAI-style endpoint sends, or
/// a page of a front end) to OpenAI's format.
///
/// The status is unchanged, Google's details stay in `error.details`, and keys are redacted.
///
/// ```
/// use http::StatusCode;
/// use tower_gemini_openai::translate_error;
///
/// let body = br#"[{"error": {"code": 429, "message": "Quota exceeded, limit: 0", "status": "RESOURCE_EXHAUSTED"}}]"#;
/// let (status, body) = translate_error(StatusCode::TOO_MANY_REQUESTS, body);
/// assert_eq!(status, 429);
/// assert_eq!(
///     body,
///     r#"{"error":{"message":"Quota exceeded, limit: 0","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#
/// );
/// ```
#[must_use]
pub fn translate_error(status: StatusCode, body: &[u8]) -> (StatusCode, Bytes) {
    let judged = if status.is_success() { StatusCode::BAD_GATEWAY } else { status };
    let verdict = classify(&image_call(), judged, &HeaderMap::new(), body);
    let is_short = body.len() <= MAX_PARSED_BYTES;
    let parsed = is_short.then(|| json::parse(body, json::MAX_VALUES).ok()).flatten();
    let response =
        parsed.as_ref().map(|value| value.list().and_then(<[_]>::first).unwrap_or(value));
    let google = response.and_then(|response| response.get("error"));
    let stated = google.and_then(|error| error.get("message").or(Some(error)).and_then(Json::text));
    // JSON or HTML in the message wraps the real message, which the classifier has found.
    let stated =
        stated.filter(|message| !message.trim().is_empty() && !message.contains(['{', '<']));
    let message = match (stated, verdict.message()) {
        (Some(message), _) => redact(message).into_owned(),
        (None, Some(message)) => excerpt(message),
        (None, None) => match std::str::from_utf8(body) {
            Ok(page) if !page.trim().is_empty() => {
                format!("the upstream responded with {}: {}", judged.as_u16(), excerpt(page))
            }
            _ => format!("the upstream responded with {} and no message", judged.as_u16()),
        },
    };
    let (kind, code) = type_and_code(verdict.outcome(), judged);
    let details = google.and_then(|error| error.get("details"));
    let details = details.map(|details| details.to_bytes(1024));
    let details = details.map(|details| redact(&String::from_utf8_lossy(&details)).into_owned());
    let details = details.as_deref();
    let details =
        details.and_then(|details| json::parse(details.as_bytes(), json::MAX_VALUES).ok());
    (status, Bytes::from(error_object(message, kind, Json::Null, code, details).to_bytes(1024)))
}

/// Reports a response that was charged and cannot be read. Clients do not retry the 424.
pub(super) fn unreadable_response(message: &str) -> (StatusCode, Bytes) {
    aborted(StatusCode::FAILED_DEPENDENCY, message)
}

/// Translates an error of our own.
pub(super) fn aborted(status: StatusCode, message: &str) -> (StatusCode, Bytes) {
    let error = object([("message", message.into()), ("status", "ABORTED".into())]);
    translate_error(status, &object([("error", error)]).to_bytes(message.len() + 64))
}

/// Translates an error that came in a body with a success status.
pub(super) fn embedded_error(error: &Json<'_>) -> (StatusCode, Bytes) {
    let code = error.get("code").and_then(Json::number);
    let code = code.filter(|code| (400.0..600.0).contains(code));
    let status = code.and_then(|code| StatusCode::from_u16(code as u16).ok());
    let body = object([("error", error.borrowed())]).to_bytes(4096);
    translate_error(status.unwrap_or(StatusCode::BAD_GATEWAY), &body)
}

/// The message comes first: it is what people read in a log.
fn error_object<'a>(
    message: String,
    kind: &'a str,
    param: Json<'a>,
    code: Option<&'a str>,
    details: Option<Json<'a>>,
) -> Json<'a> {
    let error = [
        ("message", message.into()),
        ("type", kind.into()),
        ("param", param),
        ("code", code.into()),
    ];
    let details = details.map(|details| ("details", details));
    object([("error", object(error.into_iter().chain(details)))])
}

/// Returns the start of a text on one line, redacted.
pub(super) fn excerpt(text: &str) -> String {
    let clean = redact(text).split_whitespace().collect::<Vec<_>>().join(" ");
    match clean.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}
