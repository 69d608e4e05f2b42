//! What a token may do beyond what every token may: a method and a path with wildcards. Pure.

use std::fmt;

/// `GET /v1beta/files`, `POST /v1beta/models/*:embedContent`, `* /v1beta/openai/**`.
///
/// `*` is any text within a segment; `**` at the end is any number of segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// `None` is any.
    method: Option<String>,
    segments: Vec<String>,
}

impl Pattern {
    /// `None` for a text that is no pattern.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (method, path) = text.trim().split_once(' ')?;
        let path = path.trim().strip_prefix('/')?;
        let is_method = method == "*" || method.bytes().all(|byte| byte.is_ascii_uppercase());
        let segments: Vec<_> = path.split('/').map(str::to_owned).collect();
        let inner = segments.split_last().map_or(&segments[..], |(_, inner)| inner);
        if !is_method || path.contains([' ', '?', '#']) || inner.iter().any(|one| one == "**") {
            return None;
        }
        Some(Self { method: (method != "*").then(|| method.to_owned()), segments })
    }

    /// Whether it allows this method on a path of these segments.
    pub(crate) fn allows<S: AsRef<str>>(&self, method: &str, path: &[S]) -> bool {
        if self.method.as_deref().is_some_and(|only| only != method) {
            return false;
        }
        let (exact, is_open) = match self.segments.split_last() {
            Some((last, before)) if last == "**" => (before, true),
            _ => (&self.segments[..], false),
        };
        let is_long_enough =
            if is_open { path.len() > exact.len() } else { path.len() == exact.len() };
        is_long_enough && exact.iter().zip(path).all(|(one, text)| matches(one, text.as_ref()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} /{}", self.method.as_deref().unwrap_or("*"), self.segments.join("/"))
    }
}

/// Whether `text` is `pattern` with any text for each `*`. Takes the product of both lengths at
/// most.
fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stays_within_its_segment_and_two_at_the_end_do_not() {
        let path = |text: &str| text[1..].split('/').map(str::to_owned).collect::<Vec<_>>();
        let allows = |pattern: &str, method: &str, text: &str| {
            Pattern::parse(pattern).unwrap().allows(method, &path(text))
        };
        assert!(allows("GET /v1beta/files", "GET", "/v1beta/files"));
        assert!(!allows("GET /v1beta/files", "DELETE", "/v1beta/files"));
        assert!(!allows("GET /v1beta/files", "GET", "/v1beta/files/abc"));
        let embed = "POST /*/models/*:embedContent";
        assert!(allows(embed, "POST", "/v1beta/models/text-1:embedContent"));
        assert!(!allows(embed, "POST", "/v1beta/models/a/b:embedContent"));
        assert!(!allows(embed, "POST", "/v1beta/models/text-1:embedContents"));
        assert!(allows("* /v1beta/openai/**", "PUT", "/v1beta/openai/files/f/content"));
        assert!(!allows("* /v1beta/openai/**", "PUT", "/v1beta/openai"));
        assert!(!allows("* /v1beta/openai/**", "PUT", "/v1beta/other/openai/files"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "GET", "/v1/files", "get /v1/files", "GET v1", "GET /**/x", "GET /a?b"] {
            assert_eq!(Pattern::parse(text), None, "{text}");
        }
        let text = "* /v1beta/openai/**";
        assert_eq!(Pattern::parse(text).unwrap().to_string(), text);
    }
}
