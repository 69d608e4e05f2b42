//! Errors as OpenAI's clients read them: an object, never an array.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tower_gemini::core::redact::redact;

/// Why a request is not translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAiError {
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl OpenAiError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), param: None, code: None }
    }

    pub(super) fn of(param: &str, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.to_owned()), code: Some("unsupported_value") }
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The answer that says it.
    #[must_use]
    pub fn into_parts(self) -> (StatusCode, Bytes) {
        let error = json!({ "error": {
            "message": self.message,
            "type": "invalid_request_error",
            "param": self.param,
            "code": self.code,
        }});
        (StatusCode::BAD_REQUEST, Bytes::from(error.to_string()))
    }
}

/// An error of Google's (or a page of some front end's) as OpenAI's clients read it. Google's own details stay, as `details`.
#[must_use]
pub fn error_from_google(status: StatusCode, body: &[u8]) -> (StatusCode, Bytes) {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    // `[{"error":…}]` is what Google's own OpenAI-style path sends, and openai's clients cannot read.
    let google = parsed.as_ref().map(|value| value.get(0).unwrap_or(value)).and_then(|value| value.get("error"));
    let text = |name: &str| google?.get(name)?.as_str();
    let message = text("message").map_or_else(
        || match std::str::from_utf8(body) {
            Ok(page) if !page.trim().is_empty() => format!("The upstream answered {status} with: {}", first_words(page)),
            _ => format!("The upstream answered {status}."),
        },
        |message| redact(message).into_owned(),
    );
    let details = google.and_then(|google| google.get("details")).cloned();
    let said = details.as_ref().map(Value::to_string).unwrap_or_default();
    let says = |word: &str| said.contains(word) || message.contains(word);
    let (kind, code) = match status.as_u16() {
        400 | 413 | 422 => ("invalid_request_error", None),
        401 => ("authentication_error", Some("invalid_api_key")),
        402 => ("insufficient_quota", Some("insufficient_quota")),
        403 => ("permission_error", None),
        404 => ("not_found_error", Some("model_not_found")),
        // What no wait of seconds cures is OpenAI's `insufficient_quota`.
        429 if says("PerDay")
            || says("limit: 0")
            || says("billing")
            || says("credits are depleted")
            || says("spending cap") =>
        {
            ("insufficient_quota", Some("insufficient_quota"))
        }
        429 => ("rate_limit_error", Some("rate_limit_exceeded")),
        _ => ("server_error", None),
    };
    let code = code.map(str::to_owned).or_else(|| text("status").map(str::to_lowercase));
    let mut error = json!({ "error": { "message": message, "type": kind, "param": null, "code": code } });
    if let Some(details) = details.and_then(|details| serde_json::from_str::<Value>(&redact(&details.to_string())).ok()) {
        error["error"]["details"] = details;
    }
    (status, Bytes::from(error.to_string()))
}

/// Of a page, what a log can bear.
fn first_words(page: &str) -> String {
    let text: String = page.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    redact(&text).into_owned()
}
