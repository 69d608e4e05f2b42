//! Keeps secrets out of everything that is printed.
//!
//! Secrets turn up in unexpected places: in the query of a URL that an exception quotes, in
//! Google's own error bodies ("Invalid API key: …", "Consumer 'api_key:AIza…' has been
//! suspended."), and in JSON that is a string inside JSON. Whatever this crate and its layers print
//! goes through [`redact`]. Names of projects and their numbers are hidden too: they tell whose
//! bill it is.
//!
//! ```
//! use tower_gemini_core::redact::redact;
//!
//! let message = "POST https://host/v1beta/models/m:generateContent?key=AIzaSyA1234567890abcdefghijklmnopqrstuv failed";
//! assert_eq!(redact(message), "POST https://host/v1beta/models/m:generateContent?key=*** failed");
//! assert!(matches!(redact("The model is overloaded."), std::borrow::Cow::Borrowed(_)));
//! ```

use std::borrow::Cow;
use std::ops::Range;

use memchr::memmem;

const HIDDEN: &str = "***";

/// Returns the text with every secret in it replaced by `***`; borrowed where there is none.
///
/// The operation is idempotent. Its work is linear in the text, but for sorting what it found.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    if !may_hold_a_secret(text.as_bytes()) {
        return Cow::Borrowed(text);
    }
    let lower = text.to_ascii_lowercase();
    let mut spans = Search::new(text, &lower).run().spans;
    spans.retain(|span| {
        text.get(span.clone()).is_some_and(|secret| !secret.is_empty() && secret != HIDDEN)
    });
    if spans.is_empty() {
        return Cow::Borrowed(text);
    }
    spans.sort_unstable_by_key(|span| (span.start, span.end));
    let mut clean = String::with_capacity(text.len());
    let mut at = 0;
    // Spans that touch are one: a second pass would find them as one.
    let mut hidden_to = None;
    for span in spans {
        if span.start >= at && hidden_to != Some(span.start) {
            clean.push_str(text.get(at..span.start).unwrap_or_default());
            clean.push_str(HIDDEN);
        }
        at = at.max(span.end);
        hidden_to = Some(at);
    }
    clean.push_str(text.get(at..).unwrap_or_default());
    Cow::Owned(clean)
}

/// What makes a secret of the value behind a separator (`api_key=…`, `"x-goog-api-key": "…"`,
/// `api_key:…`), in lower case.
const LABELS: [&str; 18] = [
    "key",
    "apikey",
    "token",
    "access_token",
    "accesstoken",
    "refresh_token",
    "id_token",
    "client_secret",
    "secret",
    "password",
    "authorization",
    "cookie",
    "project",
    "project_id",
    "projectid",
    "project_number",
    "x-goog-user-project",
    "consumer",
];

/// Prefixes that name their own kind, and how many characters at least follow. Google's keys have
/// 35 after `AIza`; fewer than 20 hides those that were cut short in a log as well.
const SELF_NAMED: [(&str, usize); 8] = [
    ("AIza", 20),
    ("AQ.", 16),
    ("ya29.", 8),
    ("sk-", 16),
    ("sk_", 16),
    ("eyJ", 16),
    ("GOCSPX-", 8),
    ("1//0", 20),
];

/// Words behind which a secret follows at once, in lower case, what may stand between, and what the
/// secret consists of.
const ANNOUNCED: [(&str, &[u8], Extent); 5] = [
    ("projects/", b"", Extent::Name),
    ("projects%2f", b"", Extent::Name),
    // "Invalid API key: …": the next word, whatever it is.
    ("api key:", b" '\"\\`", Extent::Value),
    ("bearer", b" +\t", Extent::Token),
    ("basic", b" +\t", Extent::Token),
];

/// Returns whether the text is worth a closer look. Every label but one holds `k` or a separator
/// right behind it, and every separator is one of three bytes or their percent-encoding; a plain
/// sentence has none of them.
fn may_hold_a_secret(bytes: &[u8]) -> bool {
    let has_word = |word: &[u8]| {
        memchr::memchr2_iter(word[0], word[0].to_ascii_uppercase(), bytes).any(|at| {
            bytes.get(at..at + word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word))
        })
    };
    memchr::memchr3(b'=', b':', b'/', bytes).is_some()
        || memchr::memchr2(b'%', b'\\', bytes).is_some()
        || SELF_NAMED.iter().any(|(prefix, _)| memmem::find(bytes, prefix.as_bytes()).is_some())
        || has_word(b"earer")
        || has_word(b"asic")
}

/// What a secret consists of, where its end is looked for.
#[derive(Clone, Copy)]
enum Extent {
    /// Base64, base64url, JWT or key characters, percent-encoding included.
    Token,
    /// A value of unknown form: the word, query parameter or JSON string that it is.
    Value,
    /// A line or JSON string: cookies are lists.
    Line,
    /// The name of a resource.
    Name,
}

