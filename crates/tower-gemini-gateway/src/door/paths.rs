//! What a method on a path is worth: whether every token may ask for it. Pure.
//!
//! Behind a key of the gateway's own, a path that is passed on is an order to Google in the
//! company's name. So paths are read from their beginning, decoded, and what is not known is
//! refused; elsewhere the gateway reads paths from their end, under any prefix.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;
use tower_gemini_openai::Endpoint;

/// What is kept on Google's side under an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    File,
    Cache,
    Batch,
    Interaction,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::File, Self::Cache, Self::Batch, Self::Interaction];

    /// The collection in paths and names.
    pub(crate) fn collection(self) -> &'static str {
        match self {
            Self::File => "files",
            Self::Cache => "cachedContents",
            Self::Batch => "batches",
            Self::Interaction => "interactions",
        }
    }

    pub(crate) fn of_collection(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.collection() == name)
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// Every token may: generating, counting, reading about models.
    Anybody,
    /// Every token may, and what it creates is its own.
    Creates(Kind),
    /// Those who created it may.
    Owned(Kind, String),
    /// Those whose `allow` has it.
    OptIn,
}

/// A path as the upstream may read it: decoded, without empty segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DecodedPath(Vec<String>);

/// Why a path is refused whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadPath {
    /// `.` or `..`, however encoded: what is behind it is decided elsewhere.
    DotSegment,
    /// A control character or a byte that is no UTF-8, encoded.
    Unreadable,
}

/// Encoded more often than this, and still not plain, is hiding something.
const MAX_DECODINGS: usize = 3;

impl DecodedPath {
    /// Reads a path, decoding it until nothing is encoded any more: some servers decode twice.
    pub(crate) fn parse(path: &str) -> Result<Self, BadPath> {
        let mut text = Cow::Borrowed(path);
        for _ in 0..MAX_DECODINGS {
            Self::check(&text)?;
            if !text.contains('%') {
                break;
            }
            let decoded =
                percent_decode_str(&text).decode_utf8().map_err(|_| BadPath::Unreadable)?;
            if decoded == text {
                break;
            }
            text = Cow::Owned(decoded.into_owned());
        }
        Self::check(&text)?;
        let segments = text.split(['/', '\\']).filter(|segment| !segment.is_empty());
        Ok(Self(segments.map(str::to_owned).collect()))
    }

    fn check(text: &str) -> Result<(), BadPath> {
        if text.chars().any(char::is_control) {
            return Err(BadPath::Unreadable);
        }
        // Some servers take what follows a semicolon for parameters of the segment.
        let is_dots = |segment: &str| {
            matches!(segment.split(';').next().unwrap_or_default().trim(), "." | "..")
        };
        match text.split(['/', '\\']).any(is_dots) {
            true => Err(BadPath::DotSegment),
            false => Ok(()),
        }
    }

    pub(crate) fn segments(&self) -> &[String] {
        &self.0
    }

    /// Whether something is uploaded there.
    pub(crate) fn is_upload(&self) -> bool {
        self.0.first().is_some_and(|first| first == "upload")
    }

