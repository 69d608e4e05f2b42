//! The part to copy: a client, the stack around it, and a request.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::json;
use tower_gemini::body::WireBody;
use tower_gemini::call::ImageSize;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::stack::Images;
use tower_gemini::{CallOptions, GeminiStack, JitteredRetryLayer, Trail};

use crate::run::Saved;

pub(crate) type HttpsClient = Client<HttpsConnector<HttpConnector>, WireBody>;

/// A client for https, with the certificates of Mozilla's list, and for http.
pub(crate) fn client() -> Result<HttpsClient, rustls::Error> {
    let mut http = HttpConnector::new();
    // A server that does not take a connection in this time takes none; nothing was sent then, so
    // another attempt is free.
    http.set_connect_timeout(Some(Duration::from_secs(10)));
    http.set_nodelay(true);
    http.enforce_http(false);
    // Naming the provider keeps a second one, pulled in by somebody else, from making this
    // ambiguous.
    let https = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(https))
}

/// The recommended stack over that client: it takes requests and returns images.
pub(crate) fn stack(
    policy: RetryPolicy,
    seed: Option<u64>,
) -> Result<Images<HttpsClient>, rustls::Error> {
    let mut retry = JitteredRetryLayer::new(policy);
    if let Some(seed) = seed {
        retry = retry.seed(seed);
    }
    Ok(GeminiStack::new().retry(retry).images(client()?))
}

/// One picture to draw.
#[derive(Debug)]
pub(crate) struct Job {
    /// Name of the call and of its file.
    pub(crate) name: String,
    pub(crate) prompt: String,
    pub(crate) model: String,
    /// `None` for models that have one size and refuse to be asked for it.
    pub(crate) size: Option<ImageSize>,
    /// `https://host`, without a path.
    pub(crate) endpoint: String,
    /// What is decided on the way, readable at any time.
    pub(crate) trail: Trail,
    /// A file, or why there is none; `None` until then.
    pub(crate) end: Option<Result<Saved, String>>,
}

impl Job {
    pub(crate) fn new(
        name: String,
        prompt: &str,
        model: &str,
        size: Option<ImageSize>,
        endpoint: &str,
    ) -> Self {
        let [prompt, model, endpoint] = [prompt, model, endpoint].map(str::to_owned);
        Self { name, prompt, model, size, endpoint, trail: Trail::new(), end: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/v1beta/models/{}:generateContent", self.endpoint, self.model)
    }

    pub(crate) fn body(&self) -> String {
        let mut config = json!({ "responseModalities": ["TEXT", "IMAGE"] });
        if let Some(size) = self.size {
            config["imageConfig"] = json!({ "imageSize": size.as_str() });
        }
        json!({ "contents": [{ "parts": [{ "text": self.prompt }] }], "generationConfig": config })
            .to_string()
    }

    /// The request, with the trail in its extensions.
    pub(crate) fn request(&self, key: &HeaderValue) -> Result<Request<Full<Bytes>>, http::Error> {
        Request::post(self.url())
            .header("content-type", "application/json")
            .header("x-goog-api-key", key)
            .extension(CallOptions::new().trail(self.trail.clone()))
            .body(Full::from(self.body()))
    }
}
