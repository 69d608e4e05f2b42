//! The final image out of a `generateContent` response: the scanner beside the ways that collect
//! the body first.
//!
//! Run with `cargo bench -p tower-gemini-benches --bench extract`. Only ratios within one run mean
//! anything. A table of CPU times beside the peers, each the fastest of interleaved rounds, comes
//! before divan's, whose `max alloc` is the peak memory: a 4K image has 20 MB here, a 1K one 1.5
//! MB.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cpu_time::ThreadTime;
use divan::AllocProfiler;
use jiter::JsonValue;
use tower_gemini_benches::Row;
use tower_gemini_core::call::Framing;
use tower_gemini_core::scan::Scanner;

#[global_allocator]
static MEMORY: AllocProfiler = AllocProfiler::system();

/// What hyper hands over at most at a time, give or take.
const CHUNK: usize = 64 * 1024;

/// Sizes measured of real images: 1K 1.5 MB, 2K 5 MB, 4K 20 MB; signatures of 1 to 3 MB.
const CASES: [Case; 6] = [
    Case { name: "1K", image: 1_500_000, drafts: 0, signature: 1_100_000 },
    Case { name: "1K+2", image: 1_500_000, drafts: 2, signature: 1_100_000 },
    Case { name: "2K", image: 5_000_000, drafts: 0, signature: 1_500_000 },
    Case { name: "2K+2", image: 5_000_000, drafts: 2, signature: 1_500_000 },
    Case { name: "4K", image: 20_000_000, drafts: 0, signature: 2_900_000 },
    Case { name: "4K+2", image: 20_000_000, drafts: 2, signature: 2_900_000 },
];

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    image: usize,
    drafts: usize,
    signature: usize,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A pretty-printed answer, drafts marked behind their data and of two thirds the final's size.
fn body(case: Case) -> Vec<u8> {
    let noise = |len: usize, seed: u64| {
        let mut state = seed;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(len)
        .collect();
        STANDARD.encode(bytes)
    };
    let inline = |data: String, rest: &str| {
        format!(
            "          {{\n            \"inlineData\": {{\n              \"mimeType\": \"image/jpeg\",\n              \"data\": \"{data}\"\n            }}{rest}\n          }}"
        )
    };
    let mut parts = vec![
        "          {\n            \"text\": \"Thinking about the composition.\",\n            \"thought\": true\n          }"
            .to_owned(),
    ];
    for draft in 0..case.drafts {
        // 54 MB of JSON in all with a 4K image (20 MB) and two drafts.
        let len = if case.image > 10_000_000 { 9_000_000 } else { case.image * 2 / 3 };
        parts.push(inline(noise(len, draft as u64 + 1), ",\n            \"thought\": true"));
    }
    let signature = noise(case.signature, 8);
    let last = format!(
        "          {{\n            \"thoughtSignature\": \"{signature}\",\n            \"inlineData\": {{\n              \"mimeType\": \"image/jpeg\",\n              \"data\": \"{}\"\n            }}\n          }}",
        noise(case.image, 9)
    );
    parts.push(last);
    format!(
        "{{\n  \"candidates\": [\n    {{\n      \"content\": {{\n        \"parts\": [\n{}\n        ],\n        \"role\": \"model\"\n      }},\n      \"finishReason\": \"STOP\",\n      \"index\": 0\n    }}\n  ],\n  \"usageMetadata\": {{\n    \"promptTokenCount\": 12,\n    \"candidatesTokenCount\": 1120,\n    \"totalTokenCount\": 1400\n  }},\n  \"modelVersion\": \"gemini-3-pro-image\"\n}}\n",
        parts.join(",\n")
    )
    .into_bytes()
}

/// Bodies come in chunks: whoever needs them in one piece has to put them together.
fn collect(body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    body.chunks(CHUNK).for_each(|chunk| whole.extend_from_slice(chunk));
    whole
}

fn ours(body: &[u8]) -> usize {
    let mut scanner = Scanner::decoding(Framing::Whole);
    body.chunks(CHUNK).for_each(|chunk| scanner.feed(chunk).expect("a good body"));
    scanner.finish().expect("a good body").image.expect("an image").bytes.len()
}

fn ours_told_the_length(body: &[u8]) -> usize {
    let mut scanner = Scanner::decoding(Framing::Whole).expect_len(body.len() as u64);
    body.chunks(CHUNK).for_each(|chunk| scanner.feed(chunk).expect("a good body"));
    scanner.finish().expect("a good body").image.expect("an image").bytes.len()
}

