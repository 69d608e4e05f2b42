//! The readiness probe: no layer calls a clone of its inner service that was never made ready, and
//! none is ready while its inner service is pending.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt;
use http::{Method, Request, Response};
use http_body_util::Full;
use tokio::time::{Instant, sleep};
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_gemini::body::{CallBody, WireBody};
use tower_gemini::clock::RuntimeClock;
use tower_gemini::jittered_retry::{Backoff, OutagePolicy, RetryPolicy};
use tower_gemini::model_fallback::Chain;
use tower_gemini::peak_hour_router::presets;
use tower_gemini::quota_guard::Limits;
use tower_gemini::spending::Caps;
use tower_gemini::{
    AnswerErrorsLayer, AttemptTimeoutLayer, CallOptions, ClassifyGeminiErrorLayer,
    CollectRequestLayer, Error, FinalImageExtractLayer, GeminiStack, JitteredRetryLayer,
    KeepPaidLayer, ModelFallbackLayer, ObserveLayer, PeakHourRouterLayer, QuotaGuardLayer,
    ResolutionFallbackLayer, ResumeInteractionsLayer, SingleAttemptLayer, SpendingLayer,
    ThoughtSignaturesLayer, compose,
};

use crate::harness::{Scenario, in_paused_time};
use crate::spending_caps;

/// Panics when it is called without having been asked whether it is ready, and each clone starts
/// unready. Answers the same statuses in order, each after a second; an interaction that it starts
/// breaks off, and can be fetched.
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
const BROKEN_OFF: &str = r#"{"id":"v1_a","sta"#;
const INTERACTION: &str = r#"{"id":"v1_a","status":"completed","steps":[{"type":"model_output","content":[{"type":"image","mime_type":"image/png","data":"AQID"}]}]}"#;

impl<B> Service<Request<B>> for Probe {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been made ready");
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        let status = self.statuses.get(n).or(self.statuses.last()).copied().unwrap_or(200);
        let body = match (status, request.method()) {
            (200, &Method::GET) => INTERACTION,
            (200, _) if request.uri().path() == INTERACTIONS => BROKEN_OFF,
            (200, _) => IMAGE,
            _ => OVERLOADED,
        };
        Box::pin(async move {
            sleep(Duration::from_secs(1)).await;
            Ok(Response::builder().status(status).body(Full::from(body)).unwrap())
        })
    }
}

const INTERACTIONS: &str = "/v1beta/interactions";

/// A call that may wait for quiet hours.
fn request(path: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = Scenario::new([]).request("a");
    if let Some(path) = path {
        *request.uri_mut() = path.parse().unwrap();
    }
    let options = CallOptions::new().deferrable_for(Duration::from_secs(600));
    request.extensions_mut().insert(options);
    request
}

/// Calls a service and sends again what failed.
async fn delivered<S, T>(service: &mut S, path: Option<&str>)
where
    S: Service<Request<Full<Bytes>>, Response = Response<T>, Error: Debug>,
{
    for _ in 0..4 {
        let response = service.ready().await.unwrap().call(request(path)).await.unwrap();
        if response.status() == 200 {
            return;
        }
    }
    panic!("there is no image");
}

