//! Makes Google's error responses, word for word, in every form in which they arrive.
//!
//! Texts and details are those of recorded answers and official documentation up to October 2026;
//! where the server's own words are unknown, the comment says so.

use std::time::Duration;

use bytes::Bytes;

use crate::dialect::{Api, Framing};
use crate::fault::{BadRequest, Fault, Forbidden, Limit, NotFound};
use crate::json::{Json, obj};

/// An error in Google's format before it is printed for one dialect.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) http: u16,
    pub(crate) status: &'static str,
    pub(crate) message: String,
    pub(crate) details: Vec<Json>,
    /// The Interactions API's word for it (ai.google.dev "API errors", 2026-08).
    pub(crate) code: &'static str,
    /// The legacy `errors` member, and a one-element array around it all.
    legacy: bool,
}

const TYPE: &str = "type.googleapis.com/google.rpc.";

fn detail(kind: &str, mut fields: Vec<(&'static str, Json)>) -> Json {
    fields.insert(0, ("@type", Json::str(format!("{TYPE}{kind}"))));
    Json::Obj(fields)
}

fn error_info(reason: &'static str, domain: &'static str, metadata: Json) -> Json {
    detail(
        "ErrorInfo",
        vec![("reason", reason.into()), ("domain", domain.into()), ("metadata", metadata)],
    )
}

fn help(description: &'static str, url: impl Into<String>) -> Json {
    let link = obj! { "description": description, "url": url.into() };
    detail("Help", vec![("links", vec![link].into())])
}

fn debug_info(text: String) -> Json {
    detail("DebugInfo", vec![("detail", text.into())])
}

/// `RetryInfo` as Gemini fills it: whole seconds, rounded down, unless there would be none left.
fn retry_info(delay: Duration) -> Json {
    let text = if delay.as_secs() > 0 {
        format!("{}s", delay.as_secs())
    } else {
        format!("0.{:09}s", delay.subsec_nanos())
    };
    detail("RetryInfo", vec![("retryDelay", text.into())])
}

impl ApiError {
    fn new(
        http: u16,
        status: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { http, status, message: message.into(), details: Vec::new(), code, legacy: false }
    }

    fn with(mut self, detail: Json) -> Self {
        self.details.push(detail);
        self
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "INVALID_ARGUMENT", "invalid_request", message)
    }

    fn precondition(message: impl Into<String>) -> Self {
        Self::new(400, "FAILED_PRECONDITION", "failed_precondition", message)
    }

    fn exhausted(message: impl Into<String>) -> Self {
        Self::new(429, "RESOURCE_EXHAUSTED", "rate_limit_exceeded", message)
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "UNAVAILABLE", "service_unavailable", message)
    }

    fn denied(message: impl Into<String>) -> Self {
        Self::new(403, "PERMISSION_DENIED", "permission_denied", message)
    }

    fn missing(message: impl Into<String>) -> Self {
        Self::new(404, "NOT_FOUND", "not_found", message)
    }

    pub(crate) fn because(self, reason: String) -> Self {
        self.with(debug_info(reason))
    }

    pub(crate) fn unknown_field(name: &str, at: &str) -> Self {
        let place = if at.is_empty() { String::new() } else { format!(" at '{at}'") };
        let message = format!(
            "Invalid JSON payload received. Unknown name \"{name}\"{place}: Cannot find field."
        );
        let mut violation = vec![("description", Json::from(message.clone()))];
        if !at.is_empty() {
            violation.insert(0, ("field", at.to_owned().into()));
        }
        Self::invalid(message).with(detail(
            "BadRequest",
            vec![("fieldViolations", vec![Json::Obj(violation)].into())],
        ))
    }

    /// The server's list for `aspect_ratio` (quoted in an issue of 2026-08-22). The text for
    /// `image_size` was never published and is formed after it.
    pub(crate) fn one_of(name: &str, known: impl Iterator<Item = &'static str>) -> Self {
        let quoted: Vec<String> = known.map(|value| format!("'{value}'")).collect();
        let list = match quoted.as_slice() {
            [] => "nothing".to_owned(),
            [only] => only.clone(),
            [first @ .., last] => format!("{}, or {last}", first.join(", ")),
        };
        Self::invalid(format!(
            "* GenerateContentRequest.generation_config.image_config.{name}: {name} must be one of {list}.\n"
        ))
    }

    pub(crate) fn unknown_model(model: &str, version: &str, method: &str) -> Self {
        let mut refused = Self::missing(format!(
            "models/{model} is not found for API version {version}, or is not supported for {method}. Call ModelService.ListModels to \
             see the list of available models and their supported methods."
        ));
        refused.code = "model_not_found";
        refused
    }

    pub(crate) fn retired_model(model: &str, successor: &str) -> Self {
        let mut refused = Self::missing(format!(
            "This model models/{model} is no longer available to new users. Please update your code to use models/{successor} for the \
             latest features and improvements. We recommend you to use the Interactions API."
        ));
        refused.code = "model_not_found";
        refused
    }

    pub(crate) fn publisher_model(model: &str) -> Self {
        let mut refused = Self::missing(format!(
            "Publisher Model `projects/sim-project/locations/global/publishers/google/models/{model}` was not found or your project does \
             not have access to it. Please ensure you are using a valid model version. For more information, see: \
             https://cloud.google.com/vertex-ai/generative-ai/docs/learn/model-versions"
        ));
        refused.code = "model_not_found";
        refused
    }

    pub(crate) fn invalid_key(key: &str) -> Self {
        let message = "API key not valid. Please pass a valid API key.";
        Self::invalid(message)
            .with(error_info(
                "API_KEY_INVALID",
                "googleapis.com",
                obj! { "service": "generativelanguage.googleapis.com" },
            ))
            .with(detail(
                "LocalizedMessage",
                vec![("locale", "en-US".into()), ("message", message.into())],
            ))
            .with(debug_info(format!("Invalid API key: {key}")))
    }

    pub(crate) fn two_credentials() -> Self {
        let mut refused =
            Self::invalid("Multiple authentication credentials received. Please pass only one.");
        refused.legacy = true;
        refused
    }

    pub(crate) fn unauthenticated() -> Self {
        Self::new(
            401,
            "UNAUTHENTICATED",
            "authentication",
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication \
             credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
        )
        .with(error_info("ACCESS_TOKEN_EXPIRED", "googleapis.com", obj! { "service": "aiplatform.googleapis.com" }))
    }

    pub(crate) fn deadline_504() -> Self {
        Self::new(
            504,
            "DEADLINE_EXCEEDED",
            "deadline_exceeded",
            "Deadline expired before operation could complete.",
        )
    }

    pub(crate) fn payload_too_large(limit: usize) -> Self {
        Self::invalid(format!("Request payload size exceeds the limit: {limit} bytes."))
    }

    pub(crate) fn unimplemented() -> Self {
        Self::new(
            501,
            "UNIMPLEMENTED",
            "unimplemented",
            "Operation is not implemented, or supported, or enabled.",
        )
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
            "You exceeded your current quota, please check your plan and billing details. For more information on this error, head to: \
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
            let mut fields = vec![
                ("quotaMetric", Json::from(metric)),
                ("quotaId", Json::from(id)),
                ("quotaDimensions", obj! { "location": "global", "model": model.to_owned() }),
            ];
            // Recorded violations of a zero quota have no value.
            if violation.value > 0 {
                fields.push(("quotaValue", Json::from(violation.value.to_string())));
            }
            listed.push(Json::Obj(fields));
        }
        message.push_str(&format!("\nPlease retry in {}.", seconds(retry_after)));
        let mut refused = Self::exhausted(message)
            .with(help(
                "Learn more about Gemini API quotas",
                "https://ai.google.dev/gemini-api/docs/rate-limits",
            ))
            .with(detail("QuotaFailure", vec![("violations", listed.into())]))
            .with(retry_info(retry_after));
        if violations.iter().any(|violation| violation.limit == Limit::RequestsPerDay) {
            refused.code = "quota_exceeded";
        }
        refused
    }

    fn to_json(&self) -> Json {
        let mut error = vec![
            ("code", Json::Num(self.http.into())),
            ("message", Json::from(self.message.clone())),
        ];
        if self.legacy {
            let reason = if self.http == 429 { "rateLimitExceeded" } else { "backendError" };
            let legacy =
                obj! { "message": self.message.clone(), "domain": "global", "reason": reason };
            error.push(("errors", vec![legacy].into()));
        }
        error.push(("status", self.status.into()));
        if !self.details.is_empty() {
            error.push(("details", self.details.clone().into()));
        }
        obj! { "error": Json::Obj(error) }
    }

    /// As the body of an answer in one dialect.
    pub(crate) fn body(&self, api: Api, framing: Framing) -> Vec<Bytes> {
        match (api, framing) {
            (Api::Interactions, _) => {
                obj! { "error": obj! { "code": self.code, "message": self.message.clone() } }
                    .pretty()
            }
            (Api::OpenAiChat | Api::OpenAiImages, _) | (_, Framing::Array) => {
                Json::Arr(vec![self.to_json()]).pretty()
            }
            _ if self.legacy => Json::Arr(vec![self.to_json()]).pretty(),
            _ => self.to_json().pretty(),
        }
    }

    /// As one event of a stream, without its framing.
    pub(crate) fn event(&self, api: Api) -> Json {
        match api {
            Api::Interactions => obj! { "event_type": "error",
            "error": obj! { "code": self.code, "message": self.message.clone() } },
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
        match (self.limit, self.free_tier) {
            (Limit::Requests, false) => {
                ("generate_requests_per_model", "GenerateRequestsPerMinutePerProjectPerModel")
            }
            (Limit::Requests, true) => (
                "generate_content_free_tier_requests",
                "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
            ),
            (Limit::InputTokens, false) => (
                "generate_content_paid_tier_input_token_count",
                "GenerateContentPaidTierInputTokensPerModelPerMinute",
            ),
            (Limit::InputTokens, true) => (
                "generate_content_free_tier_input_token_count",
                "GenerateContentInputTokensPerModelPerMinute-FreeTier",
            ),
            (Limit::RequestsPerDay, false) => {
                ("generate_requests_per_model_per_day", "GenerateRequestsPerDayPerProjectPerModel")
            }
            (Limit::RequestsPerDay, true) => (
                "generate_content_free_tier_requests",
                "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
            ),
            (Limit::Images, _) => {
                ("generated_images_per_model", "GenerateImagesPerMinutePerProjectPerModel-FreeTier")
            }
        }
    }
}

