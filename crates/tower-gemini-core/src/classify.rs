//! What an answer means: pure functions from what came back to a [`Verdict`].

use http::{HeaderMap, StatusCode};

use crate::call::Call;
use crate::scan::Answer;
use crate::verdict::{Outcome, Verdict};

/// Judges a whole answer: its status, headers and complete body.
#[must_use]
pub fn classify(_call: &Call, _status: StatusCode, _headers: &HeaderMap, _body: &[u8]) -> Verdict {
    Verdict::of(Outcome::Other)
}

/// Judges a complete 2xx answer that was scanned as it passed.
#[must_use]
pub fn classify_answer(_call: &Call, _answer: &Answer) -> Verdict {
    Verdict::of(Outcome::Other)
}
