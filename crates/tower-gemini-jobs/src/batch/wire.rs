//! The shapes of Google's Batch API: pure.
//!
//! | what | source |
//! | --- | --- |
//! | creation, inline and from a file; the operation and its states | google-genai 3.4.0, `batches.py`; ai.google.dev/api/batch-api (2026-09) |
//! | a line of the input file, `{"key", "request"}` | ai.google.dev/gemini-api/docs/batch-api (2026-09) |
//! | a line of results, with gRPC's codes in `error` | responses of the service that users published (2025-12, 2026-08) |
//! | results twice, in `metadata.output` and in `response` | the same; google-genai reads the first |
//! | a batch that was cancelled while it ran succeeds, with code 1 for each line not done | the tests of a client of the service (2026-09) |

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The body that makes a batch of requests inline.
pub(crate) fn create_inline(display_name: &str, lines: &[(String, Value)]) -> Value {
    let requests: Vec<_> = lines
        .iter()
        .map(|(key, request)| json!({"request": request, "metadata": {"key": key}}))
        .collect();
    create(display_name, json!({"requests": {"requests": requests}}))
}

/// The body that makes a batch of the lines of an uploaded file.
pub(crate) fn create_from_file(display_name: &str, file: &str) -> Value {
    create(display_name, json!({"fileName": file}))
}

#[allow(clippy::needless_pass_by_value, reason = "it becomes part of the body")]
fn create(display_name: &str, input: Value) -> Value {
    json!({"batch": {"displayName": display_name, "inputConfig": input}})
}

/// A file of input lines.
pub(crate) fn input_file(lines: &[(String, Value)]) -> Vec<u8> {
    let mut file = Vec::new();
    for (key, request) in lines {
        file.extend_from_slice(json!({"key": key, "request": request}).to_string().as_bytes());
        file.push(b'\n');
    }
    file
}

/// How far a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchState {
    /// Pending or running, or a state that came after this was written.
    Open,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
}

/// A batch as the API describes it.
#[derive(Debug)]
pub(crate) struct Operation<'b> {
    pub(crate) name: String,
    pub(crate) state: BatchState,
    /// Lines that have a response so far, where that is said.
    pub(crate) succeeded: u64,
    pub(crate) error: Option<Status>,
    pub(crate) results: Results<'b>,
}

/// Where the results of a batch are.
#[derive(Debug)]
pub(crate) enum Results<'b> {
    None,
    Inline(Vec<Line<'b>>),
    File(String),
}

/// A result of one request.
#[derive(Debug, Deserialize)]
pub(crate) struct Line<'b> {
    #[serde(default, borrow)]
    pub(crate) response: Option<&'b RawValue>,
    #[serde(default)]
    pub(crate) error: Option<Status>,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    key: Option<String>,
}

impl Line<'_> {
    /// The key that its request had.
    pub(crate) fn key(&self) -> Option<&str> {
        let in_metadata = || self.metadata.as_ref()?.key.as_deref();
        self.key.as_deref().or_else(in_metadata)
    }
}

/// `google.rpc.Status`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Status {
    #[serde(default)]
    pub(crate) code: i64,
    #[serde(default)]
    pub(crate) message: String,
}

impl Status {
    /// The same as Google's error of a single call, for the one classifier.
    pub(crate) fn as_error_body(&self) -> Vec<u8> {
        // gRPC's codes and their HTTP statuses (google/rpc/code.proto).
        let (status, word) = match self.code {
            3 => (400, "INVALID_ARGUMENT"),
            4 => (504, "DEADLINE_EXCEEDED"),
            5 => (404, "NOT_FOUND"),
            7 => (403, "PERMISSION_DENIED"),
            8 => (429, "RESOURCE_EXHAUSTED"),
            9 => (400, "FAILED_PRECONDITION"),
            13 => (500, "INTERNAL"),
            _ => (503, "UNAVAILABLE"),
        };
        let message = &self.message;
        json!({"error": {"code": status, "message": message, "status": word}})
            .to_string()
            .into_bytes()
    }
}

