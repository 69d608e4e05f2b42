//! What finish reasons and block reasons mean to a caller who wants an image.

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

/// The name of a numeric finish reason. The two APIs number them differently (11 is IMAGE_SAFETY in
/// one and nothing in the other), so the dialect decides; gateways follow the Developer API.
fn finish_name(dialect: Dialect, number: u32) -> &'static str {
    match (dialect, number) {
        (_, 0) => "FINISH_REASON_UNSPECIFIED",
        (_, 1) => "STOP",
        (_, 2) => "MAX_TOKENS",
        (_, 3) => "SAFETY",
        (_, 4) => "RECITATION",
        (_, 5) => "OTHER",
        (Dialect::VertexAi, 6) => "BLOCKLIST",
        (Dialect::VertexAi, 7) => "PROHIBITED_CONTENT",
        (Dialect::VertexAi, 8) => "SPII",
        (Dialect::VertexAi, 9) => "MALFORMED_FUNCTION_CALL",
        (Dialect::VertexAi, 10) => "MODEL_ARMOR",
        (Dialect::VertexAi, _) => "",
        (_, 6) => "LANGUAGE",
        (_, 7) => "BLOCKLIST",
        (_, 8) => "PROHIBITED_CONTENT",
        (_, 9) => "SPII",
        (_, 10) => "MALFORMED_FUNCTION_CALL",
        (_, 11) => "IMAGE_SAFETY",
        (_, 12) => "UNEXPECTED_TOOL_CALL",
        (_, 13) => "TOO_MANY_TOOL_CALLS",
        (_, 14) => "IMAGE_PROHIBITED_CONTENT",
        (_, 15) => "IMAGE_OTHER",
        (_, 16) => "NO_IMAGE",
        (_, 17) => "IMAGE_RECITATION",
        _ => "",
    }
}

/// The name of a numeric block reason, again by API.
fn block_name(dialect: Dialect, number: u32) -> &'static str {
    match (dialect, number) {
        (_, 0) => "BLOCK_REASON_UNSPECIFIED",
        (_, 1) => "SAFETY",
        (_, 2) => "OTHER",
        (_, 3) => "BLOCKLIST",
        (_, 4) => "PROHIBITED_CONTENT",
        (Dialect::VertexAi, 5) => "MODEL_ARMOR",
        (Dialect::VertexAi, 6) => "JAILBREAK",
        (_, 5) => "IMAGE_SAFETY",
        _ => "",
    }
}

/// A finish reason in upper case, without the prefixes of enum printers (`FinishReason.STOP`), a
/// number as its name.
pub(super) fn finish_word(dialect: Dialect, spelled: &str) -> String {
    word(spelled, |number| finish_name(dialect, number))
}

/// The same for a block reason.
pub(super) fn block_word(dialect: Dialect, spelled: &str) -> String {
    word(spelled, |number| block_name(dialect, number))
}

fn word(spelled: &str, name: impl Fn(u32) -> &'static str) -> String {
    let spelled = spelled.trim();
    if let Ok(number) = spelled.parse::<u32>() {
        let name = name(number);
        return if name.is_empty() { spelled.to_owned() } else { name.to_owned() };
    }
    let tail = spelled.rsplit('.').next().unwrap_or(spelled);
    tail.to_ascii_uppercase().replace([' ', '-'], "_")
}

/// What a finish reason (in upper case) says.
pub(super) fn meaning(word: &str) -> Finish {
    match word {
        // `completed`, `tool_calls` and the like are normal ends of other dialects.
        "STOP" | "COMPLETED" | "END_TURN" | "TOOL_CALLS" | "FUNCTION_CALL" | "REQUIRES_ACTION"
        | "EOS" => Finish::Stop,
        "MAX_TOKENS" | "LENGTH" | "INCOMPLETE" | "MAX_OUTPUT_TOKENS" => Finish::OutOfTokens,
        "SAFETY"
        | "RECITATION"
        | "LANGUAGE"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "MODEL_ARMOR"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION"
        | "CONTENT_FILTER"
        | "CONTENT_BLOCKED"
        | "JAILBREAK" => Finish::Blocked,
        "OTHER"
        | "IMAGE_OTHER"
        | "NO_IMAGE"
        | "FINISH_REASON_UNSPECIFIED"
        | "MALFORMED_FUNCTION_CALL"
        | "MALFORMED_TOOL_CALL"
        | "MALFORMED_RESPONSE"
        | "UNEXPECTED_TOOL_CALL"
        | "TOO_MANY_TOOL_CALLS"
        | "ERROR"
        | "FAILED"
        | "CANCELLED" => Finish::Empty,
        "MISSING_THOUGHT_SIGNATURE" => Finish::MissingSignature,
        // Names to come: a refusal is recognised by its stem, since taking one for a passing fault
        // would pay for it again.
        _ if [
            "SAFETY",
            "PROHIBITED",
            "RECITATION",
            "BLOCK",
            "VIOLAT",
            "POLICY",
            "SPII",
            "SENSITIVE",
            "FILTER",
        ]
        .iter()
        .any(|stem| word.contains(stem)) =>
        {
            Finish::Blocked
        }
        _ => Finish::Unknown,
    }
}

