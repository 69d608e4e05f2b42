//! Looking for words in what servers say, whatever their case.

use std::cell::OnceCell;

use memchr::memmem;

/// Text in lower case, made once for many searches. Short texts (nearly all messages) stay on the
/// stack.
pub(super) struct Lower {
    stack: [u8; STACK],
    heap: Vec<u8>,
    len: usize,
    triples: OnceCell<Triples>,
}

/// Which three-byte sequences a text holds, hashed. The rules ask for some hundred words, and
/// nearly all of them are absent: two looks here cost a twentieth of a search.
struct Triples([u64; TRIPLE_WORDS]);

/// 4096 bits: a message of 200 bytes sets a twentieth of them, so that one absent word in 400 is
/// searched for in vain.
const TRIPLE_WORDS: usize = 64;

impl Triples {
    fn of(text: &[u8]) -> Self {
        let mut bits = [0; TRIPLE_WORDS];
        let mut triple = 0u32;
        // The first two places hold less than three bytes: two bits too many, which cost nothing
        // but a search.
        for &byte in text {
            triple = (triple << 8 | u32::from(byte)) & 0x00FF_FFFF;
            let (word, bit) = Self::place(triple);
            bits[word] |= 1 << bit;
        }
        Self(bits)
    }

    /// Fibonacci hashing: the golden ratio's fraction of 2^32 spreads neighbours over the 12 bits
    /// that are kept.
    fn place(triple: u32) -> (usize, u32) {
        let hash = triple.wrapping_mul(0x9E37_79B1) >> 20;
        ((hash >> 6) as usize % TRIPLE_WORDS, hash & 63)
    }

    fn may_hold(&self, word: &[u8]) -> bool {
        let has = |triple: Option<&[u8]>| {
            triple.is_none_or(|triple| {
                let (at, bit) = Self::place(
                    triple.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)),
                );
                self.0[at] & (1 << bit) != 0
            })
        };
        has(word.get(..3)) && has(word.len().checked_sub(3).and_then(|from| word.get(from..)))
    }
}

/// Google's longest recorded messages are about 700 bytes: one buffer holds nearly every message.
const STACK: usize = 768;

/// Text beyond this is not searched: an error message that needs more to make its point was not
/// collected (longest: 11 KB with its nested JSON), and a hostile body must not cost a search of
/// megabytes for every word.
const SEARCHED: usize = 64 * 1024;

impl Lower {
    pub(super) fn new(text: &str) -> Self {
        Self::of_bytes(text.as_bytes())
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let bytes = bytes.get(..SEARCHED).unwrap_or(bytes);
        let mut lower = Self {
            stack: [0; STACK],
            heap: Vec::new(),
            len: bytes.len(),
            triples: OnceCell::new(),
        };
        if let Some(slot) = lower.stack.get_mut(..bytes.len()) {
            slot.copy_from_slice(bytes);
            slot.make_ascii_lowercase();
        } else {
            lower.heap = bytes.to_ascii_lowercase();
        }
        lower
    }

    pub(super) fn bytes(&self) -> &[u8] {
        if self.heap.is_empty() {
            self.stack.get(..self.len).unwrap_or_default()
        } else {
            &self.heap
        }
    }

    /// Whether the word, given in lower case, is in the text.
    pub(super) fn has(&self, word: &str) -> bool {
        let triples = self.triples.get_or_init(|| Triples::of(self.bytes()));
        triples.may_hold(word.as_bytes()) && memmem::find(self.bytes(), word.as_bytes()).is_some()
    }

    pub(super) fn has_any(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.has(word))
    }

    /// The text after each occurrence of a word, in order.
    pub(super) fn after<'s>(&'s self, word: &'static str) -> impl Iterator<Item = &'s [u8]> {
        // Most words are not there at all: a search that is not begun costs nothing.
        let text = if self.has(word) { self.bytes() } else { &[] };
        memmem::find_iter(text, word.as_bytes()).filter_map(move |at| text.get(at + word.len()..))
    }
}

/// Whether the server says that a quota's limit is zero: `limit: 0`, but neither `limit: 05` nor
/// `limit: 0.5`.
///
/// The same as gemini-cli's `/limit:\s*0(?!\d|\.\d)/i` (googleQuotaErrors.ts), which is the one
/// tell that all zero-quota messages since 2025-10 share.
pub(super) fn says_limit_zero(text: &Lower) -> bool {
    text.after("limit:").any(|rest| starts_with_zero(rest.trim_ascii_start()))
}

