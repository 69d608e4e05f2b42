//! Reads a request's path and query from the right, so that a gateway may have any prefix.

use std::borrow::Cow;

use super::{Dialect, Framing, Verb};

/// What the path and the query contain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route<'a> {
    pub(super) dialect: Dialect,
    pub(super) verb: Verb,
    pub(super) framing: Framing,
    pub(super) model: Option<&'a str>,
    pub(super) version: Option<&'a str>,
}

impl<'a> Route<'a> {
    const NONE: Self = Self {
        dialect: Dialect::Unrecognised,
        verb: Verb::Other,
        framing: Framing::Whole,
        model: None,
        version: None,
    };

    /// Reads a path that [`normalised`] has been over.
    pub(super) fn parse(path: &'a str, query: Option<&str>) -> Self {
        let (head, last) = path.rsplit_once('/').unwrap_or(("", path));
        if let Some((_, verb)) = last.rsplit_once(':') {
            return Self::parse_method(path, verb, query).unwrap_or(Self::NONE);
        }
        let (before, parent) = head.rsplit_once('/').unwrap_or(("", head));
        let (dialect, before) = match (parent, last) {
            ("chat", "completions") => (Dialect::OpenAiChat, before),
            ("images", "generations" | "edits" | "variations") => (Dialect::OpenAiImages, before),
            (_, "interactions") => (Dialect::Interactions, head),
            _ => return Self::NONE,
        };
        Self {
            dialect,
            verb: Verb::Generate,
            framing: Framing::Whole,
            model: None,
            version: version(before),
        }
    }

    /// `{before}/{collection}/{model}:{verb}`. A model's id may hold slashes itself
    /// (`models/google/gemini-…`, or `%2F`), so the collection is the nearest segment with one of
    /// the known names.
    fn parse_method(path: &'a str, verb: &'a str, query: Option<&str>) -> Option<Self> {
        let id_end = path.len() - verb.len() - 1;
        let resource = path.get(..id_end)?;
        let (collection, start) = segments_from_right(resource)
            .skip(1)
            // Further left than this is a prefix and not an id: `models/a/b/c` is the longest one
            // seen.
            .take(4)
            .find(|(name, _)| {
                matches!(*name, "models" | "tunedModels" | "dynamic" | "endpoints")
            })?;
        let before = resource.get(..start)?.trim_end_matches('/');
        let name = resource.get(start + collection.len() + 1..)?;
        if name.is_empty() {
            return None;
        }
        let in_publisher = collection == "models"
            && segments_from_right(before).nth(1).is_some_and(|(word, _)| word == "publishers");
        let in_project = segments_from_right(before).any(|(word, _)| word == "projects")
            && !matches!(collection, "dynamic");
        let dialect = if in_publisher || collection == "endpoints" || in_project {
            Dialect::VertexAi
        } else {
            Dialect::GeminiApi
        };
        // The collection stays in front of what is not a model of Google's own: `tunedModels/x` and
        // `endpoints/123` are other things than a model `x` or `123`.
        let model = if collection == "models" { name } else { resource.get(start..)? };
        let (verb, framing) = method(verb, query);
        Some(Self { dialect, verb, framing, model: Some(model), version: version(before) })
    }
}

/// Returns what a custom method does, and how its response is framed.
fn method(verb: &str, query: Option<&str>) -> (Verb, Framing) {
    let stream = || if query.is_some_and(wants_sse) { Framing::Sse } else { Framing::JsonArray };
    match verb {
        "generateContent" => (Verb::Generate, Framing::Whole),
        "streamGenerateContent" => (Verb::StreamGenerate, stream()),
        "predict" | "rawPredict" => (Verb::Predict, Framing::Whole),
        // Passes the body of the model's own API through, and those stream as events.
        "streamRawPredict" => (Verb::Predict, Framing::Sse),
        "serverStreamingPredict" => (Verb::Predict, stream()),
        "predictLongRunning" | "batchGenerateContent" | "asyncBatchEmbedContent" => {
            (Verb::Batch, Framing::Whole)
        }
        "embedContent" | "batchEmbedContents" | "embedText" | "batchEmbedText" => {
            (Verb::Embed, Framing::Whole)
        }
        "countTokens" | "computeTokens" => (Verb::Count, Framing::Whole),
        _ => (Verb::Other, Framing::Whole),
    }
}

/// Whether it is `…/interactions/{id}`.
pub(super) fn names_interaction(path: &str) -> bool {
    let mut segments = path.rsplit('/');
    let is_id = segments.next().is_some_and(|id| !id.is_empty() && !id.contains(':'));
    is_id && segments.next() == Some("interactions")
}

/// `stream=true`.
pub(super) fn wants_stream(query: &str) -> bool {
    query.split('&').any(|pair| pair == "stream=true")
}