fn ours_judging(body: &[u8]) -> usize {
    let mut scanner = Scanner::judging(Framing::Whole);
    body.chunks(CHUNK).for_each(|chunk| scanner.feed(chunk).expect("a good body"));
    scanner.finish().expect("a good body").image.expect("an image").len as usize
}

fn ours_draining(body: &[u8]) -> usize {
    let mut scanner = Scanner::draining(Framing::Whole);
    for chunk in body.chunks(CHUNK) {
        scanner.feed(chunk).expect("a good body");
        black_box(scanner.take_decoded());
    }
    scanner.finish().expect("a good body").image.expect("an image").len as usize
}

fn with_serde_json(body: &[u8]) -> usize {
    let value: serde_json::Value = serde_json::from_slice(&collect(body)).expect("a good body");
    let parts = value["candidates"][0]["content"]["parts"].as_array().expect("parts");
    let images: Vec<Vec<u8>> = parts
        .iter()
        .filter_map(|part| part["inlineData"]["data"].as_str())
        .map(|data| STANDARD.decode(data).expect("good base64"))
        .collect();
    images.last().expect("an image").len()
}

mod typed {
    use std::borrow::Cow;

    #[derive(serde::Deserialize)]
    pub(super) struct Answer<'a> {
        #[serde(borrow)]
        pub(super) candidates: Vec<Candidate<'a>>,
    }
    #[derive(serde::Deserialize)]
    pub(super) struct Candidate<'a> {
        #[serde(borrow)]
        pub(super) content: Content<'a>,
    }
    #[derive(serde::Deserialize)]
    pub(super) struct Content<'a> {
        #[serde(borrow)]
        pub(super) parts: Vec<Part<'a>>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Part<'a> {
        #[serde(borrow)]
        pub(super) inline_data: Option<Inline<'a>>,
        #[serde(default)]
        pub(super) thought: bool,
    }
    #[derive(serde::Deserialize)]
    pub(super) struct Inline<'a> {
        #[serde(borrow)]
        pub(super) data: Cow<'a, str>,
    }
}

fn with_sonic(body: &[u8]) -> usize {
    let whole = collect(body);
    let answer: typed::Answer<'_> = sonic_rs::from_slice(&whole).expect("a good body");
    let parts = &answer.candidates[0].content.parts;
    let last = parts
        .iter()
        .rev()
        .find(|part| part.inline_data.is_some() && !part.thought)
        .expect("an image");
    let data = &last.inline_data.as_ref().expect("data").data;
    base64_turbo::STANDARD.decode(data.as_bytes()).expect("good base64").len()
}

fn with_jiter(body: &[u8]) -> usize {
    fn get<'v, 'j>(value: &'v JsonValue<'j>, key: &str) -> Option<&'v JsonValue<'j>> {
        match value {
            JsonValue::Object(members) => {
                members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
            }
            _ => None,
        }
    }
    fn items<'v, 'j>(value: Option<&'v JsonValue<'j>>) -> &'v [JsonValue<'j>] {
        match value {
            Some(JsonValue::Array(items)) => items,
            _ => &[],
        }
    }
    let whole = collect(body);
    let value = JsonValue::parse(&whole, false).expect("a good body");
    let candidate = &items(get(&value, "candidates"))[0];
    let parts = items(get(candidate, "content").and_then(|content| get(content, "parts")));
    let data = parts.iter().rev().find_map(|part| match get(get(part, "inlineData")?, "data") {
        Some(JsonValue::Str(data))
            if !matches!(get(part, "thought"), Some(JsonValue::Bool(true))) =>
        {
            Some(data)
        }
        _ => None,
    });
    base64_turbo::STANDARD.decode(data.expect("an image").as_bytes()).expect("good base64").len()
}

type Way = (&'static str, fn(&[u8]) -> usize);
const WAYS: [Way; 7] = [
    ("ours", ours),
    ("ours, length known", ours_told_the_length),
    ("ours, judging", ours_judging),
    ("ours, draining", ours_draining),
    ("serde_json", with_serde_json),
    ("sonic-rs", with_sonic),
    ("jiter", with_jiter),
];

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = ThreadTime::now();
    let value = black_box(work());
    (value, start.elapsed())
}

/// The least disturbed round: everything a shared machine adds only makes rounds slower.
fn fastest(times: &[Duration]) -> Duration {
    times.iter().copied().min().unwrap_or_default()
}

