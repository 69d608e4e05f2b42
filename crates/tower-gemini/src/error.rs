//! One error for all layers: one cause, one [`Verdict`], no secrets.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::trail::Trail;
use tower_gemini_core::redact::redact;
use tower_gemini_core::verdict::{Charge, Detail, Outcome, Verdict};

/// A boxed error of another crate.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a call returned no response, or a response without the requested image.
///
/// Errors never nest: every layer of this crate passes an `Error` on and never wraps it. It always
/// holds a [`Verdict`], so retry and fallback treat responses and errors alike, and
/// [`charge`](Self::charge) says what the failure cost. Its `Display`, its `Debug` and those of its
/// [`source`](StdError::source) hide keys and tokens; [`into_cause`](Self::into_cause) returns the
/// raw cause.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    verdict: Verdict,
    trail: Option<Trail>,
    cause: Option<Cause>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// The client could not send, or lost the connection.
    Transport,
    /// The caller's own request body failed while it was read.
    RequestBody,
    /// A time limit of ours ran out, in the head or the body.
    Timeout { limit: Duration, what: TimeLimit },
    /// The response's body ended before its JSON or its stream did.
    Truncated,
    /// The stream carried an error after content had been released.
    MidStream,
    /// The response is malformed (corrupt base64, bad JSON, bad UTF-8).
    Corrupt { what: String },
    /// A complete 2xx without the requested image.
    NoImage,
    /// A complete response with an error status.
    Upstream { status: StatusCode, body: Bytes },
    /// The response is larger than the caller's bound.
    TooLarge { max_bytes: u64 },
    /// The caller's writer failed while the image was written to it.
    Sink,
    /// Not sent: the journal could not record it first.
    NotRecorded,
    /// Not sent: the layers of the stack stand in an order that does not work.
    Misplaced { why: &'static str },
    /// Not sent: an earlier request was or may have been charged.
    ResendRefused { why: &'static str },
}

/// Which of the caller's limits ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeLimit {
    /// One attempt, head and body.
    Attempt,
    /// The gap between two chunks of a body.
    Idle,
    /// The whole call.
    Deadline,
}

impl Error {
    fn new(kind: Kind, verdict: Verdict, cause: Option<BoxError>) -> Self {
        Self(Box::new(Inner { kind, verdict, trail: None, cause: cause.map(Cause) }))
    }

    /// The client failed. `verdict` says whether it was sent. An `Error` of ours inside `cause` is
    /// returned as it is.
    #[must_use]
    pub fn transport(cause: BoxError, verdict: Verdict) -> Self {
        match cause.downcast::<Self>() {
            Ok(ours) => *ours,
            Err(cause) => Self::new(Kind::Transport, verdict, Some(cause)),
        }
    }

    /// The caller's request body failed before it was sent.
    #[must_use]
    pub fn request_body(cause: BoxError) -> Self {
        match cause.downcast::<Self>() {
            Ok(ours) => *ours,
            Err(cause) => Self::new(Kind::RequestBody, Verdict::not_sent(), Some(cause)),
        }
    }

    /// One of the caller's time limits ran out.
    #[must_use]
    pub fn timeout(what: TimeLimit, limit: Duration, verdict: Verdict) -> Self {
        Self::new(Kind::Timeout { limit, what }, verdict, None)
    }

    /// The response ended before it was complete.
    #[must_use]
    pub fn truncated(verdict: Verdict) -> Self {
        Self::new(Kind::Truncated, verdict, None)
    }

    /// The stream carried an error after content had been released.
    #[must_use]
    pub fn mid_stream(verdict: Verdict) -> Self {
        Self::new(Kind::MidStream, verdict, None)
    }

    /// The response cannot be read. `what` says where and why.
    #[must_use]
    pub fn corrupt(what: impl Into<String>, verdict: Verdict) -> Self {
        Self::new(Kind::Corrupt { what: what.into() }, verdict, None)
    }

    /// A complete 2xx without the requested image.
    #[must_use]
    pub fn no_image(verdict: Verdict) -> Self {
        Self::new(Kind::NoImage, verdict, None)
    }

