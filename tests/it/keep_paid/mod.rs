//! When a client disconnects after dispatch, the response is completed, stored, and replayed to its
//! next identical request, once.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tower::layer::util::Identity;
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt};
use tower_gemini::CallOptions;
use tower_gemini::Error;
use tower_gemini::body::HasVerdict;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::keep_paid::ResponseBody;
use tower_gemini::model_fallback::Chain;
use tower_gemini::stack::Raw;
use tower_gemini::trail::{Step, StopReason, Trail};
use tower_gemini::verdict::Charge;
use tower_gemini::{CollectRequestLayer, GeminiStack, KeepPaidLayer, ObserveLayer};
use tower_gemini_gateway::stats::Stats;
use tower_gemini_sim::{Fault, Latency, Sim, SimBody, SimService};

use crate::harness::{Ask, Scenario, TAG, cases, faults, in_paused_time};

mod deadlines;
mod files;
mod journal;
mod keys;
mod losses;
mod resends;

type Kept = Raw<SimService, Identity, Identity, KeepPaidLayer>;

fn stack(scenario: &Scenario, sim: &Sim, keep: &KeepPaidLayer) -> Kept {
    scenario.stack().keep_paid(keep.clone()).raw(sim.service())
}

fn request(scenario: &Scenario, trail: &Trail) -> Request<Full<Bytes>> {
    let mut request = scenario.request(TAG);
    request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
    request
}

fn with(scenario: &Scenario, name: &'static str, value: &'static str) -> Request<Full<Bytes>> {
    let mut request = request(scenario, &Trail::new());
    request.headers_mut().insert(name, HeaderValue::from_static(value));
    request
}

const RETRY_COUNT: &str = "x-stainless-retry-count";
const KEY: &str = "idempotency-key";

/// The response to its end, or the error that it ended with.
async fn whole<S, B>(service: S, request: Request<Full<Bytes>>) -> Result<(u16, Bytes), Error>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Error>,
    B: Body<Data = Bytes, Error = Error>,
{
    let (parts, body) = service.oneshot(request).await?.into_parts();
    Ok((parts.status.as_u16(), body.collect().await?.to_bytes()))
}

/// When a client disconnects.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// After so many milliseconds, with the head or without.
    Time(u64),
    /// After the head and so many chunks.
    Chunks(usize),
}

/// What a client has when it disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    /// All of a response, or an error that states its charge.
    Result,
    Nothing,
}

/// Sends a call and disconnects.
async fn disconnect(service: Kept, request: Request<Full<Bytes>>, patience: Patience) -> Received {
    match patience {
        Patience::Time(milliseconds) => {
            match tokio::time::timeout(Duration::from_millis(milliseconds), whole(service, request))
                .await
            {
                Ok(_) => Received::Result,
                Err(_) => Received::Nothing,
            }
        }
        Patience::Chunks(chunks) => {
            let Ok(response) = service.oneshot(request).await else { return Received::Result };
            let mut body: ResponseBody<_> = response.into_body();
            for _ in 0..chunks {
                if !matches!(body.frame().await, Some(Ok(_))) {
                    return Received::Result;
                }
            }
            // As much as was announced is all of it, whether or not the end was asked for.
            if body.size_hint().exact() == Some(0) { Received::Result } else { Received::Nothing }
        }
    }
}

fn patience() -> impl Strategy<Value = Patience> {
    prop_oneof![(0u64..60_000).prop_map(Patience::Time), (0usize..4).prop_map(Patience::Chunks)]
}

/// A client disconnects and sends the same again, as every SDK does. Judged by the server's ledger.
///
/// Returns how often the server charged, the final response, and whether the first one had come
/// whole.
async fn send_again(
    scenario: &Scenario,
    patience: Patience,
    pause: u64,
    keep: &KeepPaidLayer,
) -> (usize, Result<(u16, Bytes), Error>, Sim, Received) {
    let sim = Sim::builder()
        .seed(scenario.seed)
        .script(scenario.faults.clone())
        .latency(Latency::fixed(scenario.latency))
        .tiny_images(true)
        .chunks(700, Duration::from_millis(300))
        .build();
    let service = stack(scenario, &sim, keep);
    let received = disconnect(service.clone(), request(scenario, &Trail::new()), patience).await;
    tokio::time::sleep(Duration::from_millis(pause)).await;
    let response = whole(service, request(scenario, &Trail::new())).await;
    (sim.ledger().charges(TAG), response, sim, received)
}