/// What an error needs to know about the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) model: &'a str,
    pub(crate) successor: &'a str,
    pub(crate) version: &'a str,
    pub(crate) method: &'a str,
    pub(crate) secret: &'a str,
}

/// An error that answers a request.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    Google(ApiError),
    /// Made by a front end or a proxy.
    Raw {
        http: u16,
        content_type: &'static str,
        body: String,
    },
}

const HTML: &str = "text/html; charset=UTF-8";
const JSON: &str = "application/json";

impl Failure {
    pub(crate) fn http(&self) -> u16 {
        match self {
            Self::Google(refused) => refused.http,
            Self::Raw { http, .. } => *http,
        }
    }

    pub(crate) fn html_404(path: &str) -> Self {
        let sentence =
            format!("The requested URL <code>{path}</code> was not found on this server.");
        Self::html(404, "Not Found", &sentence)
    }

    fn html(http: u16, phrase: &str, sentence: &str) -> Self {
        let body = format!(
            "<!DOCTYPE html>\n<html lang=en>\n  <meta charset=utf-8>\n  <meta name=viewport content=\"initial-scale=1, \
             minimum-scale=1, width=device-width\">\n  <title>Error {http} ({phrase})!!1</title>\n  <style>\n    *{{margin:0;padding:0}}\
             html,code{{font:15px/22px arial,sans-serif}}\n  </style>\n  <a href=//www.google.com/><span id=logo aria-label=Google>\
             </span></a>\n  <p><b>{http}.</b> <ins>That’s an error.</ins>\n  <p>{sentence}  <ins>That’s all we know.</ins>\n"
        );
        Self::Raw { http, content_type: HTML, body }
    }

