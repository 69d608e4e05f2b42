//! Looking for words in what servers say, whatever their case.

use std::cell::OnceCell;

use memchr::memmem;

use super::phrases::PHRASES;

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
    fn new(text: &[u8]) -> Self {
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
        let bytes = text.as_bytes();
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

    /// Returns whether the word, given in lower case, is in the text.
    pub(super) fn has(&self, word: &str) -> bool {
        let triples = self.triples.get_or_init(|| Triples::new(self.bytes()));
        triples.may_hold(word.as_bytes()) && memmem::find(self.bytes(), word.as_bytes()).is_some()
    }

    pub(super) fn has_any(&self, words: &[impl AsRef<str>]) -> bool {
        words.iter().any(|word| self.has(word.as_ref()))
    }

    /// The text after each occurrence of a word, in order.
    pub(super) fn after<'s>(&'s self, word: &'static str) -> impl Iterator<Item = &'s [u8]> {
        // Most words are not there at all: a search that is not begun costs nothing.
        let text = if self.has(word) { self.bytes() } else { &[] };
        memmem::find_iter(text, word.as_bytes()).filter_map(move |at| text.get(at + word.len()..))
    }
}

/// Returns whether the server says that a quota's limit is zero: `limit: 0`, but not `limit: 05` or
/// `limit: 0.5`.
///
/// The same as gemini-cli's `/limit:\s*0(?!\d|\.\d)/i` (googleQuotaErrors.ts), which is the one
/// sign that all zero-quota messages since 2025-10 share.
pub(super) fn says_limit_zero(text: &Lower) -> bool {
    text.after("limit:").any(|rest| starts_with_zero(rest.trim_ascii_start()))
}

/// Returns whether details that were printed, and not kept as JSON, hold a quota of zero:
/// `quotaValue:0` (Go's maps), `quota_value: 0` (protobuf's text), `'quota_limit_value': '0'`.
pub(super) fn says_quota_zero(text: &Lower) -> bool {
    ["quotavalue", "quota_value", "quota_limit_value"]
        .iter()
        .any(|name| text.after(name).any(|rest| starts_with_zero(after_marks(rest))))
}

/// Returns what follows a name that was printed: its value, without the marks that languages put
/// between the two.
pub(super) fn after_marks(rest: &[u8]) -> &[u8] {
    let marks = rest.iter().take_while(|b| {
        matches!(b, b'"' | b'\'' | b'\\' | b':' | b'=' | b'>' | b'{') || b.is_ascii_whitespace()
    });
    rest.get(marks.count()..).unwrap_or_default()
}

/// Returns whether a number begins here that is a whole zero.
fn starts_with_zero(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(b"0") else { return false };
    !matches!(rest, [b'0'..=b'9', ..] | [b'.', b'0'..=b'9', ..])
}

/// Returns whether a thought signature is mentioned: `thought_signature`, `Thought signature`,
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

/// Returns whether the server states that it does not charge: "You will not be charged for this
/// request", "… for blocked images".
///
/// Only definite forms count. "may not be charged" is no waiver, and neither is anything the
/// *model* wrote: callers pass `finishMessage` and its relatives, never the response's own text.
pub(super) fn says_not_charged(text: &str) -> bool {
    Lower::new(text).has_any(&PHRASES.not_charged)
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

/// Whether the words before a number end in a lead that stands alone or ends a name of an HTTP error
/// (`ApiError`, `HTTPError`): "TransferEncodingError: 400" states no status.
fn ends_in_lead(before: &[u8], lead: &str) -> bool {
    let Some(from) = before.len().checked_sub(lead.len()) else { return false };
    let (outside, word) = before.split_at(from);
    let letters = outside.iter().rev().take_while(|b| b.is_ascii_alphabetic()).count();
    let prefix = outside.get(outside.len() - letters..).unwrap_or_default();
    let names_http = || {
        ["api", "http", "client", "server", "status", "response", "request"].iter().any(|name| {
            prefix.len() >= name.len() && {
                let end = prefix.len() - name.len();
                prefix.get(end..).is_some_and(|end| end.eq_ignore_ascii_case(name.as_bytes()))
            }
        })
    };
    word.eq_ignore_ascii_case(lead.as_bytes()) && (prefix.is_empty() || names_http())
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
    PHRASES.status_leads.iter().any(|lead| ends_in_lead(before, lead))
}

fn is_status_phrase(code: u16, after: &[u8]) -> bool {
    let after = after.strip_prefix(b".").or_else(|| after.strip_prefix(b":")).unwrap_or(after);
    let after = after.trim_ascii_start();
    let phrase = http::StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason());
    let starts = |word: &str| {
        let start = after.get(..word.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
    };
    let mut phrases = PHRASES.status_phrases.iter();
    phrase.is_some_and(starts)
        || phrases.any(|(word, of)| (*of == 0 || *of == code) && starts(word))
}

/// A status by name: gRPC's first, `code = Unavailable`.
fn named_status(text: &str) -> Option<u16> {
    let grpc = memmem::find_iter(text.as_bytes(), b"code = ").find_map(|at| {
        let name = text.get(at + "code = ".len()..)?;
        let end = name.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(name.len());
        let name = name.get(..end)?;
        PHRASES.grpc_names.iter().find(|(known, _)| known == name).map(|&(_, code)| code)
    });
    if grpc.is_some() {
        return grpc;
    }
    let mut names = PHRASES.status_names.iter();
    names
        .find(|(name, _)| memmem::find(text.as_bytes(), name.as_bytes()).is_some())
        .map(|&(_, code)| code)
}

/// The HTTP status of a canonical code's number (google/rpc/code.proto), as gRPC-minded servers put
/// it into `error.code`.
pub(super) fn http_of_rpc(code: u64) -> Option<u16> {
    const HTTP: [u16; 17] =
        [0, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401];
    HTTP.get(usize::try_from(code).ok()?).copied().filter(|&status| status > 0)
}

/// The HTTP status of a `status` word. Compared without case and with blanks for underscores, in
/// place: this runs for every error body.
pub(super) fn http_of_word(word: &str) -> Option<u16> {
    let is = |name: &str| {
        let is_alike =
            |(a, b): (u8, u8)| if a == b' ' { b == b'_' } else { a.eq_ignore_ascii_case(&b) };
        word.len() == name.len() && word.bytes().zip(name.bytes()).all(is_alike)
    };
    PHRASES.status_words.iter().find(|(name, _)| is(name)).map(|&(_, code)| code)
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
            ("<TransferEncodingError: 400, message='Not enough data'>", None),
            ("ContentLengthError 400", None),
            ("ApiError: 429", Some(429)),
            ("rpc error: code = Unavailable desc = The service", Some(503)),
            ("rpc error: code = DeadlineExceeded desc = context", Some(504)),
            ("code = Unreal", None),
        ] {
            assert_eq!(stated_status(text), want, "{text}");
        }
    }
}