proptest! {
    #![proptest_config(cases(1000))]

    // Without faults: whenever the client disconnects, both sends together are charged once, and the
    // second one gets the response.
    #[test]
    fn a_client_that_disconnects_and_sends_again_pays_once(
        ask in prop::sample::select(vec![Ask::Whole, Ask::Sse, Ask::Array]),
        patience in patience(),
        pause in 0u64..120_000,
    ) {
        let scenario = Scenario { ask, ..Scenario::new([]) };
        in_paused_time(async {
            let keep = KeepPaidLayer::new();
            let (charges, response, sim, received) = send_again(&scenario, patience, pause, &keep).await;
            let (status, body) = response.unwrap();
            assert_eq!(status, 200);
            // A client that stayed to the end asked for two images.
            assert_eq!(charges, 1 + usize::from(received == Received::Result));
            let image = sim.image_for(charges - 1).unwrap();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.contains(&base64::Engine::encode(&base64::engine::general_purpose::STANDARD, image)), "the image that was charged");
            assert_eq!((keep.counts().stored, keep.counts().detached), (0, 0), "delivered once");
        });
    }

    // With any faults: a client that received nothing and sends again gets what was charged, or an
    // error that it is lost. Both sends are charged once.
    #[test]
    fn no_fault_makes_a_resend_pay_again(weather in proptest::collection::vec(faults(), 0..4), patience in patience(), pause in 0u64..120_000) {
        let scenario = Scenario { latency: Duration::from_secs(3), ..Scenario::new(weather) };
        in_paused_time(async {
            let keep = KeepPaidLayer::new();
            let (charges, response, _, received) = send_again(&scenario, patience, pause, &keep).await;
            assert!(keep.drain(Duration::from_secs(86_400)).await, "every detached call ends");
            // A client that received a result may ask for another.
            assert!(charges <= 1 + usize::from(received == Received::Result), "{charges} charges, {received:?}, {response:?}");
            if received == Received::Nothing && charges == 1 {
                let reported = response.as_ref().map_or_else(|error| error.charge() == Charge::Maybe, |(status, _)| *status == 200);
                assert!(reported, "{response:?}");
            }
            assert!(keep.counts().stored <= 1);
        });
    }

    // However often its future was polled before it was dropped, a call that was not dispatched
    // leaves nothing behind, and one that was leaves one task.
    #[test]
    fn a_dropped_call_is_completed_or_forgotten(polls in 0usize..12) {
        in_paused_time(async {
            let scenario = Scenario::new([]);
            let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
            let mut call = Box::pin(stack(&scenario, &sim, &keep).oneshot(request(&scenario, &Trail::new())));
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..polls {
                if call.as_mut().poll(&mut cx).is_ready() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            drop(call);
            let sent = sim.requests();
            assert_eq!(keep.counts().detached, sent, "{polls} polls");
            assert!(keep.drain(Duration::from_secs(1000)).await);
            assert_eq!((keep.counts().stored, sim.ledger().charges(TAG)), (sent, sent));
        });
    }
}

/// The same without the layer.
#[test]
fn without_the_layer_the_same_check_shows_two_charges() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let service = scenario.stack().raw(sim.service());
        let first = tokio::time::timeout(
            Duration::from_secs(5),
            whole(service.clone(), request(&scenario, &Trail::new())),
        )
        .await;
        assert!(first.is_err());
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2);
    });
}

// Servers do not ask for the end of a body whose length was announced: such a response was stored
// although it had arrived, and the client's next call got an old image.
#[test]
fn a_response_that_came_to_its_announced_length_was_delivered() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = Sim::builder()
            .latency(Latency::none())
            .announce_length(true)
            .tiny_images(false)
            .build();
        let keep = KeepPaidLayer::new();
        let service = stack(&scenario, &sim, &keep);
        let response = service.clone().oneshot(request(&scenario, &Trail::new())).await.unwrap();
        let mut body = response.into_body();
        assert!(
            body.size_hint().exact().is_some_and(|length| length > 100_000),
            "it is announced, and longer than what is peeked"
        );
        while body.size_hint().exact() != Some(0) {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        assert_eq!((keep.counts().detached, keep.counts().stored), (0, 0));
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2, "a new call is a new call");
    });
}

