//! Makes Google's error responses in every form in which they arrive. `responses.toml` holds what
//! they say.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use crate::dialect::{Api, Framing, JSON, SSE};
use crate::fault::{Fault, Limit};
use crate::json::{Json, obj};

/// What `responses.toml` holds; its comments explain it.
#[derive(Debug, Default, Deserialize)]
struct Texts {
    status: HashMap<String, Status>,
    error: HashMap<String, Template>,
    limit: HashMap<String, (String, String)>,
    finish_message: HashMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Status {
    http: u16,
    code: String,
    rpc: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Template {
    status: String,
    http: Option<u16>,
    code: Option<String>,
    message: String,
    /// JSON, as text so that fields keep their order.
    details: String,
    legacy: bool,
    content_type: Option<String>,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| {
    let read = toml::from_str(include_str!("../responses.toml"));
    debug_assert!(read.is_ok(), "{read:?}");
    read.unwrap_or_default()
});

/// Returns what `finishMessage` says beside this reason.
pub(crate) fn finish_message(reason: &str) -> Option<&'static str> {
    TEXTS.finish_message.get(reason).map(String::as_str)
}

/// An error before it is printed for one dialect.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) http: u16,
    /// What it says; the whole body where a front end or a proxy made it.
    pub(crate) message: String,
    pub(crate) status: &'static str,
    details: Vec<Json>,
    /// The Interactions API's word for it.
    code: &'static str,
    /// The legacy `errors` member, and a one-element array around it all.
    legacy: bool,
    /// Where a front end or a proxy made it.
    content_type: Option<&'static str>,
}

/// What stands for `{model}` and the like in the texts of errors.
pub(crate) type Words<'a> = [(&'static str, &'a str)];

/// Writes words into a text, or into the strings of a JSON text.
fn filled(text: &str, words: &Words<'_>, is_json: bool) -> String {
    words.iter().fold(text.to_owned(), |text, (name, word)| {
        if is_json {
            let quoted = serde_json::Value::from(*word).to_string();
            text.replace(name, &quoted[1..quoted.len() - 1])
        } else {
            text.replace(name, word)
        }
    })
}

impl ApiError {
    fn new(status: &'static str, message: String) -> Self {
        let (http, code) =
            TEXTS.status.get(status).map_or((500, ""), |status| (status.http, &status.code));
        Self { http, status, message, details: Vec::new(), code, legacy: false, content_type: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new("INVALID_ARGUMENT", message.into())
    }

    /// Returns the error of this name in `responses.toml`.
    pub(crate) fn named(key: &str, words: &Words<'_>) -> Self {
        let Some(template) = TEXTS.error.get(key) else {
            return Self::new("INTERNAL", format!("responses.toml does not have {key}"));
        };
        let is_json = template.content_type.as_deref() == Some("application/json");
        let mut error = Self::new(&template.status, filled(&template.message, words, is_json));
        error.http = template.http.unwrap_or(error.http);
        error.code = template.code.as_deref().unwrap_or(error.code);
        error.legacy = template.legacy;
        error.content_type = template.content_type.as_deref();
        let details = filled(&template.details, words, true);
        error.details = serde_json::from_str(&details).unwrap_or_default();
        error
    }

    /// Whether a front end or a proxy made it.
    pub(crate) fn is_page(&self) -> bool {
        self.content_type.is_some()
    }

    /// Returns the error response of a fault; `None` for faults without an error status.
    pub(crate) fn of(fault: &Fault, model: &str, words: &Words<'_>) -> Option<Self> {
        let violation = |limit, value, free_tier| Violation { limit, value, free_tier };
        match fault {
            Fault::RateLimitMinute { retry_after, limit } => {
                let value = if *limit == Limit::InputTokens { 1_000_000 } else { 10 };
                Some(Self::quota(model, &[violation(*limit, value, false)], *retry_after))
            }
            Fault::RateLimitDay { retry_after } => {
                let day = violation(Limit::RequestsPerDay, 1_000, false);
                Some(Self::quota(model, &[day], *retry_after))
            }
            Fault::ZeroQuota { retry_after } => {
                let limits = [Limit::InputTokens, Limit::Requests, Limit::RequestsPerDay]
                    .map(|limit| violation(limit, 0, true));
                Some(Self::quota(model, &limits, *retry_after))
            }
            _ => {
                let key = fault.key();
                TEXTS.error.contains_key(&*key).then(|| Self::named(&key, words))
            }
        }
    }

    /// The error inside a 200, and in the middle of streams: the flex tier sheds load this way
    /// (2026-08).
    pub(crate) fn mid_stream() -> Self {
        Self::named("high_demand", &[])
    }

    pub(crate) fn because(mut self, reason: String) -> Self {
        self.details
            .push(obj! { "@type": "type.googleapis.com/google.rpc.DebugInfo", "detail": reason });
        self
    }

    pub(crate) fn unknown_field(name: &str, at: &str) -> Self {
        let place = if at.is_empty() { String::new() } else { format!(" at '{at}'") };
        let message = format!(
            "Invalid JSON payload received. Unknown name \"{name}\"{place}: Cannot find field."
        );
        let violation = obj! {
            "field": (!at.is_empty()).then(|| at.to_owned()),
            "description": message.clone(),
        };
        let mut error = Self::invalid(message);
        error.details.push(obj! {
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": vec![violation],
        });
        error
    }

    /// The server's list for `aspect_ratio` (quoted in an issue of 2026-08-22). The texts for
    /// `image_size` and `thinking_level` were never published and are formed after it.
    pub(crate) fn one_of<'a>(field: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let name = field.rsplit('.').next().unwrap_or(field);
        let quoted: Vec<String> = known.map(|value| format!("'{value}'")).collect();
        let list = match quoted.as_slice() {
            [] => "nothing".to_owned(),
            [only] => only.clone(),
            [first @ .., last] => format!("{}, or {last}", first.join(", ")),
        };
        Self::invalid(format!(
            "* GenerateContentRequest.generation_config.{field}: {name} must be one of {list}.\n"
        ))
    }

