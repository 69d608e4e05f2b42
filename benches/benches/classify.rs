//! What a short answer means: the classifier beside reading the same body into types with serde,
//! and into a `serde_json::Value`.
//!
//! Run with `cargo bench -p tower-gemini-benches --bench classify`. Only ratios within one run mean
//! anything. A table is printed before divan's: CPU time, the median of interleaved rounds. divan's
//! own tables count the allocations.
//!
//! The peers only read: what a limit's name says, whether it is this minute's or this day's, how
//! long to wait and what was paid is not in their time.

#![allow(clippy::print_stdout, reason = "the tables are what is run for")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use cpu_time::ThreadTime;
use divan::{AllocProfiler, Bencher};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::Deserialize;
use tower_gemini_benches::Row;
use tower_gemini_core::call::Call;
use tower_gemini_core::classify::classify;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Overloaded,
    Quota,
    Refusal,
}

const BODIES: [Body; 3] = [Body::Overloaded, Body::Quota, Body::Refusal];

impl Body {
    /// As the server prints them; keys and project are made up.
    fn answer(self) -> (StatusCode, &'static [u8]) {
        match self {
            Self::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                br#"{
  "error": {
    "code": 503,
    "message": "The model is overloaded. Please try again later.",
    "status": "UNAVAILABLE"
  }
}
"#,
            ),
            Self::Quota => (
                StatusCode::TOO_MANY_REQUESTS,
                br#"{
  "error": {
    "code": 429,
    "message": "You exceeded your current quota, please check your plan and billing details.",
    "status": "RESOURCE_EXHAUSTED",
    "details": [
      {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [
          {
            "quotaMetric": "generativelanguage.googleapis.com/generate_requests_per_model",
            "quotaId": "GenerateRequestsPerMinutePerProjectPerModel",
            "quotaDimensions": {"location": "global", "model": "gemini-3-pro-image"},
            "quotaValue": "20"
          }
        ]
      },
      {
        "@type": "type.googleapis.com/google.rpc.Help",
        "links": [{"description": "Learn more about Gemini API quotas", "url": "https://ai.google.dev/gemini-api/docs/rate-limits"}]
      },
      {
        "@type": "type.googleapis.com/google.rpc.RetryInfo",
        "retryDelay": "56s"
      }
    ]
  }
}
"#,
            ),
            Self::Refusal => (
                StatusCode::OK,
                br#"{
  "candidates": [
    {
      "content": {},
      "finishReason": "IMAGE_SAFETY",
      "finishMessage": "Unable to show the generated image. The image was filtered out because it violated Google's Responsible AI practices.",
      "index": 0
    }
  ],
  "usageMetadata": {
    "promptTokenCount": 12,
    "candidatesTokenCount": 0,
    "totalTokenCount": 312,
    "thoughtsTokenCount": 300
  },
  "modelVersion": "gemini-3-pro-image",
  "responseId": "a1b2c3d4"
}
"#,
            ),
        }
    }
}

/// What a careful client writes to tell errors apart. Nothing is copied that need not be.
mod typed {
    use super::{BTreeMap, Cow, Deserialize};

