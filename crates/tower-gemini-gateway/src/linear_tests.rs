//! What the scanners of all crates do grows with their input, and not with its square, whatever the
//! input is.
//!
//! Time is measured, and no work counted: two dozen state machines over `memchr` and serde would each
//! need a counter, and what a counter does not see is what goes wrong (a search that begins anew, a
//! buffer that is copied). Eight times the input takes eight times the time of a linear scanner, and
//! sixty-four times that of a quadratic one; the least of several runs stays below the limit between
//! them also on a machine that does five other things. `redact` counts its work too, in core.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tower_gemini::call::{Call, Conversation, Framing};
use tower_gemini::catalog::Catalog;
use tower_gemini::classify::{classify, remedy};
use tower_gemini::redact::redact;
use tower_gemini::scan::{PartKeyer, Scanner, StreamStripper, TextPiece, strip_drafts};
use tower_gemini::target::{Rules, Target, rewrite};
use tower_gemini_openai::{Endpoint, to_gemini, translate_error};

use crate::mask::{Secrets, masked};

const SMALL: usize = 8 * 1024;
const FACTOR: usize = 8;
/// Between 8, which is linear, and 64.
const MOST: u32 = 32;
/// What takes less is too short to be told from noise. A scanner that looks for the end of every
/// eighth byte of the larger input anew looks at 268 million bytes.
const SHORT: Duration = Duration::from_millis(3);
/// Runs of each size before a scanner is blamed: other work of the machine can last for some.
const RUNS: usize = 20;

/// What is repeated.
const UNITS: [&str; 44] = [
    "a",
    " ",
    "0",
    "\"",
    "\\",
    "\\\"",
    "\\u0041",
    "\\ud83d",
    "é",
    ":",
    ",",
    "=",
    "'",
    "\r",
    "\n",
    "\r\n",
    "\n\n",
    "\r\n\r\n",
    "[",
    "[[],",
    "{",
    "{\"\":",
    "{\"\":0,",
    "{\"a\":[",
    "[{\"\":0},",
    "\"a\":{},",
    "key=",
    "key='",
    "AIza",
    "%3D",
    "data:",
    "data: {}\n\n",
    "event: x\ndata: ",
    "data:image/png;base64,",
    "![](data:image/png;base64,iVBORw0KGgo=)",
    "https://x/",
    "](",
    "--X\r\n",
    "\r\n--X\r\n",
    "\r\n--X\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\n",
    "{'a': '",
    "\"inlineData\":{\"data\":\"",
    "Please retry in 1s. limit: 0, ",
    "1h2m3.5s 429 ",
];