    /// What a request for this path asks for. `raw` is the path as it came, by which the gateway
    /// decides what it translates; `project` is the one that pays on Vertex AI, where it is known.
    pub(crate) fn access(&self, method: &Method, raw: &str, project: Option<&str>) -> Access {
        let segments: Vec<&str> = self.0.iter().map(String::as_str).collect();
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        // Translated by the gateway: nothing of their path is passed on.
        let endpoint = Endpoint::from_path(raw).filter(|_| !crate::wire::is_vertex(raw));
        match endpoint {
            Some(Endpoint::Models) if is_read => return Access::Anybody,
            Some(endpoint) if endpoint != Endpoint::Models && *method == Method::POST => {
                return Access::Anybody;
            }
            _ => {}
        }
        let (is_upload, segments) = match segments.split_first() {
            Some((&"upload", rest)) => (true, rest),
            Some((&"download", rest)) => (false, rest),
            _ => (false, &segments[..]),
        };
        let Some((version, rest)) = segments.split_first() else { return Access::OptIn };
        if !is_version(version) {
            return Access::OptIn;
        }
        match rest {
            ["files"] if is_upload && *method == Method::POST => Access::Creates(Kind::File),
            _ if is_upload => Access::OptIn,
            ["files" | "cachedContents" | "interactions"] if *method == Method::POST => {
                let kind = rest.first().and_then(|name| Kind::of_collection(name));
                kind.map_or(Access::OptIn, Access::Creates)
            }
            [collection, id, ..] if Kind::of_collection(collection).is_some() => {
                let kind = Kind::of_collection(collection).unwrap_or(Kind::File);
                // A custom method of it (`:cancel`, `:download`) or a part of it.
                let id = id.split(':').next().unwrap_or_default();
                Access::Owned(kind, id.to_owned())
            }
            ["publishers", "google", rest @ ..] => models(method, rest),
            ["projects", id, "locations", _, "publishers", "google", rest @ ..]
                if project == Some(*id) =>
            {
                models(method, rest)
            }
            rest => models(method, rest),
        }
    }
}

/// `models`, `models/m`, `models/m:generateContent`. The names of models may have slashes:
/// `google/gemini-…`.
fn models(method: &Method, rest: &[&str]) -> Access {
    let Some((&"models", rest)) = rest.split_first() else { return Access::OptIn };
    // What is below a model is something else: `models/m/operations/o`.
    let is_name = |segment: &&str| !matches!(*segment, "operations" | "permissions");
    if rest.len() > 3 || !rest.iter().all(is_name) {
        return Access::OptIn;
    }
    let name = rest.join("/");
    let verb = name.rsplit_once(':').map(|(_, verb)| verb);
    match (method, verb) {
        (&Method::GET | &Method::HEAD, None) => Access::Anybody,
        (&Method::POST, Some(verb)) => match verb {
            "generateContent" | "streamGenerateContent" | "predict" | "countTokens" => {
                Access::Anybody
            }
            "batchGenerateContent" => Access::Creates(Kind::Batch),
            _ => Access::OptIn,
        },
        _ => Access::OptIn,
    }
}

