//! Was it sent? What a client's error proves.
//!
//! Only what surely never left, or what the server itself declares that it did not take up, counts
//! as not sent; everything else may have been charged. What is not proven here may still be known:
//! a request whose last byte the client never asked for is free, whatever the client's error says
//! (see [`WireBody`](crate::WireBody)).
//!
//! | error | proves it | why |
//! | --- | --- | --- |
//! | [`NotSent`] in the chain of causes | yes | an adapter that knows its client says so |
//! | [`MayBeSent`] in the chain, before any proof | no | likewise |
//! | connecting failed or took too long (hyper-util's `is_connect`, so reqwest's too) | yes | the request waits for a connection |
//! | hyper's `is_canceled` | yes | the connection was found closed before it took the request |
//! | HTTP/2 `REFUSED_STREAM` from the server (feature `http2`) | yes | RFC 9113, 8.7: the stream was closed before any processing |
//! | HTTP/2 stream beyond the last one named by `GOAWAY` (feature `http2`) | yes | RFC 9113, 6.8: it was not and will not be processed |
//! | `ConnectionRefused`, `AddrNotAvailable` outside of an established connection | yes | only connecting gives these |
//! | any other error of an established connection, whatever its I/O kind | no | a host that becomes unreachable may have the request |

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// Tells whether a client's error proves that the request never reached the server.
pub type Evidence = fn(&(dyn StdError + 'static)) -> bool;

/// Declares errors that mark their cause.
macro_rules! markers {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(Box<dyn StdError + Send + Sync>);

        impl $name {
            /// Marks this cause.
            #[must_use]
            pub fn new(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
                Self(cause.into())
            }

            /// Returns the cause.
            #[must_use]
            pub fn into_inner(self) -> Box<dyn StdError + Send + Sync> {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl StdError for $name {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                self.0.source()
            }
        }
    )*};
}

markers! {
    /// Marks an error that came before anything was sent. A client adapter that knows this wraps
    /// its error.
    ///
    /// ```
    /// use tower_gemini::classify_gemini_error::evidence::{NotSent, was_not_sent};
    ///
    /// let error = NotSent::new("the pool is closed");
    /// assert!(was_not_sent(&error));
    /// ```
    NotSent
    /// Marks an error after which the request may have been sent, whatever its causes look like.
    ///
    /// A client that followed a redirect, say, may fail to connect to the second server after the
    /// first had the whole request.
    ///
    /// ```
    /// use std::io;
    /// use tower_gemini::classify_gemini_error::evidence::{MayBeSent, was_not_sent};
    ///
    /// let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    /// assert!(!was_not_sent(&MayBeSent::new(refused)));
    /// ```
    MayBeSent
}

/// The default evidence, for any client. The [module](self) lists what it accepts.
#[must_use]
pub fn was_not_sent(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    // Below hyper's own error there is an established connection, whose I/O errors prove nothing.
    let mut established = false;
    while let Some(error) = next {
        if error.is::<NotSent>() {
            return true;
        }
        if error.is::<MayBeSent>() {
            return false;
        }
        if error
            .downcast_ref::<hyper_util::client::legacy::Error>()
            .is_some_and(hyper_util::client::legacy::Error::is_connect)
        {
            return true;
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_canceled() {
                return true;
            }
            established = true;
        }
        #[cfg(feature = "http2")]
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // Nothing below it says more.
            return stream_was_never_started(error);
        }
        if let (Some(error), false) = (error.downcast_ref::<io::Error>(), established) {
            // Unreachable hosts and networks are not among these: an established connection that
            // gives up its retransmissions reports what the network last said of them.
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable
            ) {
                return true;
            }
        }
        // An I/O error made from another error hides it from `source`, which skips to that one's
        // own cause.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    false
}

/// Whether the server said of a stream that it did nothing with it. Only its own word counts: what
/// our side made of a broken connection is no proof. After any other reason (`CANCEL`,
/// `INTERNAL_ERROR`, `HTTP_1_1_REQUIRED`) it may have.
///
/// h2 gives a request the server's `GOAWAY` as its error only where the request's stream is beyond
/// the last one that it names, or was never opened; a request below it ends with its response, or
/// with the error of the connection.
#[cfg(feature = "http2")]
fn stream_was_never_started(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_go_away()
            || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_that_connecting_alone_can_give_count_as_not_sent() {
        for kind in [io::ErrorKind::ConnectionRefused, io::ErrorKind::AddrNotAvailable] {
            assert!(was_not_sent(&io::Error::from(kind)), "{kind:?}");
        }
        for kind in [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::TimedOut,
            io::ErrorKind::UnexpectedEof,
            // Linux reports the last ICMP message when an established connection gives up its
            // retransmissions.
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::NetworkUnreachable,
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

    #[test]
    fn what_may_be_sent_is_not_proven_by_its_own_causes() {
        let error = io::Error::other(MayBeSent::new(NotSent::new("the second server refused")));
        assert!(!was_not_sent(&error));
        assert!(was_not_sent(&NotSent::new(MayBeSent::new("the adapter outside knows more"))));
    }

    // The server's own word is tested over the wire, in `tests/it/cuts/http2.rs`: it cannot be made
    // up here.
    #[cfg(feature = "http2")]
    #[test]
    fn what_our_side_says_of_a_stream_is_no_proof() {
        for reason in [h2::Reason::REFUSED_STREAM, h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
            assert!(!was_not_sent(&h2::Error::from(reason)), "{reason:?}");
        }
    }

    #[test]
    fn the_markers_give_their_cause_back() {
        let cause = NotSent::new(io::Error::from(io::ErrorKind::TimedOut)).into_inner();
        assert!(
            cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
        );
        let cause = MayBeSent::new(io::Error::from(io::ErrorKind::TimedOut)).into_inner();
        assert!(cause.is::<io::Error>());
    }
}
