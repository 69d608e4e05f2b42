//! What the gateway says itself, in the form that a path's clients read.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;
use tower_gemini::Error;
use tower_gemini::answer_errors::{error_response, set_retry_headers};
use tower_gemini::redact::redact;

use crate::limits::BodyFault;
use crate::openai;

/// Where money is or may be gone and nothing came of it: the status after which no measured client
/// sends again.
pub(crate) const CHARGED: StatusCode = StatusCode::FAILED_DEPENDENCY;

/// In which form a path's clients read errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `{"error":{"code":…,"message":…,"status":…}}`
    Gemini,
    /// `{"error":{"message":…,"type":…,"code":…}}`
    OpenAi,
}

/// The form of the clients that use this path.
pub(crate) fn form_of(path: &str) -> Form {
    let openai =
        openai::route(path).is_some() || path.split('/').any(|segment| segment == "openai");
    if openai { Form::OpenAi } else { Form::Gemini }
}

/// Why a request went no further than this gateway: nothing was sent, nothing is charged.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    /// Google's word for it.
    pub(crate) word: &'static str,
    pub(crate) message: String,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, word: &'static str, message: impl Into<String>) -> Self {
        Self { status, word, message: message.into() }
    }

    /// A body that is not read on.
    pub(crate) fn fault(fault: BodyFault) -> Self {
        match fault {
            BodyFault::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "INVALID_ARGUMENT", fault.to_string())
            }
            BodyFault::TooSlow { .. } | BodyFault::Trickles => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "DEADLINE_EXCEEDED", fault.to_string())
            }
        }
    }

    /// A body that could not be read.
    pub(crate) fn body(error: &axum::Error) -> Self {
        match cause::<BodyFault>(error) {
            Some(fault) => Self::fault(*fault),
            None => Self::new(
                StatusCode::BAD_REQUEST,
                "INVALID_ARGUMENT",
                format!("the request's body broke off: {}", redact(&error.to_string())),
            ),
        }
    }

    pub(crate) fn path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NOT_FOUND",
            format!("{} cannot be a path of the upstream", redact(path)),
        )
    }
}

/// What is written to a connection on which no head came in time: a whole answer, head and all. In
/// Google's form, as no path was told.
pub(crate) fn head_too_slow(limit: Duration) -> Bytes {
    let message = format!(
        "The request's head did not come within {} s (server.header_read_timeout). Nothing was sent.",
        limit.as_secs_f64()
    );
    let refused = Refused::new(StatusCode::REQUEST_TIMEOUT, "DEADLINE_EXCEEDED", message);
    let body = google_json(&refused).to_string();
    Bytes::from(format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json; charset=UTF-8\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn google_json(refused: &Refused) -> serde_json::Value {
    json!({ "error": {
        "code": refused.status.as_u16(),
        "message": refused.message,
        "status": refused.word,
        "details": [{
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": refused.word,
            "domain": "tower-gemini",
            "metadata": { "charge": "none" },
        }],
    }})
}

/// The answer that says it.
pub(crate) fn refused(form: Form, refused: &Refused) -> Response<Body> {
    let google = google_json(refused);
    match form {
        Form::Gemini => json_answer(refused.status, Bytes::from(google.to_string())),
        Form::OpenAi => {
            let (status, body) =
                openai::error_from_google(refused.status, google.to_string().as_bytes());
            json_answer(status, body)
        }
    }
}

/// A JSON answer.
pub(crate) fn json_answer(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What a stack that failed is answered with.
pub(crate) fn of_error(error: &Error, now: SystemTime) -> Response<Bytes> {
    let (mut parts, body) = error_response(error, CHARGED).into_parts();
    set_retry_headers(&mut parts.status, &mut parts.headers, Some(error.verdict()), CHARGED, now);
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