/// Whether details that were printed, and not kept as JSON, hold a quota of zero: `quotaValue:0`
/// (Go's maps), `quota_value: 0` (protobuf's text), `'quota_limit_value': '0'`.
pub(super) fn says_quota_zero(text: &Lower) -> bool {
    ["quotavalue", "quota_value", "quota_limit_value"]
        .iter()
        .any(|name| text.after(name).any(|rest| starts_with_zero(after_marks(rest))))
}

/// What follows a name that was printed: its value, without the marks that languages put between
/// the two.
pub(super) fn after_marks(rest: &[u8]) -> &[u8] {
    let marks = rest.iter().take_while(|b| {
        matches!(b, b'"' | b'\'' | b'\\' | b':' | b'=' | b'>' | b'{') || b.is_ascii_whitespace()
    });
    rest.get(marks.count()..).unwrap_or_default()
}

/// Whether a number begins here that is a whole zero.
fn starts_with_zero(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(b"0") else { return false };
    !matches!(rest, [b'0'..=b'9', ..] | [b'.', b'0'..=b'9', ..])
}

/// Whether a thought signature is spoken of: `thought_signature`, `Thought signature`,
/// `thoughtSignature`, with a hyphen too.
pub(super) fn speaks_of_thought_signature(text: &Lower) -> bool {
    text.after("thought").any(|rest| {
        let rest = rest
            .strip_prefix(b"_")
            .or_else(|| rest.strip_prefix(b" "))
            .or_else(|| rest.strip_prefix(b"-"))
            .unwrap_or(rest);
        rest.starts_with(b"signature")
    })
}

/// Whether the server waives the charge in words: "You will not be charged for this request", "…
/// for blocked images".
///
/// Only definite forms count. "may not be charged" is no waiver, and neither is anything the
/// *model* wrote: callers pass `finishMessage` and its relatives, never the answer's own text.
pub(super) fn says_not_charged(text: &str) -> bool {
    const DEFINITE: &[&str] = &[
        "will not be charged",
        "will not be billed",
        "won't be charged",
        "won't be billed",
        "won\u{2019}t be charged",
        "won\u{2019}t be billed",
        "are not charged",
        "is not charged",
        "were not charged",
        "was not charged",
        "have not been charged",
        "has not been charged",
        "are not billed",
        "is not billed",
        "was not billed",
        "were not billed",
        "have not been billed",
        "has not been billed",
    ];
    Lower::new(text).has_any(DEFINITE)
}

/// The model that a message recommends instead: "… update your code to use models/Y", "Please use Y
/// instead", "Please migrate to Gemini 2.5 Pro (models/Y)".
pub(super) fn successor(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    for (lead, far) in [("use ", false), ("switch to ", false), ("migrate to ", true)] {
        for (at, _) in lower.match_indices(lead) {
            let from = at + lead.len();
            let rest = text.get(from..)?;
            let rest = rest.trim_start_matches(['`', '\'', '"', ' ']);
            let rest =
                rest.strip_prefix("the ").unwrap_or(rest).trim_start_matches(['`', '\'', '"']);
            // After "migrate to" a display name precedes the id, which stands in brackets close by.
            let rest = if far {
                rest.find("models/")
                    .filter(|&at| at < 80)
                    .and_then(|at| rest.get(at..))
                    .unwrap_or(rest)
            } else {
                rest
            };
            let id = rest.strip_prefix("publishers/google/").unwrap_or(rest);
            let (id, is_named) = match id.strip_prefix("models/") {
                Some(id) => (id, true),
                None => (id, false),
            };
            let end = id
                .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')))
                .unwrap_or(id.len());
            let id = id.get(..end)?.trim_end_matches('.');
            let looks_like_one =
                id.starts_with("gemini-") || id.starts_with("imagen-") || id.starts_with("veo-");
            if !id.is_empty() && (is_named || looks_like_one) {
                return Some(id);
            }
        }
    }
    None
}

