//! A stack as `Router::layer`, and errors as answers: what a server needs of it.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tower::layer::layer_fn;
use tower::util::MapRequest;
use tower::{Layer, ServiceExt, service_fn};
use tower_gemini::answer_errors::answer_to;
use tower_gemini::body::WireBody;
use tower_gemini::error::{Error, TimeLimit};
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::verdict::{Outcome, Verdict};
use tower_gemini::{AnswerErrorsLayer, GeminiStack};
use tower_gemini_sim::{Fault, Sim};

use crate::harness::{Scenario, TAG, cases, faults, in_paused_time};

/// A handler that asks the simulator, as a handler of somebody else's asks Google.
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
                Ok(answer) => answer.map(Body::new),
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
fn a_router_behind_the_stack_is_asked_again_for_what_was_free_and_answers_byte_for_byte() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::HighDemand, Fault::None]);
        let sim = scenario.sim();
        let answer = router(&sim).oneshot(scenario.request(TAG)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let image = sim.image_for(1).unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
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
fn clients_with_retries_of_their_own_are_told_when_to_stop_and_how_long_to_wait() {
    in_paused_time(async {
        let scenario =
            Scenario::new([Fault::RateLimitDay { retry_after: std::time::Duration::from_secs(2) }]);
        let sim = scenario.sim();
        let answer = router(&sim).oneshot(scenario.request(TAG)).await.unwrap();
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers()["x-should-retry"], "false");
        let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(
            (1..=25 * 3600).contains(&wait) && wait != 2,
            "the hint of a day's limit is wrong: {wait}"
        );
    });
}

/// Whatever becomes of a call, it is answered, in JSON, and what may have been paid for is never a
/// status that clients send again.
fn answered(faults: Vec<Fault>) {
    in_paused_time(async {
        let scenario = Scenario::new(faults);
        let sim = scenario.sim();
        let service = AnswerErrorsLayer::new().layer(scenario.stack().raw(sim.service()));
        let answer = service.oneshot(scenario.request(TAG)).await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let clients_send_again =
            status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 429);
        let charges = sim.ledger().charges(TAG);
        assert!(charges == 0 || !clients_send_again, "{status} after {charges} charges");
        if clients_send_again {
            assert_eq!(headers["x-should-retry"], "false");
        }
        if let Ok(body) = answer.into_body().collect().await {
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
        answered(weather);
    }
}

// Most clients go by the status alone, and a front end that gave up waiting says nothing of the
// money.
#[test]
fn an_upstream_status_that_may_have_cost_something_is_not_passed_on_where_clients_would_send_again()
{
    in_paused_time(async {
        for (status, body, told, upstream) in [
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
                let answer =
                    Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap();
                Ok::<_, io::Error>(answer)
            });
            let service = AnswerErrorsLayer::new()
                .layer(GeminiStack::new().retry_policy(RetryPolicy::never()).raw(client));
            let answer = service.oneshot(Scenario::new([]).request(TAG)).await.unwrap();
            let said = answer
                .headers()
                .get("x-upstream-status")
                .map(|value| value.to_str().unwrap().to_owned());
            assert_eq!((answer.status().as_u16(), said.as_deref()), (told, upstream), "{status}");
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
        }
    });
}

#[test]
fn each_kind_of_error_has_its_status() {
    let say = |error: Error| answer_to(&error, StatusCode::FAILED_DEPENDENCY).status().as_u16();
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
fn what_is_answered_holds_no_key() {
    let error = Error::transport(
        "GET https://host/x?key=AIzaSyA-sentinel-key-0123456789abcdefghij failed".into(),
        Verdict::interrupted(),
    );
    let body = answer_to(&error, StatusCode::FAILED_DEPENDENCY).into_body();
    let text = String::from_utf8_lossy(&body);
    assert!(!text.contains("sentinel") && text.contains("maybe"), "{text}");
    assert_eq!(error.verdict().outcome(), Outcome::Interrupted);
}

// The service cannot say that it failed to become ready, so it answers.
#[test]
fn a_client_that_is_never_ready_is_an_answer_too() {
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
        let answer = service.oneshot(Scenario::new([]).request(TAG)).await.unwrap();
        assert_eq!(answer.status(), 503);
    });
}

#[test]
fn an_unreachable_server_says_that_nothing_was_charged() {
    in_paused_time(async {
        let refuse = service_fn(|_: Request<WireBody>| async {
            Err::<Response<Full<Bytes>>, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
        });
        let service = AnswerErrorsLayer::new().layer(GeminiStack::new().raw(refuse));
        let answer = service.oneshot(Scenario::new([]).request(TAG)).await.unwrap();
        assert_eq!(answer.status(), 503);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("nothing was charged"));
    });
}