#[test]
fn both_trails_state_what_happened() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let (first, second) = (Trail::new(), Trail::new());
        disconnect(service.clone(), request(&scenario, &first), Patience::Time(5_000)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        whole(service, request(&scenario, &second)).await.unwrap();
        assert!(
            matches!(
                first.steps()[..],
                [Step::Attempt(_), Step::ClientDisconnected, Step::Stored { .. }]
            ),
            "{first}"
        );
        let [Step::Replayed { age, cost, .. }] = second.steps()[..] else { panic!("{second}") };
        assert!(
            age >= Duration::from_secs(40) && cost == first.cost() && cost.at_least_microusd > 0,
            "{second}"
        );
        assert_eq!(second.cost().at_most_microusd, Some(0), "the second call cost nothing");
    });
}

#[test]
fn two_connected_clients_get_a_response_each() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let (a, b) = tokio::join!(
            whole(service.clone(), request(&scenario, &Trail::new())),
            whole(service.clone(), request(&scenario, &Trail::new())),
        );
        assert_ne!(a.unwrap().1, b.unwrap().1);
        assert_eq!(sim.ledger().charges(TAG), 2);
    });
}

#[test]
fn neither_another_caller_nor_another_request_gets_a_stored_response() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let mut other = request(&scenario, &Trail::new());
        other.headers_mut().insert("x-goog-api-key", HeaderValue::from_static("another"));
        whole(service.clone(), other).await.unwrap();
        let larger = Scenario { size: "2K", ..Scenario::new([]) };
        whole(service.clone(), request(&larger, &Trail::new())).await.unwrap();
        assert_eq!((sim.ledger().charges(TAG), keep.counts().stored), (3, 1));
    });
}

#[test]
fn a_detached_call_that_ends_free_is_not_stored_and_not_retried() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::HighDemand, Fault::HighDemand]);
        let sim = Sim::builder()
            .script(scenario.faults.clone())
            .latency(
                Latency::fixed(Duration::from_secs(20))
                    .errors(Duration::from_secs(10)..=Duration::from_secs(10)),
            )
            .tiny_images(true)
            .build();
        let keep = KeepPaidLayer::new();
        let service = stack(&scenario, &sim, &keep);
        let trail = Trail::new();
        disconnect(service.clone(), request(&scenario, &trail), Patience::Time(5_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(
            (sim.requests(), keep.counts().free, keep.counts().stored),
            (1, 1, 0),
            "no client waits for another attempt: {trail}"
        );
    });
}

#[test]
fn a_continuation_is_never_stored_or_shared() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let continuation = || {
            let mut request = request(&scenario, &Trail::new());
            *request.body_mut() = Full::from(
                r#"{"contents":[{"parts":[{"text":"on"}]}],"continuationToken":"next"}"#,
            );
            request
        };
        disconnect(service.clone(), continuation(), Patience::Time(5_000)).await;
        assert_eq!(keep.counts().detached, 0);
        drop(whole(service, continuation()).await);
        assert_eq!(sim.requests(), 2);
    });
}

#[test]
fn bounds_hold_however_many_clients_disconnect() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let keep = KeepPaidLayer::new()
            .max_detached(5)
            .max_stored_bytes(20_000)
            .retention(Duration::from_secs(300));
        let service = stack(&scenario, &sim, &keep);
        for n in 0..40 {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("x-goog-api-key", HeaderValue::from(n));
            let call = tokio::spawn(whole(service.clone(), request));
            tokio::time::sleep(Duration::from_millis(100)).await;
            call.abort();
            let _ = call.await;
            assert!(keep.counts().detached <= 5);
        }
        assert!(keep.drain(Duration::from_secs(100)).await);
        let counts = keep.counts();
        assert!(counts.stored_bytes <= 20_000 && counts.stored >= 1, "{counts:?}");
        assert_eq!(counts.too_many, 35, "{counts:?}");
        tokio::time::sleep(Duration::from_secs(300)).await;
        let counts = keep.counts();
        assert_eq!((counts.stored, counts.stored_bytes), (0, 0), "{counts:?}");
        assert_eq!(counts.expired, 5, "what was dropped is counted");
    });
}

#[test]
fn a_response_whose_client_disconnects_during_delivery_is_stored_again() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..3 {
            disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Chunks(0))
                .await;
        }
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!((sim.ledger().charges(TAG), keep.counts().replayed), (1, 1));
    });
}