/// The status that free text states: `429 RESOURCE_EXHAUSTED.`, `[400 Bad Request]`, `status: 413`,
/// `litellm.RateLimitError`.
///
/// The last statement wins: wrappers put their own in front of what they wrap.
pub(super) fn stated_status(text: &str) -> Option<u16> {
    let bytes = text.as_bytes();
    let bytes = bytes.get(..SEARCHED).unwrap_or(bytes);
    let mut found = None;
    let mut at = 0;
    while let Some(offset) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'4', b'5', rest)) {
        let start = at + offset;
        at = start + 1;
        let Some(digits @ [_, b'0'..=b'9', b'0'..=b'9']) = bytes.get(start..start + 3) else {
            continue;
        };
        let before = bytes.get(..start).unwrap_or_default();
        let after = bytes.get(start + 3..).unwrap_or_default();
        if before.last().is_some_and(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b'$')
        }) || after
            .first()
            .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
            || matches!(after, [b'.', b'0'..=b'9', ..])
        {
            continue;
        }
        let code = digits.iter().fold(0u16, |n, digit| n * 10 + u16::from(digit - b'0'));
        if is_led_to_status(before) || is_status_phrase(code, after) {
            found = Some(code);
            at = start + 3;
        }
    }
    found.or_else(|| named_status(text))
}

fn is_led_to_status(before: &[u8]) -> bool {
    let before = before.trim_ascii_end();
    if before.is_empty() {
        return true;
    }
    let before = before
        .strip_suffix(b":")
        .or_else(|| before.strip_suffix(b"="))
        .unwrap_or(before)
        .trim_ascii_end();
    let before = before.strip_suffix(b"\"").or_else(|| before.strip_suffix(b"'")).unwrap_or(before);
    const LEADS: &[&[u8]] = &[
        b"status",
        b"code",
        b"error",
        b"http",
        b"statuscode",
        b"resourceexhausted",
        b"serviceunavailable",
        b"failedprecondition",
        b"invalidargument",
        b"deadlineexceeded",
        b"internalservererror",
        b"http/1.1",
        b"http/2",
    ];
    LEADS.iter().any(|lead| {
        before.len() >= lead.len() && before[before.len() - lead.len()..].eq_ignore_ascii_case(lead)
    })
}

fn is_status_phrase(code: u16, after: &[u8]) -> bool {
    let after = after.strip_prefix(b".").or_else(|| after.strip_prefix(b":")).unwrap_or(after);
    let after = after.trim_ascii_start();
    let phrase = http::StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason());
    let google = match code {
        400 => "invalid_argument",
        401 => "unauthenticated",
        403 => "permission_denied",
        404 => "not_found",
        429 => "resource_exhausted",
        499 => "cancelled",
        500 => "internal",
        501 => "unimplemented",
        503 => "unavailable",
        504 => "deadline_exceeded",
        _ => "\0",
    };
    let also = match code {
        400 => "failed_precondition",
        413 => "request entity too large",
        504 => "gateway time-out",
        _ => "\0",
    };
    let starts = |word: &str| {
        after.len() >= word.len() && after[..word.len()].eq_ignore_ascii_case(word.as_bytes())
    };
    phrase.is_some_and(starts)
        || starts(google)
        || starts(also)
        || starts("post http")
        || starts("client error")
        || starts("server error")
}

/// A status by name: Google's canonical words, and the exception classes that LiteLLM and Google's
/// SDKs put in front.
fn named_status(text: &str) -> Option<u16> {
    const NAMES: &[(&str, u16)] = &[
        ("RESOURCE_EXHAUSTED", 429),
        ("PERMISSION_DENIED", 403),
        ("UNAUTHENTICATED", 401),
        ("INVALID_ARGUMENT", 400),
        ("FAILED_PRECONDITION", 400),
        ("DEADLINE_EXCEEDED", 504),
        ("NOT_FOUND", 404),
        ("UNAVAILABLE", 503),
        ("UNIMPLEMENTED", 501),
        ("status: INTERNAL", 500),
        ("RateLimitError", 429),
        ("ResourceExhausted", 429),
        ("TooManyRequests", 429),
        ("Too Many Requests", 429),
        ("ServiceUnavailable", 503),
        ("Service Unavailable", 503),
        ("AuthenticationError", 401),
        ("PermissionDenied", 403),
        ("NotFoundError", 404),
        ("BadRequestError", 400),
        ("Bad Request", 400),
        ("DeadlineExceeded", 504),
        ("litellm.Timeout", 408),
        ("Bad Gateway", 502),
        ("BadGatewayError", 502),
        ("Gateway Timeout", 504),
        ("Gateway Time-out", 504),
        ("Request Entity Too Large", 413),
        ("InternalServerError", 500),
        ("Internal Server Error", 500),
        ("APIConnectionError", 500),
    ];
    NAMES
        .iter()
        .find(|(name, _)| memmem::find(text.as_bytes(), name.as_bytes()).is_some())
        .map(|&(_, code)| code)
}

