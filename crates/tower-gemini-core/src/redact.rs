//! Keeping keys out of everything that is printed.
//!
//! Secrets turn up in places nobody thinks of: in the query of a URL that an exception quotes, in
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
use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, Uri};
use memchr::memmem;

const HIDDEN: &str = "***";

/// The text with every secret in it replaced by `***`; borrowed where there is none.
///
/// Doing it twice changes nothing more.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    if !may_hold_a_secret(text) {
        return Cow::Borrowed(text);
    }
    let mut spans = secrets(text);
    spans.retain(|span| {
        text.get(span.clone()).is_some_and(|secret| !secret.is_empty() && secret != HIDDEN)
    });
    if spans.is_empty() {
        return Cow::Borrowed(text);
    }
    spans.sort_unstable_by_key(|span| (span.start, span.end));
    let mut clean = String::with_capacity(text.len());
    let mut at = 0;
    for span in spans {
        if span.start >= at {
            clean.push_str(text.get(at..span.start).unwrap_or_default());
            clean.push_str(HIDDEN);
        }
        at = at.max(span.end);
    }
    clean.push_str(text.get(at..).unwrap_or_default());
    Cow::Owned(clean)
}

/// A URI as text, without secrets.
///
/// ```
/// let uri: http::Uri = "https://host/v1/projects/my-shop/x?alt=sse&key=abc".parse().unwrap();
/// assert_eq!(tower_gemini_core::redact::redact_uri(&uri), "https://host/v1/projects/***/x?alt=sse&key=***");
/// ```
#[must_use]
pub fn redact_uri(uri: &Uri) -> String {
    redact(&uri.to_string()).into_owned()
}

/// Headers for printing: the values of those that carry credentials are hidden whole, and secrets
/// in all others.
///
/// ```
/// let mut headers = http::HeaderMap::new();
/// headers.insert("x-goog-api-key", "anything".parse().unwrap());
/// headers.insert("accept", "*/*".parse().unwrap());
/// let shown = tower_gemini_core::redact::redact_headers(&headers).to_string();
/// assert_eq!(shown, "x-goog-api-key: ***, accept: */*");
/// ```
#[must_use]
pub fn redact_headers(headers: &HeaderMap) -> RedactedHeaders<'_> {
    RedactedHeaders(headers)
}

/// Headers without their secrets, made by [`redact_headers`].
pub struct RedactedHeaders<'a>(&'a HeaderMap);

/// Headers whose value is a credential as a whole.
const SECRET_HEADERS: [&str; 10] = [
    "authorization",
    "proxy-authorization",
    "x-goog-api-key",
    "api-key",
    "x-api-key",
    "cookie",
    "set-cookie",
    "x-goog-iam-authorization-token",
    "x-goog-user-project",
    "x-serverless-authorization",
];

impl RedactedHeaders<'_> {
    fn shown(name: &HeaderName, value: &http::HeaderValue) -> String {
        if value.is_sensitive() || SECRET_HEADERS.contains(&name.as_str()) {
            HIDDEN.to_owned()
        } else {
            redact(&String::from_utf8_lossy(value.as_bytes())).into_owned()
        }
    }
}

impl fmt::Display for RedactedHeaders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (name, value)) in self.0.iter().enumerate() {
            write!(
                f,
                "{}{name}: {}",
                if position == 0 { "" } else { ", " },
                Self::shown(name, value)
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedactedHeaders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.iter().map(|(name, value)| (name.as_str(), Self::shown(name, value))))
            .finish()
    }
}

/// How the secret behind a label ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    /// `api_key=…`, `"x-goog-api-key": "…"`, `api_key:…`: a separator, then the secret.
    Key,
    /// `Bearer …`: blanks, then the secret. Ordinary sentences hold the word too, so what follows
    /// must look like a token.
    Scheme,
    /// `projects/…`: the secret follows at once.
    Path,
    /// "Invalid API key: …": the next word, whatever it is.
    Sentence,
}