impl Extent {
    fn holds(self, b: u8) -> bool {
        match self {
            Self::Token => b.is_ascii_alphanumeric() || b"-_.+/=~".contains(&b),
            Self::Value => !b.is_ascii_whitespace() && !b"\"'`&,;)(][}{<>\\#|".contains(&b),
            Self::Line => !b"\r\n\"'".contains(&b),
            Self::Name => b.is_ascii_alphanumeric() || b"-_.:".contains(&b),
        }
    }
}

/// Looks for secrets.
///
/// Each way of finding them passes the text once. Secrets can overlap as often as they like
/// (`key=key=key=…`), so the end of a run is remembered for all that begin within it.
#[derive(Default)]
struct Search<'a> {
    bytes: &'a [u8],
    lower: &'a [u8],
    /// The last run of each kind.
    runs: [Range<usize>; 4],
    spans: Vec<Range<usize>>,
    /// Bytes looked at one by one, for the test that this grows with the text.
    looked_at: usize,
}

impl<'a> Search<'a> {
    fn new(text: &'a str, lower: &'a str) -> Self {
        Self { bytes: text.as_bytes(), lower: lower.as_bytes(), ..Self::default() }
    }

    fn run(mut self) -> Self {
        self.self_named();
        self.labelled();
        self.announced();
        self
    }

    fn skip(&mut self, from: usize, keep: impl Fn(u8) -> bool) -> usize {
        let rest = self.bytes.get(from..).unwrap_or_default();
        let taken = rest.iter().position(|&b| !keep(b)).unwrap_or(rest.len());
        self.looked_at += taken;
        from.min(self.bytes.len()) + taken
    }

    fn end_of(&mut self, run: Extent, start: usize) -> usize {
        if !self.runs[run as usize].contains(&start) {
            self.runs[run as usize] = start..self.skip(start, |b| run.holds(b));
        }
        self.runs[run as usize].end
    }

    /// Returns whether `word`, in any case, stands at `at`.
    fn is_at(&self, at: usize, word: &str) -> bool {
        self.lower.get(at..).is_some_and(|rest| rest.starts_with(word.as_bytes()))
    }

    /// Keys that name their own kind.
    fn self_named(&mut self) {
        let bytes = self.bytes;
        for (prefix, least) in SELF_NAMED {
            for at in memmem::find_iter(bytes, prefix) {
                let end = self.end_of(Extent::Token, at);
                // A key that follows other letters at once is still a key when it is long enough:
                // escapes end in letters (`\nAIza…`, `%3DAIza…`).
                let is_apart = prefix == "AIza" || starts_word(bytes, at);
                if is_apart && end - at >= prefix.len() + least {
                    self.spans.push(at..end);
                }
            }
        }
    }

    /// What stands behind a label and a separator, plain or percent-encoded, quotes and the
    /// backslashes before them skipped: `key=x`, `key%3Dx`, `"key": "x"`, `\"key\": \"x\"`.
    fn labelled(&mut self) {
        for at in memchr::memchr3_iter(b'=', b':', b'%', self.bytes) {
            let value = match self.lower.get(at..) {
                Some([b'%', b'3', b'd' | b'a', ..]) => at + 3,
                Some([b'%', ..]) => continue,
                _ => at + 1,
            };
            if let Some(label) = self.label_before(at) {
                let value = self.skip(value, |b| b" \t\"'\\[".contains(&b));
                self.value_of(label, value);
            }
        }
    }

    /// The label that ends before `at`, quotes and blanks skipped. It must be a whole word, as
    /// `monkey=` is no key, but may have other words in front: `x-goog-api-key`, `user_token`.
    fn label_before(&mut self, at: usize) -> Option<&'static str> {
        let head = self.lower.get(..at)?;
        let marks = head.iter().rev().take_while(|b| b" \"'\\`".contains(b)).count();
        self.looked_at += marks;
        let head = head.get(..at - marks)?;
        LABELS.into_iter().find(|label| {
            let front = head.strip_suffix(label.as_bytes());
            front.is_some_and(|front| starts_word(self.lower, front.len()))
        })
    }

    fn value_of(&mut self, label: &str, mut start: usize) {
        let run = match label {
            // A scheme word stays readable; the credentials behind it go, blanks and all.
            "authorization" => {
                for scheme in ["bearer ", "basic "] {
                    if self.is_at(start, scheme) {
                        start += scheme.len();
                    }
                }
                Extent::Value
            }
            "cookie" => Extent::Line,
            // `consumer: projects/123` and `consumer 'project_number:123'` are hidden by the labels
            // inside them, which keeps what kind of thing it was readable.
            "consumer" | "project"
                if ["projects/", "project_number:", "api_key:"]
                    .iter()
                    .any(|inner| self.is_at(start, inner)) =>
            {
                return;
            }
            _ => Extent::Value,
        };
        let end = self.end_of(run, start);
        self.spans.push(start..end);
    }

    fn announced(&mut self) {
        for (word, between, extent) in ANNOUNCED {
            for at in memmem::find_iter(self.lower, word) {
                let behind = at + word.len();
                let mut start = self.skip(behind, |b| between.contains(&b));
                // Ordinary sentences hold the name of a scheme too ("the bearer of bad news"), so
                // what follows must stand apart and look like a token.
                let is_scheme = matches!(extent, Extent::Token);
                while is_scheme && self.is_at(start, "%20") {
                    start += 3;
                    self.looked_at += 3;
                }
                let end = self.end_of(extent, start);
                let token = self.bytes.get(start..end).unwrap_or_default();
                if !is_scheme || (start > behind && token.len() >= 8 && looks_random(token)) {
                    self.spans.push(start..end);
                }
            }
        }
    }
}

