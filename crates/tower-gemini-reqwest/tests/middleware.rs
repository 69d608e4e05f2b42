//! The stack as a middleware, against the simulator over loopback.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::error::Error as StdError;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use common::{
    CAT, First, KEY, Later, Probe, Upstream, client, client_over, everything_printed, image_in,
    quick_stack, url_at,
};
use futures::future::{join_all, select};
use http::{Extensions, Request, StatusCode};
use reqwest_middleware::{ClientBuilder, Error, Middleware, Next, Result};
use tower::limit::ConcurrencyLimitLayer;
use tower::{Service, ServiceBuilder, ServiceExt as _};
use tower_gemini::CallOptions;
use tower_gemini::Trail;
use tower_gemini::attempt_timeout::AttemptTimeoutLayer;
use tower_gemini::error::{BoxError, Error as GeminiError};
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini::{
    ClassifyGeminiErrorLayer, CollectRequestLayer, GeminiStack, JitteredRetryLayer,
    SingleAttemptLayer,
};
use tower_gemini_reqwest::{
    ChannelLeaf, GeminiMiddleware, StackMiddleware, charge_of, client_builder,
};
use tower_gemini_sim::{Fault, Latency, Shape, Sim, hash64};

#[tokio::test]
async fn an_overload_is_outlived_and_the_image_comes_as_it_was_drawn_and_paid_for_once() {
    let upstream = Upstream::scripted([Fault::HighDemand, Fault::None]).await;
    let client = client(GeminiMiddleware::with(quick_stack()));
    let answer = upstream.post(&client).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let answer = answer.bytes().await.unwrap();
    assert_eq!(image_in(&answer), upstream.sim.image_for(1).unwrap());
    assert_eq!((upstream.sends(), upstream.charges()), (2, 1));
}

#[tokio::test]
async fn the_json_form_has_no_drafts_and_the_same_image() {
    let shape = Shape { drafts: 2, ..Shape::default() };
    let upstream = Upstream::scripted([Fault::Shaped(shape), Fault::Shaped(shape)]).await;
    let mut lengths = Vec::new();
    for (middleware, drafts) in [
        (GeminiMiddleware::with(quick_stack()), 2),
        (GeminiMiddleware::with(quick_stack()).json(), 0),
    ] {
        let answer =
            upstream.post(&client(middleware)).send().await.unwrap().bytes().await.unwrap();
        let number = lengths.len();
        assert_eq!(image_in(&answer), upstream.sim.image_for(number).unwrap());
        let json: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let parts = json["candidates"][0]["content"]["parts"].as_array().unwrap();
        let thoughts = parts
            .iter()
            .filter(|part| part["thought"] == true && part["inlineData"].is_object())
            .count();
        assert_eq!(thoughts, drafts);
        lengths.push(answer.len());
    }
    assert!(lengths[1] < lengths[0]);
}

// The chain is gone when a stream breaks off, so the fetch needs a client of its own.
#[tokio::test]
async fn a_stream_of_an_interaction_that_breaks_off_is_resumed_and_paid_for_once() {
    let stream = async |faults: Vec<Fault>| {
        let upstream = Upstream::scripted(faults).await;
        let resuming = client_builder().build().unwrap();
        let client = client(GeminiMiddleware::with(quick_stack()).resume_streams_with(resuming));
        let request = client.post(format!("{}/v1beta/interactions", upstream.server.url()));
        let request = request.header("x-goog-api-key", KEY).header("x-sim-call", "cat");
        let body = r#"{"model":"gemini-3-pro-image","input":"a red apple","stream":true}"#;
        let answer = request.body(body).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: ").map(str::to_owned));
        (data.collect::<Vec<_>>(), upstream.sends(), upstream.charges())
    };
    let uncut = stream(vec![]).await;
    assert!(uncut.0.last().unwrap().contains("interaction.completed"), "{:?}", uncut.0);
    assert_eq!((uncut.1, uncut.2), (1, 1));
    for at in [300, 700] {
        assert_eq!(stream(vec![Fault::CutBody { at }]).await, uncut, "{at}");
    }
}

