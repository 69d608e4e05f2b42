//! Was it sent? What a client's error proves.
//!
//! Only what surely never left counts as not sent; everything else may have been paid for.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// Tells whether a client's error proves that the request never reached the server.
pub type Evidence = fn(&(dyn StdError + 'static)) -> bool;

/// Marks an error that came before anything was sent. A client adapter that knows wraps its error in this.
///
/// ```
/// use tower_gemini::classify_gemini_error::evidence::{NotSent, was_not_sent};
///
/// let error = NotSent::new("the pool is closed");
/// assert!(was_not_sent(&error));
/// ```
#[derive(Debug)]
pub struct NotSent(Box<dyn StdError + Send + Sync>);

impl NotSent {
    /// The cause, which came before anything was sent.
    #[must_use]
    pub fn new(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for NotSent {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// The default evidence, for any client: a [`NotSent`] in the chain of causes, a connect error of hyper-util's client, or an
/// I/O error that only connecting can give.
#[must_use]
pub fn was_not_sent(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<NotSent>() {
            return true;
        }
        if error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(hyper_util::client::legacy::Error::is_connect)
        {
            return true;
        }
        if error.downcast_ref::<io::Error>().is_some_and(|error| {
            // A connection in use gives reset, aborted, broken pipe or timed out, never one of these.
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::AddrNotAvailable
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
            )
        }) {
            return true;
        }
        // An I/O error made from another error hides it from `source`, which skips to that one's own cause.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_connecting_count_as_not_sent() {
        for kind in [io::ErrorKind::ConnectionRefused, io::ErrorKind::HostUnreachable] {
            assert!(was_not_sent(&io::Error::from(kind)), "{kind:?}");
        }
        for kind in [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::TimedOut,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::Other,
        ] {
            assert!(!was_not_sent(&io::Error::from(kind)), "{kind:?}");
        }
    }

    #[test]
    fn evidence_is_found_behind_other_errors() {
        let error = io::Error::other(NotSent::new("refused stream"));
        assert!(was_not_sent(&error));
    }
}