/// An attempt ends free and the next one is dispatched in the same poll: it may be charged.
#[test]
fn a_detached_call_that_fell_back_is_completed() {
    in_paused_time(async {
        let client = tower::service_fn(|request: Request<tower_gemini::WireBody>| async move {
            let falls_back = request.uri().path().contains("flash");
            let _ = request.into_body().collect().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let (status, body) = if falls_back {
                (
                    200,
                    r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#,
                )
            } else {
                (
                    503,
                    r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#,
                )
            };
            Ok::<_, std::io::Error>(
                Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap(),
            )
        });
        let keep = KeepPaidLayer::new();
        let stack = GeminiStack::new()
            .retry_policy(RetryPolicy::never())
            .fallback_to(Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]));
        let service = stack.keep_paid(keep.clone()).raw(client);
        let (scenario, trail) = (Scenario::new([]), Trail::new());
        let call = whole(service.clone(), request(&scenario, &trail));
        assert!(tokio::time::timeout(Duration::from_secs(2), call).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        assert_eq!(
            (trail.attempts().len(), keep.counts().stored, keep.counts().free),
            (2, 1, 0),
            "{trail}"
        );
    });
}

/// What is over the bound is not held, and the clients that stay get all of their responses.
#[test]
fn responses_in_transit_share_one_bound() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = Sim::builder()
            .latency(Latency::fixed(scenario.latency))
            .tiny_images(true)
            .chunks(200, Duration::from_secs(1))
            .build();
        let (_, body) =
            whole(stack(&scenario, &sim, &KeepPaidLayer::new()), request(&scenario, &Trail::new()))
                .await
                .unwrap();
        let keep = KeepPaidLayer::new().max_stored_bytes(3 * body.len());
        let service = stack(&scenario, &sim, &keep);
        let calls = (0..8).map(|_| {
            let call = service.clone().oneshot(request(&scenario, &Trail::new()));
            async move { call.await.unwrap().into_body() }
        });
        let mut bodies = futures::future::join_all(calls).await;
        // All of them have come most of the way.
        for body in &mut bodies {
            for _ in 0..8 {
                body.frame().await.unwrap().unwrap();
            }
        }
        let stays = bodies.pop().unwrap();
        drop(bodies);
        assert!(!stays.collect().await.unwrap().to_bytes().is_empty());
        assert!(keep.drain(Duration::from_secs(1000)).await);
        let counts = keep.counts();
        assert!(
            counts.stored >= 1
                && counts.too_large >= 1
                && counts.stored + counts.too_large as usize == 7,
            "{counts:?}"
        );
        // And the room is there again.
        disconnect(service, request(&scenario, &Trail::new()), Patience::Chunks(1)).await;
        assert!(keep.drain(Duration::from_secs(1000)).await);
        assert_eq!(keep.counts().too_large, counts.too_large);
    });
}

#[test]
fn a_replayed_refusal_is_a_refusal_in_every_figure() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::Refused(tower_gemini_sim::Refusal::ImageSafety)]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let stats = Stats::new();
        let observe = ObserveLayer::new().observer(stats.observer());
        let service = observe.layer(stack(&scenario, &sim, &keep));
        let call = whole(service.clone(), request(&scenario, &Trail::new()));
        assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        let hour = stats.report().last_hour;
        assert_eq!((sim.requests(), hour.images, hour.successes), (1, 0, 0));
    });
}

#[test]
fn an_unlimited_duration_does_not_panic() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        for keep in [
            KeepPaidLayer::new().max_detached_time(Duration::MAX),
            KeepPaidLayer::new().grace(Duration::MAX),
        ] {
            let sim = scenario.sim();
            let service = stack(&scenario, &sim, &keep);
            disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000))
                .await;
            assert!(keep.drain(Duration::from_secs(100)).await);
            let (status, _) = whole(service, request(&scenario, &Trail::new())).await.unwrap();
            assert_eq!((status, sim.ledger().charges(TAG)), (200, 1));
        }
    });
}

#[test]
fn a_body_may_be_dropped_with_an_unlimited_duration() {
    in_paused_time(async {
        let scenario = Scenario { ask: Ask::Sse, ..Scenario::new([]) };
        let sim = Sim::builder()
            .latency(Latency::fixed(Duration::from_secs(3)))
            .tiny_images(true)
            .chunks(700, Duration::from_millis(300))
            .build();
        let keep = KeepPaidLayer::new().max_detached_time(Duration::MAX);
        let received = disconnect(
            stack(&scenario, &sim, &keep),
            request(&scenario, &Trail::new()),
            Patience::Chunks(1),
        )
        .await;
        assert_eq!(received, Received::Nothing);
        assert!(keep.drain(Duration::from_secs(100)).await);
        assert_eq!(keep.counts().stored, 1);
    });
}