    /// A complete response with an error status, where the caller requested an image and not a
    /// response.
    #[must_use]
    pub fn upstream(status: StatusCode, body: Bytes, verdict: Verdict) -> Self {
        Self::new(Kind::Upstream { status, body }, verdict, None)
    }

    /// The response is larger than the caller's bound.
    #[must_use]
    pub fn too_large(max_bytes: u64, verdict: Verdict) -> Self {
        Self::new(Kind::TooLarge { max_bytes }, verdict, None)
    }

    /// The caller's writer failed.
    #[must_use]
    pub fn sink(cause: BoxError, verdict: Verdict) -> Self {
        Self::new(Kind::Sink, verdict, Some(cause))
    }

    /// Not sent, because an earlier request was or may have been charged and its response was lost.
    /// The charge is that of the earlier request. `why` is the error's text.
    #[must_use]
    pub fn resend_refused(why: &'static str) -> Self {
        Self::new(Kind::ResendRefused { why }, Verdict::interrupted(), None)
    }

    /// Not sent, because the same call was sent before and was or may have been charged.
    pub(crate) fn sent_before(charge: Charge) -> Self {
        let (why, verdict) = match charge {
            Charge::Charged => (
                "not sent: this call was sent before and charged; start another call to pay again",
                Verdict::interrupted_delivery(),
            ),
            _ => (
                "not sent: this call was sent before and may have been charged; allow it with \
                 CallOptions::maybe_charged_resends",
                Verdict::interrupted(),
            ),
        };
        Self::new(Kind::ResendRefused { why }, verdict, None)
    }

    /// Not sent, because the layers stand in an order that does not work. `why` says which, and
    /// what to do.
    pub(crate) fn misplaced(why: &'static str) -> Self {
        let verdict = Verdict::refused_locally(Outcome::BadRequest, None, false, Detail::default());
        Self::new(Kind::Misplaced { why }, verdict, None)
    }

    /// Not sent, because it could not be recorded first: what it cost would be forgotten by a
    /// crash. `cause` says why, and what to do.
    ///
    /// ```
    /// let error = tower_gemini::Error::not_recorded("the disk is full");
    /// assert!(error.is_not_recorded() && error.charge().is_surely_free());
    /// assert!(error.to_string().contains("the disk is full"));
    /// ```
    #[must_use]
    pub fn not_recorded(cause: impl Into<BoxError>) -> Self {
        let verdict = Verdict::refused_locally(Outcome::NotSent, None, false, Detail::default());
        Self::new(Kind::NotRecorded, verdict, Some(cause.into()))
    }

    /// Adds the call's trail.
    #[must_use]
    pub fn with_trail(mut self, trail: Trail) -> Self {
        self.0.trail = Some(trail);
        self
    }

    /// Replaces the verdict, where more is known of the attempt.
    pub(crate) fn with_verdict(mut self, verdict: Verdict) -> Self {
        self.0.verdict = verdict;
        self
    }

