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
use tower_gemini::CallOptions;
use tower_gemini::Trail;
use tower_gemini::body::WireBody;
use tower_gemini::call::ImageSize;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::stage::WireClient;
use tower_gemini::{GeminiStack, JitteredRetryLayer, stack::Images};

/// A server that does not take a connection in this time takes none; nothing was sent then, so
/// another attempt is free.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One picture to draw.
#[derive(Debug, Clone)]
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
}

impl Job {
    pub(crate) fn new(prompt: &str, model: &str, size: Option<ImageSize>, endpoint: &str) -> Self {
        Self {
            name: crate::files::slug(prompt),
            prompt: prompt.to_owned(),
            model: model.to_owned(),
            size,
            endpoint: endpoint.to_owned(),
            trail: Trail::new(),
        }
    }

    /// Where it goes.
    pub(crate) fn url(&self) -> String {
        format!("{}/v1beta/models/{}:generateContent", self.endpoint, self.model)
    }

    /// What it says.
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

/// The recommended stack over a client.
pub(crate) fn stack<C: WireClient>(client: C, policy: RetryPolicy, seed: Option<u64>) -> Images<C> {
    let retry = JitteredRetryLayer::new(policy);
    let retry = match seed {
        Some(seed) => retry.seed(seed),
        None => retry,
    };
    GeminiStack::new().retry(retry).images(client)
}

/// A client for http.
pub(crate) fn plain_client() -> Client<HttpConnector, WireBody> {
    client(connector())
}

/// A client for https, with the certificates of Mozilla's list.
pub(crate) fn secure_client()
-> Result<Client<HttpsConnector<HttpConnector>, WireBody>, rustls::Error> {
    let mut http = connector();
    http.enforce_http(false);
    // Naming the provider keeps a second one, pulled in by somebody else, from making this
    // ambiguous.
    let https = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(client(https))
}

fn connector() -> HttpConnector {
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_nodelay(true);
    http
}

fn client<C>(connector: C) -> Client<C, WireBody>
where
    C: hyper_util::client::legacy::connect::Connect + Clone,
{
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector)
}
