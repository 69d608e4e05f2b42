//! What an answer means: pure functions from what came back to a [`Verdict`].
//!
//! The body decides, not the status. A 429 may be a minute's limit, a day's, no quota at all, an
//! account's spending or Google's own lack of room; a 200 may be a refusal, an empty answer or an
//! error; a gateway's 500 may hold any of them as text.
//!
//! ```
//! use http::{HeaderMap, StatusCode};
//! use tower_gemini_core::call::Call;
//! use tower_gemini_core::classify::classify;
//! use tower_gemini_core::verdict::{Charge, Outcome};
//!
//! let mut call = Call::unrecognised();
//! call.wants_image = true;
//!
//! // A friendly hint beside a quota of zero: waiting cures nothing.
//! let body = br#"{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED",
//!     "message": "Quota exceeded for metric: requests, limit: 0\nPlease retry in 40.5s."}}"#;
//! let verdict = classify(&call, StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), body);
//! assert_eq!(verdict.outcome(), Outcome::QuotaZeroOrBilling);
//! assert!(!verdict.is_retryable() && verdict.wait().is_none());
//!
//! // A success without an image, which says that it is free.
//! let body = br#"{"candidates": [{"finishReason": "IMAGE_OTHER", "finishMessage": "You will not be charged for this request."}]}"#;
//! let verdict = classify(&call, StatusCode::OK, &HeaderMap::new(), body);
//! assert_eq!((verdict.outcome(), verdict.charge()), (Outcome::NoImage, Charge::Waived));
//! ```
//!
//! The order of the rules and the reasons for it stand in `judge.rs` (errors) and `answer.rs`
//! (successes). Nothing here fails or panics: bytes that mean nothing are [`Outcome::Other`].
//!
//! [`Outcome::Other`]: crate::verdict::Outcome::Other

mod answer;
mod answer_reader;
mod facts;
mod finish;
mod judge;
mod lenient;
mod read;
mod text;
mod wait;

#[cfg(test)]
mod tests;

use http::{HeaderMap, StatusCode};

use crate::call::Call;
use crate::scan::Answer;
use crate::verdict::{Charge, Outcome, Verdict};

/// Judges a whole answer: its status, headers and complete body.
///
/// A 2xx is judged as an answer ([`classify_answer`]), anything else as an error. Takes any bytes.
#[must_use]
pub fn classify(call: &Call, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Verdict {
    if status.is_success() {
        return classify_answer(call, &answer_reader::read(body));
    }
    let facts = read::read(body);
    if facts.has_answer && !facts.states_error() {
        return relayed(call, body);
    }
    judge::judge(call, Some(status.as_u16()), headers, &facts)
}

/// Judges an answer whose status is not known, such as one out of a log: the body says what it is.
///
/// ```
/// use http::HeaderMap;
/// use tower_gemini_core::call::Call;
/// use tower_gemini_core::classify::classify_without_status;
/// use tower_gemini_core::verdict::Outcome;
///
/// let body = br#"429 RESOURCE_EXHAUSTED. {'error': {'code': 429, 'message': 'Resource has been exhausted (e.g. check quota).'}}"#;
/// let verdict = classify_without_status(&Call::unrecognised(), &HeaderMap::new(), body);
/// assert_eq!(verdict.outcome(), Outcome::RateLimited);
/// ```
#[must_use]
pub fn classify_without_status(call: &Call, headers: &HeaderMap, body: &[u8]) -> Verdict {
    let facts = read::read(body);
    // Where an answer and an error are both there, the error ended the answer.
    if facts.has_answer {
        return classify_answer(call, &answer_reader::read(body));
    }
    judge::judge(call, None, headers, &facts)
}

/// Judges a complete 2xx answer that was scanned as it passed.
#[must_use]
pub fn classify_answer(call: &Call, answer: &Answer) -> Verdict {
    answer::judge_answer(call, answer)
}

/// An answer of the model under a status that says error: a proxy turned a refusal into a 400, or
/// an empty answer into a 500. Work was done, whatever the proxy calls it.
fn relayed(call: &Call, body: &[u8]) -> Verdict {
    let verdict = classify_answer(call, &answer_reader::read(body));
    match verdict.outcome() {
        // The proxy cut its report, not the model its answer: how it ended is not known.
        Outcome::Interrupted if verdict.charge() != Charge::Charged => {
            verdict.with_charge(Charge::Maybe)
        }
        _ if verdict.charge() == Charge::None => verdict.with_charge(Charge::Maybe),
        _ => verdict,
    }
}
