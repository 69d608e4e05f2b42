use std::error::Error as StdError;
use std::fmt;

use reqwest_middleware::Error;
use tower_gemini::classify_gemini_error::evidence::NotSent;
use tower_gemini::error::{BoxError, Error as GeminiError};
use tower_gemini::redact::redact;
use tower_gemini::verdict::Charge;

use crate::service::was_not_sent;

/// An error from below the stack on its way through it, so that it can come out as it went in.
#[derive(Debug)]
pub(crate) struct Below {
    error: Error,
    /// Before the error in its chain of causes, where nothing was sent.
    proof: Option<NotSent>,
}

impl Below {
    pub(crate) fn new(error: Error) -> Self {
        let proof = match &error {
            Error::Reqwest(error) if was_not_sent(error) => Some(NotSent::new("nothing was sent")),
            // Other people's middleware: only what its causes prove by themselves counts.
            _ => None,
        };
        Self { error: without_key(error), proof }
    }
}

impl fmt::Display for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl StdError for Below {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.proof {
            Some(proof) => Some(proof),
            None => self.error.source(),
        }
    }
}

/// The error of a layer that is neither ours nor reqwest's, such as `tower`'s timeout. Its
/// [`source`](StdError::source) is that error itself.
#[derive(Debug)]
pub struct LayerError(BoxError);

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a layer above the client failed the call")
    }
}

impl StdError for LayerError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

/// What the caller of the middleware gets for a stack's error: what came from below as it was, ours
/// as it is.
pub(crate) fn out_of_stack(error: BoxError) -> Error {
    let error = match error.downcast::<Below>() {
        Ok(below) => return below.error,
        Err(error) => error,
    };
    let error = match error.downcast::<GeminiError>() {
        Ok(ours) => return of_ours(*ours),
        Err(error) => error,
    };
    match error.downcast::<Error>() {
        Ok(error) => without_key(*error),
        Err(error) => match error.downcast::<reqwest::Error>() {
            Ok(error) => without_key(Error::Reqwest(*error)),
            Err(error) => Error::middleware(LayerError(error)),
        },
    }
}

/// An error of ours that a client's error caused is that error to the caller; what it cost is in
/// the trail.
fn of_ours(ours: GeminiError) -> Error {
    if !ours.cause().is_some_and(|cause| cause.is::<Below>()) {
        return Error::middleware(ours);
    }
    match ours.into_cause().and_then(|cause| cause.downcast::<Below>().ok()) {
        Some(below) => below.error,
        // Cannot be: the cause was looked at above.
        None => Error::middleware(LayerError("the error's cause is gone".into())),
    }
}

/// An error of reqwest prints its URL: a key in it is taken out, and the rest stays.
pub(crate) fn without_key(mut error: Error) -> Error {
    let Some(url) = error.url_mut() else { return error };
    let clean = redact(url.as_str());
    if clean == url.as_str() {
        return error;
    }
    match reqwest::Url::parse(&clean) {
        Ok(clean) => *url = clean,
        Err(_) => return error.without_url(),
    }
    error
}

/// What a failed request cost, as far as its error tells.
///
/// An error of the stack knows. A client's own error that proves that nothing was sent cost
/// nothing; any other may have been charged. The [`Trail`](tower_gemini::Trail) in the request's
/// extensions tells more: each attempt, its cause and its cost.
///
/// ```
/// use reqwest_middleware::Error;
/// use tower_gemini::verdict::{Charge, Verdict};
/// use tower_gemini_reqwest::charge_of;
///
/// let error = tower_gemini::Error::transport("connection refused".into(), Verdict::not_sent());
/// assert_eq!(charge_of(&Error::middleware(error)), Charge::None);
/// ```
#[must_use]
pub fn charge_of(error: &Error) -> Charge {
    match error {
        Error::Reqwest(error) if was_not_sent(error) => Charge::None,
        Error::Reqwest(_) => Charge::Maybe,
        Error::Middleware(error) => error
            .chain()
            .find_map(|cause| cause.downcast_ref::<GeminiError>())
            .map_or(Charge::Maybe, GeminiError::charge),
    }
}
