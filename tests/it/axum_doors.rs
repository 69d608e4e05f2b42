//! A stack as `Router::layer` and as a route, and errors as responses: what a server needs of it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::any_service;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::layer::layer_fn;
use tower::util::MapRequest;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_gemini::WireBody;
use tower_gemini::answer_errors::error_response;
use tower_gemini::error::{Error, TimeLimit};
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::verdict::{Outcome, Verdict};
use tower_gemini::{AnswerErrorsLayer, GeminiStack, KeepPaidLayer};
use tower_gemini_sim::{Fault, Sim};

use crate::harness::{Scenario, TAG, cases, faults, in_paused_time};

/// A handler that calls the simulator, as a handler of somebody else's calls Google.
fn router(sim: &Sim) -> axum::Router {
    let sim = sim.clone();
    let handler = move |request: Request<Body>| {
        let sim = sim.clone();
        async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await else {
                return Response::builder().status(400).body(Body::empty()).unwrap();
            };
            match sim
                .service()
                .oneshot(Request::from_parts(parts, Full::new(body.to_bytes())))
                .await
            {
                Ok(response) => response.map(Body::new),
                // A handler cannot fail; its own upstream may.
                Err(_) => Response::builder().status(502).body(Body::empty()).unwrap(),
            }
        }
    };
    let layer = layer_fn(|route| {
        // A route takes axum's own body.
        let route = MapRequest::new(route, |request: Request<WireBody>| request.map(Body::new));
        AnswerErrorsLayer::new().layer(GeminiStack::new().raw(route))
    });
    axum::Router::new().fallback(handler).layer(layer)
}

#[test]
fn a_router_behind_the_stack_is_retried_after_a_free_failure_and_its_response_is_unchanged() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::HighDemand, Fault::None]);
        let sim = scenario.sim();
        let response = router(&sim).oneshot(scenario.request(TAG)).await.unwrap();
        assert_eq!(response.status(), 200);
        let image = sim.image_for(1).unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(
            text.contains(&base64::Engine::encode(
                &base64::engine::general_purpose::STANDARD,
                &image
            ))
        );
        assert_eq!((sim.ledger().sends(TAG), sim.ledger().charges(TAG)), (2, 1));
    });
}

#[test]
fn clients_with_retries_of_their_own_learn_when_to_stop_and_how_long_to_wait() {
    in_paused_time(async {
        let scenario =
            Scenario::new([Fault::RateLimitDay { retry_after: std::time::Duration::from_secs(2) }]);
        let sim = scenario.sim();
        let response = router(&sim).oneshot(scenario.request(TAG)).await.unwrap();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["x-should-retry"], "false");
        // google-genai's Interactions client slept the hours that `Retry-After` stated: it looked
        // hung.
        assert!(!response.headers().contains_key("retry-after"));
        let wait: u64 = response.headers()["x-closed-for"].to_str().unwrap().parse().unwrap();
        assert!(
            (1..=25 * 3600).contains(&wait) && wait != 2,
            "the hint of a day's limit is wrong: {wait}"
        );
    });
}

/// Whatever becomes of a call, it gets a response in JSON, and one that may be charged never has a
/// status that clients retry.
fn always_responds(faults: Vec<Fault>) {
    in_paused_time(async {
        let scenario = Scenario::new(faults);
        let sim = scenario.sim();
        let service = AnswerErrorsLayer::new().layer(scenario.stack().raw(sim.service()));
        let response = service.oneshot(scenario.request(TAG)).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let clients_retry = status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 429);
        let charges = sim.ledger().charges(TAG);
        assert!(charges == 0 || !clients_retry, "{status} after {charges} charges");
        if clients_retry {
            assert_eq!(headers["x-should-retry"], "false");
        }
        if let Ok(body) = response.into_body().collect().await {
            let body = body.to_bytes();
            assert!(
                !String::from_utf8_lossy(&body).contains("\"domain\":\"tower-gemini\"")
                    || status != 200
            );
            if headers
                .get("content-type")
                .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
                && status != 200
            {
                assert!(
                    serde_json::from_slice::<serde_json::Value>(&body).is_ok(),
                    "{}",
                    String::from_utf8_lossy(&body)
                );
            }
        }
    });
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn no_status_invites_a_client_to_pay_again(weather in proptest::collection::vec(faults(), 0..4)) {
        always_responds(weather);
    }
}