/// `alt=sse`, and `$alt=sse` as Google's system parameters spell it; old SDKs append
/// `;enum-encoding=int`.
fn wants_sse(query: &str) -> bool {
    query.split('&').any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (percent_decoded(key), percent_decoded(value));
        matches!(&*key, "alt" | "$alt")
            && value.split(';').next().is_some_and(|alt| alt.eq_ignore_ascii_case("sse"))
    })
}

/// The nearest segment that looks like an API version, values of resource names apart: a project
/// may be called `v1` too.
fn version(before: &str) -> Option<&str> {
    let mut segments = segments_from_right(before).peekable();
    while let Some((word, _)) = segments.next() {
        let is_value = segments.peek().is_some_and(|(name, _)| {
            matches!(
                *name,
                "projects" | "locations" | "publishers" | "endpoints" | "reasoningEngines"
            )
        });
        if !is_value && is_version(word) {
            return Some(word);
        }
    }
    None
}

/// `v1`, `v1beta`, `v1beta1`, `v1alpha`, `v1p3beta`: opaque beyond that.
fn is_version(word: &str) -> bool {
    let mut bytes = word.bytes();
    word.len() <= 16
        && bytes.next() == Some(b'v')
        && bytes.next().is_some_and(|b| b.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Segments with where they start, the last one first.
fn segments_from_right(path: &str) -> impl Iterator<Item = (&str, usize)> {
    let mut end = path.len();
    path.rsplit('/').map(move |segment| {
        let start = end - segment.len();
        end = start.saturating_sub(1);
        (segment, start)
    })
}

/// The path without doubled and trailing slashes, percent-encoding undone. Borrowed where it is in
/// order, as almost all are: clients double the slash when the base URL ends in one (curl,
/// rig-core), and some encode the colon.
pub(super) fn normalised(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    // Without a branch on each byte, so that it is done sixteen at a time.
    let pairs = bytes.iter().zip(bytes.get(1..).unwrap_or_default());
    let disorder =
        pairs.fold(false, |found, (a, b)| found | ((*a == b'/') & (*b == b'/')) | (*b == b'%'));
    if !disorder && bytes.last() != Some(&b'/') && bytes.first() != Some(&b'%') {
        return Cow::Borrowed(path);
    }
    let decoded = percent_decoded(path);
    let mut tidy = String::with_capacity(decoded.len());
    for c in decoded.chars() {
        if c != '/' || !tidy.ends_with('/') {
            tidy.push(c);
        }
    }
    if tidy.ends_with('/') {
        tidy.pop();
    }
    Cow::Owned(tidy)
}

/// Undoes percent-encoding once; text that would not be UTF-8 stays as it was.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap_or(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str) -> (Dialect, Verb, Framing, Option<String>, Option<String>) {
        let (path, query) =
            path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let path = normalised(path);
        let route = Route::parse(&path, query);
        (
            route.dialect,
            route.verb,
            route.framing,
            route.model.map(str::to_owned),
            route.version.map(str::to_owned),
        )
    }

    #[test]
    fn every_known_path_form() {
        use Dialect::*;
        use Framing::{JsonArray, Sse, Whole};
        use Verb::{Batch, Count, Embed, Generate, Other, Predict, StreamGenerate};
        let m = "gemini-3-pro-image";
        #[rustfmt::skip]
        let table = [
            ("/v1beta/models/M:generateContent", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/v1/models/M:generateContent", GeminiApi, Generate, Whole, m, "v1"),
            ("/v1alpha/models/M:generateContent", GeminiApi, Generate, Whole, m, "v1alpha"),
            ("/models/M:generateContent", GeminiApi, Generate, Whole, m, ""),
            ("//v1beta//models/M:generateContent", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/v1beta/models/M:generateContent/", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/v1beta/models/M%3AgenerateContent", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/v1beta/models%2FM%3agenerateContent", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/v1beta/models/M:generateContent?key=AIza", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/v1/acc/gw/google-ai-studio/v1beta/models/M:generateContent", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/antigravity/v1beta/models/M:generateContent", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/gw/t1/v1/models/M:generateContent", GeminiApi, Generate, Whole, m, "v1"),
            ("/v1beta/models/google/M:generateContent", GeminiApi, Generate, Whole, "google/M", "v1beta"),
            ("/v1beta/tunedModels/M:generateContent", GeminiApi, Generate, Whole, "tunedModels/M", "v1beta"),
            ("/v1beta/dynamic/M:generateContent", GeminiApi, Generate, Whole, "dynamic/M", "v1beta"),
            ("/v1beta/models/M:streamGenerateContent?alt=sse", GeminiApi, StreamGenerate, Sse, m, "v1beta"),
            ("/v1beta/models/M:streamGenerateContent?key=x&$alt=sse", GeminiApi, StreamGenerate, Sse, m, "v1beta"),
            ("/v1beta/models/M:streamGenerateContent?%24alt=SSE%3Benum-encoding=int", GeminiApi, StreamGenerate, Sse, m, "v1beta"),
            ("/v1beta/models/M:streamGenerateContent", GeminiApi, StreamGenerate, JsonArray, m, "v1beta"),
            ("/v1beta/models/M:streamGenerateContent?alt=json", GeminiApi, StreamGenerate, JsonArray, m, "v1beta"),
            ("/v1beta/models/M:generateContent?alt=sse", GeminiApi, Generate, Whole, m, "v1beta"),
            ("/v1beta/models/M:predict", GeminiApi, Predict, Whole, m, "v1beta"),
            ("/v1beta/models/M:predictLongRunning", GeminiApi, Batch, Whole, m, "v1beta"),
            ("/v1beta/models/M:batchGenerateContent", GeminiApi, Batch, Whole, m, "v1beta"),
            ("/v1beta/models/M:countTokens", GeminiApi, Count, Whole, m, "v1beta"),
            ("/v1beta/models/M:embedContent", GeminiApi, Embed, Whole, m, "v1beta"),
            ("/v1beta/models/M:somethingNew", GeminiApi, Other, Whole, m, "v1beta"),
            ("/v1/projects/v1/locations/global/publishers/google/models/M:generateContent", VertexAi, Generate, Whole, m, "v1"),
            ("/v1beta1/projects/p/locations/l/publishers/google/models/M:streamGenerateContent?alt=sse", VertexAi, StreamGenerate, Sse, m, "v1beta1"),
            ("/v1beta1/publishers/google/models/M:generateContent", VertexAi, Generate, Whole, m, "v1beta1"),
            ("/v1/a/g/google-vertex-ai/v1/projects/p/locations/l/publishers/google/models/M:generateContent", VertexAi, Generate, Whole, m, "v1"),
            ("/v1/projects/p/locations/l/endpoints/M:generateContent", VertexAi, Generate, Whole, "endpoints/M", "v1"),
            ("/v1/projects/p/locations/l/publishers/anthropic/models/M:rawPredict", VertexAi, Predict, Whole, m, "v1"),
            ("/v1/projects/p/locations/l/publishers/anthropic/models/M:streamRawPredict", VertexAi, Predict, Sse, m, "v1"),
            ("/v1/projects/p/locations/l/publishers/google/models/M:serverStreamingPredict", VertexAi, Predict, JsonArray, m, "v1"),
            ("/v1/projects/p/locations/l/publishers/google/models/M:predict", VertexAi, Predict, Whole, m, "v1"),
            ("/v1/chat/completions", OpenAiChat, Generate, Whole, "", "v1"),
            ("/v1beta/openai/chat/completions", OpenAiChat, Generate, Whole, "", "v1beta"),
            ("/chat/completions", OpenAiChat, Generate, Whole, "", ""),
            ("/v1/projects/p/locations/l/endpoints/openapi/chat/completions", OpenAiChat, Generate, Whole, "", "v1"),
            ("/v1/images/generations", OpenAiImages, Generate, Whole, "", "v1"),
            ("/v1beta/openai/images/generations", OpenAiImages, Generate, Whole, "", "v1beta"),
            ("/v1/images/edits", OpenAiImages, Generate, Whole, "", "v1"),
            ("/v1beta/interactions", Interactions, Generate, Whole, "", "v1beta"),
            ("/v1beta1/projects/p/locations/l/interactions", Interactions, Generate, Whole, "", "v1beta1"),
        ];
        for (path, dialect, verb, framing, model, version) in table {
            let some = |text: &str| {
                (!text.is_empty())
                    .then(|| text.replace('M', m).replace(&format!("tuned{m}odels"), "tunedModels"))
            };
            let path = path
                .replace("/M:", &format!("/{m}:"))
                .replace("/M%", &format!("/{m}%"))
                .replace("%2FM%", &format!("%2F{m}%"));
            assert_eq!(
                route(&path),
                (dialect, verb, framing, some(model), some(version)),
                "{path}"
            );
        }
    }

    #[test]
    fn other_paths_are_unrecognised() {
        for path in [
            "",
            "/",
            "*",
            ":",
            "/:",
            "/v1beta/models",
            "/v1beta/models/x",
            "/v1beta/models/:generateContent",
            "/x:generateContent",
            "/v1beta/interactions/abc",
            "/v1beta/interactions/abc:cancel",
            "/v1/completions",
            "/v1/responses",
            "/upload/v1beta/files",
            "/v1beta/batches/x:cancel",
            "/completions",
            "/%",
            "/%3A%3A",
            "/models/a/b/c/d/e:generateContent",
        ] {
            assert_eq!(route(path).0, Dialect::Unrecognised, "{path}");
        }
    }
}