    fn proxy(http: u16, body: &Json) -> Self {
        Self::Raw { http, content_type: JSON, body: body.compact_string() }
    }

    /// Returns the error response of a fault; `None` for faults without an error status.
    pub(crate) fn of(fault: &Fault, about: About<'_>) -> Option<Self> {
        let model = about.model;
        let violation = |limit, value, free_tier| Violation { limit, value, free_tier };
        Some(Self::Google(match fault {
            Fault::RateLimitMinute { retry_after, limit } => {
                let value = if *limit == Limit::InputTokens { 1_000_000 } else { 10 };
                ApiError::quota(model, &[violation(*limit, value, false)], *retry_after)
            }
            Fault::RateLimitDay { retry_after } => {
                ApiError::quota(model, &[violation(Limit::RequestsPerDay, 1_000, false)], *retry_after)
            }
            Fault::ZeroQuota { retry_after } => {
                let limits = [Limit::InputTokens, Limit::Requests, Limit::RequestsPerDay];
                ApiError::quota(model, &limits.map(|limit| violation(limit, 0, true)), *retry_after)
            }
            Fault::ZeroQuotaErrorInfo => ApiError::exhausted(
                "Quota exceeded for quota metric 'Generate Content API requests per minute' and limit 'GenerateContent request limit per \
                 minute for a region' of service 'generativelanguage.googleapis.com' for consumer 'project_number:100000000000'.",
            )
            .with(error_info(
                "RATE_LIMIT_EXCEEDED",
                "googleapis.com",
                obj! { "service": "generativelanguage.googleapis.com", "consumer": "projects/100000000000", "quota_limit_value": "0",
                "quota_limit": "GenerateContentRequestsPerMinutePerProjectPerRegion", "quota_location": "us-east2",
                "quota_metric": "generativelanguage.googleapis.com/generate_content_requests" },
            ))
            .with(help("Request a higher quota limit.", "https://cloud.google.com/docs/quota#requesting_higher_quota")),
            Fault::ExhaustedBare => ApiError::exhausted("Resource has been exhausted (e.g. check quota)."),
            Fault::SharedCapacity => ApiError::exhausted(
                "Resource exhausted. Please try again later. Please refer to \
                 https://cloud.google.com/vertex-ai/generative-ai/docs/error-code-429 for more details.",
            ),
            Fault::SpendRate => ApiError::exhausted(
                "You exceeded your spend-based rate limit. Your spending rate has exceeded the allowed limit for your account's billing \
                 history and tier.",
            ),
            // Only the first sentence was published.
            Fault::SpendCap => ApiError::exhausted(
                "Your project has exceeded its monthly spending cap. Please go to AI Generator at https://ai.generator/spend to manage it.",
            ),
            Fault::PrepayDepleted { payment_required } => {
                let mut refused = ApiError::exhausted(
                    "Your prepayment credits are depleted. Please go to AI Generator at https://ai.generator/projects to manage your project \
                     and billing.",
                );
                refused.code = "payment_required";
                refused.http = if *payment_required { 402 } else { 429 };
                refused
            }
            Fault::CapacityExhausted { unavailable } => {
                let message = format!("No capacity available for model {model} on the server");
                let refused = if *unavailable { ApiError::unavailable(message) } else { ApiError::exhausted(message) };
                refused
                    .with(error_info(
                        "MODEL_CAPACITY_EXHAUSTED",
                        "cloudcode-pa.googleapis.com",
                        obj! { "model": model.to_owned() },
                    ))
                    .with(retry_info(Duration::from_secs(9)))
            }
            Fault::Overloaded => ApiError::unavailable("The model is overloaded. Please try again later."),
            Fault::HighDemand => ApiError::unavailable(HIGH_DEMAND),
            Fault::ServiceUnavailable => ApiError::unavailable("The service is currently unavailable."),
            Fault::DeadlineExpired503 => ApiError::unavailable("Deadline expired before operation could complete."),
            Fault::DeadlineExpired504 => ApiError::deadline_504(),
            Fault::Internal => ApiError::new(
                500,
                "INTERNAL",
                "api_error",
                "An internal error has occurred. Please retry or report in https://developers.generativeai.google/guide/troubleshooting",
            ),
            Fault::Unimplemented => ApiError::unimplemented(),
            Fault::Cancelled => {
                ApiError::new(499, "CANCELLED", "cancelled", "The operation was cancelled.")
            }
            Fault::Unauthenticated => ApiError::unauthenticated(),
            Fault::BadRequest(kind) => bad_request(*kind, about),
            Fault::Forbidden(kind) => forbidden(*kind, about),
            Fault::NotFound(NotFound::Html) => return Some(Self::html_404(&format!("/{}/models/{model}:{}", about.version, about.method))),
            Fault::NotFound(kind) => not_found(*kind, about),
            Fault::ErrorArray503 => {
                let mut refused = ApiError::unavailable(HIGH_DEMAND);
                refused.legacy = true;
                refused
            }
            Fault::BadGatewayHtml => {
                return Some(Self::html(
                    502,
                    "Server Error",
                    "The server encountered a temporary error and could not complete your request.<p>Please try again in 30 seconds.",
                ));
            }
            Fault::PayloadTooLargeHtml => {
                let body = "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n<center><h1>413 Request \
                            Entity Too Large</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n";
                return Some(Self::Raw { http: 413, content_type: "text/html", body: body.to_owned() });
            }
            Fault::RequestTimeout => {
                let body = obj! { "error": obj! { "message": "Request timed out", "type": "timeout_error", "param": Json::Null,
                    "code": "request_timeout" } };
                return Some(Self::proxy(408, &body));
            }
            Fault::ProxyWrapped503 => {
                let inner = ApiError::unavailable("The model is overloaded. Please try again later.").to_json().pretty_string();
                let message = format!(
                    "litellm.InternalServerError: litellm.InternalServerError: geminiException - {inner}. Received Model \
                     Group={model}\nAvailable Model Group Fallbacks=None"
                );
                let body = obj! { "error": obj! { "message": message, "type": Json::Null, "param": Json::Null, "code": "500" } };
                return Some(Self::proxy(500, &body));
            }
            Fault::ProxyHidden429 => {
                let inner = ApiError::exhausted("Resource has been exhausted (e.g. check quota).").to_json().pretty_string();
                let body = obj! { "error": obj! { "message": inner, "code": 500u64, "status": "Too Many Requests" } };
                return Some(Self::proxy(500, &body));
            }
            Fault::ProxyPreviousErrors => {
                let previous =
                    obj! { "code": 429u64, "message": "Resource exhausted", "provider_name": "Google AI Generator" };
                let body = obj! { "error": obj! { "message": "Provider returned error", "code": 404u64, "metadata": obj! { "raw": "",
                    "provider_name": "Google", "is_byok": false, "previous_errors": vec![previous] } } };
                return Some(Self::proxy(404, &body));
            }
            Fault::ProxyText503 => {
                let inner = ApiError::unavailable(HIGH_DEMAND).to_json().pretty_string();
                let body = format!("Max retries exhausted. Last error: Upstream error 503 Service Unavailable: {inner}");
                return Some(Self::Raw { http: 503, content_type: "text/plain; charset=utf-8", body });
            }
            _ => return None,
        }))
    }
}

