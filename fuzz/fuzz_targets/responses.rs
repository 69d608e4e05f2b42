//! Translates arbitrary responses into OpenAI's form: nothing may panic, and what comes out is JSON of
//! no more than a few times the size. The first byte chooses the endpoint and the status.
#![no_main]

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use libfuzzer_sys::fuzz_target;
use tower_gemini_openai::{Endpoint, to_gemini};

fuzz_target!(|input: &[u8]| {
    let Some((choice, body)) = input.split_first() else { return };
    let (endpoint, request): (_, &[u8]) = match choice & 1 {
        0 => (
            Endpoint::ChatCompletions,
            br#"{"model":"nano-banana-pro","messages":[{"role":"user","content":"x"}]}"#,
        ),
        _ => (Endpoint::ImageGenerations, br#"{"model":"nano-banana-pro","prompt":"x"}"#),
    };
    let request = Bytes::from_static(request);
    let gemini = to_gemini(endpoint, &HeaderMap::new(), &request).unwrap();
    let status = [200, 400, 429, 503][usize::from(choice >> 1 & 3)];
    let status = StatusCode::from_u16(status).unwrap();
    let (_, translated) = gemini.translator.response(status, body, 0);
    serde_json::from_slice::<serde_json::Value>(&translated).unwrap();
    assert!(translated.len() <= 6 * body.len() + 4096);
});
