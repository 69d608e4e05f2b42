//! What is wrong with a response's bytes.

use std::fmt;

use super::answer::Answer;

/// The reason why a response could not be read, and the position.
///
/// ```
/// use tower_gemini_core::call::Framing;
/// use tower_gemini_core::scan::Scanner;
///
/// let mut scanner = Scanner::judging(Framing::Whole);
/// scanner.feed(br#"{"candidates": [}"#).unwrap_err();
/// let failure = scanner.finish().unwrap_err();
/// assert_eq!(failure.error.to_string(), "not valid JSON at byte 16 of the response");
/// assert!(failure.found.has_candidates);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanError {
    kind: ErrorKind,
    at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorKind {
    Syntax,
    TooDeep,
    Utf8,
    Truncated,
    Trailing,
    Base64,
    TooLarge,
    Duplicate,
    Overwritten,
}

impl ScanError {
    pub(super) fn new(kind: ErrorKind, at: u64) -> Self {
        Self { kind, at }
    }

    /// Returns the byte offset of the fault within the response.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Returns whether the response ended before it was complete. Such a response may have been
    /// paid for.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.kind == ErrorKind::Truncated
    }

    /// Returns whether the bytes are not what the format allows: bad JSON, bad UTF-8, nesting
    /// beyond 127, or bytes after the end.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Syntax
                | ErrorKind::TooDeep
                | ErrorKind::Utf8
                | ErrorKind::Trailing
                | ErrorKind::Duplicate
        )
    }

    /// Returns whether an image's base64 is corrupt.
    #[must_use]
    pub fn is_corrupt_image(&self) -> bool {
        self.kind == ErrorKind::Base64
    }

    /// Returns whether an image is larger than
    /// [`Scanner::max_image_bytes`](super::Scanner::max_image_bytes) allows.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.kind == ErrorKind::TooLarge
    }

    /// Returns whether a drained image was overwritten by what turned out to be a draft only after
    /// its bytes.
    #[must_use]
    pub fn is_overwritten(&self) -> bool {
        self.kind == ErrorKind::Overwritten
    }
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ErrorKind::Syntax => "not valid JSON",
            ErrorKind::TooDeep => "nested deeper than 127 levels",
            ErrorKind::Utf8 => "not valid UTF-8",
            ErrorKind::Truncated => "the response is truncated",
            ErrorKind::Trailing => "bytes after the end of the JSON value",
            ErrorKind::Base64 => "the image's base64 is corrupt",
            ErrorKind::TooLarge => "the image is larger than allowed",
            ErrorKind::Duplicate => {
                "a repeated member contradicts the first, because of which an image was dropped,"
            }
            ErrorKind::Overwritten => {
                "a draft was marked as a draft only after it had overwritten the final image"
            }
        };
        write!(f, "{what} at byte {} of the response", self.at)
    }
}

impl std::error::Error for ScanError {}

/// A scan that ended in an error, with what was found before it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ScanFailure {
    /// What is wrong.
    pub error: ScanError,
    /// What had been found: enough to say whether an image was on its way, and an image that was
    /// complete before the fault.
    pub found: Box<Answer>,
}

impl fmt::Display for ScanFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for ScanFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