const HIGH_DEMAND: &str = "This model is currently experiencing high demand. Spikes in demand are usually temporary. Please try again later.";

/// The error inside a 200, and in the middle of streams: the flex tier sheds load this way
/// (2026-08).
pub(crate) fn mid_stream() -> ApiError {
    ApiError::unavailable(HIGH_DEMAND)
}

fn bad_request(kind: BadRequest, about: About<'_>) -> ApiError {
    match kind {
        BadRequest::Generic => ApiError::invalid("Request contains an invalid argument."),
        BadRequest::ApiKeyInvalid => ApiError::invalid_key(about.secret),
        BadRequest::ApiKeyExpired => ApiError::invalid("API key expired. Please renew the API key.").with(error_info(
            "API_KEY_INVALID",
            "googleapis.com",
            obj! { "service": "generativelanguage.googleapis.com" },
        )),
        BadRequest::UnknownField => ApiError::unknown_field("responseModalities", "generation_config"),
        BadRequest::InputImage => ApiError::invalid(
            "Unable to process input image. Please retry or report in https://developers.generativeai.google/guide/troubleshooting",
        ),
        BadRequest::PayloadTooLarge => ApiError::payload_too_large(20_971_520),
        BadRequest::Location => ApiError::precondition("User location is not supported for the API use."),
        BadRequest::LocationGrpcMessage => ApiError::precondition("$grpcMessage").with(debug_info(
            "[ORIGINAL ERROR] generic::failed_precondition: User location is not supported for the API use. \
             [google.rpc.error_details_ext] { message: \"User location is not supported for the API use.\" }"
                .to_owned(),
        )),
        BadRequest::MissingThoughtSignature => {
            let mut refused =
                ApiError::invalid("Image part is missing a thought_signature in content position 2, part position 1.");
            refused.code = "missing_thought_signature";
            refused
        }
        BadRequest::InvalidThoughtSignature => ApiError::invalid("Invalid thought signature."),
        BadRequest::TooManyTokens => {
            ApiError::invalid("The input token count (140012) exceeds the maximum number of tokens allowed (131072).")
        }
        BadRequest::PromptPolicy => ApiError::invalid(
            "Image generation failed with the following error: The prompt could not be submitted. This prompt contains sensitive words \
             that violate Google's Responsible AI practices. Try rephrasing the prompt. If you think this was an error, send feedback.",
        ),
        BadRequest::UrlRobots => ApiError::invalid(
            "Cannot fetch content from the provided URL. Please ensure the URL is valid and accessible by Vertex AI. Vertex AI respects \
             robots.txt rules, so confirm the URL is allowed to be crawled. Status: URL_ROBOTED-ROBOTED_DENIED",
        ),
    }
}