/// As a JSON string, without its quotes.
fn in_json(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Where a hostile text stands.
#[derive(Clone, Copy)]
enum Place {
    /// Alone.
    Raw,
    /// In the message of an error, as JSON.
    Error,
    /// In a text of a response.
    Answer,
    /// The same, as an event.
    Event,
    /// In the prompt of a request to Gemini.
    Prompt,
    /// As a member of a part of such a request.
    Part,
    /// In a prompt of OpenAI's chat.
    Chat,
    /// In a field of a form.
    Form,
}

impl Place {
    fn around(self, text: &str) -> String {
        match self {
            Self::Raw => text.to_owned(),
            Self::Error => {
                let text = in_json(text);
                format!(
                    r#"{{"error":{{"code":429,"message":"{text}","details":[{{"a":"{text}"}}]}}}}"#
                )
            }
            Self::Answer => format!(
                r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{}"}}]}},"finishReason":"STOP"}}]}}"#,
                in_json(text)
            ),
            Self::Event => format!("data: {}\r\n\r\n", Self::Answer.around(text)),
            Self::Prompt => {
                format!(r#"{{"contents":[{{"parts":[{{"text":"{}"}}]}}]}}"#, in_json(text))
            }
            Self::Part => format!(r#"{{"contents":[{{"parts":[{{"x":{text}}}]}}]}}"#),
            Self::Chat => json!({
                "model": "nano-banana-pro",
                "messages": [{ "role": "user", "content": text }],
            })
            .to_string(),
            Self::Form => format!(
                "--X\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\n{text}\r\n--X--\r\n"
            ),
        }
    }
}

type Scan = fn(&Bytes);

const PATH: &str = "/v1beta/models/gemini-3-pro-image:generateContent";

fn call(body: &[u8]) -> Call {
    Call::parse(&Method::POST, &Uri::from_static(PATH), &HeaderMap::new(), Some(body))
}

/// Fed in pieces, of which each ends somewhere else.
fn pieces(input: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..input.len()).step_by(61).map(|at| input.slice(at..input.len().min(at + 61)))
}

fn scan(mut scanner: Scanner, chunks: impl Iterator<Item = Bytes>) {
    for chunk in chunks {
        if scanner.feed(&chunk).is_err() {
            break;
        }
        black_box(scanner.take_decoded());
    }
    let _ = black_box(scanner.finish());
}

fn strip(framing: Framing, chunks: impl Iterator<Item = Bytes>) {
    let mut stripper = StreamStripper::new(framing).unmarked_drafts(true);
    chunks.for_each(|chunk| drop(black_box(stripper.push(chunk))));
    black_box(stripper.finish());
}

fn translate(endpoint: Endpoint, kind: &'static str, body: &Bytes) {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let _ = black_box(to_gemini(endpoint, &headers, body));
}

fn translator() -> tower_gemini_openai::ResponseTranslator {
    let request = Bytes::from(Place::Chat.around("a cat"));
    to_gemini(Endpoint::ChatCompletions, &HeaderMap::new(), &request).unwrap().translator
}

const SCANNERS: [(&str, &[Place], Scan); 16] = [
    ("redact", &[Place::Raw, Place::Error], |input| {
        black_box(redact(&String::from_utf8_lossy(input)));
    }),
    ("read a request", &[Place::Raw, Place::Prompt, Place::Part], |input| {
        black_box(call(input));
    }),
    ("rewrite a request", &[Place::Prompt, Place::Part], |input| {
        let (parts, ()) = Request::post(PATH).body(()).unwrap().into_parts();
        let (target, catalog) = (Target::new("gemini-2.5-flash-image"), Catalog::builtin());
        let rules = Rules::new(catalog);
        let rewritten = rewrite(&parts, &Arc::new(call(input)), &target, &rules, || input.clone());
        let _ = black_box(rewritten.map(|rewritten| rewritten.into_body()));
    }),
    ("read and sign a conversation", &[Place::Raw, Place::Prompt, Place::Part], |input| {
        let conversation = Conversation::read(input, &PartKeyer::new([1, 2]));
        let signature = Bytes::from_static(b"c2ln");
        let missing: Vec<_> =
            conversation.missing().map(|part| (part, signature.clone())).collect();
        black_box(Conversation::sign(input, &missing));
    }),
    ("translate a request", &[Place::Raw, Place::Chat], |input| {
        translate(Endpoint::ChatCompletions, "application/json", input);
        translate(Endpoint::ImageGenerations, "application/json", input);
    }),
    ("read a form", &[Place::Raw, Place::Form], |input| {
        translate(Endpoint::ImageEdits, "multipart/form-data; boundary=X", input);
    }),
    ("scan a response", &[Place::Raw, Place::Answer], |input| {
        scan(Scanner::judging(Framing::Whole), std::iter::once(input.clone()));
        scan(Scanner::decoding(Framing::Whole), pieces(input));
    }),
    ("scan a stream", &[Place::Raw, Place::Event], |input| {
        scan(Scanner::judging(Framing::Sse), pieces(input));
        scan(Scanner::judging(Framing::JsonArray), pieces(input));
    }),
    ("strip a response", &[Place::Answer], |input| {
        let mut scanner = Scanner::judging(Framing::Whole).unmarked_drafts(true);
        let _ = scanner.feed(input);
        if let Ok(answer) = scanner.finish() {
            black_box(strip_drafts([input.clone()], &answer));
        }
    }),
    ("strip a stream", &[Place::Raw, Place::Event], |input| {
        strip(Framing::Sse, pieces(input));
        strip(Framing::Sse, std::iter::once(input.clone()));
        strip(Framing::JsonArray, pieces(input));
    }),
    ("find images in a text", &[Place::Raw], |input| {
        black_box(TextPiece::all(&String::from_utf8_lossy(input)));
    }),
    ("classify an error", &[Place::Raw, Place::Error], |input| {
        let mut headers = HeaderMap::new();
        if let Ok(hint) = HeaderValue::from_bytes(input) {
            headers.insert(RETRY_AFTER, hint);
        }
        let verdict = classify(&call(b"{}"), StatusCode::TOO_MANY_REQUESTS, &headers, input);
        black_box(remedy(&verdict));
        black_box(classify(&call(b"{}"), StatusCode::OK, &HeaderMap::new(), input));
    }),
    ("translate an error", &[Place::Raw, Place::Error], |input| {
        black_box(translate_error(StatusCode::TOO_MANY_REQUESTS, input));
    }),
    ("translate a response", &[Place::Raw, Place::Answer], |input| {
        black_box(translator().response(StatusCode::OK, input, 0));
    }),
    ("translate a stream", &[Place::Raw, Place::Event], |input| {
        let mut translator = translator().stream(0);
        pieces(input).for_each(|chunk| drop(black_box(translator.push(&chunk))));
        black_box(translator.finish());
    }),
    ("mask secrets", &[Place::Raw], |input| {
        let pieces: Vec<_> = pieces(input).collect();
        let frames =
            pieces.into_iter().map(|chunk| Ok::<_, std::io::Error>(http_body::Frame::data(chunk)));
        let body = StreamBody::new(futures::stream::iter(frames));
        let secrets = Secrets::new(["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "key=key=key=x"]);
        black_box(masked(body, secrets).collect().now_or_never().unwrap().unwrap());
    }),
];

fn time(scan: Scan, input: &Bytes) -> Duration {
    #[allow(clippy::disallowed_methods, reason = "what is measured is real time")]
    let started = Instant::now();
    scan(input);
    started.elapsed()
}

/// The least times of the two inputs, where the larger one took too long each time.
fn slower_than_linear(scan: Scan, of: impl Fn(usize) -> String) -> Option<(Duration, Duration)> {
    let (small, large) = (Bytes::from(of(SMALL)), Bytes::from(of(FACTOR * SMALL)));
    let (mut least, mut most) = (time(scan, &small), Duration::MAX);
    for run in 1..=RUNS {
        least = least.min(time(scan, &small));
        most = most.min(time(scan, &large));
        if most < SHORT || most < least * MOST {
            return None;
        }
        if run >= 3 && most > Duration::from_secs(1) {
            break;
        }
    }
    Some((least, most))
}

fn repeated(unit: &str, bytes: usize) -> String {
    unit.repeat(bytes / unit.len())
}

#[test]
fn every_scanner_takes_time_in_proportion_to_any_input() {
    let mut blamed = Vec::new();
    for (name, places, scan) in SCANNERS {
        for unit in UNITS {
            for place in places {
                let grown = |bytes| place.around(&repeated(unit, bytes));
                // What the machine did beside the first look is over at the second.
                let again = |_| slower_than_linear(scan, grown);
                if let Some((least, most)) = slower_than_linear(scan, grown).and_then(again) {
                    blamed.push(format!("{name}, {unit:?}: {least:?} and {most:?}"));
                }
            }
        }
    }
    assert!(blamed.is_empty(), "{blamed:#?}");
}

// The test above can fail.
#[test]
fn a_scanner_that_looks_for_the_end_of_each_beginning_anew_is_found() {
    let planted: Scan = |input| {
        for at in memchr::memmem::find_iter(input, b"key=").step_by(8) {
            let end = input[at..].iter().position(|byte| *byte == b'\n');
            black_box(end);
        }
    };
    assert!(slower_than_linear(planted, |bytes| repeated("key=", bytes)).is_some());
    assert!(slower_than_linear(planted, |bytes| repeated("key=\n", bytes)).is_none());
}
