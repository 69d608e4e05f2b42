//! What the scanner promises, as tables and properties.

use bytes::Bytes;

use super::paths::is_image;
use super::*;
use crate::scan::Framing;

mod dialects;
mod differential;
mod finals;
mod stream_strip;
mod streams;
mod strip;
mod traps;

/// What a scan came to, in a form that can be compared.
type Scanned = Result<Answer, ScanFailure>;

/// Scans `body` cut at the given offsets.
fn scan_cut(mut scanner: Scanner, body: &[u8], cuts: &[usize]) -> Scanned {
    let mut from = 0;
    for &cut in cuts.iter().chain([&body.len()]) {
        // A fault is repeated by `finish`.
        let _ = scanner.feed(&body[from..cut]);
        from = cut;
    }
    scanner.finish()
}

/// Scans a body whole, then once for every place to cut it in two, then byte by byte: all must
/// agree.
fn scan(framing: Framing, body: impl AsRef<[u8]>) -> Scanned {
    let body = body.as_ref();
    let scanner = || Scanner::decoding(framing).keep_signature(true);
    let whole = scan_cut(scanner(), body, &[]);
    for cut in 0..=body.len() {
        assert_eq!(scan_cut(scanner(), body, &[cut]), whole, "cut at {cut}");
    }
    let all: Vec<usize> = (0..body.len()).collect();
    assert_eq!(scan_cut(scanner(), body, &all), whole, "byte by byte");
    judged_and_drained_alike(framing, body, &whole);
    whole
}

/// The other two kinds of scanner must find the same facts, and the drained bytes must be the
/// image.
fn judged_and_drained_alike(framing: Framing, body: &[u8], decoded: &Scanned) {
    let without_bytes = |outcome: &Scanned| match outcome {
        Ok(answer) => {
            let mut answer = answer.clone();
            for image in answer.earlier_images.iter_mut().chain(&mut answer.image) {
                image.bytes = Bytes::new();
            }
            Ok(answer)
        }
        Err(failure) => Err(failure.error.clone()),
    };
    let judged = scan_cut(Scanner::judging(framing).keep_signature(true), body, &[]);
    assert_eq!(without_bytes(&judged), without_bytes(decoded));
    for size in [1, 17, 1 << 20] {
        let mut scanner = Scanner::draining(framing).keep_signature(true);
        let mut written = Vec::new();
        for chunk in body.chunks(size) {
            let fed = scanner.feed(chunk);
            let decoded = scanner.take_decoded();
            if decoded.restart {
                written.clear();
            }
            written.extend_from_slice(&decoded.bytes);
            if fed.is_err() {
                break;
            }
        }
        // One writer takes one image, the last.
        let last_alone = |outcome| match outcome {
            Ok(answer) => {
                let mut answer: Answer = answer;
                answer.earlier_images.clear();
                answer.parts.iter_mut().for_each(|part| part.is_final = false);
                Ok(answer)
            }
            error => error,
        };
        let drained = scanner.finish();
        assert_eq!(last_alone(without_bytes(&drained)), last_alone(without_bytes(decoded)));
        if let Ok(Answer { image: Some(image), .. }) = decoded {
            written.truncate(image.len as usize);
            assert_eq!(written, image.bytes, "drained in chunks of {size}");
        }
    }
}

/// Scans one JSON value that must be read without fault.
fn whole(body: impl AsRef<[u8]>) -> Answer {
    scan(Framing::Whole, body).unwrap()
}

/// Scans a stream that must be read without fault.
fn sse(body: impl AsRef<[u8]>) -> Answer {
    scan(Framing::Sse, body).unwrap()
}

/// The bytes of the chosen image.
fn image(answer: &Answer) -> &[u8] {
    answer.image.as_ref().map_or(b"no image", |image| &image.bytes)
}

/// An answer of Gemini with these parts.
fn parts(parts: &str) -> String {
    format!(
        r#"{{"candidates":[{{"content":{{"parts":[{parts}],"role":"model"}},"finishReason":"STOP"}}]}}"#
    )
}

// Base64 of the words that the tests use as images.
const DRAFT: &str = "ZHJhZnQ=";
const FINAL: &str = "ZmluYWw=";

fn part(data: &str, rest: &str) -> String {
    format!(r#"{{"inlineData":{{"mimeType":"image/png","data":"{data}"}}{rest}}}"#)
}