fn forbidden(kind: Forbidden, about: About<'_>) -> ApiError {
    match kind {
        Forbidden::ServiceDisabled => {
            let url = "https://console.developers.google.com/apis/api/generativelanguage.googleapis.com/overview?project=100000000000";
            ApiError::denied(format!(
                "Generative Language API has not been used in project 100000000000 before or it is disabled. Enable it by visiting {url} \
                 then retry. If you enabled this API recently, wait a few minutes for the action to propagate to our systems and retry."
            ))
            .with(help("Google developers console API activation", url))
            .with(error_info(
                "SERVICE_DISABLED",
                "googleapis.com",
                obj! { "service": "generativelanguage.googleapis.com", "consumer": "projects/100000000000" },
            ))
        }
        Forbidden::IamPermission => {
            let resource = format!("projects/sim-project/locations/global/publishers/google/models/{}", about.model);
            ApiError::denied(format!(
                "Permission 'aiplatform.endpoints.predict' denied on resource '//aiplatform.googleapis.com/{resource}' (or it may not \
                 exist)."
            ))
            .with(error_info(
                "IAM_PERMISSION_DENIED",
                "aiplatform.googleapis.com",
                obj! { "permission": "aiplatform.endpoints.predict", "resource": resource },
            ))
        }
        Forbidden::KeyLeaked => ApiError::denied("Your API key was reported as leaked. Please use another API key."),
        Forbidden::Suspended => {
            ApiError::denied(format!("Permission denied: Consumer 'api_key:{}' has been suspended.", about.secret)).with(
                error_info(
                    "CONSUMER_SUSPENDED",
                    "googleapis.com",
                    obj! { "consumer": "projects/100000000000", "service": "generativelanguage.googleapis.com" },
                ),
            )
        }
        Forbidden::Generic => ApiError::denied("The caller does not have permission"),
        Forbidden::ProjectDenied => ApiError::denied("Your project has been denied access. Please contact support."),
    }
}