/// The HTTP status of a canonical code's number (google/rpc/code.proto), as gRPC-minded servers put
/// it into `error.code`.
pub(super) fn http_of_rpc(code: u64) -> Option<u16> {
    Some(match code {
        1 => 499,
        2 | 13 | 15 => 500,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => return None,
    })
}

/// The HTTP status of a `status` word: canonical names, the Interactions API's codes, and HTTP's
/// own phrases, which the old SDK wrote ("Too Many Requests").
pub(super) fn http_of_word(word: &str) -> Option<u16> {
    // Compared without case and with blanks for underscores, in place: this runs for every error
    // body.
    let is = |name: &str| {
        word.len() == name.len()
            && word
                .bytes()
                .zip(name.bytes())
                .all(|(a, b)| if a == b' ' { b == b'_' } else { a.eq_ignore_ascii_case(&b) })
    };
    const WORDS: &[(&str, u16)] = &[
        ("unavailable", 503),
        ("resource_exhausted", 429),
        ("invalid_argument", 400),
        ("internal", 500),
        ("not_found", 404),
        ("permission_denied", 403),
        ("failed_precondition", 400),
        ("deadline_exceeded", 504),
        ("unauthenticated", 401),
        ("cancelled", 499),
        ("unknown", 500),
        ("aborted", 409),
        ("already_exists", 409),
        ("out_of_range", 400),
        ("unimplemented", 501),
        ("data_loss", 500),
        ("invalid_request", 400),
        ("parameter_unknown", 400),
        ("authentication", 401),
        ("model_not_found", 404),
        ("rate_limit_exceeded", 429),
        ("quota_exceeded", 429),
        ("payment_required", 402),
        ("api_error", 500),
        ("service_unavailable", 503),
        ("too_many_requests", 429),
        ("internal_server_error", 500),
        ("bad_request", 400),
        ("bad_gateway", 502),
        ("gateway_timeout", 504),
        ("unauthorized", 401),
        ("forbidden", 403),
    ];
    WORDS.iter().find(|(name, _)| is(name)).map(|&(_, code)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_zero_is_a_whole_number() {
        for yes in ["limit: 0", "Limit:0, model: x", "metric x, limit: 0\nPlease", "limit: 0."] {
            assert!(says_limit_zero(&Lower::new(yes)), "{yes}");
        }
        for no in ["limit: 05", "limit: 0.5", "limit: 20", "limit: 2", "limits 0"] {
            assert!(!says_limit_zero(&Lower::new(no)), "{no}");
        }
    }

    #[test]
    fn only_definite_words_waive_a_charge() {
        assert!(says_not_charged("YOU WILL NOT BE CHARGED for this request."));
        assert!(says_not_charged("You won’t be billed for blocked images"));
        for no in [
            "You will be charged for this request",
            "You may not be charged",
            "charged",
            "You might not be billed",
        ] {
            assert!(!says_not_charged(no), "{no}");
        }
    }

    #[test]
    fn successors_are_read_from_advice_only() {
        let text = "This model models/old-1 is no longer available to new users. Please update your code to use models/new-2.0-image. We";
        assert_eq!(successor(text), Some("new-2.0-image"));
        assert_eq!(
            successor(
                "Please migrate to Gemini 9 Pro (models/gemini-9-pro-preview-03-25) for higher"
            ),
            Some("gemini-9-pro-preview-03-25")
        );
        assert_eq!(successor("models/x is not found for API version v1beta"), None);
        assert_eq!(
            successor("Please use `gemini-3-pro-image` instead"),
            Some("gemini-3-pro-image")
        );
    }

    #[test]
    fn text_states_its_status_in_many_ways() {
        for (text, want) in [
            ("429 RESOURCE_EXHAUSTED. {'error'", Some(429)),
            ("[500] Error fetching from https://x/v1: [400 Bad Request] API key", Some(400)),
            ("invalid character status: 413 Request Entity Too Large original", Some(413)),
            ("Last error: Upstream error 503 Service Unavailable: x", Some(503)),
            ("got status: INTERNAL. x", Some(500)),
            ("litellm.RateLimitError: nothing more", Some(429)),
            ("400 POST https://host/v1beta/models/m:generateContent: nope", Some(400)),
            ("a room with 400 chairs and 4096 tables", None),
            ("price 500.25", None),
        ] {
            assert_eq!(stated_status(text), want, "{text}");
        }
    }
}