// Most clients go by the status alone, and a front end's timeout says nothing about the charge.
#[test]
fn an_upstream_status_that_clients_retry_is_not_passed_on_where_it_may_be_charged() {
    in_paused_time(async {
        for (status, body, reported, upstream) in [
            (504, "upstream request timeout", 424, Some("504")),
            (520, "error code: 520", 424, Some("520")),
            (
                503,
                r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#,
                503,
                None,
            ),
            (
                403,
                r#"{"error":{"code":403,"message":"no","status":"PERMISSION_DENIED"}}"#,
                403,
                None,
            ),
        ] {
            let client = tower::service_fn(move |request: Request<WireBody>| async move {
                let _ = request.into_body().collect().await;
                let response =
                    Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap();
                Ok::<_, io::Error>(response)
            });
            let service = AnswerErrorsLayer::new()
                .layer(GeminiStack::new().retry_policy(RetryPolicy::never()).raw(client));
            let response = service.oneshot(Scenario::new([]).request(TAG)).await.unwrap();
            let said = response
                .headers()
                .get("x-upstream-status")
                .map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(
                (response.status().as_u16(), said.as_deref()),
                (reported, upstream),
                "{status}"
            );
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
        }
    });
}

/// Runs in real time with real sockets, and waits only for them.
fn with_sockets<F: Future>(case: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(case)
}

/// Serves a router on a port of its own, until the runtime ends.
async fn serve(router: axum::Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

const DRAFT_AND_IMAGE: &str = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AA=="},"thought":true},{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#;

/// A hyper client over HTTP/1.1, and the address of an upstream that sends `status` and `body` in
/// chunks.
async fn chunked_upstream(
    status: u16,
    body: &'static str,
) -> (Client<HttpConnector, WireBody>, SocketAddr) {
    let router = axum::Router::new().fallback(move |request: Request<Body>| async move {
        let _ = request.into_body().collect().await;
        let chunks = body.as_bytes().chunks(50).map(Ok::<_, io::Error>);
        let body = Body::from_stream(futures::stream::iter(chunks));
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(body)
            .unwrap()
    });
    (Client::builder(TokioExecutor::new()).build_http(), serve(router).await)
}

/// Sends a request to a route at `/draw` over a socket. Returns the response as it is on the wire.
async fn over_the_wire<S>(upstream: SocketAddr, route: S) -> (String, String)
where
    S: Service<Request<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    let to_upstream = move |mut request: Request<Body>| {
        let path = "/v1beta/models/gemini-3-pro-image:generateContent";
        *request.uri_mut() = format!("http://{upstream}{path}").parse().unwrap();
        request
    };
    let route = any_service(MapRequest::new(route, to_upstream));
    let address = serve(axum::Router::new().route("/draw", route)).await;
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request =
        "POST /draw HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    socket.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    (head.to_lowercase(), body.to_owned())
}

// The upstream's `Transfer-Encoding: chunked` stayed on a body that had become exact: the reply had
// no body at all.
#[test]
fn a_route_over_an_upstream_that_sends_chunks_sends_the_whole_body() {
    with_sockets(async {
        let (client, upstream) = chunked_upstream(200, DRAFT_AND_IMAGE).await;
        let errors = AnswerErrorsLayer::new();
        let keep = KeepPaidLayer::new();
        let raw = errors.layer(GeminiStack::new().raw(client.clone()));
        let json = errors.layer(GeminiStack::new().json(client.clone()));
        let kept = GeminiStack::new().answer_errors(errors).keep_paid(keep).raw(client);
        let replies = [
            over_the_wire(upstream, raw).await,
            over_the_wire(upstream, json).await,
            over_the_wire(upstream, kept).await,
        ];
        for (n, (head, body)) in replies.into_iter().enumerate() {
            assert!(head.starts_with("http/1.1 200"), "{n}: {head}");
            assert!(body.contains("AQID"), "{n}: {head}");
            assert!(!head.contains("transfer-encoding"), "{n}: {head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{n}: {head}");
            assert_eq!(body.contains("AA=="), n != 1, "only `json` removes the draft");
        }
    });
}