fn not_found(kind: NotFound, about: About<'_>) -> ApiError {
    match kind {
        NotFound::Model | NotFound::Html => {
            ApiError::unknown_model(about.model, about.version, about.method)
        }
        NotFound::Retired => ApiError::retired_model(about.model, about.successor),
        NotFound::PublisherModel => ApiError::publisher_model(about.model),
        NotFound::Entity => ApiError::missing("Requested entity was not found."),
        NotFound::CachedContent => {
            ApiError::missing("Not found: cache content metadata 8754364356910645200.")
        }
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
        let text = refused.to_json().pretty_string();
        assert!(text.contains("\"retryDelay\": \"58s\""), "{text}");
        assert!(text.contains("Please retry in 58.931000000s."), "{text}");
        assert!(
            text.contains("\"quotaId\": \"GenerateRequestsPerMinutePerProjectPerModel\""),
            "{text}"
        );
    }

    #[test]
    fn the_openai_dialect_gets_every_error_as_an_array() {
        let body = ApiError::invalid("no").body(Api::OpenAiChat, Framing::Whole);
        assert!(body[0].starts_with(b"[\n  {"));
        let body = ApiError::invalid("no").body(Api::Developer, Framing::Array);
        assert!(body[0].starts_with(b"["));
        let body = ApiError::invalid("no").body(Api::Interactions, Framing::Whole);
        assert_eq!(&body[0][..], b"{\n  \"error\": {\n    \"code\": \"invalid_request\",\n    \"message\": \"no\"\n  }\n}\n");
    }
}