    /// What the failed attempt means.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.0.verdict
    }

    /// What the failed attempt cost.
    #[must_use]
    pub fn charge(&self) -> Charge {
        self.0.verdict.charge()
    }

    /// The call's trail, if the call has one.
    #[must_use]
    pub fn trail(&self) -> Option<&Trail> {
        self.0.trail.as_ref()
    }

    /// The id of the interaction that the last response named: the caller can fetch it by
    /// `GET …/interactions/{id}`, and should not send the call again.
    #[must_use]
    pub fn interaction_id(&self) -> Option<String> {
        self.trail().and_then(Trail::interaction_id)
    }

    /// The most specific code in the response: a finish reason, a block reason, a quota id.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.0.verdict.reason()
    }

    /// Whether the client failed to send or lost the connection.
    #[must_use]
    pub fn is_transport(&self) -> bool {
        matches!(self.0.kind, Kind::Transport)
    }

    /// Whether the caller's own request body failed while it was read.
    #[must_use]
    pub fn is_request_body(&self) -> bool {
        matches!(self.0.kind, Kind::RequestBody)
    }

    /// Whether nothing was sent because an earlier request was or may have been charged.
    #[must_use]
    pub fn is_resend_refused(&self) -> bool {
        matches!(self.0.kind, Kind::ResendRefused { .. })
    }

    /// Whether nothing was sent because the layers of the stack stand in an order that does not
    /// work: a fault of the program, which no retry fixes.
    #[must_use]
    pub fn is_misplaced_layer(&self) -> bool {
        matches!(self.0.kind, Kind::Misplaced { .. })
    }

    /// Whether nothing was sent because it [could not be recorded](Self::not_recorded) first.
    #[must_use]
    pub fn is_not_recorded(&self) -> bool {
        matches!(self.0.kind, Kind::NotRecorded)
    }

    /// Whether one of the caller's time limits ran out.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.0.kind, Kind::Timeout { .. })
    }

    /// Which time limit ran out, where one did.
    #[must_use]
    pub fn time_limit(&self) -> Option<TimeLimit> {
        match self.0.kind {
            Kind::Timeout { what, .. } => Some(what),
            _ => None,
        }
    }

    /// Whether the response ended before it was complete.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        matches!(self.0.kind, Kind::Truncated)
    }

    /// Whether the stream carried an error after content had been released.
    #[must_use]
    pub fn is_mid_stream(&self) -> bool {
        matches!(self.0.kind, Kind::MidStream)
    }

    /// Whether the response cannot be read.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self.0.kind, Kind::Corrupt { .. })
    }

    /// Whether the model or the prompt filter refused: final, and possibly charged.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.0.verdict.outcome(), Outcome::ContentBlocked | Outcome::PromptBlocked)
    }

    /// Whether a complete 2xx came without an image and without a refusal.
    #[must_use]
    pub fn is_empty_answer(&self) -> bool {
        matches!(self.0.kind, Kind::NoImage) && !self.is_refusal()
    }

    /// The error status of the upstream's response, if it sent one.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self.0.kind {
            Kind::Upstream { status, .. } => Some(status),
            _ => None,
        }
    }

    /// The upstream's error body, not redacted, if it sent one.
    #[must_use]
    pub fn upstream_body(&self) -> Option<&Bytes> {
        match &self.0.kind {
            Kind::Upstream { body, .. } => Some(body),
            _ => None,
        }
    }

    /// The raw cause, unredacted, if another crate's error caused this one.
    #[must_use]
    pub fn into_cause(self) -> Option<BoxError> {
        self.0.cause.map(|cause| cause.0)
    }

    /// The raw cause by reference: its own `Display` may contain keys.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.cause.as_ref().map(|cause| &*cause.0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        match &inner.kind {
            Kind::Transport if inner.verdict.outcome() == Outcome::NotSent => {
                f.write_str("the request could not be sent")?
            }
            Kind::Transport => f.write_str("the connection broke after the request was sent")?,
            Kind::RequestBody => f.write_str("the request body could not be read")?,
            Kind::Timeout { limit, what } => {
                let what = match what {
                    TimeLimit::Attempt => "no complete response within the attempt's limit of",
                    TimeLimit::Idle => "nothing more of the response came for",
                    TimeLimit::Deadline => {
                        "no complete response before the call's deadline, which left this attempt"
                    }
                };
                write!(f, "{what} {:.1} s", limit.as_secs_f64())?;
            }
            Kind::Truncated => f.write_str("the response ended before it was complete")?,
            Kind::MidStream => f.write_str("the stream broke off with an error")?,
            Kind::Corrupt { what } => write!(f, "the response cannot be read: {}", redact(what))?,
            Kind::NoImage => f.write_str(match inner.verdict.outcome() {
                Outcome::PromptBlocked => "the prompt was blocked",
                Outcome::ContentBlocked => "the image was refused",
                Outcome::OutOfTokens => {
                    "the model ran out of output tokens before it drew an image"
                }
                _ => "the response holds no image",
            })?,
            Kind::Upstream { status, .. } => {
                write!(f, "the API responded {status} ({})", inner.verdict.outcome())?
            }
            Kind::TooLarge { max_bytes } => {
                write!(f, "the image is larger than the {max_bytes} bytes allowed")?
            }
            Kind::Sink => f.write_str("the image could not be written")?,
            Kind::ResendRefused { why } | Kind::Misplaced { why } => f.write_str(why)?,
            Kind::NotRecorded => f.write_str(
                "not sent: what is paid for is recorded first, and the journal cannot be written; \
                 make its store writable",
            )?,
        }
        if let Some(reason) = inner.verdict.reason() {
            write!(f, ", {}", redact(reason))?;
        }
        if let Some(message) = inner.verdict.message() {
            // The sentence goes on after it.
            write!(f, ": {}", redact(message.trim_end_matches('.')))?;
        }
        if let Some(cause) = &inner.cause {
            write!(f, ": {cause}")?;
        }
        f.write_str(match inner.verdict.charge() {
            Charge::None => "; nothing was charged",
            Charge::Waived => "; the API says that it is not charged",
            Charge::Maybe => "; it may have been charged",
            Charge::Charged => "; it was charged",
        })?;
        match self.interaction_id() {
            Some(id) => write!(f, "; it is interaction {id}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        let mut s = f.debug_struct("Error");
        match &inner.kind {
            // The body may hold keys and is shown through the verdict's redacted message.
            Kind::Upstream { status, body } => {
                s.field("status", status).field("body_bytes", &body.len())
            }
            Kind::Corrupt { what } => s.field("corrupt", &redact(what)),
            kind => s.field("kind", kind),
        };
        s.field("verdict", &inner.verdict);
        if let Some(cause) = &inner.cause {
            s.field("cause", cause);
        }
        s.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_ref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// Another crate's error, printed without secrets: a client's error text may hold the URL with its
/// `?key=`.
struct Cause(BoxError);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The whole chain on one line: our `source` ends here, so nothing below it can print itself
        // unredacted.
        let mut text = self.0.to_string();
        let mut next = self.0.source();
        while let Some(error) = next {
            let line = error.to_string();
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            next = error.source();
        }
        f.write_str(&redact(&text))
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&format!("{:?}", self.0)))
    }
}