/// Calls a service and a clone of it, both twice, side by side.
async fn twice_at<S, T>(path: Option<&str>, mut service: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<T>, Error: Debug> + Clone,
{
    for _ in 0..2 {
        let mut clone = service.clone();
        tokio::join!(delivered(&mut service, path), delivered(&mut clone, path));
    }
}

async fn twice<S, T>(service: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<T>, Error: Debug> + Clone,
{
    twice_at(None, service).await;
}

/// At 13:59:50, ten seconds before the end of a peak.
fn router() -> PeakHourRouterLayer {
    let clock = RuntimeClock::starting_at(UNIX_EPOCH + Duration::from_secs(1_767_707_990));
    PeakHourRouterLayer::new(presets::TEN_TO_FOURTEEN_UTC.schedule()).clock(clock)
}

fn retry() -> JitteredRetryLayer {
    JitteredRetryLayer::new(RetryPolicy::uniform(4, Backoff::constant(Duration::from_secs(1))))
}

#[test]
fn no_layer_calls_an_unready_service() {
    let worst_case = spending_caps::attempt(&Scenario::new([]));
    in_paused_time(async {
        let collect = CollectRequestLayer::new();
        let classify = ClassifyGeminiErrorLayer::new();
        let single = SingleAttemptLayer::new();
        let bare = |probe| compose((collect, single, classify.clone()), probe);
        twice(bare(Probe::new(&[200]))).await;
        twice(AnswerErrorsLayer::new().layer(bare(Probe::new(&[200])))).await;
        let timeout = AttemptTimeoutLayer::new();
        twice(compose((collect, single, timeout, classify.clone()), Probe::new(&[200]))).await;
        // Retry is probed where it sends again,
        let probe = Probe::new(&[503, 503, 200]);
        twice(compose((collect, retry(), classify.clone()), probe)).await;
        // after it has waited for the end of an outage,
        let outages = Some(OutagePolicy::recommended().after_failures(2));
        let policy = RetryPolicy::recommended().attempts(1).outages(outages);
        let probe = Probe::new(&[503, 503, 503, 200]);
        let waits = JitteredRetryLayer::new(policy).seed(1);
        twice(compose((collect, waits, classify.clone()), probe)).await;
        // and where it goes on with a call that its client sends again.
        let never = RetryPolicy::recommended().attempts(1).outages(None);
        let continues = JitteredRetryLayer::new(never).continue_resends(Duration::from_secs(60));
        let probe = Probe::new(&[503, 503, 503, 200]);
        twice(compose((collect, continues, classify.clone()), probe)).await;
        // Of two identical calls one waits for the other, and is sent when that has failed.
        let keep = KeepPaidLayer::new();
        let probe = Probe::new(&[503, 200]);
        twice(compose((collect, keep, single, classify.clone()), probe)).await;
        let images = FinalImageExtractLayer::new();
        twice(compose((collect, images, single, classify.clone()), Probe::new(&[200]))).await;
        let json = FinalImageExtractLayer::json();
        twice(compose((collect, json, single, classify.clone()), Probe::new(&[200]))).await;
        // The first calls wait for the end of the peak.
        let probe = Probe::new(&[200]);
        twice(compose((collect, router(), single, classify.clone()), probe)).await;
        let spending = SpendingLayer::new();
        let probe = Probe::new(&[200]);
        twice(compose((collect, single, spending, classify.clone()), probe)).await;
        // There is money for one attempt: the other waits until that has failed for free.
        let caps = Caps::none().at_most_microusd(worst_case);
        let layers = (collect, single, SpendingLayer::new().total(caps), classify.clone());
        let service = compose(layers, Probe::new(&[503]));
        let began = Instant::now();
        let send = || async { service.clone().oneshot(request(None)).await.unwrap().status() };
        let (first, second) = tokio::join!(send(), send());
        assert_eq!((first.as_u16(), second.as_u16()), (503, 503));
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        let signatures = ThoughtSignaturesLayer::new();
        let probe = Probe::new(&[200]);
        twice(compose((collect, signatures, single, classify.clone()), probe)).await;
        let resume = ResumeInteractionsLayer::new();
        let probe = Probe::new(&[200]);
        let calls = probe.calls.clone();
        let resumes = compose((collect, single, classify, resume), probe);
        twice_at(Some(INTERACTIONS), resumes).await;
        assert_eq!(calls.load(Ordering::Relaxed), 8, "each is sent and fetched");
        let stack = GeminiStack::new().retry(retry());
        twice(stack.images(Probe::new(&[503, 200, 503, 503, 200, 200]))).await;
        twice(stack.raw(Probe::new(&[503, 200]))).await;
        twice(stack.json(Probe::new(&[503, 200]))).await;
    });
}

/// A client with one place.
type OnePlace = ConcurrencyLimit<Probe>;

/// Whether somebody could be sent now.
fn has_place(client: &OnePlace) -> bool {
    ServiceExt::<Request<WireBody>>::ready(&mut client.clone()).now_or_never().is_some()
}

/// Waits for the client's only place, and gives it back when its call is over. `in_call`: it takes
/// the call at once, and waits in that.
async fn waits<S, T>(in_call: bool, layers: impl FnOnce(OnePlace) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<T>, Error: Debug> + Clone,
{
    let probe = Probe::new(&[200]);
    let calls = probe.calls.clone();
    let client = ConcurrencyLimit::new(probe, 1);
    let service = layers(client.clone());
    let name = std::any::type_name::<S>();
    let mut other = client.clone();
    let taken = ServiceExt::<Request<WireBody>>::ready(&mut other).now_or_never();
    assert!(taken.is_some());
    let mut waiting = service.clone();
    assert_eq!(waiting.ready().now_or_never().is_some(), in_call, "{name}");
    if in_call {
        let mut call = pin!(waiting.call(request(None)));
        let is_over = tokio::time::timeout(Duration::from_secs(20), &mut call).await;
        assert!(is_over.is_err(), "{name}");
        assert_eq!(calls.load(Ordering::Relaxed), 0, "{name}");
        drop(other);
        assert_eq!(call.await.unwrap().status(), 200, "{name}");
    } else {
        drop(other);
        assert!(waiting.ready().now_or_never().is_some(), "{name}");
        // The service is kept while its call runs, and keeps no place of its own.
        let call = tokio::time::timeout(Duration::from_secs(60), waiting.call(request(None)));
        assert_eq!(call.await.expect(name).unwrap().status(), 200, "{name}");
        // Made ready and dropped, it keeps nothing.
        assert!(service.clone().ready().now_or_never().is_some(), "{name}");
    }
    assert!(has_place(&client), "{name}: the place of a call that is over");
    assert_eq!(calls.load(Ordering::Relaxed), 1, "{name}");
}

#[test]
fn every_layer_waits_for_a_place_in_the_client_and_gives_it_back() {
    in_paused_time(async {
        let collect = CollectRequestLayer::new();
        let classify = ClassifyGeminiErrorLayer::new();
        let single = SingleAttemptLayer::new();
        let bare = |client| compose((collect, single, classify.clone()), client);
        waits(false, bare).await;
        waits(true, |client| AnswerErrorsLayer::new().layer(bare(client))).await;
        waits(false, |client| ObserveLayer::new().layer(bare(client))).await;
        macro_rules! on_calls {
            ($($in_call:literal $layer:expr),* $(,)?) => {$(
                let layers = (collect, $layer, single, classify.clone());
                waits($in_call, |client| compose(layers, client)).await;
            )*};
        }
        let chain = Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
        on_calls! {
            false KeepPaidLayer::new(),
            false FinalImageExtractLayer::new(),
            false FinalImageExtractLayer::json(),
            false ThoughtSignaturesLayer::new(),
            false router(),
            true ModelFallbackLayer::new(chain),
            true ResolutionFallbackLayer::new(),
        }
        macro_rules! on_attempts {
            ($($layer:expr),* $(,)?) => {$(
                let layers = (collect, single, $layer, classify.clone());
                waits(false, |client| compose(layers, client)).await;
            )*};
        }
        on_attempts![
            SpendingLayer::new(),
            QuotaGuardLayer::new(Limits::unlimited().rpm(9)),
            AttemptTimeoutLayer::new()
        ];
        let layers = (collect, retry(), classify.clone());
        waits(false, |client| compose(layers, client)).await;
        let layers = (collect, single, classify, ResumeInteractionsLayer::new());
        waits(false, |client| compose(layers, client)).await;
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
