//! Why a request's body is not read to its end.

use std::fmt;
use std::time::Duration;

/// Bytes a second that a body must arrive at on average, once the time that it may be silent for
/// has passed: a client that sends a byte now and then would hold a slot forever.
pub(crate) const LEAST_RATE: u64 = 1024;
/// As long as Google takes for a whole call at most (600 s).
pub(crate) const LONGEST: Duration = Duration::from_secs(600);
/// Why reading a request's body stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFault {
    /// Longer than this.
    TooLarge { limit: usize },
    /// No byte for this long.
    TooSlow { limit: Duration },
    /// Less than [`LEAST_RATE`] on average, or longer than [`LONGEST`] in all.
    Trickles,
    /// Slower than others can wait for what it holds.
    OthersWait,
    /// There is no memory for more of it now.
    NoMemory,
    /// It takes so many bytes, more than there are.
    NeverFits { takes: usize },
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => {
                write!(f, "The request's body is longer than the {limit} bytes of server.max_body.")
            }
            Self::TooSlow { limit } => write!(
                f,
                "No byte of the request's body arrived for {:.0} s (server.body_idle_timeout).",
                limit.as_secs_f64()
            ),
            Self::Trickles => write!(
                f,
                "The request's body arrived at less than {LEAST_RATE} bytes a second, or not whole \
                 within {} s.",
                LONGEST.as_secs()
            ),
            Self::OthersWait => f.write_str(
                "The request's body arrived too slowly while other requests waited for its place. \
                 Nothing was sent; send it again.",
            ),
            Self::NoMemory => f.write_str(
                "This gateway has no memory for the rest of the request's body now \
                 (server.memory). Nothing was sent; send it again, with a Content-Length.",
            ),
            Self::NeverFits { takes } => write!(
                f,
                "The request's body and its response take {takes} bytes of memory, more than this \
                 gateway has for requests (server.memory). Nothing was read or sent."
            ),
        }
    }
}

impl std::error::Error for BodyFault {}