impl StdError for Cause {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_says_what_it_cost() {
        let error =
            Error::timeout(TimeLimit::Attempt, Duration::from_secs(300), Verdict::interrupted());
        assert_eq!(
            error.to_string(),
            "no complete response within the attempt's limit of 300.0 s; it may have been charged"
        );
        let error = Error::resend_refused("not sent: the response to an earlier request was lost");
        assert!(error.is_resend_refused() && !error.is_transport());
        assert_eq!(
            error.to_string(),
            "not sent: the response to an earlier request was lost; it may have been charged"
        );
        let error = Error::transport("connection refused".into(), Verdict::not_sent());
        assert_eq!(
            error.to_string(),
            "the request could not be sent: connection refused; nothing was charged"
        );
    }

    #[test]
    fn the_servers_full_stop_does_not_end_our_sentence() {
        let body = br#"{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}"#;
        let call = tower_gemini_core::call::Call::unrecognised();
        let verdict = tower_gemini_core::classify::classify(
            &call,
            StatusCode::BAD_REQUEST,
            &http::HeaderMap::new(),
            body,
        );
        let error = Error::upstream(StatusCode::BAD_REQUEST, Bytes::from_static(body), verdict);
        assert!(
            error.to_string().ends_with("Please pass a valid API key; nothing was charged"),
            "{error}"
        );
    }

    #[test]
    fn an_error_of_ours_is_never_wrapped_in_another() {
        let inner = Error::truncated(Verdict::interrupted());
        let outer = Error::transport(Box::new(inner), Verdict::not_sent());
        assert!(outer.is_truncated());
        assert!(outer.source().is_none());
    }

    #[test]
    fn the_error_fits_in_a_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