    #[derive(Deserialize)]
    pub(super) struct Failure<'a> {
        #[serde(borrow)]
        pub(super) error: Status<'a>,
    }

    #[derive(Deserialize)]
    pub(super) struct Status<'a> {
        pub(super) code: u16,
        #[serde(borrow)]
        pub(super) message: Cow<'a, str>,
        #[serde(borrow)]
        pub(super) status: Cow<'a, str>,
        #[serde(borrow, default)]
        pub(super) details: Vec<Detail<'a>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Detail<'a> {
        #[serde(borrow, rename = "@type")]
        pub(super) kind: Cow<'a, str>,
        #[serde(borrow, default)]
        pub(super) violations: Vec<Violation<'a>>,
        #[serde(borrow, default)]
        pub(super) retry_delay: Option<Cow<'a, str>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Violation<'a> {
        #[serde(borrow, default)]
        pub(super) quota_id: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        pub(super) quota_metric: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        pub(super) quota_value: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        pub(super) quota_dimensions: BTreeMap<&'a str, &'a str>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Answer<'a> {
        #[serde(borrow)]
        pub(super) candidates: Vec<Candidate<'a>>,
        pub(super) usage_metadata: Option<Usage>,
        #[serde(borrow)]
        pub(super) model_version: Option<Cow<'a, str>>,
        #[serde(borrow)]
        pub(super) response_id: Option<Cow<'a, str>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Candidate<'a> {
        #[serde(borrow)]
        pub(super) finish_reason: Option<Cow<'a, str>>,
        #[serde(borrow)]
        pub(super) finish_message: Option<Cow<'a, str>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Usage {
        pub(super) prompt_token_count: u64,
        pub(super) candidates_token_count: u64,
        pub(super) total_token_count: u64,
        #[serde(default)]
        pub(super) thoughts_token_count: u64,
    }
}

fn call() -> Call {
    let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
    Call::parse(
        &Method::POST,
        &uri,
        &HeaderMap::new(),
        Some(br#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#),
    )
}

/// A way to read a body. The number keeps the optimiser honest.
type Read = fn(&Call, &HeaderMap, Body) -> u64;

fn ours(call: &Call, headers: &HeaderMap, body: Body) -> u64 {
    let (status, bytes) = body.answer();
    let verdict = classify(call, status, headers, bytes);
    verdict.outcome() as u64 + u64::from(verdict.wait().is_some())
}

fn serde_typed(_: &Call, _: &HeaderMap, body: Body) -> u64 {
    let (status, bytes) = body.answer();
    if status.is_success() {
        let answer: typed::Answer<'_> = serde_json::from_slice(bytes).expect("a good body");
        let usage = answer.usage_metadata.as_ref();
        let counted = usage.map_or(0, |usage| {
            usage.prompt_token_count
                + usage.candidates_token_count
                + usage.total_token_count
                + usage.thoughts_token_count
        });
        let words =
            answer.candidates.iter().flat_map(|one| [&one.finish_reason, &one.finish_message]);
        let words: usize = words
            .chain([&answer.model_version, &answer.response_id])
            .flatten()
            .map(|word| word.len())
            .sum();
        return counted + words as u64;
    }
    let failure: typed::Failure<'_> = serde_json::from_slice(bytes).expect("a good body");
    let of_details: usize = failure
        .error
        .details
        .iter()
        .map(|detail| {
            let violations: usize = detail
                .violations
                .iter()
                .map(|one| {
                    let words = [&one.quota_id, &one.quota_metric, &one.quota_value];
                    words.into_iter().flatten().map(|word| word.len()).sum::<usize>()
                        + one.quota_dimensions.len()
                })
                .sum();
            detail.kind.len()
                + detail.retry_delay.as_ref().map_or(0, |delay| delay.len())
                + violations
        })
        .sum();
    u64::from(failure.error.code)
        + (failure.error.message.len() + failure.error.status.len() + of_details) as u64
}

fn serde_value(_: &Call, _: &HeaderMap, body: Body) -> u64 {
    let (status, bytes) = body.answer();
    let value: serde_json::Value = serde_json::from_slice(bytes).expect("a good body");
    if status.is_success() {
        return value["candidates"][0]["finishReason"].as_str().map_or(0, |word| word.len() as u64);
    }
    value["error"]["code"].as_u64().unwrap_or(0)
        + value["error"]["details"].as_array().map_or(0, |details| details.len() as u64)
}

const WAYS: [(&str, Read); 3] =
    [("ours", ours), ("serde, typed", serde_typed), ("serde_json::Value", serde_value)];

/// Whole rounds, interleaved; the median of each.
fn table() -> Vec<Row> {
    const ROUNDS: usize = 101;
    const READS: u32 = 500;
    let (call, headers) = (call(), HeaderMap::new());
    let mut rows = Vec::new();
    for body in BODIES {
        let mut times = WAYS.map(|_| Vec::with_capacity(ROUNDS));
        for _ in 0..ROUNDS {
            for ((_, read), times) in WAYS.iter().zip(&mut times) {
                let started = ThreadTime::now();
                for _ in 0..READS {
                    black_box(read(black_box(&call), black_box(&headers), black_box(body)));
                }
                times.push(started.elapsed() / READS);
            }
        }
        let medians = times.map(|mut times| {
            times.sort_unstable();
            times.get(ROUNDS / 2).copied().unwrap_or(Duration::ZERO).as_nanos() as f64
        });
        println!("\n{body:?} ({} bytes): ns, and times serde's types", body.answer().1.len());
        for ((name, _), median) in WAYS.iter().zip(medians) {
            println!("  {name:<20} {median:>8.0} {:>8.2}x", median / medians[1]);
        }
        let what = format!("classify {body:?} beside typed serde");
        rows.push(Row::at_most(&what, medians[0] / medians[1], 1.5));
    }
    rows
}

fn bench(bencher: Bencher<'_, '_>, body: Body, read: Read) {
    let (call, headers) = (call(), HeaderMap::new());
    bencher.bench_local(|| read(black_box(&call), black_box(&headers), black_box(body)));
}

#[divan::bench(name = "ours", args = BODIES, max_time = 1)]
fn bench_ours(bencher: Bencher<'_, '_>, body: Body) {
    bench(bencher, body, ours);
}

#[divan::bench(name = "serde_typed", args = BODIES, max_time = 1)]
fn bench_typed(bencher: Bencher<'_, '_>, body: Body) {
    bench(bencher, body, serde_typed);
}

#[divan::bench(name = "serde_value", args = BODIES, max_time = 1)]
fn bench_value(bencher: Bencher<'_, '_>, body: Body) {
    bench(bencher, body, serde_value);
}

fn main() {
    // `cargo test --benches` only asks whether it runs.
    if !std::env::args().any(|arg| arg == "--test") {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        tower_gemini_benches::write(target, "classify", &table())
            .expect("the target directory takes a file");
    }
    divan::main();
}
