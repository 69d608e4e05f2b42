//! Failures of the transport, as a client sees them.

use std::{error, fmt, io};

/// What broke on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SimErrorKind {
    /// Nobody listened; the request was not received.
    ConnectionRefused,
    /// The connection was reset after the request had been received.
    ConnectionReset,
    /// The connection ended within the head of the response.
    HeadCut,
    /// The connection ended within the body of the response.
    BodyCut,
    /// The caller's own body failed while it was being read.
    RequestBody,
}

/// A failure of the transport, as a client sees one: its source is an [`io::Error`] of the kind
/// that a socket would give.
#[derive(Debug)]
pub struct SimError {
    kind: SimErrorKind,
    source: io::Error,
}

impl SimError {
    pub(crate) fn new(kind: SimErrorKind) -> Self {
        let source = match kind {
            SimErrorKind::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            SimErrorKind::ConnectionReset => io::ErrorKind::ConnectionReset,
            SimErrorKind::HeadCut | SimErrorKind::BodyCut => io::ErrorKind::UnexpectedEof,
            SimErrorKind::RequestBody => io::ErrorKind::BrokenPipe,
        };
        Self { kind, source: source.into() }
    }

    /// What broke.
    pub fn kind(&self) -> SimErrorKind {
        self.kind
    }

    /// Whether the request is known not to have been received.
    pub fn is_connect(&self) -> bool {
        self.kind == SimErrorKind::ConnectionRefused
    }
}

impl fmt::Display for SimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            SimErrorKind::ConnectionRefused => "could not connect to the server",
            SimErrorKind::ConnectionReset => "the connection was reset before an answer",
            SimErrorKind::HeadCut => "the connection ended within the head of the answer",
            SimErrorKind::BodyCut => "the connection ended within the body of the answer",
            SimErrorKind::RequestBody => "the body of the request could not be read",
        })
    }
}

impl error::Error for SimError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Why a scenario or a file of observations cannot be used, with the line where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioError(String);

impl ScenarioError {
    pub(crate) fn new(what: String) -> Self {
        Self(what)
    }
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl error::Error for ScenarioError {}
