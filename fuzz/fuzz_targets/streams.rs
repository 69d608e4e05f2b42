//! Splits arbitrary streams into events, strips their drafts and translates them: nothing may panic,
//! and how a stream is cut makes no difference. The first byte chooses the framing and the cuts.
#![no_main]

use bytes::Bytes;
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use tower_gemini_core::call::Framing;
use tower_gemini_core::scan::StreamStripper;
use tower_gemini_openai::{Endpoint, to_gemini};

fuzz_target!(|input: &[u8]| {
    let Some((choice, stream)) = input.split_first() else { return };
    let framing = if choice & 1 == 0 { Framing::Sse } else { Framing::JsonArray };
    let size = usize::from(choice >> 1).max(1);
    let stripped = |size: usize| {
        let mut stripper = StreamStripper::new(framing);
        let mut out = Vec::new();
        for chunk in stream.chunks(size) {
            out.extend(stripper.push(Bytes::copy_from_slice(chunk)));
        }
        out.extend(stripper.finish());
        out.concat()
    };
    assert_eq!(stripped(size), stripped(usize::MAX >> 1));
    let request = Bytes::from_static(
        br#"{"model":"nano-banana-pro","stream":true,"messages":[{"role":"user","content":"x"}]}"#,
    );
    let gemini = to_gemini(Endpoint::ChatCompletions, &HeaderMap::new(), &request).unwrap();
    let translated = |size: usize| {
        let mut translator = gemini.translator.stream(0);
        let mut out = Vec::new();
        for chunk in stream.chunks(size) {
            out.extend(translator.push(&Bytes::copy_from_slice(chunk)));
        }
        out.extend(translator.finish());
        out.concat()
    };
    assert_eq!(translated(size), translated(usize::MAX >> 1));
});