    /// The 429 of a limit that is enforced, or of a script.
    pub(crate) fn quota(model: &str, violations: &[Violation], retry_after: Duration) -> Self {
        // The error names the model by an older id than the one asked for (js-genai issue 1322,
        // gemini-cli issue 14657).
        let model = if model == "gemini-2.5-flash-image" {
            "gemini-2.5-flash-preview-image"
        } else {
            model
        };
        let mut message = String::from(
            "You exceeded your current quota, please check your plan and billing details. For more \
             information on this error, head to: \
             https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: https://ai.dev/rate-limit. ",
        );
        let mut listed = Vec::new();
        for violation in violations {
            let (metric, id) = violation.names();
            let metric = format!("generativelanguage.googleapis.com/{metric}");
            message.push_str(&format!(
                "\n* Quota exceeded for metric: {metric}, limit: {}, model: {model}",
                violation.value
            ));
            listed.push(obj! {
                "quotaMetric": metric,
                "quotaId": id,
                "quotaDimensions": obj! { "location": "global", "model": model.to_owned() },
                // Recorded violations of a zero quota have no value.
                "quotaValue": (violation.value > 0).then(|| violation.value.to_string()),
            });
        }
        message.push_str(&format!("\nPlease retry in {}.", seconds(retry_after)));
        let mut error = Self::new("RESOURCE_EXHAUSTED", message);
        let link = obj! {
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        };
        // Whole seconds, rounded down, unless there would be none left.
        let retry_delay = match retry_after.as_secs() {
            0 => format!("0.{:09}s", retry_after.subsec_nanos()),
            seconds => format!("{seconds}s"),
        };
        error.details = vec![
            obj! { "@type": "type.googleapis.com/google.rpc.Help", "links": vec![link] },
            obj! { "@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": listed },
            obj! { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": retry_delay },
        ];
        if violations.iter().any(|violation| violation.limit == Limit::RequestsPerDay) {
            error.code = "quota_exceeded";
        }
        error
    }

    /// As `google.rpc.Status`, which the lines of batches and failed operations hold.
    pub(crate) fn to_status(&self) -> Json {
        // Pages have no status of Google's.
        let code = TEXTS.status.get(self.status).map_or(13, |status| status.rpc);
        obj! { "code": code, "message": self.message.clone() }
    }

    /// As the OpenAI-compatible endpoint has it.
    pub(crate) fn to_openai(&self) -> Json {
        Json::Arr(vec![self.to_json()])
    }

    fn to_json(&self) -> Json {
        let legacy = self.legacy.then(|| {
            let reason = if self.http == 429 { "rateLimitExceeded" } else { "backendError" };
            let message = self.message.clone();
            vec![obj! { "message": message, "domain": "global", "reason": reason }]
        });
        obj! { "error": obj! {
            "code": u64::from(self.http),
            "message": self.message.clone(),
            "errors": legacy,
            "status": self.status,
            "details": (!self.details.is_empty()).then(|| self.details.clone()),
        } }
    }

    /// Content type and body of a response in one dialect.
    pub(crate) fn print(&self, api: Api, framing: Framing) -> (&'static str, Vec<Bytes>) {
        if let Some(content_type) = self.content_type {
            return (content_type, vec![self.message.clone().into()]);
        }
        let body = match (api, framing) {
            (Api::Interactions, _) => {
                obj! { "error": obj! { "code": self.code, "message": self.message.clone() } }
            }
            (Api::OpenAiChat | Api::OpenAiImages, _) | (_, Framing::Array) => self.to_openai(),
            _ if self.legacy => Json::Arr(vec![self.to_json()]),
            _ => self.to_json(),
        };
        (if framing == Framing::Sse { SSE } else { JSON }, body.pretty())
    }

    /// As one event of a stream, without its framing.
    pub(crate) fn event(&self, api: Api) -> Json {
        match api {
            Api::Interactions => obj! {
                "event_type": "error",
                "error": obj! { "code": self.code, "message": self.message.clone() },
            },
            _ => self.to_json(),
        }
    }
}

/// "34.074824224s", or "900.2ms" below a second.
fn seconds(delay: Duration) -> String {
    if delay.as_secs() == 0 {
        format!("{}.{}ms", delay.subsec_millis(), delay.subsec_micros() % 1000 / 100)
    } else {
        format!("{}.{:09}s", delay.as_secs(), delay.subsec_nanos())
    }
}

/// One limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) limit: Limit,
    pub(crate) value: u64,
    pub(crate) free_tier: bool,
}

