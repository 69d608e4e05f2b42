//! The readiness probe: no layer calls a clone of its inner service that was never made ready.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_gemini::Error;
use tower_gemini::body::{CallBody, WireBody};
use tower_gemini::jittered_retry::{Backoff, RetryPolicy};
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, FinalImageExtractLayer,
    GeminiStack, JitteredRetryLayer, SingleAttemptLayer, SpendingLayer, ThoughtSignaturesLayer,
    compose,
};

use crate::harness::{Scenario, in_paused_time};

/// Panics when it is called without having been asked whether it is ready, and each clone starts
/// unready. Answers the same statuses in order.
struct Probe {
    ready: bool,
    calls: Arc<AtomicUsize>,
    statuses: &'static [u16],
}

impl Probe {
    fn new(statuses: &'static [u16]) -> Self {
        Self { ready: false, calls: Arc::default(), statuses }
    }
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        Self { ready: false, calls: self.calls.clone(), statuses: self.statuses }
    }
}

const IMAGE: &str = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#;
const OVERLOADED: &str =
    r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;

impl<B> Service<Request<B>> for Probe {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been made ready");
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        let status = self.statuses.get(n).or(self.statuses.last()).copied().unwrap_or(200);
        let body = if status == 200 { IMAGE } else { OVERLOADED };
        ready(Ok(Response::builder().status(status).body(Full::from(body)).unwrap()))
    }
}

async fn twice<S, T>(mut service: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<T>, Error = Error> + Clone,
{
    for _ in 0..2 {
        let mut clone = service.clone();
        assert_eq!(
            service
                .ready()
                .await
                .unwrap()
                .call(Scenario::new([]).request("a"))
                .await
                .unwrap()
                .status(),
            200
        );
        assert_eq!(
            clone
                .ready()
                .await
                .unwrap()
                .call(Scenario::new([]).request("b"))
                .await
                .unwrap()
                .status(),
            200
        );
    }
}

#[test]
fn no_layer_calls_an_unready_service() {
    in_paused_time(async {
        let collect = CollectRequestLayer::new();
        let classify = ClassifyGeminiErrorLayer::new();
        let retry = JitteredRetryLayer::new(RetryPolicy::uniform(
            4,
            Backoff::constant(Duration::from_secs(1)),
        ));
        let single = SingleAttemptLayer::new();
        twice(compose((collect, single, classify.clone()), Probe::new(&[200]))).await;
        let timeout = AttemptTimeoutLayer::new();
        twice(compose((collect, single, timeout, classify.clone()), Probe::new(&[200]))).await;
        // Retry is probed where it sends again.
        let probe = Probe::new(&[503, 503, 200]);
        twice(compose((collect, retry.clone(), classify.clone()), probe)).await;
        let images = FinalImageExtractLayer::new();
        twice(compose((collect, images, single, classify.clone()), Probe::new(&[200]))).await;
        let json = FinalImageExtractLayer::json();
        twice(compose((collect, json, single, classify.clone()), Probe::new(&[200]))).await;
        let spending = SpendingLayer::new();
        twice(compose((collect, single, spending, classify.clone()), Probe::new(&[200]))).await;
        let signatures = ThoughtSignaturesLayer::new();
        twice(compose((collect, signatures, single, classify), Probe::new(&[200]))).await;
        let stack = GeminiStack::new().retry(retry);
        twice(stack.images(Probe::new(&[503, 200, 503, 503, 200, 200]))).await;
        twice(stack.raw(Probe::new(&[503, 200]))).await;
        twice(stack.json(Probe::new(&[503, 200]))).await;
    });
}

#[test]
#[should_panic(expected = "called without having been made ready")]
fn the_probe_finds_a_layer_that_calls_a_clone() {
    /// The fault as other crates shipped it: the clone is called, and what was made ready stays
    /// behind.
    #[derive(Clone)]
    struct CallsClone<S>(S);

    impl<S> Service<Request<CallBody>> for CallsClone<S>
    where
        S: tower_gemini::stage::CallService,
    {
        type Response = S::Response;
        type Error = Error;
        type Future = S::Future;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
            self.0.poll_ready(cx)
        }

        fn call(&mut self, request: Request<CallBody>) -> Self::Future {
            self.0.clone().call(request)
        }
    }

    in_paused_time(async {
        let classify = ClassifyGeminiErrorLayer::new();
        let judged = compose((SingleAttemptLayer::new(), classify), Probe::new(&[200]));
        twice(CollectRequestLayer::new().layer(CallsClone(judged))).await;
    });
}

#[test]
fn an_inner_service_that_fails_to_be_ready_is_not_charged() {
    in_paused_time(async {
        let broken = service_fn(|_: Request<WireBody>| async {
            Ok::<Response<Full<Bytes>>, std::io::Error>(Response::default())
        })
        .map_err(|error: std::io::Error| error);
        #[derive(Clone)]
        struct NeverReady<S>(S);
        impl<S: Service<Request<WireBody>, Error = std::io::Error>> Service<Request<WireBody>>
            for NeverReady<S>
        {
            type Response = S::Response;
            type Error = std::io::Error;
            type Future = S::Future;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
                Poll::Ready(Err(std::io::Error::other("the pool is closed")))
            }
            fn call(&mut self, request: Request<WireBody>) -> Self::Future {
                self.0.call(request)
            }
        }
        let error = GeminiStack::new()
            .raw(NeverReady(broken))
            .oneshot(Scenario::new([]).request("a"))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the request could not be sent: the pool is closed; nothing was charged"
        );
    });
}
