//! How a worker calls Gemini: through any stack of tower-gemini's, or the gateway in its process.

use std::future::Future;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use tower_gemini::Error;
use tower_gemini::body::HasVerdict;
use tower_gemini::target::Served;
use tower_gemini::verdict::Verdict;
use tower_service::Service;

/// What a call came to, beside what its trail says.
#[derive(Debug)]
#[non_exhaustive]
pub struct Drawn {
    /// The status of the response, where there is one.
    pub status: Option<StatusCode>,
    /// Its headers.
    pub headers: HeaderMap,
    /// The whole body of the response; empty where there is none.
    pub body: Bytes,
    /// What the response or error means.
    pub verdict: Option<Verdict>,
    /// In what the response differs from what was asked for.
    pub served: Option<Served>,
}

impl Drawn {
    /// A response with this body.
    #[must_use]
    pub fn new(body: Bytes, verdict: Option<Verdict>, served: Option<Served>) -> Self {
        Self { status: None, headers: HeaderMap::new(), body, verdict, served }
    }

    /// With the head of its response.
    #[must_use]
    pub fn with_head(mut self, status: StatusCode, headers: HeaderMap) -> Self {
        (self.status, self.headers) = (Some(status), headers);
        self
    }
}

/// The job that a request is for, in its extensions.
#[derive(Debug, Clone)]
pub struct OfJob(
    /// The job's id.
    pub String,
);

/// Sends one call for an item, or a request of the Batch and Files APIs. It must read the
/// [`CallOptions`](tower_gemini::CallOptions) in the request's extensions, as every stack does, and
/// honour `Idempotency-Key`, as [`KeepPaid`](tower_gemini::KeepPaid) does.
pub trait Draw: Clone + Send + Sync + 'static {
    /// Sends it. The trail in the options has what it cost.
    fn draw(&self, request: Request<Bytes>) -> impl Future<Output = Drawn> + Send;
}

/// A stack that ends in [`json`](tower_gemini::GeminiStack::json) as what draws.
#[derive(Debug, Clone)]
pub struct Through<S>(
    /// The stack.
    pub S,
);

impl<S, B> Draw for Through<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Error>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error = Error> + HasVerdict + Send,
{
    async fn draw(&self, request: Request<Bytes>) -> Drawn {
        let mut service = self.0.clone();
        let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
        let response = match ready {
            Ok(()) => service.call(request.map(Full::new)).await,
            Err(error) => Err(error),
        };
        let read = match response {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let verdict = body.verdict().cloned();
                let body = body.collect().await.map(http_body_util::Collected::to_bytes);
                body.map(|body| {
                    let served = parts.extensions.get().cloned();
                    Drawn::new(body, verdict, served).with_head(parts.status, parts.headers)
                })
            }
            Err(error) => Err(error),
        };
        read.unwrap_or_else(|error| Drawn::new(Bytes::new(), Some(error.verdict().clone()), None))
    }
}