#[test]
fn the_retention_of_a_response_that_was_put_back_starts_anew() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        tokio::time::sleep(Duration::from_secs(590)).await;
        let redeemed = service.clone().oneshot(request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(sim.requests(), 1);
        tokio::time::sleep(Duration::from_secs(15)).await;
        drop(redeemed);
        assert_eq!(whole(service, request(&scenario, &Trail::new())).await.unwrap().0, 200);
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

/// Clients disconnect at any moment: each key pays once, each client without one for what it got
/// and one more, and none waits for ever.
#[test]
fn disconnects_on_four_threads_pay_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let scenario = Scenario::new([]);
        let latency = Latency::fixed(Duration::from_millis(6));
        let sim = Sim::builder()
            .latency(latency)
            .tiny_images(true)
            .chunks(700, Duration::from_millis(1))
            .build();
        let keep = KeepPaidLayer::new();
        let service = stack(&scenario, &sim, &keep);
        let ask = |tag: &str, name: &'static str| {
            let mut request = scenario.request(tag);
            request.headers_mut().insert(name, HeaderValue::from_str(tag).unwrap());
            request
        };
        let hangs = Duration::from_secs(30);
        for round in 0..12 {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..16 {
                let tag = format!("named-{round}-{n}");
                for _ in 0..3 {
                    let (service, requests) = (service.clone(), [(); 5].map(|()| ask(&tag, KEY)));
                    tasks.spawn(async move {
                        let [requests @ .., last] = requests;
                        for request in requests {
                            let patience = Duration::from_micros(fastrand::u64(0..20_000));
                            let _ = tokio::time::timeout(patience, whole(service.clone(), request))
                                .await;
                        }
                        tokio::time::timeout(hangs, whole(service, last))
                            .await
                            .expect("it hangs")
                            .unwrap();
                    });
                }
                // One client, one request after the other.
                let tag = format!("alone-{round}-{n}");
                let (service, sim, requests) =
                    (service.clone(), sim.clone(), [(); 7].map(|()| ask(&tag, "x-goog-api-key")));
                tasks.spawn(async move {
                    let ([requests @ .., last], mut came) = (requests, 0);
                    for request in requests {
                        let patience = Duration::from_micros(fastrand::u64(0..15_000));
                        came += usize::from(
                            tokio::time::timeout(patience, whole(service.clone(), request))
                                .await
                                .is_ok_and(|response| response.is_ok()),
                        );
                    }
                    tokio::time::timeout(hangs, whole(service, last))
                        .await
                        .expect("it hangs")
                        .unwrap();
                    let charges = sim.ledger().charges(&tag);
                    assert!(charges <= came + 1, "{tag}: {charges} charges, {came} received");
                });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
            for n in 0..16 {
                let tag = format!("named-{round}-{n}");
                assert_eq!(sim.ledger().charges(&tag), 1, "{tag}");
            }
        }
    });
}

#[test]
fn nothing_that_is_printed_holds_the_key() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        disconnect(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        let printed = format!("{keep:?} {service:?} {:?}", Arc::new(keep.counts()));
        assert!(!printed.contains("sentinel"), "{printed}");
    });
}

/// The body of the stack is one that a server can send.
#[allow(dead_code, reason = "it is the types that are tested")]
fn a_response_body_is_a_servers_body(
    body: ResponseBody<tower_gemini::body::JudgedBody<SimBody>>,
) -> axum::body::Body {
    axum::body::Body::new(body)
}

// A resend beside its original held a place in the client for as long as that took.
#[test]
fn a_call_that_waits_for_an_identical_one_leaves_its_place_to_others() {
    for key in [None, Some("k")] {
        in_paused_time(async {
            let scenario = Scenario::new([]);
            let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
            let client = ConcurrencyLimit::new(sim.service(), 2);
            let service = scenario.stack().keep_paid(keep).raw(client);
            let timed = |mut request: Request<Full<Bytes>>, key: Option<&'static str>| {
                if let Some(key) = key {
                    request.headers_mut().insert(KEY, HeaderValue::from_static(key));
                }
                let call = whole(service.clone(), request);
                async {
                    let status = call.await.unwrap().0;
                    (status, tokio::time::Instant::now().into_std())
                }
            };
            let same = || timed(request(&scenario, &Trail::new()), key);
            let other = Scenario { size: "2K", ..Scenario::new([]) };
            let other = timed(request(&other, &Trail::new()), None);
            let (first, second, other) = tokio::join!(same(), same(), other);
            assert_eq!([first.0, second.0, other.0], [200; 3]);
            assert_eq!(other.1, first.1, "they were sent side by side");
            assert_eq!(sim.requests(), if key.is_some() { 2 } else { 3 });
        });
    }
}
