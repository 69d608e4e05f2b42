//! Feeds arbitrary answers to the scanner: nothing may panic, every split must come to the same,
//! whole JSON must be read exactly when serde_json reads it, and stripped answers must still be
//! JSON with the same image.
//!
//! Run with `cargo +nightly fuzz run scan_differential`. The first byte chooses the framing and the
//! splits; the rest is the body.
#![no_main]

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tower_gemini_core::call::Framing;
use tower_gemini_core::scan::{Answer, ScanFailure, Scanner, strip_drafts};

fn scan(mut scanner: Scanner, body: &[u8], size: usize) -> Result<Answer, ScanFailure> {
    for chunk in body.chunks(size) {
        if scanner.feed(chunk).is_err() {
            break;
        }
        let _ = scanner.take_decoded();
    }
    scanner.finish()
}

fn decode(data: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone);
    let data: String = data
        .chars()
        .filter(|c| !matches!(c, ' ' | '\n' | '\r' | '\t'))
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            c => c,
        })
        .collect();
    let bare = data.trim_end_matches('=');
    if data.len() > bare.len() && data.len() % 4 != 0 || data.len() - bare.len() > 2 {
        return None;
    }
    GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(bare).ok()
}

/// Image and whether it is a thought; `None` where the base64 of one is corrupt.
fn plainly(value: &Value) -> Option<Option<(Vec<u8>, bool)>> {
    let mut chosen: Option<(Vec<u8>, bool)> = None;
    for part in value["candidates"][0]["content"]["parts"].as_array().into_iter().flatten() {
        let Some(data) = part["inlineData"]["data"].as_str() else { continue };
        let mime = part["inlineData"]["mimeType"].as_str().unwrap_or_default();
        if !mime.is_empty() && !mime.get(..6).is_some_and(|family| family.eq_ignore_ascii_case("image/")) {
            continue;
        }
        let bytes = decode(data)?;
        let is_thought = part["thought"] == true;
        if !bytes.is_empty() && (!is_thought || chosen.as_ref().is_none_or(|(_, is_thought)| *is_thought)) {
            chosen = Some((bytes, is_thought));
        }
    }
    Some(chosen)
}

/// Whether only shapes are in it that `plainly` reads as well.
fn is_plain(body: &[u8]) -> bool {
    let other: [&[u8]; 14] = [
        b"predictions",
        b"choices",
        b"data\"",
        b"outputs",
        b"steps",
        b"step",
        b"delta",
        b"interaction",
        b"response",
        b"b64_json",
        b"content\":{\"t",
        b"_",
        b"\\u",
        b"\xEF\xBB\xBF",
    ];
    // `data` is Gemini's too, but only behind `inlineData`.
    let has = |needle: &[u8]| body.windows(needle.len()).any(|window| window == needle);
    !other.iter().filter(|needle| **needle != b"data\"").any(|needle| has(needle)) && has(b"inlineData") == has(b"\"data\"")
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let framing = [Framing::Whole, Framing::Sse, Framing::JsonArray][usize::from(choice % 3)];
    let size = usize::from(choice / 3) % 16 + 1;
    let whole = scan(Scanner::decoding(framing), body, body.len().max(1));
    assert_eq!(whole, scan(Scanner::decoding(framing), body, size));
    let judged = scan(Scanner::judging(framing), body, size);
    assert_eq!(judged.as_ref().map_err(|failure| &failure.error).err(), whole.as_ref().map_err(|failure| &failure.error).err());
    let _ = scan(Scanner::draining(framing), body, size);

    let value = serde_json::from_slice::<Value>(body);
    if let Ok(answer) = &whole {
        let left = strip_drafts([Bytes::copy_from_slice(body)], answer).concat();
        let again = scan(Scanner::decoding(framing), &left, left.len().max(1)).expect("still an answer");
        let bytes = |answer: &Answer| answer.image.as_ref().map(|image| image.bytes.clone());
        assert_eq!(bytes(&again), bytes(answer));
        assert_eq!(value.is_ok(), serde_json::from_slice::<Value>(&left).is_ok());
    }
    if framing != Framing::Whole || !matches!(body.iter().find(|b| !b.is_ascii_whitespace()), Some(b'{' | b'[')) {
        return;
    }
    match (value, &whole) {
        (Ok(value), Ok(answer)) if is_plain(body) && value.is_object() => {
            if let Some(plain) = plainly(&value) {
                let found = answer.image.as_ref().map(|image| (image.bytes.to_vec(), image.is_thought));
                assert_eq!(found, plain);
            }
        }
        (Err(error), Ok(_)) => assert!(error.to_string().starts_with("number out of range"), "{error}"),
        (Ok(_), Err(failure)) => {
            let error = &failure.error;
            assert!(error.is_corrupt_image() || error.to_string().starts_with("a repeated member"), "{error}");
        }
        _ => {}
    }
});