// A stack that is built anew for each call counts anew for each call: a limit of one let fifty
// through.
#[tokio::test]
async fn a_limit_of_one_holds_over_all_calls() {
    let upstream = Upstream::with(
        Sim::builder().latency(Latency::fixed(Duration::from_millis(2))).tiny_images(true).build(),
    )
    .await;
    let stack = ServiceBuilder::new()
        .layer(CollectRequestLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(SingleAttemptLayer::new())
        .layer(ClassifyGeminiErrorLayer::new())
        .service(ChannelLeaf::new());
    let probe = Probe::default();
    let client = client_over(StackMiddleware::new(stack), probe.clone());
    let calls = (0..50)
        .map(|_| async { upstream.post(&client).send().await.unwrap().bytes().await.unwrap() });
    assert_eq!(join_all(calls).await.len(), 50);
    assert_eq!((probe.attempts(), probe.0.most_at_once.load(Ordering::SeqCst)), (50, 1));
}

#[tokio::test]
async fn without_a_limit_calls_run_at_once() {
    let upstream = Upstream::slow().await;
    let probe = Probe::default();
    let client = client_over(GeminiMiddleware::new(), probe.clone());
    let calls = join_all((0..5).map(|_| upstream.post(&client).send()));
    drop(select(Box::pin(calls), Box::pin(upstream.received(5))).await);
    assert_eq!(probe.0.most_at_once.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn dropping_the_call_cancels_the_attempt_and_the_trail_says_what_that_may_have_cost() {
    let upstream = Upstream::slow().await;
    let client = client(GeminiMiddleware::with(quick_stack()));
    let trail = Trail::new();
    let call =
        upstream.post(&client).with_extension(CallOptions::new().trail(trail.clone())).send();
    drop(select(Box::pin(call), Box::pin(upstream.received(1))).await);
    upstream.aborted().await;
    assert_eq!(upstream.sends(), 1);
    assert_eq!(trail.attempts()[0].charge, Charge::Maybe);
}

#[tokio::test]
async fn an_attempt_that_a_layer_gives_up_is_cancelled_below_and_comes_back_as_an_error_of_ours() {
    let upstream = Upstream::slow().await;
    let stack = quick_stack().timeout(
        AttemptTimeoutLayer::new().limit(Duration::from_millis(300)).server_margin(Duration::ZERO),
    );
    let client = client(GeminiMiddleware::with(stack));
    let error = upstream.post(&client).send().await.unwrap_err();
    let Error::Middleware(error) = error else { panic!("{error:?}") };
    let error = error.downcast::<GeminiError>().unwrap();
    assert!(error.is_timeout() && error.charge() == Charge::Maybe, "{error}");
    upstream.aborted().await;
}

#[tokio::test]
async fn when_attempts_run_out_the_last_answer_comes_back_with_its_body() {
    for json in [false, true] {
        let upstream =
            Upstream::scripted([Fault::Overloaded, Fault::Overloaded, Fault::HighDemand]).await;
        let middleware = GeminiMiddleware::with(quick_stack());
        let client = client(if json { middleware.json() } else { middleware });
        let answer = upstream.post(&client).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = answer.text().await.unwrap();
        assert!(body.contains("high demand"), "{body}");
        assert_eq!((upstream.sends(), upstream.charges()), (3, 0));
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_and_comes_back_as_reqwests_own_error() {
    let probe = Probe::default();
    let client = client_over(GeminiMiddleware::with(quick_stack()), probe.clone());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut extensions = Extensions::new();
    let request = client.post(url_at(&format!("http://{free}"))).body(CAT).build().unwrap();
    let error = client.execute_with_extensions(request, &mut extensions).await.unwrap_err();
    assert!(error.is_connect() && !error.is_middleware(), "{error:?}");
    assert_eq!(probe.attempts(), 3);
    // Its address is still there, without the key.
    assert_eq!(error.url().unwrap().query(), Some("key=***"));
    let trail = extensions.get::<Trail>().unwrap();
    assert!(
        trail.attempts().iter().all(|attempt| attempt.outcome == Some(Outcome::NotSent)),
        "{trail}"
    );
}

#[tokio::test]
async fn a_reset_after_the_request_went_out_is_not_tried_again_unless_the_caller_allows_it() {
    let upstream = Upstream::scripted([Fault::ResetAfterReceipt]).await;
    let client = client(GeminiMiddleware::with(quick_stack()));
    let error = upstream.post(&client).send().await.unwrap_err();
    assert!(error.is_request() && !error.is_connect(), "{error:?}");
    assert_eq!(upstream.sends(), 1);

    upstream.sim.push_script([Fault::ResetAfterReceipt]);
    let options = CallOptions::new().maybe_charged_resends(1);
    let answer = upstream.post(&client).with_extension(options).send().await.unwrap();
    assert_eq!((answer.status(), upstream.sends()), (StatusCode::OK, 3));
}

/// A middleware's own kind of failure.
#[derive(Debug)]
struct NoToken;

impl std::fmt::Display for NoToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("there is no token")
    }
}

impl StdError for NoToken {}

struct Failing;

#[async_trait::async_trait]
impl Middleware for Failing {
    async fn handle(
        &self,
        _: reqwest::Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> Result<reqwest::Response> {
        Err(Error::middleware(NoToken))
    }
}

#[tokio::test]
async fn the_error_of_a_middleware_below_comes_back_as_it_was() {
    let client = client_over(GeminiMiddleware::with(quick_stack()), Failing);
    let Error::Middleware(error) =
        client.post(url_at("http://gemini.example")).send().await.unwrap_err()
    else {
        panic!()
    };
    assert!(error.is::<NoToken>(), "{error:?}");
}

#[tokio::test]
async fn the_error_of_somebody_elses_layer_is_told_with_its_cause() {
    let upstream = Upstream::slow().await;
    let stack = ServiceBuilder::new()
        .timeout(Duration::from_millis(50))
        .layer(CollectRequestLayer::new())
        .layer(SingleAttemptLayer::new())
        .layer(ClassifyGeminiErrorLayer::new())
        .service(ChannelLeaf::new());
    let Error::Middleware(error) =
        upstream.post(&client(StackMiddleware::new(stack))).send().await.unwrap_err()
    else {
        panic!()
    };
    assert!(error.chain().any(|cause| cause.is::<tower::timeout::error::Elapsed>()), "{error:?}");
}

/// An answer that breaks off after its beginning was judged and handed on.
async fn cut_in_the_image() -> Upstream {
    Upstream::with(
        Sim::builder().latency(Latency::none()).script([Fault::CutBody { at: 400_000 }]).build(),
    )
    .await
}

#[tokio::test]
async fn the_key_is_in_nothing_that_an_error_prints() {
    let mut printed = Vec::new();
    let client = client(GeminiMiddleware::with(quick_stack()));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for base in
        [format!("http://{free}"), "no-scheme-of-http://host".into(), "http://127.0.0.1:1".into()]
    {
        printed.push(everything_printed(
            &client.post(url_at(&base)).body(CAT).send().await.unwrap_err(),
        ));
    }
    for fault in [Fault::ResetAfterReceipt, Fault::CutHead { at: 10 }, Fault::Overloaded] {
        let upstream = Upstream::scripted(vec![fault; 3]).await;
        match upstream.post(&client).send().await {
            Err(error) => printed.push(everything_printed(&error)),
            // reqwest puts the answer's URL in.
            Ok(answer) => printed.push(everything_printed(&answer.error_for_status().unwrap_err())),
        }
    }
    let upstream = cut_in_the_image().await;
    printed.push(everything_printed(
        &upstream.post(&client).send().await.unwrap().bytes().await.unwrap_err(),
    ));
    let upstream = Upstream::slow().await;
    printed.push(everything_printed(
        &upstream.post(&client).timeout(Duration::from_millis(50)).send().await.unwrap_err(),
    ));
    assert_eq!(printed.len(), 8);
    // The addresses are there, so a key would be.
    assert!(printed.iter().any(|printed| printed.contains("key=***")));
    for printed in printed {
        assert!(!printed.contains(KEY), "{printed}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_says_so_and_what_it_cost() {
    let upstream = cut_in_the_image().await;
    let answer =
        upstream.post(&client(GeminiMiddleware::with(quick_stack()))).send().await.unwrap();
    let error = answer.bytes().await.unwrap_err();
    let mut cause: &(dyn StdError + 'static) = &error;
    while !cause.is::<GeminiError>() {
        cause = cause.source().expect("an error of ours among the causes");
    }
    let ours = cause.downcast_ref::<GeminiError>().unwrap();
    assert_eq!(ours.charge(), Charge::Charged, "{ours}");
}

#[tokio::test]
async fn twenty_megabytes_go_through_unchanged_twice() {
    let upstream = Upstream::scripted([Fault::HighDemand, Fault::None]).await;
    let body = format!(
        r#"{{"contents":[{{"parts":[{{"text":"{}"}}]}}]}}"#,
        "a cat, ".repeat(20 * 1024 * 1024 / 7)
    );
    let hash = hash64(body.as_bytes());
    let client = client(GeminiMiddleware::with(quick_stack()));
    let answer = client.post(upstream.url()).body(body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let hashes: Vec<_> =
        upstream.sim.ledger().requests().iter().map(|record| record.body_hash).collect();
    assert_eq!(hashes, [Some(hash), Some(hash)]);
}

#[tokio::test]
async fn url_timeout_and_version_are_those_of_the_request_in_every_attempt() {
    let upstream = Upstream::scripted([Fault::HighDemand, Fault::HighDemand]).await;
    let probe = Probe::default();
    let client = client_over(GeminiMiddleware::with(quick_stack()), probe.clone());
    let limit = Duration::from_secs(77);
    let answer =
        upstream.post(&client).timeout(limit).version(http::Version::HTTP_10).send().await.unwrap();
    assert_eq!(answer.url().as_str(), upstream.told_url());
    let heads = probe.0.heads.lock().unwrap();
    let expected =
        common::Head { url: upstream.url(), version: http::Version::HTTP_10, timeout: Some(limit) };
    assert_eq!(*heads, vec![expected; 3]);
}

// With the key in a header, as it should be, the URL is the very same; names of projects stay in
// it.
#[tokio::test]
async fn a_url_without_a_key_stays_as_it_is() {
    let upstream = Upstream::scripted([]).await;
    let url = format!(
        "{}/v1/projects/my-shop/locations/global/publishers/google/models/gemini-3-pro-image:generateContent?x=%20y",
        upstream.server.url()
    );
    let request = client(GeminiMiddleware::with(quick_stack()))
        .post(&url)
        .header("authorization", "Bearer t")
        .body(CAT);
    assert_eq!(request.send().await.unwrap().url().as_str(), url);
}

// What the stack answers itself, without asking anybody, has the request's URL too.
#[tokio::test]
async fn an_answer_of_the_stacks_own_has_the_url_of_its_request() {
    let refuses = tower::service_fn(|_: http::Request<reqwest::Body>| async {
        let answer = http::Response::builder().status(429).body(reqwest::Body::from("not sent"));
        Ok::<_, std::io::Error>(answer.unwrap())
    });
    let url = "http://127.0.0.1:1/v1beta/models/gemini-3-pro-image:generateContent";
    let answer = client(StackMiddleware::new(refuses))
        .post(format!("{url}?key=AIzaSyA-sentinel-key-0123456789abcdefghij"));
    let answer = answer.body(CAT).send().await.unwrap();
    assert!(
        answer.url().as_str().starts_with(url) && !answer.url().as_str().contains("sentinel"),
        "{}",
        answer.url()
    );
    assert_eq!(answer.status(), 429);
}

#[tokio::test]
async fn the_requests_own_timeout_ends_an_attempt_with_reqwests_own_error() {
    let upstream = Upstream::slow().await;
    let client = client(GeminiMiddleware::with(quick_stack()));
    let error =
        upstream.post(&client).timeout(Duration::from_millis(200)).send().await.unwrap_err();
    assert!(error.is_timeout() && !error.is_middleware(), "{error:?}");
    assert_eq!(upstream.sends(), 1);
    upstream.aborted().await;
}

#[tokio::test]
async fn the_trail_and_what_the_winning_attempt_left_reach_the_caller_and_nothing_of_the_others() {
    let upstream = Upstream::scripted([Fault::HighDemand, Fault::None]).await;
    let client = client_over(GeminiMiddleware::with(quick_stack()), Probe::default());
    let (mine, mut extensions) = (Trail::new(), Extensions::new());
    extensions.insert(CallOptions::new().trail(mine.clone()));
    let request = upstream.post(&client).build().unwrap();
    let answer = client.execute_with_extensions(request, &mut extensions).await.unwrap();
    for trail in
        [answer.extensions().get::<Trail>().unwrap(), extensions.get::<Trail>().unwrap(), &mine]
    {
        let statuses: Vec<_> = trail.attempts().iter().map(|attempt| attempt.status).collect();
        assert_eq!(statuses, [Some(503), Some(200)]);
    }
    assert_eq!(extensions.get::<Later>(), Some(&Later(1)));
    assert_eq!(extensions.get::<First>(), None);
}

/// Sends two of each request at once: the first answer wins.
#[derive(Clone)]
struct Twice<S>(S);

impl<S> Service<Request<reqwest::Body>> for Twice<S>
where
    S: Service<Request<reqwest::Body>, Error = GeminiError, Future: Send, Response: Send>
        + Clone
        + Send
        + 'static,
{
    type Response = S::Response;
    type Error = GeminiError;
    type Future =
        Pin<Box<dyn Future<Output = std::result::Result<S::Response, GeminiError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), GeminiError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<reqwest::Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let body = body.as_bytes().unwrap().to_vec();
        let copy = || Request::from_parts(parts.clone(), reqwest::Body::from(body.clone()));
        let (one, two) = (self.0.clone().oneshot(copy()), self.0.clone().oneshot(copy()));
        Box::pin(async move { select(Box::pin(one), Box::pin(two)).await.factor_first().0 })
    }
}

/// The first attempt never ends; how it was dropped is told.
#[derive(Clone, Default)]
struct FirstHangs {
    came: Arc<AtomicBool>,
    dropped: Arc<AtomicBool>,
}

struct Tells(Arc<AtomicBool>);

impl Drop for Tells {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Middleware for FirstHangs {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<reqwest::Response> {
        if !self.came.swap(true, Ordering::SeqCst) {
            let _tells = Tells(self.dropped.clone());
            extensions.insert(First);
            return pending().await;
        }
        extensions.insert(Later(1));
        next.run(request, extensions).await
    }
}

#[tokio::test]
async fn two_attempts_run_at_once_and_the_one_that_loses_is_dropped() {
    let upstream = Upstream::scripted([]).await;
    let stack = ServiceBuilder::new()
        .layer_fn(Twice)
        .layer(CollectRequestLayer::new())
        .layer(SingleAttemptLayer::new())
        .layer(ClassifyGeminiErrorLayer::new())
        .service(ChannelLeaf::new());
    let below = FirstHangs::default();
    let client = client_over(StackMiddleware::new(stack), below.clone());
    let mut extensions = Extensions::new();
    let request = upstream.post(&client).build().unwrap();
    let answer = client.execute_with_extensions(request, &mut extensions).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(below.dropped.load(Ordering::SeqCst));
    assert_eq!((extensions.get::<First>(), extensions.get::<Later>()), (None, Some(&Later(1))));
}

#[tokio::test]
async fn a_leaf_outside_its_middleware_sends_nothing_and_says_so() {
    let stack = quick_stack().raw(ChannelLeaf::new());
    let request =
        Request::post(url_at("http://gemini.example")).body(reqwest::Body::from(CAT)).unwrap();
    let error = stack.oneshot(request).await.unwrap_err();
    assert_eq!(error.charge(), Charge::None);
    assert!(error.to_string().contains("only works inside a StackMiddleware"), "{error}");
    let _: BoxError = error.into();
}

/// Passes every request on a second time when the first failed, as retrying middleware does.
struct Again;

#[async_trait::async_trait]
impl Middleware for Again {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<reqwest::Response> {
        let copy = request.try_clone().unwrap();
        match next.clone().run(request, extensions).await {
            Ok(response) if response.status().is_success() => Ok(response),
            _ => next.run(copy, extensions).await,
        }
    }
}

async fn twice_over(fault: Fault, options: CallOptions) -> (Result<reqwest::Response>, Upstream) {
    let upstream = Upstream::scripted([fault, Fault::None]).await;
    let stack = GeminiStack::new().retry(JitteredRetryLayer::off());
    let client = ClientBuilder::new(client_builder().build().unwrap())
        .with(Again)
        .with(GeminiMiddleware::with(stack))
        .build();
    let outcome = upstream.post(&client).with_extension(options).send().await;
    (outcome, upstream)
}

// A retrying middleware above paid twice, although both attempts stood in one call's trail.
#[tokio::test]
async fn a_second_pass_with_the_same_extensions_is_refused_after_what_may_have_been_paid_for() {
    let (outcome, upstream) = twice_over(Fault::ResetAfterGeneration, CallOptions::new()).await;
    let error = outcome.unwrap_err();
    assert_eq!(charge_of(&error), Charge::Maybe);
    let Error::Middleware(error) = error else { panic!("{error:?}") };
    assert_eq!(
        error.downcast_ref::<GeminiError>().unwrap().to_string(),
        "not sent: this call was sent before and may have been charged; allow it with \
         CallOptions::maybe_charged_resends; it may have been charged"
    );
    assert_eq!((upstream.sends(), upstream.charges()), (1, 1));
}

#[tokio::test]
async fn a_second_pass_is_sent_after_a_free_failure_and_when_the_caller_allows_it() {
    let (outcome, upstream) = twice_over(Fault::HighDemand, CallOptions::new()).await;
    assert_eq!(outcome.unwrap().status(), StatusCode::OK);
    assert_eq!((upstream.sends(), upstream.charges()), (2, 1));

    let options = CallOptions::new().maybe_charged_resends(1);
    let (outcome, upstream) = twice_over(Fault::ResetAfterGeneration, options).await;
    assert_eq!(outcome.unwrap().status(), StatusCode::OK);
    assert_eq!(upstream.sends(), 2);
}

#[tokio::test]
async fn an_error_through_reqwest_tells_what_it_cost() {
    let client = client(GeminiMiddleware::with(quick_stack()));
    let free = client.post("http://127.0.0.1:1/v1beta/models/m:generateContent").send().await;
    assert_eq!(charge_of(&free.unwrap_err()), Charge::None);
    let upstream = Upstream::scripted([Fault::ResetAfterGeneration]).await;
    let error = upstream.post(&client).send().await.unwrap_err();
    assert_eq!(charge_of(&error), Charge::Maybe);
}
