//! One attempt of each call: what stands in the place of retry where nothing is to be retried.

use std::task::{Context, Poll};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::body::{CallBody, JudgedBody};
use crate::error::Error;
use crate::stage::AttemptService;

/// Makes [`SingleAttempt`] services.
///
/// ```
/// use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, SingleAttemptLayer, WireBody, compose};
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// # let client = tower::service_fn(|_: Request<WireBody>| async {
/// #     Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::new())))
/// # });
/// let layers = (CollectRequestLayer::new(), SingleAttemptLayer::new(), ClassifyGeminiErrorLayer::new());
/// let judged = compose(layers, client);
/// # let _ = judged;
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleAttemptLayer(());

impl SingleAttemptLayer {
    /// The layer; there is nothing to set.
    #[must_use]
    pub fn new() -> Self {
        Self(())
    }
}

impl<S: AttemptService> Layer<S> for SingleAttemptLayer {
    type Service = SingleAttempt<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SingleAttempt { inner }
    }
}

/// Makes one attempt of each call and never retries.
///
/// It stands where [`JitteredRetry`](crate::JitteredRetry) would. Errors are the inner service's
/// own; dropping the future drops the attempt.
#[derive(Debug, Clone)]
pub struct SingleAttempt<S> {
    inner: S,
}

crate::access::inner_access!(SingleAttempt);

impl<S: AttemptService> Service<Request<CallBody>> for SingleAttempt<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        self.inner.call(request.map(CallBody::into_attempt))
    }
}
