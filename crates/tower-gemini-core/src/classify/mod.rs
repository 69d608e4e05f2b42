//! Classifies responses: pure functions from a response to a [`Verdict`].
//!
//! The body decides, not the status. A 429 may be a minute's limit, a day's, no quota at all, an
//! account's spending or Google's own lack of room; a 200 may be a refusal, an empty response or an
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
//! // A wait hint beside a quota of zero: waiting does not help.
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
//! The order of the rules and the reasons for it are in `judge.rs` (errors) and `answer.rs`
//! (successes); the phrases that are looked for are data, in `classify/phrases.toml`. Nothing here
//! fails or panics: bytes that mean nothing are [`Outcome::Other`].
//!
//! [`Outcome::Other`]: crate::verdict::Outcome::Other

mod answer;
mod answer_reader;
mod facts;
mod finish;
mod judge;
mod lenient;
mod phrases;
mod read;
mod remedy;
mod span;
mod text;
mod wait;

#[cfg(test)]
mod provenance_tests;
#[cfg(test)]
mod tests;

use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderValue, StatusCode};

pub use self::remedy::{Remedy, remedy};
use crate::call::{Call, Dialect, is_encoded};
use crate::scan::Answer;
use crate::verdict::{Charge, Outcome, Verdict};

/// Classifies a complete response by its status, headers and body.
///
/// The body of a 2xx is read as an answer ([`classify_answer`]), any other as an error. Accepts any
/// bytes. A 2xx in an encoding (gzip) is not read: nobody knows whether there is an image in it, so
/// it is a success that may be charged, and is not sent again.
#[must_use]
pub fn classify(call: &Call, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Verdict {
    if status.is_success() {
        return match headers.get(CONTENT_ENCODING).filter(|_| is_encoded(headers)) {
            Some(encoding) if call.dialect != Dialect::Unrecognised => unread(call, encoding),
            _ => classify_answer(call, &answer_reader::read(body)),
        };
    }
    let facts = read::read(body);
    let verdict = if facts.has_answer && !facts.states_error() {
        relayed(call, body)
    } else {
        judge::judge(call, Some(status.as_u16()), headers, facts)
    };
    limit_charge(call, verdict)
}

fn unread(call: &Call, encoding: &HeaderValue) -> Verdict {
    let verdict = if call.wants_image { Verdict::delivering() } else { Verdict::answering() };
    let reason = format!("not read: in the encoding {}", encoding.to_str().unwrap_or("unknown"));
    limit_charge(call, verdict.with_charge(Charge::Maybe).with_reason(reason))
}

/// Classifies a response whose status is not known, such as one out of a log, by its body.
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
    limit_charge(call, judge::judge(call, None, headers, facts))
}

/// Classifies a complete 2xx response by what the scanner found in it.
#[must_use]
pub fn classify_answer(call: &Call, answer: &Answer) -> Verdict {
    limit_charge(call, answer::judge_answer(call, answer))
}

/// Limits a verdict's charge to what a call of this kind can cost.
///
/// The functions above apply it themselves. A layer applies it to verdicts of its own, such as
/// [`Verdict::answering`] and [`Verdict::interrupted`]; [`Verdict::not_sent`] does not need it.
///
/// | [`Call::can_be_charged`] | response | charge |
/// | --- | --- | --- |
/// | yes, or an image is asked for | any | as the response says |
/// | no (`countTokens`, `GET`) | any | none |
/// | not known | "charged" | maybe |
/// | not known, not [idempotent](Call::is_idempotent) | one that a layer might resend after (500, 502, 503, 429 …) | maybe |
/// | not known, idempotent (`PUT`) | the same | none |
/// | not known | any other | as the response says |
///
/// A response that broke off costs what the upstream's [`ChargeRules`] say, except for an
/// interaction: that goes on without its connection.
///
/// [`ChargeRules`]: crate::charge_rules::ChargeRules
///
/// Google does not bill its 5xx, but what an unknown service did before it failed is not known. So
/// a `POST` that is not recognised is sent once.
///
/// ```
/// use tower_gemini_core::call::Call;
/// use tower_gemini_core::classify::limit_charge;
/// use tower_gemini_core::verdict::{Charge, Verdict};
///
/// let verdict = limit_charge(&Call::unrecognised(), Verdict::answering());
/// assert_eq!(verdict.charge(), Charge::Maybe);
/// ```
#[must_use]
pub fn limit_charge(call: &Call, verdict: Verdict) -> Verdict {
    // A caller may know that an image is asked for where the path does not say so.
    let verdict = match verdict.outcome() {
        // How an upstream charges for what broke after it was sent is its own rule.
        // An interaction goes on without its connection.
        Outcome::Interrupted
            if verdict.charge() == Charge::Maybe && call.dialect != Dialect::Interactions =>
        {
            verdict.with_charge(call.charge_rules.disconnect())
        }
        _ => verdict,
    };
    match call.can_be_charged() {
        Some(true) => verdict,
        _ if call.wants_image => verdict,
        Some(false) => verdict.with_charge(Charge::None),
        None => {
            let might_be_resent =
                !call.is_idempotent() && (verdict.is_retryable() || verdict.another_model_helps());
            if verdict.charge() == Charge::Charged || might_be_resent {
                verdict.with_charge(Charge::Maybe)
            } else if call.is_idempotent() && verdict.is_retryable() {
                verdict.with_charge(Charge::None)
            } else {
                verdict
            }
        }
    }
}

/// Classifies a model's answer under an error status: a proxy turned a refusal into a 400, or an
/// empty answer into a 500. Work was done, whatever the proxy calls it.
fn relayed(call: &Call, body: &[u8]) -> Verdict {
    let verdict = classify_answer(call, &answer_reader::read(body));
    match verdict.outcome() {
        // The proxy truncated its report, not the model its answer: how it ended is not known.
        Outcome::Interrupted if verdict.charge() != Charge::Charged => {
            verdict.with_charge(Charge::Maybe)
        }
        _ if verdict.charge() == Charge::None => verdict.with_charge(Charge::Maybe),
        _ => verdict,
    }
}
