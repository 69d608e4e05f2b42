//! What every policy is: a client that is asked for one image.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt, Full};
use tower::ServiceExt;
use tower_gemini::Trail;
use tower_gemini_sim::SimService;

/// Nano Banana 2.
pub const FLASH: &str = "gemini-3.1-flash-image";
/// Nano Banana Pro.
pub const PRO: &str = "gemini-3-pro-image";

/// The key that every client sends.
pub const KEY: &str = "any";

/// One image that somebody wants.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Which call this is: all its attempts carry it, so the ledger knows what belongs together.
    pub number: usize,
    /// The model.
    pub model: &'static str,
    /// The size.
    pub size: &'static str,
    /// Whether it asks for the flex tier.
    pub flex: bool,
    /// How long the caller waits for all of it.
    pub patience: Duration,
    /// The trails of our layers, which state what they believe the call cost.
    pub trails: Arc<Mutex<Vec<Trail>>>,
}

/// What a client saw of one attempt, or of a whole call, that gave no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// 429.
    RateLimited,
    /// 503.
    Overloaded,
    /// 500.
    Internal,
    /// 502.
    BadGateway,
    /// 504 and 408: the server, or something before it, ran out of time.
    Deadline,
    /// Any other status.
    Refused,
    /// The client's own timeout.
    Timeout,
    /// No connection, or it broke before the head of the response.
    Broken,
    /// The connection broke within the body.
    Cut,
    /// 200, and the JSON ends too early.
    Garbled,
    /// 200 without an image.
    NoImage,
}

/// How a call ended, as the client sees it.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    /// An image, or why there is none.
    pub result: Result<(), Failure>,
    /// The wait that the server names in `RetryInfo`.
    pub hint: Option<Duration>,
    /// The call ended because its time was up.
    pub out_of_time: bool,
}

impl Reply {
    /// A failure that names no wait.
    pub fn failed(failure: Failure) -> Self {
        Self { result: Err(failure), hint: None, out_of_time: false }
    }
}

/// A policy at work.
pub trait Client: Send + Sync {
    /// Tries to get the image.
    fn call(&self, ask: Ask) -> BoxFuture<'static, Reply>;
}

impl Ask {
    /// The request, as any client sends it. The prompt differs from call to call.
    pub fn request(&self) -> Request<Full<Bytes>> {
        let Self { number, model, size, flex, .. } = self;
        let tier = if *flex { r#""serviceTier":"flex","# } else { "" };
        let body = format!(
            r#"{{{tier}"contents":[{{"role":"user","parts":[{{"text":"lighthouse {number} in a storm"}}]}}],"generationConfig":{{"imageConfig":{{"imageSize":"{size}"}}}}}}"#
        );
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = http::Method::POST;
        let url = format!("https://gemini.example/v1beta/models/{model}:generateContent");
        *request.uri_mut() = url.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert("x-goog-api-key", http::HeaderValue::from_static(KEY));
        headers.insert("x-sim-call", http::HeaderValue::from(*number));
        request
    }

    /// A trail that the scoreboard will look at.
    pub fn new_trail(&self) -> Trail {
        let trail = Trail::new();
        self.trails.lock().unwrap_or_else(PoisonError::into_inner).push(trail.clone());
        trail
    }
}

/// What a status and a body mean to a client that knows nothing of charges.
pub fn reply(status: u16, body: &[u8]) -> Reply {
    let failure = match status {
        200 if memchr::memmem::find(body, b"\"inlineData\"").is_some()
            && body.trim_ascii_end().ends_with(b"}") =>
        {
            return Reply { result: Ok(()), hint: None, out_of_time: false };
        }
        200 if !body.trim_ascii_end().ends_with(b"}") => Failure::Garbled,
        200 => Failure::NoImage,
        429 => Failure::RateLimited,
        500 => Failure::Internal,
        502 => Failure::BadGateway,
        503 => Failure::Overloaded,
        504 | 408 => Failure::Deadline,
        _ => Failure::Refused,
    };
    let text = std::str::from_utf8(body).unwrap_or_default();
    let seconds = text.split_once("\"retryDelay\": \"").and_then(|(_, rest)| rest.split_once('s'));
    let hint = seconds.and_then(|(seconds, _)| seconds.parse().ok()).map(Duration::from_secs_f64);
    Reply { hint, ..Reply::failed(failure) }
}

/// Sends once and reads the answer: the client under every policy that is not ours.
#[derive(Debug, Clone)]
pub struct Wire(pub SimService);

impl Client for Wire {
    fn call(&self, ask: Ask) -> BoxFuture<'static, Reply> {
        let sim = self.0.clone();
        Box::pin(async move {
            let Ok(response) = sim.oneshot(ask.request()).await else {
                return Reply::failed(Failure::Broken);
            };
            let status = response.status().as_u16();
            match response.into_body().collect().await {
                Ok(body) => reply(status, &body.to_bytes()),
                Err(_) => Reply::failed(Failure::Cut),
            }
        })
    }
}
