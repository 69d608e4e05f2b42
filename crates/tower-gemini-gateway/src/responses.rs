//! Makes the gateway's own responses, in the format that the clients of a path read.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;
use tower_gemini::answer_errors;
use tower_gemini::answer_errors::{RetryHeaders, set_retry_headers};
use tower_gemini::error::Error;
use tower_gemini::redact::redact;
use tower_gemini_openai::{Endpoint, translate_error};

use crate::body_fault::BodyFault;

/// The status of an error after which money is or may be gone: no measured client retries it.
pub(crate) const CHARGED: StatusCode = StatusCode::FAILED_DEPENDENCY;

/// The format in which a path's clients read errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorFormat {
    /// `{"error":{"code":…,"message":…,"status":…}}`
    Gemini,
    /// `{"error":{"message":…,"type":…,"code":…}}`
    OpenAi,
}

impl ErrorFormat {
    pub(crate) fn for_path(path: &str) -> Self {
        let is_openai = Endpoint::from_path(path).is_some()
            || path.split('/').any(|segment| segment == "openai");
        if is_openai { Self::OpenAi } else { Self::Gemini }
    }
}

/// Why the gateway rejects a request itself: nothing was sent, nothing is charged.
#[derive(Debug, Clone)]
pub(crate) struct Rejection {
    pub(crate) status: StatusCode,
    /// Google's name for the status.
    name: &'static str,
    message: String,
}

impl Rejection {
    pub(crate) fn new(status: StatusCode, name: &'static str, message: impl Into<String>) -> Self {
        Self { status, name, message: message.into() }
    }

    pub(crate) fn fault(fault: BodyFault) -> Self {
        let (status, name) = match fault {
            BodyFault::TooLarge { .. } | BodyFault::NeverFits { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "INVALID_ARGUMENT")
            }
            BodyFault::OthersWait | BodyFault::NoMemory => {
                (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE")
            }
            BodyFault::TooSlow { .. } | BodyFault::Trickles => {
                (StatusCode::REQUEST_TIMEOUT, "DEADLINE_EXCEEDED")
            }
        };
        Self::new(status, name, fault.to_string())
    }

    /// The request's body could not be read.
    pub(crate) fn body(error: &axum::Error) -> Self {
        match cause::<BodyFault>(error) {
            Some(fault) => Self::fault(*fault),
            None => Self::new(
                StatusCode::BAD_REQUEST,
                "INVALID_ARGUMENT",
                format!("The request's body ended early: {}", redact(&error.to_string())),
            ),
        }
    }

    /// No upstream has such a path.
    pub(crate) fn path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NOT_FOUND",
            format!(
                "No [[upstream]] of this gateway serves {}. Add one of the kind that this path \
                 belongs to.",
                redact(path)
            ),
        )
    }

    fn to_google(&self) -> serde_json::Value {
        json!({ "error": {
            "code": self.status.as_u16(),
            "message": self.message,
            "status": self.name,
            "details": [{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": self.name,
                "domain": "tower-gemini",
                "metadata": { "charge": "none" },
            }],
        }})
    }

    pub(crate) fn into_response(self, format: ErrorFormat) -> Response<Body> {
        let google = self.to_google().to_string();
        let mut response = match format {
            ErrorFormat::Gemini => json_response(self.status, google),
            ErrorFormat::OpenAi => {
                let (status, body) = translate_error(self.status, google.as_bytes());
                json_response(status, body)
            }
        };
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // Nothing was sent and nothing is wrong: a moment later there may be a place.
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

/// The whole response, head and all, written to a connection on which no head came in time. In
/// Google's format, since no path is known.
pub(crate) fn head_too_slow(limit: Duration) -> Bytes {
    let message = format!(
        "The request's head did not arrive within {} s (server.header_read_timeout). Nothing was \
         sent.",
        limit.as_secs_f64()
    );
    let rejection = Rejection::new(StatusCode::REQUEST_TIMEOUT, "DEADLINE_EXCEEDED", message);
    let body = rejection.to_google().to_string();
    let length = body.len();
    Bytes::from(format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json; charset=UTF-8\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n{body}",
    ))
}

pub(crate) fn json_response(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    (status, page("application/json; charset=UTF-8", body)).into_response()
}

/// A response without a body.
#[cfg(feature = "jobs")]
pub(crate) fn no_content() -> Response<Body> {
    StatusCode::NO_CONTENT.into_response()
}

/// A response that no cache keeps.
pub(crate) fn page(content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let headers = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")];
    (headers, body.into()).into_response()
}

/// The response for an error of a stack.
pub(crate) fn error_response(
    error: &Error,
    told: &RetryHeaders,
    now: SystemTime,
) -> Response<Bytes> {
    let (mut parts, body) = answer_errors::error_response(error, CHARGED).into_parts();
    set_retry_headers(&mut parts.status, &mut parts.headers, Some(error.verdict()), told, now);
    Response::from_parts(parts, body)
}

/// The first error of this kind in a chain of causes.
fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