/// From the last chunk to the image in hand.
fn last_chunk(body: &[u8]) -> Duration {
    let times: Vec<Duration> = (0..7)
        .map(|_| {
            let mut scanner = Scanner::decoding(Framing::Whole);
            let chunks: Vec<&[u8]> = body.chunks(CHUNK).collect();
            let (last, before) = chunks.split_last().expect("a body");
            before.iter().for_each(|chunk| scanner.feed(chunk).expect("a good body"));
            timed(|| {
                scanner.feed(last).expect("a good body");
                scanner.finish().expect("a good body")
            })
            .1
        })
        .collect();
    fastest(&times)
}

#[expect(clippy::print_stdout, reason = "a benchmark reports")]
fn report() -> Vec<Row> {
    let mut rows = Vec::new();
    println!("case  | way                |  CPU ms     | over ours");
    for case in CASES {
        let body = body(case);
        let mut times = [const { Vec::new() }; WAYS.len()];
        // Interleaved, so that a neighbour on the machine slows all ways alike.
        for _ in 0..if case.image > 10_000_000 { 9 } else { 25 } {
            for (i, (_, way)) in WAYS.iter().enumerate() {
                let (len, time) = timed(|| way(black_box(&body)));
                assert_eq!(len, case.image);
                times[i].push(time);
            }
        }
        let fastest_ms: Vec<f64> =
            times.iter().map(|times| fastest(times).as_secs_f64() * 1e3).collect();
        for (i, (name, _)) in WAYS.iter().enumerate() {
            println!(
                "{:5} | {name:18} | {:10.3} | {:9.2}",
                case.name,
                fastest_ms[i],
                fastest_ms[i] / fastest_ms[0]
            );
        }
        println!("{:5} | last chunk to image: {:?}", case.name, last_chunk(&body));
        let ms = |way: &str| {
            let at = WAYS.iter().position(|(name, _)| *name == way);
            fastest_ms[at.unwrap_or_else(|| unreachable!("{way} is measured"))]
        };
        let beside = |peer: &str| ms("ours") / ms(peer);
        rows.push(Row::at_most(
            &format!("extraction {} beside serde_json + base64", case.name),
            beside("serde_json"),
            0.1,
        ));
        // A 4K image with two drafts is beyond 32 MB.
        let goal = if body.len() < 32_000_000 { 0.5 } else { 1.0 / 6.0 };
        rows.push(Row::at_most(
            &format!("extraction {} beside jiter + base64-turbo", case.name),
            beside("jiter"),
            goal,
        ));
        if case.name == "4K" {
            let speed = |way: &str| body.len() as f64 / ms(way) / 1e6;
            rows.push(Row::at_least("judging 4K; GB/s", speed("ours, judging"), 15.0));
            rows.push(Row::at_least("decoding included 4K; GB/s", speed("ours, draining"), 8.0));
        }
    }
    rows
}

fn main() {
    // `cargo test --benches` only asks whether it runs.
    if !std::env::args().any(|arg| arg == "--test") {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        tower_gemini_benches::write(target, "extract", &report())
            .expect("the target directory takes a file");
    }
    divan::main();
}

/// The smallest and the largest: memory grows with the image and the drafts alone.
const MEASURED: [Case; 2] = [CASES[0], CASES[5]];

#[divan::bench(args = MEASURED, max_time = 0.5)]
fn scanner(bencher: divan::Bencher<'_, '_>, case: Case) {
    let body = body(case);
    bencher.bench(|| ours(black_box(&body)));
}

#[divan::bench(args = MEASURED, max_time = 0.5)]
fn scanner_told_the_length(bencher: divan::Bencher<'_, '_>, case: Case) {
    let body = body(case);
    bencher.bench(|| ours_told_the_length(black_box(&body)));
}

#[divan::bench(args = MEASURED, max_time = 0.5)]
fn scanner_draining(bencher: divan::Bencher<'_, '_>, case: Case) {
    let body = body(case);
    bencher.bench(|| ours_draining(black_box(&body)));
}

#[divan::bench(args = MEASURED, max_time = 0.5)]
fn serde_json_and_base64(bencher: divan::Bencher<'_, '_>, case: Case) {
    let body = body(case);
    bencher.bench(|| with_serde_json(black_box(&body)));
}

#[divan::bench(args = MEASURED, max_time = 0.5)]
fn sonic_rs_and_base64_turbo(bencher: divan::Bencher<'_, '_>, case: Case) {
    let body = body(case);
    bencher.bench(|| with_sonic(black_box(&body)));
}

#[divan::bench(args = MEASURED, max_time = 0.5)]
fn jiter_and_base64_turbo(bencher: divan::Bencher<'_, '_>, case: Case) {
    let body = body(case);
    bencher.bench(|| with_jiter(black_box(&body)));
}