impl Violation {
    /// Metric and id.
    fn names(self) -> (&'static str, &'static str) {
        let limit = self.limit.as_str();
        let free = self.free_tier.then(|| TEXTS.limit.get(&format!("{limit}_free"))).flatten();
        let names = free.or_else(|| TEXTS.limit.get(limit));
        names.map_or(("", ""), |(metric, id)| (metric, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_rounded_down_in_the_details_and_exact_in_the_text() {
        let violation = Violation { limit: Limit::Requests, value: 10, free_tier: false };
        let refused =
            ApiError::quota("gemini-3-pro-image", &[violation], Duration::from_millis(58_931));
        let text = String::from_utf8(refused.to_json().pretty().concat()).unwrap();
        assert!(text.contains("\"retryDelay\": \"58s\""), "{text}");
        assert!(text.contains("Please retry in 58.931000000s."), "{text}");
        assert!(
            text.contains("\"quotaId\": \"GenerateRequestsPerMinutePerProjectPerModel\""),
            "{text}"
        );
    }

    #[test]
    fn the_openai_dialect_gets_every_error_as_an_array() {
        let (_, body) = ApiError::invalid("no").print(Api::OpenAiChat, Framing::Whole);
        assert!(body[0].starts_with(b"[\n  {"));
        let (_, body) = ApiError::invalid("no").print(Api::Developer, Framing::Array);
        assert!(body[0].starts_with(b"["));
        let (_, body) = ApiError::invalid("no").print(Api::Interactions, Framing::Whole);
        let expected: &[u8] =
            b"{\n  \"error\": {\n    \"code\": \"invalid_request\",\n    \"message\": \"no\"\n  }\n}\n";
        assert_eq!(&body[0][..], expected);
    }

    #[test]
    fn every_entry_of_the_file_can_be_printed() {
        assert!(TEXTS.error.len() > 45, "{}", TEXTS.error.len());
        for (key, template) in &TEXTS.error {
            let error = ApiError::named(key, &[("{secret}", "a \"quoted\" key")]);
            assert!((400..600).contains(&error.http), "{key}");
            assert_eq!(error.details.is_empty(), template.details.is_empty(), "{key}");
            assert!(!error.message.is_empty(), "{key}");
            assert_eq!(error.is_page(), error.code.is_empty(), "{key}");
        }
        for limit in Limit::ALL {
            for free_tier in [false, true] {
                assert_ne!(Violation { limit, value: 1, free_tier }.names().0, "", "{limit:?}");
            }
        }
    }
}