/// `v1`, `v1beta`, `v1alpha`, `v1beta1`.
fn is_version(segment: &str) -> bool {
    let rest = segment.strip_prefix('v').unwrap_or_default();
    rest.starts_with(|c: char| c.is_ascii_digit())
        && rest.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn access(method: &str, path: &str) -> Access {
        let method = method.parse().unwrap();
        DecodedPath::parse(path).unwrap().access(&method, path, Some("mine"))
    }

    // With a token, every path was passed on with the company's key.
    #[test]
    fn a_token_opens_what_generates_and_nothing_else_by_itself() {
        for (method, path) in [
            ("POST", "/v1beta/models/gemini-3-pro-image:generateContent"),
            ("POST", "/v1beta/models/gemini-3-pro-image%3AstreamGenerateContent"),
            ("POST", "/v1/models/google%2Fgemini-3-pro-image:countTokens"),
            ("POST", "/v1beta/models/imagen-4.0-generate-001:predict"),
            ("GET", "/v1beta/models"),
            ("GET", "/v1beta/models/gemini-3-pro-image"),
            ("POST", "/v1beta1/publishers/google/models/gemini-3-pro-image:generateContent"),
            (
                "POST",
                "/v1/projects/mine/locations/global/publishers/google/models/m:generateContent",
            ),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1beta/openai/images/edits"),
            ("GET", "/v1/models"),
        ] {
            assert_eq!(access(method, path), Access::Anybody, "{method} {path}");
        }
        for (method, path) in [
            ("GET", "/v1beta/files"),
            ("GET", "/v1beta/cachedContents"),
            ("DELETE", "/v1beta/models/gemini-3-pro-image"),
            ("POST", "/v1beta/models/m:embedContent"),
            ("POST", "/v1beta/models/m:predictLongRunning"),
            ("POST", "/v1beta/tunedModels"),
            ("DELETE", "/v1beta/tunedModels/company-model"),
            ("POST", "/v1beta/tunedModels/company-model:generateContent"),
            ("POST", "/v1beta/corpora"),
            ("GET", "/v1beta/models/m/operations/o"),
            ("GET", "/v1beta/openai/files"),
            // Not what the gateway translates: this would be passed on as it is.
            ("POST", "/v1beta/corpora%2Fchat/completions"),
            (
                "POST",
                "/v1/projects/other/locations/global/publishers/google/models/m:generateContent",
            ),
            ("POST", "/v1/projects/mine/locations/global/endpoints/7:generateContent"),
            ("POST", "/any/prefix/v1beta/models/m:generateContent"),
            ("PUT", "/upload/v1beta/files"),
            ("POST", "/upload/v1beta/corpora"),
            ("GET", "/"),
        ] {
            assert_eq!(access(method, path), Access::OptIn, "{method} {path}");
        }
    }

    #[test]
    fn what_a_path_creates_or_names_by_an_id_is_told_apart() {
        for (method, path, kind) in [
            ("POST", "/upload/v1beta/files", Kind::File),
            ("POST", "/v1beta/files", Kind::File),
            ("POST", "/v1beta/cachedContents", Kind::Cache),
            ("POST", "/v1beta/interactions", Kind::Interaction),
            ("POST", "/v1beta/models/gemini-3-pro-image:batchGenerateContent", Kind::Batch),
        ] {
            assert_eq!(access(method, path), Access::Creates(kind), "{method} {path}");
        }
        for (method, path, kind) in [
            ("GET", "/v1beta/files/abc", Kind::File),
            ("GET", "/v1beta/files/abc:download", Kind::File),
            ("GET", "/download/v1beta/files/abc:download", Kind::File),
            ("PATCH", "/v1beta/cachedContents/abc", Kind::Cache),
            ("POST", "/v1beta/batches/abc:cancel", Kind::Batch),
            ("GET", "/v1beta/interactions/abc", Kind::Interaction),
            ("POST", "/v1beta/interactions/abc/cancel", Kind::Interaction),
        ] {
            assert_eq!(access(method, path), Access::Owned(kind, "abc".into()), "{method} {path}");
        }
    }

    #[test]
    fn dot_segments_are_refused_however_they_are_encoded() {
        for path in [
            "/v1beta/models/../files",
            "/v1beta/models/%2e%2E/files",
            "/v1beta/models/.%2e/files",
            "/v1beta/models/%252e%252e/files",
            "/v1beta/models/m%2F..%2F..%2Ffiles:generateContent",
            "/v1beta/models\\..\\files",
            "/v1beta/models/%5c..%5cfiles",
            "/v1beta/models/..;x/files",
            "/v1beta/./models",
        ] {
            assert_eq!(DecodedPath::parse(path), Err(BadPath::DotSegment), "{path}");
        }
        for path in ["/v1beta/models/m%00", "/v1beta/models/m%0d%0a", "/v1beta/models/%ff"] {
            assert_eq!(DecodedPath::parse(path), Err(BadPath::Unreadable), "{path}");
        }
        // Dots within a segment are a part of its name.
        assert_eq!(
            access("POST", "/v1beta/models/gemini-2.5-flash-image:generateContent"),
            Access::Anybody
        );
    }

    proptest! {
        #[test]
        fn no_path_panics_and_none_that_is_read_has_a_dot_segment(path in "(/|%2f|%2F|\\.|%2e|\\\\|;|v1|models|m:generateContent|%25|[ -~]){0,12}") {
            if let Ok(decoded) = DecodedPath::parse(&path) {
                prop_assert!(decoded.segments().iter().all(|segment| segment != ".." && segment != "."));
                let _ = decoded.access(&Method::POST, &path, None);
            }
        }
    }
}