/// What stands before a secret, in lower case.
const LABELS: [(&str, Label); 22] = [
    ("key", Label::Key),
    ("apikey", Label::Key),
    ("token", Label::Key),
    ("access_token", Label::Key),
    ("accesstoken", Label::Key),
    ("refresh_token", Label::Key),
    ("id_token", Label::Key),
    ("client_secret", Label::Key),
    ("secret", Label::Key),
    ("password", Label::Key),
    ("authorization", Label::Key),
    ("cookie", Label::Key),
    ("project", Label::Key),
    ("project_id", Label::Key),
    ("projectid", Label::Key),
    ("project_number", Label::Key),
    ("x-goog-user-project", Label::Key),
    ("consumer", Label::Key),
    ("bearer", Label::Scheme),
    ("basic", Label::Scheme),
    ("projects/", Label::Path),
    ("api key:", Label::Sentence),
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

struct Finders {
    self_named: Vec<(memmem::Finder<'static>, usize, usize)>,
}

static FINDERS: LazyLock<Finders> = LazyLock::new(|| Finders {
    self_named: SELF_NAMED
        .iter()
        .map(|&(prefix, least)| (memmem::Finder::new(prefix), prefix.len(), least))
        .collect(),
});

/// Whether the text is worth a closer look. Every label but one holds `k` or a separator right
/// behind it, and every separator is one of three bytes or their percent-encoding; a plain sentence
/// has none of them.
fn may_hold_a_secret(text: &str) -> bool {
    let bytes = text.as_bytes();
    memchr::memchr3(b'=', b':', b'/', bytes).is_some()
        || memchr::memchr2(b'%', b'\\', bytes).is_some()
        || FINDERS.self_named.iter().any(|(finder, ..)| finder.find(bytes).is_some())
        || contains_word(bytes, b"earer")
        || contains_word(bytes, b"asic")
}

fn contains_word(bytes: &[u8], word: &[u8]) -> bool {
    let (lower, upper) = (
        word.first().copied().unwrap_or(0),
        word.first().copied().unwrap_or(0).to_ascii_uppercase(),
    );
    memchr::memchr2_iter(lower, upper, bytes).any(|at| {
        bytes.get(at..at + word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word))
    })
}

fn secrets(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut spans = Vec::new();
    for (finder, prefix, least) in &FINDERS.self_named {
        for at in finder.find_iter(bytes) {
            let starts_word = at
                .checked_sub(1)
                .and_then(|before| bytes.get(before))
                .is_none_or(|before| !before.is_ascii_alphanumeric());
            // A key that follows other letters at once is still a key when it is long enough:
            // escapes end in letters (`\nAIza…`, `%3DAIza…`).
            let end = end_of_token(bytes, at);
            if end - at >= prefix + least
                && (starts_word
                    || bytes.get(at..at + 4) == Some(b"AIza")
                    || after_escape(bytes, at))
            {
                spans.push(at..end);
            }
        }
    }
    // Every label ends in a place that one of these bytes follows, so only those places are looked
    // at.
    let lower = text.to_ascii_lowercase();
    let lower = lower.as_bytes();
    for at in memchr::memchr3_iter(b'=', b':', b'%', bytes) {
        let found = value_after_separator(bytes, at)
            .and_then(|value| Some((value, label_before(lower, at)?)));
        if let Some((value, label)) = found {
            spans.extend(secret_of(label, bytes, value));
        }
    }
    for (label, kind) in LABELS {
        match kind {
            Label::Key => {}
            Label::Scheme => {
                for at in memmem::find_iter(lower, label) {
                    let start =
                        skip_while(bytes, at + label.len(), |b| matches!(b, b' ' | b'+' | b'\t'));
                    let start = if start == at + label.len() {
                        skip_encoded(bytes, start, b"%20")
                    } else {
                        start
                    };
                    let end = end_of_token(bytes, start);
                    // "bearer of bad news" is no token.
                    if start > at + label.len()
                        && end - start >= 8
                        && looks_random(bytes.get(start..end).unwrap_or_default())
                    {
                        spans.push(start..end);
                    }
                }
            }
            Label::Path => {
                for at in
                    memmem::find_iter(lower, label).chain(memmem::find_iter(lower, "projects%2f"))
                {
                    let start = at
                        + "projects".len()
                        + if bytes.get(at + "projects".len()) == Some(&b'%') { 3 } else { 1 };
                    let end = skip_while(bytes, start, |b| {
                        b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':')
                    });
                    spans.push(start..end);
                }
            }
            Label::Sentence => {
                for at in memmem::find_iter(lower, label) {
                    let start = skip_while(bytes, at + label.len(), |b| {
                        matches!(b, b' ' | b'\'' | b'"' | b'\\' | b'`')
                    });
                    spans.push(start..end_of_value(bytes, start));
                }
            }
        }
    }
    spans
}

/// Where the value starts behind the `=` or `:` at `at`, plain or percent-encoded, quotes and the
/// backslashes before them passed over: `key=x`, `key%3Dx`, `"key": "x"`, `\"key\": \"x\"`.
fn value_after_separator(bytes: &[u8], at: usize) -> Option<usize> {
    let behind = match bytes.get(at) {
        Some(b'%') => match bytes.get(at + 1..at + 3) {
            Some([b'3', b'd' | b'D' | b'a' | b'A']) => at + 3,
            _ => return None,
        },
        _ => at + 1,
    };
    let value =
        skip_while(bytes, behind, |b| matches!(b, b' ' | b'\t' | b'"' | b'\'' | b'\\' | b'['));
    Some(value)
}