#[test]
fn an_error_of_an_upstream_that_sends_chunks_keeps_its_body_on_a_route() {
    with_sockets(async {
        let error =
            r#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT"}}"#;
        let (client, upstream) = chunked_upstream(400, error).await;
        let service = AnswerErrorsLayer::new().layer(GeminiStack::new().raw(client));
        let (head, body) = over_the_wire(upstream, service).await;
        assert!(head.starts_with("http/1.1 400"), "{head}");
        assert_eq!(body, error);
    });
}

// The response that was completed without its client is replayed under the headers of its first
// connection.
#[test]
fn a_replayed_response_of_an_upstream_that_sends_chunks_keeps_its_body_on_a_route() {
    with_sockets(async {
        let (client, upstream) = chunked_upstream(200, DRAFT_AND_IMAGE).await;
        let service = GeminiStack::new()
            .answer_errors(AnswerErrorsLayer::new())
            .keep_paid(KeepPaidLayer::new())
            .raw(client);
        let keyed = MapRequest::new(service, |mut request: Request<Body>| {
            request.headers_mut().insert("idempotency-key", "one".parse().unwrap());
            request
        });
        for _ in 0..2 {
            let (head, body) = over_the_wire(upstream, keyed.clone()).await;
            assert!(head.starts_with("http/1.1 200"), "{head}");
            assert_eq!(body, DRAFT_AND_IMAGE);
        }
    });
}

#[test]
fn each_kind_of_error_has_its_status() {
    let say =
        |error: Error| error_response(&error, StatusCode::FAILED_DEPENDENCY).status().as_u16();
    assert_eq!(say(Error::transport("refused".into(), Verdict::not_sent())), 503);
    assert_eq!(say(Error::transport("reset".into(), Verdict::interrupted())), 424);
    assert_eq!(
        say(Error::timeout(
            TimeLimit::Attempt,
            std::time::Duration::from_secs(300),
            Verdict::interrupted()
        )),
        424
    );
    assert_eq!(
        say(Error::timeout(TimeLimit::Deadline, std::time::Duration::ZERO, Verdict::not_sent())),
        504
    );
    assert_eq!(say(Error::request_body("broken".into())), 400);
    assert_eq!(say(Error::truncated(Verdict::interrupted_delivery())), 424);
    assert_eq!(
        say(Error::upstream(StatusCode::FORBIDDEN, Bytes::from("{}"), Verdict::not_sent())),
        403
    );
}

#[test]
fn an_error_response_holds_no_key() {
    let error = Error::transport(
        "GET https://host/x?key=AIzaSyA-sentinel-key-0123456789abcdefghij failed".into(),
        Verdict::interrupted(),
    );
    let body = error_response(&error, StatusCode::FAILED_DEPENDENCY).into_body();
    let text = String::from_utf8_lossy(&body);
    assert!(!text.contains("sentinel") && text.contains("maybe"), "{text}");
    assert_eq!(error.verdict().outcome(), Outcome::Interrupted);
}

// The service cannot report that it failed to become ready, so it responds.
#[test]
fn a_client_that_is_never_ready_is_a_response_too() {
    in_paused_time(async {
        #[derive(Clone)]
        struct Closed;
        impl tower::Service<Request<WireBody>> for Closed {
            type Response = Response<Full<Bytes>>;
            type Error = io::Error;
            type Future = std::future::Pending<Result<Self::Response, io::Error>>;
            fn poll_ready(
                &mut self,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Result<(), io::Error>> {
                std::task::Poll::Ready(Err(io::Error::other("the pool is closed")))
            }
            fn call(&mut self, _: Request<WireBody>) -> Self::Future {
                std::future::pending()
            }
        }
        let service = AnswerErrorsLayer::new().layer(GeminiStack::new().raw(Closed));
        let response = service.oneshot(Scenario::new([]).request(TAG)).await.unwrap();
        assert_eq!(response.status(), 503);
    });
}

#[test]
fn an_unreachable_server_says_that_nothing_was_charged() {
    in_paused_time(async {
        let refuse = service_fn(|_: Request<WireBody>| async {
            Err::<Response<Full<Bytes>>, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
        });
        let service = AnswerErrorsLayer::new().layer(GeminiStack::new().raw(refuse));
        let response = service.oneshot(Scenario::new([]).request(TAG)).await.unwrap();
        assert_eq!(response.status(), 503);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("nothing was charged"));
    });
}
