//! Errors as OpenAI's clients read them: an object, never an array.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tower_gemini::call::{Call, Dialect};
use tower_gemini::classify::classify;
use tower_gemini::redact::redact;
use tower_gemini::verdict::Outcome;

use super::json::{Json, object};

/// Details of a longer error body than this are left out: the largest collected one has 11 KB.
const MOST_READ: usize = 256 * 1024;
/// What a caller is told of a page, in characters.
const MOST_SHOWN: usize = 300;

/// Why a request is not translated, or an answer is none. Nothing was sent for the former.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAiError {
    status: StatusCode,
    message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl OpenAiError {
    /// A request that is wrong as a whole.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
            kind: "invalid_request_error",
            param: None,
            code: None,
        }
    }

    /// A member that is wrong.
    pub(super) fn of(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), code: Some("invalid_value"), ..Self::new(message) }
    }

    /// A member that is right, and that Gemini has nothing for.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::of(param, message) }
    }

    /// An answer without an image. A 400 is the one thing that no client sends again for.
    pub(super) fn no_image(message: String, code: &'static str) -> Self {
        Self { kind: "image_generation_user_error", code: Some(code), ..Self::new(message) }
    }

    /// The status of the answer that says it.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The answer that says it.
    #[must_use]
    pub fn into_parts(self) -> (StatusCode, Bytes) {
        let error = error_object(self.message, self.kind, self.param.into(), self.code, None);
        (self.status, Bytes::from(error.to_bytes(512)))
    }
}

impl fmt::Display for OpenAiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpenAiError {}

/// A call of which only this is known: it goes to Gemini and wants an image.
pub(super) fn image_call() -> Call {
    let mut call = Call::unrecognised();
    call.dialect = Dialect::GeminiApi;
    call.wants_image = true;
    call
}

/// OpenAI's `type` and `code` of an outcome.
fn named(outcome: Outcome, status: StatusCode) -> (&'static str, Option<&'static str>) {
    use Outcome as O;
    match outcome {
        O::RateLimitedMinute | O::RateLimited | O::SpendRateLimited => {
            ("rate_limit_error", Some("rate_limit_exceeded"))
        }
        O::RateLimitedDay | O::QuotaZeroOrBilling => {
            ("insufficient_quota", Some("insufficient_quota"))
        }
        O::Auth => ("authentication_error", Some("invalid_api_key")),
        O::Permission => ("permission_error", Some("permission_denied")),
        O::Region => ("request_forbidden", Some("unsupported_country_region_territory")),
        O::NotFound => ("not_found_error", Some("model_not_found")),
        O::PayloadTooLarge => ("invalid_request_error", Some("payload_too_large")),
        O::MissingThoughtSignature => ("invalid_request_error", Some("missing_thought_signature")),
        O::BadRequest => ("invalid_request_error", None),
        O::PromptBlocked => ("image_generation_user_error", Some("content_policy_violation")),
        O::ContentBlocked => ("image_generation_user_error", Some("moderation_blocked")),
        O::OutOfTokens | O::NoImage => ("image_generation_user_error", Some(outcome.as_str())),
        O::Overloaded
        | O::Deadline
        | O::Internal
        | O::BadGateway
        | O::StreamError
        | O::Interrupted
        | O::NotSent => {
            // A stand-in's capacity under a 429 is the caller's to wait for all the same.
            if status == StatusCode::TOO_MANY_REQUESTS {
                ("rate_limit_error", Some("rate_limit_exceeded"))
            } else {
                ("server_error", Some(outcome.as_str()))
            }
        }
        _ => match status.as_u16() {
            429 => ("rate_limit_error", Some("rate_limit_exceeded")),
            400..=499 => ("invalid_request_error", None),
            _ => ("server_error", None),
        },
    }
}

/// An error of Google's (an object, or an array as its own OpenAI-style path sends, or a page of
/// some front end's) as OpenAI's clients read it. The status stays; Google's details stay as
/// `error.details`, and no key is in anything that is told.
///
/// ```
/// use tower_gemini_gateway::openai::error_from_google;
/// use http::StatusCode;
///
/// let body = br#"[{"error": {"code": 429, "message": "Quota exceeded, limit: 0", "status": "RESOURCE_EXHAUSTED"}}]"#;
/// let (status, body) = error_from_google(StatusCode::TOO_MANY_REQUESTS, body);
/// assert_eq!(status, 429);
/// assert_eq!(
///     body,
///     r#"{"error":{"message":"Quota exceeded, limit: 0","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#
/// );
/// ```
#[must_use]
pub fn error_from_google(status: StatusCode, body: &[u8]) -> (StatusCode, Bytes) {
    let judged = if status.is_success() { StatusCode::BAD_GATEWAY } else { status };
    let verdict = classify(&image_call(), judged, &HeaderMap::new(), body);
    let parsed: Option<Json<'_>> =
        if body.len() <= MOST_READ { serde_json::from_slice(body).ok() } else { None };
    let answer = parsed.as_ref().map(|value| value.list().and_then(<[_]>::first).unwrap_or(value));
    let google = answer.and_then(|answer| answer.get("error"));
    let stated = google.and_then(|error| error.get("message").or(Some(error)).and_then(Json::text));
    // JSON within the message holds the real one, and the classifier has looked there.
    let stated =
        stated.filter(|message| !message.trim().is_empty() && !message.contains(['{', '<']));
    let message = match (stated, verdict.message()) {
        (Some(message), _) => redact(message).into_owned(),
        (None, Some(message)) => shown(message),
        (None, None) => match std::str::from_utf8(body) {
            Ok(page) if !page.trim().is_empty() => {
                format!("the upstream answered {}: {}", judged.as_u16(), shown(page))
            }
            _ => format!("the upstream answered {} without a word", judged.as_u16()),
        },
    };
    let (kind, code) = named(verdict.outcome(), judged);
    let details =
        google.and_then(|error| error.get("details")).map(|details| details.to_bytes(1024));
    let details = details.map(|details| redact(&String::from_utf8_lossy(&details)).into_owned());
    let details = details.as_deref().and_then(|details| serde_json::from_str(details).ok());
    (status, Bytes::from(error_object(message, kind, Json::Null, code, details).to_bytes(1024)))
}

/// The message stands first: it is what people read in a log.
fn error_object<'a>(
    message: String,
    kind: &'a str,
    param: Json<'a>,
    code: Option<&'a str>,
    details: Option<Json<'a>>,
) -> Json<'a> {
    let mut error = vec![
        (Cow::Borrowed("message"), message.into()),
        (Cow::Borrowed("type"), kind.into()),
        (Cow::Borrowed("param"), param),
        (Cow::Borrowed("code"), code.into()),
    ];
    error.extend(details.map(|details| (Cow::Borrowed("details"), details)));
    object([("error", Json::Object(error))])
}

/// The first words of a text, without secrets.
pub(super) fn shown(text: &str) -> String {
    let clean = redact(text).split_whitespace().collect::<Vec<_>>().join(" ");
    match clean.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}