/// Returns whether a word starts at `at`: no letter or digit stands before it, or the letters there
/// belong to an escape (`\n`, `%26`, `\u0026`).
fn starts_word(bytes: &[u8], at: usize) -> bool {
    let back = |by: usize| at.checked_sub(by).and_then(|at| bytes.get(at)).copied();
    back(1).is_none_or(|before| !before.is_ascii_alphanumeric())
        || back(2) == Some(b'\\')
        || back(3) == Some(b'%')
        || (back(6) == Some(b'\\') && back(5) == Some(b'u'))
}

/// Digits, mixed case or punctuation distinguish a token from a word of a sentence; hidden ones do
/// not count again.
fn looks_random(token: &[u8]) -> bool {
    // A long one needs no look: the look would be at all of it, as often as a scheme stands in it.
    token.len() >= 20
        || token.iter().any(u8::is_ascii_digit)
        || token.iter().skip(1).any(u8::is_ascii_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "AIzaSyA-1234567890_abcdefghijklmnopqrst";

    #[test]
    fn every_place_a_secret_was_seen_in() {
        let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";
        let cases = [
            (format!("bare {KEY}."), "bare ***"),
            (format!("\\n{KEY}"), "\\n***"),
            ("AQ.Ab8RN6Jabcdefghijklmnop1234 x".into(), "*** x"),
            (
                format!("https://h/v1beta/models/m:generateContent?key={KEY}&alt=sse"),
                "https://h/v1beta/models/m:generateContent?key=***&alt=sse",
            ),
            ("https://h/?alt=sse&KEY=short".into(), "https://h/?alt=sse&KEY=***"),
            ("https://h/?next=%3Fkey%3Dshort%26x=1".into(), "https://h/?next=%3Fkey%3D***"),
            ("/x?api_key=short&access_token=tiny#f".into(), "/x?api_key=***&access_token=***#f"),
            ("Authorization: Bearer ya29.a0AfH6SMBx".into(), "Authorization: Bearer ***"),
            ("authorization: Basic dXNlcjpwYXNz".into(), "authorization: Basic ***"),
            ("got Bearer abc123def456 here".into(), "got Bearer *** here"),
            ("x-goog-api-key: secret".into(), "x-goog-api-key: ***"),
            (
                r#"{"x-goog-api-key": "secret", "a": 1}"#.into(),
                r#"{"x-goog-api-key": "***", "a": 1}"#,
            ),
            (r#"{"m":"{\"apiKey\": \"secret\"}"}"#.into(), r#"{"m":"{\"apiKey\": \"***\"}"}"#),
            (format!("token {jwt} end"), "token *** end"),
            ("Invalid API key: whatever-it-is".into(), "Invalid API key: ***"),
            (
                format!("Consumer 'api_key:{KEY}' has been suspended."),
                "Consumer 'api_key:***' has been suspended.",
            ),
            ("sk-proj-abcdefghijklmnop1234".into(), "***"),
            ("sk_live_abcdefghijklmnop1234".into(), "***"),
            (
                "for consumer 'project_number:123456789'.".into(),
                "for consumer 'project_number:***'.",
            ),
            (r#""consumer": "projects/123456789""#.into(), r#""consumer": "projects/***""#),
            ("projects/wise-coyote-123/locations/global".into(), "projects/***/locations/global"),
            ("https://console/x?project=123456".into(), "https://console/x?project=***"),
            ("projects%2Fwise-coyote%2Flocations".into(), "projects%2F***%2Flocations"),
            ("Cookie: a=b; c=d".into(), "Cookie: ***"),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(&text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "The model is overloaded. Please try again later.",
            "Resource has been exhausted (e.g. check quota).",
            "* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 0, model: gemini-3-pro-image",
            "Please retry in 56.185908122s.",
            "models/gemini-3-pro-image is not found for API version v1beta",
            "tokens: 1120 of 2000, monkeys=3",
            "the bearer of bad news is basic stuff",
            "task-force sk-1",
            "API key not valid. Please pass a valid API key.",
            r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}"#,
            "https://ai.google.dev/gemini-api/docs/rate-limits",
            "",
        ] {
            assert!(
                matches!(redact(text), Cow::Borrowed(same) if same == text),
                "{text} became {}",
                redact(text)
            );
        }
    }

    /// `key=key=…` of 60 kB took a CPU second: each beginning had its end looked for anew.
    #[test]
    fn the_work_grows_with_the_text_and_not_with_its_square() {
        for unit in [
            "key=",
            "key:'",
            "key%3D",
            "AIza",
            "sk-",
            "eyJ",
            "1//0",
            "cookie:",
            "cookie=\"",
            "bearer+",
            "bearer%20",
            "basic ",
            "authorization:bearer ",
            "projects/",
            "projects%2F",
            "project:projects/",
            "consumer='",
            "api key:",
            "\\",
            "\"",
            "':",
            "%3a",
            "=",
            "a",
        ] {
            let text = unit.repeat(60_000 / unit.len());
            let lower = text.to_ascii_lowercase();
            let looked_at = Search::new(&text, &lower).run().looked_at;
            assert!(looked_at <= 16 * text.len(), "{unit}: {looked_at} of {}", text.len());
        }
    }

    fn any_secret() -> impl Strategy<Value = String> {
        prop_oneof![
            "AIza[A-Za-z0-9_-]{35}",
            "AQ\\.[A-Za-z0-9_-]{30,50}",
            "ya29\\.[A-Za-z0-9_-]{20,60}",
            "sk-[A-Za-z0-9]{20,48}",
            "sk_[A-Za-z0-9]{20,48}",
            "eyJ[A-Za-z0-9_-]{10,30}\\.eyJ[A-Za-z0-9_-]{10,30}\\.[A-Za-z0-9_-]{20,43}",
        ]
    }

    /// Templates in which even a secret of no known form must go.
    const LABELLED: [&str; 14] = [
        "https://h/v1/x?key=@&alt=sse",
        "https://h/v1/x?alt=sse&api_key=@",
        "https://h/?u=https%3A%2F%2Fh%2F%3Fkey%3D@",
        "x-goog-api-key: @",
        "Authorization: Bearer @",
        "authorization: @",
        "{\"x-api-key\": \"@\"}",
        "{\"Authorization\":\"Bearer @\"}",
        "{\"error\":{\"message\":\"Invalid API key: @\"}}",
        "{\"m\":\"{\\\"access_token\\\":\\\"@\\\"}\"}",
        "{\"m\":\"{\\\\\\\"api_key\\\\\\\": \\\\\\\"@\\\\\\\"}\"}",
        "Consumer 'api_key:@' has been suspended.",
        "for consumer 'project_number:@'.",
        "error at projects/@/locations/global",
    ];

    /// Templates in which the secret's own form has to give it away.
    const BARE: [&str; 6] = ["@", "text @ text", "\"@\"", "a\\n@\\nb", "x=[@]", "(@)"];

    proptest! {
        #[test]
        fn no_planted_secret_survives(
            secret in any_secret(),
            template in prop::sample::select(LABELLED.iter().chain(&BARE).copied().collect::<Vec<_>>()),
            before in "\\PC{0,20}",
            after in "\\PC{0,20}",
        ) {
            let text = format!("{before} {} {after}", template.replace('@', &secret));
            let clean = redact(&text);
            prop_assert!(!clean.contains(&secret), "{text} became {clean}");
            // Nor most of it.
            prop_assert!(!clean.contains(&secret[6..]), "{text} became {clean}");
        }

        #[test]
        fn no_labelled_word_survives(secret in "[A-Za-z0-9]{6,40}", template in prop::sample::select(LABELLED.to_vec())) {
            prop_assume!(!template.to_ascii_lowercase().contains(&secret.to_ascii_lowercase()));
            let text = template.replace('@', &secret);
            let clean = redact(&text);
            prop_assert!(!clean.contains(&secret), "{text} became {clean}");
        }

        #[test]
        fn twice_is_once(text in "\\PC{0,80}") {
            let once = redact(&text).into_owned();
            prop_assert_eq!(redact(&once), once.as_str());
        }

        #[test]
        fn twice_is_once_around_labels(
            words in prop::collection::vec(prop::sample::select(vec![
                "key", "=", ":", "%3D", "Bearer ", "authorization", "projects/", "consumer", "'", "\"", "\\", " ", "&", "cookie", "***", "api key:", KEY, "abc123def", "project_number",
            ]), 0..12),
        ) {
            let text = words.concat();
            let once = redact(&text).into_owned();
            prop_assert_eq!(redact(&once), once.as_str());
        }
    }
}