/// The meaning of an Interactions API code in an error (`image_safety`, `no_image`); words of other
/// errors are none.
pub(super) fn of_word(code: &str) -> Option<Finish> {
    const CODES: &[&str] = &[
        "safety",
        "recitation",
        "language",
        "prohibited_content",
        "spii",
        "blocklist",
        "image_safety",
        "image_prohibited_content",
        "image_recitation",
        "image_other",
        "content_blocked",
        "malformed_function_call",
        "malformed_tool_call",
        "unexpected_tool_call",
        "no_image",
        "too_many_tool_calls",
        "missing_thought_signature",
    ];
    CODES
        .iter()
        .any(|name| name.eq_ignore_ascii_case(code))
        .then(|| meaning(&code.to_ascii_uppercase()))
}

/// A finish reason named in a proxy's message, in capitals as Google spells it.
pub(super) fn named_in(text: &str) -> Option<(Finish, &'static str)> {
    // The longer names first: they contain the shorter.
    const NAMES: &[&str] = &[
        "IMAGE_PROHIBITED_CONTENT",
        "PROHIBITED_CONTENT",
        "IMAGE_SAFETY",
        "IMAGE_RECITATION",
        "IMAGE_OTHER",
        "NO_IMAGE",
        "MODEL_ARMOR",
        "MISSING_THOUGHT_SIGNATURE",
    ];
    NAMES
        .iter()
        .copied()
        .find(|name| text.contains(*name))
        .or_else(|| told_in(text))
        .map(|name| (meaning(name), name))
}

/// A final reason that is too common a word to stand alone, after the words that lead to it:
/// "finishReason: MAX_TOKENS", "finish reason is SAFETY", `finish_reason=<FinishReason.SPII`.
fn told_in(text: &str) -> Option<&'static str> {
    const FINAL: &[&str] = &[
        "MAX_TOKENS",
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "SPII",
        "LANGUAGE",
        "CONTENT_FILTER",
        "LENGTH",
    ];
    text.match_indices("inish").find_map(|(at, lead)| {
        let rest = text.get(at + lead.len()..)?.trim_start_matches(['_', '-', ' ']);
        let rest = rest.strip_prefix("reason").or_else(|| rest.strip_prefix("Reason"))?;
        let is_mark = |c: char| !(c.is_alphanumeric() || c == '_');
        let rest = rest.trim_start_matches(is_mark);
        let rest =
            rest.strip_prefix("is ").or_else(|| rest.strip_prefix("FinishReason.")).unwrap_or(rest);
        let end = rest.find(is_mark).unwrap_or(rest.len());
        let told = rest.get(..end)?;
        FINAL.iter().copied().find(|name| name.eq_ignore_ascii_case(told))
    })
}

/// The verdict of an answer that ended so without an image. The charge is the outcome's usual one:
/// the caller of this knows the usage.
pub(super) fn verdict(call: &Call, finish: Finish, word: &str) -> Verdict {
    let outcome = match finish {
        Finish::Stop if !call.wants_image => Outcome::Answered,
        Finish::Stop | Finish::Empty => Outcome::NoImage,
        Finish::OutOfTokens => Outcome::OutOfTokens,
        Finish::Blocked => Outcome::ContentBlocked,
        Finish::MissingSignature => Outcome::MissingThoughtSignature,
        // It ended for a reason that nobody here knows: repeating it blindly would be a guess with
        // the caller's money.
        Finish::Unknown => {
            return Verdict::of(Outcome::Other)
                .with_transient(false)
                .with_elsewhere(true)
                .with_reason(word);
        }
    };
    Verdict::of(outcome).with_reason(word)
}