#[derive(Deserialize)]
struct RawOperation<'b> {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, borrow)]
    metadata: Option<RawMetadata<'b>>,
    #[serde(default)]
    error: Option<Status>,
    #[serde(default, borrow)]
    response: Option<Output<'b>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMetadata<'b> {
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    batch_stats: Option<Stats>,
    #[serde(default, borrow)]
    output: Option<Output<'b>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    #[serde(default)]
    successful_request_count: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output<'b> {
    #[serde(default)]
    responses_file: Option<String>,
    #[serde(default, borrow)]
    inlined_responses: Option<Inlined<'b>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Inlined<'b> {
    #[serde(default, borrow)]
    inlined_responses: Vec<Line<'b>>,
}

impl<'b> Operation<'b> {
    /// Reads what creating or fetching a batch answers.
    pub(crate) fn parse(body: &'b [u8]) -> Option<Self> {
        let raw: RawOperation<'b> = serde_json::from_slice(body).ok()?;
        let metadata = raw.metadata?;
        let output = metadata.output.or(raw.response);
        let results = match output {
            Some(Output { responses_file: Some(file), .. }) => Results::File(file),
            Some(Output { inlined_responses: Some(lines), .. }) => {
                Results::Inline(lines.inlined_responses)
            }
            _ => Results::None,
        };
        let state =
            match metadata.state.as_deref().map(|state| {
                state.trim_start_matches("BATCH_STATE_").trim_start_matches("JOB_STATE_")
            }) {
                Some("SUCCEEDED" | "PARTIALLY_SUCCEEDED") => BatchState::Succeeded,
                Some("FAILED") => BatchState::Failed,
                Some("CANCELLED") => BatchState::Cancelled,
                Some("EXPIRED") => BatchState::Expired,
                _ => BatchState::Open,
            };
        let count = metadata.batch_stats.and_then(|stats| stats.successful_request_count);
        let succeeded = match count {
            Some(Value::String(text)) => text.parse().unwrap_or(0),
            Some(number) => number.as_u64().unwrap_or(0),
            None => 0,
        };
        let name = raw.name.or(metadata.name)?;
        Some(Self { name, state, succeeded, error: raw.error, results })
    }
}

/// The batch of this display name on a page of the list, and the next page.
pub(crate) fn find_on_page(body: &[u8], display_name: &str) -> Option<(Option<String>, String)> {
    let page: Value = serde_json::from_slice(body).ok()?;
    let operations = page["operations"].as_array().map_or(&[][..], Vec::as_slice);
    let found = operations
        .iter()
        .find(|one| one["metadata"]["displayName"] == display_name)
        .and_then(|one| one["name"].as_str().map(str::to_owned));
    Some((found, page["nextPageToken"].as_str().unwrap_or_default().to_owned()))
}

/// The lines of a file of results. Lines that cannot be read are left out: their items are missing.
pub(crate) fn lines(file: &[u8]) -> impl Iterator<Item = Line<'_>> {
    file.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn results_are_read_inline_and_by_file_with_their_keys() {
        let body = br#"{"name":"batches/a","metadata":{"state":"BATCH_STATE_SUCCEEDED",
            "batchStats":{"requestCount":"2","successfulRequestCount":"1"},
            "output":{"inlinedResponses":{"inlinedResponses":[
              {"response":{"candidates":[]},"metadata":{"key":"1"}},
              {"error":{"code":14},"metadata":{"key":"2"}}]}}},"done":true}"#;
        let operation = Operation::parse(body).unwrap();
        assert_eq!((operation.state, operation.succeeded), (BatchState::Succeeded, 1));
        let Results::Inline(lines) = operation.results else { panic!("{:?}", operation.results) };
        assert_eq!(lines[0].response.unwrap().get(), r#"{"candidates":[]}"#);
        assert_eq!((lines[1].key(), lines[1].error.as_ref().unwrap().code), (Some("2"), 14));

        let body = br#"{"name":"batches/a","metadata":{"state":"BATCH_STATE_SUCCEEDED"},
            "response":{"responsesFile":"files/batch-a"}}"#;
        let Results::File(file) = Operation::parse(body).unwrap().results else { panic!() };
        assert_eq!(file, "files/batch-a");
        let file =
            b"{\"key\":\"7\",\"response\":{}}\nnot json\n{\"key\":\"8\",\"error\":{\"code\":13}}\n";
        let keys: Vec<_> = super::lines(file).map(|line| line.key().unwrap().to_owned()).collect();
        assert_eq!(keys, ["7", "8"]);
    }

    #[test]
    fn a_state_that_is_not_known_is_no_end() {
        let body = br#"{"name":"batches/a","metadata":{"state":"BATCH_STATE_RESTING"}}"#;
        assert_eq!(Operation::parse(body).unwrap().state, BatchState::Open);
        assert!(Operation::parse(br#"{"error":{"code":404}}"#).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Operation::parse(&bytes);
            let _ = find_on_page(&bytes, "x");
            let _ = lines(&bytes).count();
        }
    }
}
