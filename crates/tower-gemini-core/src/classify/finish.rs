//! What finish reasons and block reasons mean to a caller who wants an image.

use std::borrow::Cow;

use super::phrases::{List, PHRASES};
use crate::call::{Call, Dialect};
use crate::verdict::{Outcome, Verdict};

/// What a finish reason says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// A normal end. It can come without an image.
    Stop,
    /// The output tokens ran out.
    OutOfTokens,
    /// The model made something, and it was refused.
    Blocked,
    /// Nothing was made, and nothing was refused: another draw may do better.
    Empty,
    /// The history lacks a thought signature.
    MissingSignature,
    /// A name that is not known (yet).
    Unknown,
}

/// A finish reason in upper case, without the prefixes of enum printers (`FinishReason.STOP`), a
/// number as its name in that dialect.
pub(super) fn finish_word(dialect: Dialect, spelled: &str) -> Cow<'_, str> {
    let numbers = &PHRASES.numbers;
    let is_vertex = dialect == Dialect::VertexAi;
    word(spelled, if is_vertex { &numbers.finish_of_vertex } else { &numbers.finish })
}

/// The same for a block reason.
pub(super) fn block_word(dialect: Dialect, spelled: &str) -> Cow<'_, str> {
    let numbers = &PHRASES.numbers;
    let is_vertex = dialect == Dialect::VertexAi;
    word(spelled, if is_vertex { &numbers.block_of_vertex } else { &numbers.block })
}

fn word<'a>(spelled: &'a str, names: &'a List) -> Cow<'a, str> {
    let spelled = spelled.trim();
    if let Ok(number) = spelled.parse::<usize>() {
        return Cow::Borrowed(names.get(number).map_or(spelled, String::as_str));
    }
    let tail = spelled.rsplit('.').next().unwrap_or(spelled);
    match tail.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
        true => Cow::Borrowed(tail),
        false => Cow::Owned(tail.to_ascii_uppercase().replace([' ', '-'], "_")),
    }
}

/// Returns what a finish reason (in upper case) says.
pub(super) fn meaning(word: &str) -> Finish {
    let phrases = &PHRASES.finish;
    let is_in = |list: &List| list.iter().any(|name| name == word);
    if is_in(&phrases.stop) {
        Finish::Stop
    } else if is_in(&phrases.out_of_tokens) {
        Finish::OutOfTokens
    } else if is_in(&phrases.empty) {
        Finish::Empty
    } else if word == "MISSING_THOUGHT_SIGNATURE" {
        Finish::MissingSignature
    } else if is_in(&phrases.blocked)
        || phrases.blocked_stems.iter().any(|stem| word.contains(stem))
    {
        Finish::Blocked
    } else {
        Finish::Unknown
    }
}

/// The meaning of an Interactions API code in an error (`image_safety`, `no_image`); words of other
/// errors are none.
pub(super) fn from_code(code: &str) -> Option<Finish> {
    let mut codes = PHRASES.finish.codes.iter();
    codes.any(|name| name.eq_ignore_ascii_case(code)).then(|| meaning(&code.to_ascii_uppercase()))
}

/// A finish reason named in a proxy's message.
pub(super) fn named_in(text: &str) -> Option<(Finish, &'static str)> {
    let named = PHRASES.finish.named.iter().find(|name| text.contains(name.as_str()));
    named.or_else(|| named_after_finish_reason(text)).map(|name| (meaning(name), name.as_str()))
}

/// A name behind the words that lead to it: "finishReason: MAX_TOKENS", "finish reason is SAFETY",
/// `finish_reason=<FinishReason.SPII`.
fn named_after_finish_reason(text: &str) -> Option<&'static String> {
    text.match_indices("inish").find_map(|(at, lead)| {
        let rest = text.get(at + lead.len()..)?.trim_start_matches(['_', '-', ' ']);
        let rest = rest.strip_prefix("reason").or_else(|| rest.strip_prefix("Reason"))?;
        let is_mark = |c: char| !(c.is_alphanumeric() || c == '_');
        let rest = rest.trim_start_matches(is_mark);
        let rest =
            rest.strip_prefix("is ").or_else(|| rest.strip_prefix("FinishReason.")).unwrap_or(rest);
        let end = rest.find(is_mark).unwrap_or(rest.len());
        let found = rest.get(..end)?;
        let mut names = PHRASES.finish.named_after_finish_reason.iter();
        names.find(|name| name.eq_ignore_ascii_case(found))
    })
}

/// The verdict of a response that ended so without an image. The charge is the outcome's usual one:
/// the caller of this knows the usage.
pub(super) fn verdict(call: &Call, finish: Finish, word: &str) -> Verdict {
    let outcome = match finish {
        Finish::Stop if !call.wants_image => Outcome::Answered,
        Finish::Stop | Finish::Empty => Outcome::NoImage,
        Finish::OutOfTokens => Outcome::OutOfTokens,
        Finish::Blocked => Outcome::ContentBlocked,
        Finish::MissingSignature => Outcome::MissingThoughtSignature,
        // It ended for an unknown reason: repeating it blindly would be a guess with
        // the caller's money.
        Finish::Unknown => {
            let verdict = Verdict::new(Outcome::Other).with_transient(false).with_elsewhere(true);
            return verdict.with_reason(word);
        }
    };
    Verdict::new(outcome).with_reason(word)
}
