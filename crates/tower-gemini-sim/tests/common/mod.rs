//! What every test of the simulator needs.
// Each test binary uses a part of this; the exemption of tests from these lints does not reach
// helpers.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tower_gemini_sim::{Sim, SimBody, SimError};
use tower_service::Service as _;

pub(crate) const PRO: &str = "gemini-3-pro-image";
pub(crate) const FLASH: &str = "gemini-2.5-flash-image";
pub(crate) const FLASH31: &str = "gemini-3.1-flash-image";
pub(crate) const CAT: &str = r#"{ "contents": [{ "parts": [{ "text": "a cat on a wall" }] }] }"#;

pub(crate) fn post(uri: impl AsRef<str>, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(uri.as_ref())
        .header("x-goog-api-key", "key-1")
        .body(Full::new(body.into()))
        .unwrap()
}

pub(crate) fn generate(model: &str) -> Request<Full<Bytes>> {
    post(format!("https://gemini.example/v1beta/models/{model}:generateContent"), CAT)
}

pub(crate) fn stream(model: &str) -> Request<Full<Bytes>> {
    post(format!("https://gemini.example/v1beta/models/{model}:streamGenerateContent?alt=sse"), CAT)
}

pub(crate) fn sized(model: &str, size: &str) -> Request<Full<Bytes>> {
    let body = format!(
        r#"{{ "contents": [{{ "parts": [{{ "text": "a cat" }}] }}], "generationConfig": {{ "imageConfig": {{ "imageSize": "{size}" }} }} }}"#
    );
    post(format!("https://gemini.example/v1beta/models/{model}:generateContent"), body)
}

pub(crate) fn tagged(mut request: Request<Full<Bytes>>, tag: &str) -> Request<Full<Bytes>> {
    request.headers_mut().insert("x-sim-call", tag.parse().unwrap());
    request
}

/// An answer taken to its end.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    /// Of `x-gemini-service-tier`.
    pub(crate) tier: Option<String>,
    pub(crate) body: Bytes,
}

impl Taken {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub(crate) async fn send(sim: &Sim, request: Request<Full<Bytes>>) -> Result<Taken, SimError> {
    take(sim.service().call(request).await?).await
}

pub(crate) async fn take(response: http::Response<SimBody>) -> Result<Taken, SimError> {
    let (parts, body) = response.into_parts();
    let content_type = parts.headers["content-type"].to_str().unwrap().to_owned();
    let tier = parts.headers.get("x-gemini-service-tier");
    let tier = tier.map(|tier| tier.to_str().unwrap().to_owned());
    let body = body.collect().await?.to_bytes();
    Ok(Taken { status: parts.status.as_u16(), content_type, tier, body })
}

/// The file of the last image that is not a thought.
pub(crate) fn final_image(answer: &serde_json::Value) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let parts = answer["candidates"][0]["content"]["parts"].as_array()?;
    let data = parts
        .iter()
        .filter(|part| part["thought"] != true)
        .filter_map(|part| part["inlineData"]["data"].as_str())
        .next_back()?;
    Some(base64::engine::general_purpose::STANDARD.decode(data).unwrap())
}