/// The label that ends before `at`, quotes and blanks passed over. It must be a whole word, as
/// `monkey=` is no key, but may have other words in front: `x-goog-api-key`, `user_token`.
fn label_before(lower: &[u8], at: usize) -> Option<&'static str> {
    let mut end = at;
    while end > 0 && matches!(lower.get(end - 1), Some(b' ' | b'"' | b'\'' | b'\\' | b'`')) {
        end -= 1;
    }
    let head = lower.get(..end)?;
    LABELS.iter().filter(|(_, kind)| *kind == Label::Key).map(|(label, _)| *label).find(|label| {
        head.strip_suffix(label.as_bytes()).is_some_and(|front| {
            front.last().is_none_or(|before| !before.is_ascii_alphanumeric())
                || after_escape(lower, front.len())
        })
    })
}

/// Whether the letters just before `at` belong to an escape (`\n`, `%26`, `\u0026`) and not to a
/// word.
fn after_escape(bytes: &[u8], at: usize) -> bool {
    let back = |by: usize| at.checked_sub(by).and_then(|at| bytes.get(at)).copied();
    back(2) == Some(b'\\')
        || back(3) == Some(b'%')
        || (back(6) == Some(b'\\') && back(5) == Some(b'u'))
}

fn secret_of(label: &str, bytes: &[u8], start: usize) -> Option<Range<usize>> {
    let mut start = start;
    let end = match label {
        // A scheme word stays readable; the credentials behind it go, blanks and all.
        "authorization" => {
            for scheme in ["bearer ", "basic "] {
                if bytes
                    .get(start..start + scheme.len())
                    .is_some_and(|word| word.eq_ignore_ascii_case(scheme.as_bytes()))
                {
                    start += scheme.len();
                }
            }
            end_of_value(bytes, start)
        }
        // Cookies are lists: all of the line.
        "cookie" => skip_while(bytes, start, |b| !matches!(b, b'\r' | b'\n' | b'"' | b'\'')),
        // 'project_number:123' and 'api_key:AIza…' stand behind `consumer` themselves.
        "consumer" | "project" => {
            if starts_a_path_or_label(bytes, start) {
                return None;
            }
            end_of_value(bytes, start)
        }
        _ => end_of_value(bytes, start),
    };
    (end > start).then_some(start..end)
}

/// `consumer: projects/123` and `consumer 'project_number:123'` are hidden by the labels inside
/// them, which keeps what kind of thing it was readable.
fn starts_a_path_or_label(bytes: &[u8], at: usize) -> bool {
    let rest = bytes.get(at..).unwrap_or_default();
    ["projects/", "project_number:", "api_key:"].iter().any(|label| {
        rest.get(..label.len()).is_some_and(|start| start.eq_ignore_ascii_case(label.as_bytes()))
    })
}

/// The end of a token of base64, base64url, JWT or key characters, percent-encoding included.
fn end_of_token(bytes: &[u8], start: usize) -> usize {
    skip_while(bytes, start, |b| {
        b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'/' | b'=' | b'~')
    })
}

/// The end of a value of unknown form: of the word, query parameter or JSON string it is.
fn end_of_value(bytes: &[u8], start: usize) -> usize {
    skip_while(bytes, start, |b| {
        !b.is_ascii_whitespace()
            && !matches!(
                b,
                b'"' | b'\''
                    | b'`'
                    | b'&'
                    | b','
                    | b';'
                    | b')'
                    | b'('
                    | b']'
                    | b'['
                    | b'}'
                    | b'{'
                    | b'<'
                    | b'>'
                    | b'\\'
                    | b'#'
                    | b'|'
            )
    })
}

fn skip_while(bytes: &[u8], from: usize, keep: impl Fn(u8) -> bool) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    from.min(bytes.len()) + rest.iter().position(|&b| !keep(b)).unwrap_or(rest.len())
}

fn skip_encoded(bytes: &[u8], mut at: usize, code: &[u8]) -> usize {
    while bytes.get(at..at + code.len()) == Some(code) {
        at += code.len();
    }
    at
}

/// Digits, mixed case or punctuation tell a token from a word of a sentence; hidden ones do not
/// count again.
fn looks_random(token: &[u8]) -> bool {
    token.iter().any(u8::is_ascii_digit)
        || token.iter().skip(1).any(u8::is_ascii_uppercase)
        || token.len() >= 20
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

    #[test]
    fn headers_with_credentials_are_hidden_whole() {
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "x-goog-api-key",
            "cookie",
            "set-cookie",
            "proxy-authorization",
            "api-key",
            "x-api-key",
        ] {
            headers.insert(HeaderName::from_static(name), "any thing at all".parse().unwrap());
        }
        headers.insert("referer", "https://h/?key=short".parse().unwrap());
        let mut marked: http::HeaderValue = "wholly-mine".parse().unwrap();
        marked.set_sensitive(true);
        headers.insert("x-mine", marked);
        for shown in
            [redact_headers(&headers).to_string(), format!("{:?}", redact_headers(&headers))]
        {
            assert!(
                !shown.contains("any thing")
                    && !shown.contains("short")
                    && !shown.contains("wholly-mine"),
                "{shown}"
            );
            assert!(shown.contains("referer"));
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
