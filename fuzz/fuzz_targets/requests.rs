//! Reads arbitrary request bodies with both JSON readers: the cursor of Gemini's requests, whose
//! edits must leave the rest as it is, and the tree of OpenAI's. Nothing may panic, and no body may
//! take much more memory than its size (`.ci/fuzz` bounds the process) or more than linear time.
#![no_main]

use bytes::Bytes;
use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use tower_gemini_core::call::{Call, Conversation};
use tower_gemini_core::scan::PartKeyer;
use tower_gemini_openai::{Endpoint, to_gemini};

fuzz_target!(|body: &[u8]| {
    let body = Bytes::copy_from_slice(body);
    let path = "/v1beta/models/gemini-3-pro-image:generateContent".parse().unwrap();
    let _ = Call::parse(&Method::POST, &path, &HeaderMap::new(), Some(&body));
    let conversation = Conversation::read(&body, &PartKeyer::new([1, 2]));
    let missing: Vec<_> =
        conversation.missing().map(|part| (part, Bytes::from_static(b"c2ln"))).collect();
    let signed = Conversation::sign(&body, &missing).concat();
    if serde_json::from_slice::<serde_json::Value>(&body).is_ok() {
        assert!(serde_json::from_slice::<serde_json::Value>(&signed).is_ok());
    }
    for endpoint in
        [Endpoint::ChatCompletions, Endpoint::ImageGenerations, Endpoint::ImageEdits]
    {
        if let Ok(gemini) = to_gemini(endpoint, &HeaderMap::new(), &body) {
            serde_json::from_slice::<serde_json::Value>(&gemini.body).unwrap();
            assert!(gemini.body.len() <= 4 * body.len() + 4096);
        }
    }
});
