//! Reads arbitrary forms of the images API: nothing may panic, what is translated is JSON, and takes
//! no more than base64 does.
#![no_main]

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tower_gemini_openai::{Endpoint, to_gemini};

fuzz_target!(|body: &[u8]| {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=X"));
    let body = Bytes::copy_from_slice(body);
    for endpoint in [Endpoint::ImageGenerations, Endpoint::ImageEdits] {
        if let Ok(gemini) = to_gemini(endpoint, &headers, &body) {
            serde_json::from_slice::<serde_json::Value>(&gemini.body).unwrap();
            assert!(gemini.body.len() <= 6 * body.len() + 4096);
        }
    }
});
