//! The service as a whole: against a Google that counts exactly, dropped at any moment, and by name
//! of each invariant.

mod google;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_gemini_core::target::Upstream;
use tower_gemini_core::verdict::{
    Charge, Detail, Outcome, QuotaCharge, Verdict, WaitHint, WaitSource,
};

use super::{
    Limits, OnExhausted, ProjectId, QuotaDimension, QuotaGuard, QuotaGuardLayer, QuotaKey,
};
use crate::body::{AttemptBody, JudgedBody, WireBody};
use crate::call_state::CallState;
use crate::clock::RuntimeClock;
use crate::error::Error;
use crate::stage::AttemptService;
use crate::trail::{Step, Trail, WaitReason};
use crate::{CallOptions, ClassifyGeminiErrorLayer};
use google::{Google, MODEL, call, request, request_of, start};

type Answer = Response<JudgedBody<Full<Bytes>>>;

fn layer(limits: Limits) -> QuotaGuardLayer {
    QuotaGuardLayer::new(limits).clock(RuntimeClock::starting_at(start()))
}

fn key() -> QuotaKey {
    QuotaKey::new("default", MODEL)
}

fn answer(request: &Request<AttemptBody>, status: u16, verdict: Verdict) -> Answer {
    let (call, state) = (request.body().call().clone(), request.body().state().clone());
    let mut response =
        Response::new(JudgedBody::local(Bytes::from_static(b"{}"), verdict, call, state));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}

fn guard<S: AttemptService>(layer: &QuotaGuardLayer, inner: S) -> QuotaGuard<S> {
    layer.layer(inner)
}

/// The demand of twenty workers that never rest, for so long. Gives what Google served and refused.
async fn full_demand(
    limits: Limits,
    minutes: u64,
    latency_ms: u64,
    tokens: (u64, u64),
    seed: u64,
) -> (u64, u64) {
    let google = Google::new(limits, latency_ms, seed);
    let layer = layer(limits)
        .learn_nothing()
        .on_exhausted(OnExhausted::Wait { at_most: Duration::from_secs(100_000) });
    let service = guard(
        &layer,
        service_fn({
            let google = google.clone();
            move |request| google.clone().answer(request)
        }),
    );
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    // Enough of them that the answers' slowness never leaves allowance unused.
    let workers = limits.get(QuotaDimension::RequestsPerMinute).unwrap_or(60) * 3;
    let mut running: FuturesUnordered<_> = (0..workers)
        .map(|worker| {
            let service = service.clone();
            async move {
                let mut random = fastrand::Rng::with_seed(seed ^ worker);
                while Instant::now() < end {
                    let request = request(random.u64(tokens.0..=tokens.1), 1, CallOptions::new());
                    let Ok(response) = service.clone().oneshot(request).await else { continue };
                    let _ = response.into_body().collect().await;
                }
            }
        })
        .collect();
    let _ = tokio::time::timeout_at(end, async { while running.next().await.is_some() {} }).await;
    (google.served(), google.refused())
}

#[tokio::test(start_paused = true)]
async fn at_full_demand_google_refuses_nothing_and_the_allowance_is_used() {
    let (served, refused) =
        full_demand(Limits::unlimited().rpm(60).ipm(80).tpm(100_000), 30, 450, (10, 300), 1).await;
    assert_eq!(refused, 0);
    assert!(served * 100 >= 60 * 30 * 95, "{served} of {}", 60 * 30);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_kept_as_tightly_as_requests() {
    let (served, refused) =
        full_demand(Limits::unlimited().rpm(200).tpm(20_000), 20, 450, (200, 200), 2).await;
    assert_eq!(refused, 0);
    assert!(served * 200 * 100 >= 20_000 * 20 * 95, "{served}");
}

#[tokio::test(start_paused = true)]
async fn two_days_of_full_demand_keep_both_days_and_use_them() {
    // From noon Pacific to noon, two midnights: the rest of today, tomorrow, and the half of the
    // day after.
    let limits = Limits::unlimited().rpm(30).rpd(2_000);
    let (served, refused) = full_demand(limits, 48 * 60, 450, (10, 10), 3).await;
    assert_eq!(refused, 0);
    assert!(served >= 3 * 2_000 * 95 / 100, "{served}");
}

#[tokio::test(start_paused = true)]
async fn without_limits_nothing_is_counted() {
    let layer = QuotaGuardLayer::off();
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    service.oneshot(request(1, 1, CallOptions::new())).await.unwrap();
    assert!(layer.usages().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reservation_lives_to_the_end_of_the_body() {
    let layer = layer(Limits::unlimited().rpm(5).rpd(9));
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    let response = service.oneshot(request(7, 1, CallOptions::new())).await.unwrap();
    let entry = |layer: &QuotaGuardLayer| layer.usage(&key()).unwrap().entries[0];
    assert_eq!((entry(&layer).reserved, entry(&layer).used), (1, 0));
    response.into_body().collect().await.unwrap();
    let after = entry(&layer);
    assert_eq!((after.reserved, after.used, after.remaining), (0, 1, Some(4)));
    assert!(after.resets_in > Duration::from_secs(60) && after.resets_in < Duration::from_secs(62));
    let day = layer.usage(&key()).unwrap().entries[3];
    assert_eq!((day.used, day.remaining), (1, Some(8)));
}

#[tokio::test(start_paused = true)]
async fn only_quota_that_was_surely_not_counted_is_given_back() {
    for (verdict, used) in [(Verdict::not_sent(), 0), (Verdict::interrupted(), 1)] {
        assert_eq!(verdict.quota() == QuotaCharge::None, used == 0);
        let layer = layer(Limits::unlimited().rpm(5));
        let service = guard(
            &layer,
            service_fn(move |_: Request<AttemptBody>| {
                let verdict = verdict.clone();
                async move { Err::<Answer, _>(Error::transport("down".into(), verdict)) }
            }),
        );
        service.oneshot(request(7, 1, CallOptions::new())).await.unwrap_err();
        let entry = layer.usage(&key()).unwrap().entries[0];
        assert_eq!((entry.used, entry.reserved), (used, 0));
    }
}

/// The whole way down: a client whose future does nothing before it is polled.
fn over_client<F>(layer: &QuotaGuardLayer, client: F) -> impl AttemptService
where
    F: Fn(Request<WireBody>) + Clone + Send + 'static,
{
    let client = service_fn(move |request: Request<WireBody>| {
        client(request);
        std::future::pending::<Result<Response<Full<Bytes>>, std::io::Error>>()
    });
    guard(layer, ClassifyGeminiErrorLayer::new().layer(client))
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_settles_by_how_far_it_got() {
    let layer = layer(Limits::unlimited().rpm(5));
    let mut service = over_client(&layer, drop);
    let entry = |layer: &QuotaGuardLayer| layer.usage(&key()).unwrap().entries[0];
    // Never polled: never sent.
    drop(service.call(request(7, 1, CallOptions::new())));
    assert_eq!((entry(&layer).used, entry(&layer).reserved), (0, 0));
    // Polled once: it may be on its way.
    let mut sent = Box::pin(service.call(request(7, 1, CallOptions::new())));
    assert!(sent.as_mut().now_or_never().is_none());
    assert_eq!((entry(&layer).used, entry(&layer).reserved), (0, 1));
    drop(sent);
    assert_eq!((entry(&layer).used, entry(&layer).reserved), (1, 0));
}

// The guard took "never polled" for "never sent", and gave back what a client had sent in `call`.
#[tokio::test(start_paused = true)]
async fn a_client_that_sends_in_call_uses_quota_even_if_its_future_is_never_polled() {
    let layer = layer(Limits::unlimited().rpm(5));
    let mut service = over_client(&layer, |request| {
        let mut body = request.into_body();
        let read = std::pin::pin!(body.frame()).now_or_never();
        assert!(read.flatten().is_some());
    });
    drop(service.call(request(7, 1, CallOptions::new())));
    let entry = layer.usage(&key()).unwrap().entries[0];
    assert_eq!((entry.used, entry.reserved), (1, 0));
}

// A task of the client's may go on with the body of a request that was given back.
#[tokio::test(start_paused = true)]
async fn an_attempt_whose_quota_was_given_back_cannot_be_sent_later() {
    let layer = layer(Limits::unlimited().rpm(5));
    let kept = Arc::new(Mutex::new(None));
    let mut service = over_client(&layer, {
        let kept = kept.clone();
        move |request| *kept.lock().unwrap() = Some(request.into_body())
    });
    drop(service.call(request(7, 1, CallOptions::new())));
    assert_eq!(layer.usage(&key()).unwrap().entries[0].used, 0);
    let mut body = kept.lock().unwrap().take().unwrap();
    assert!(!body.is_end_stream());
    assert!(body.frame().now_or_never().unwrap().unwrap().is_err());
}

// `longest_wait = "1s"`: the guard refused at once, and the retry waited a minute on its hint.
#[tokio::test(start_paused = true)]
async fn our_own_retry_waits_no_longer_for_quota_than_the_caller_allowed() {
    let one_second = OnExhausted::Wait { at_most: Duration::from_secs(1) };
    let layer = layer(Limits::unlimited().rpm(1)).on_exhausted(one_second);
    let judged = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    let retry = crate::JitteredRetryLayer::recommended().layer(judged);
    let service = crate::CollectRequestLayer::new().layer(retry);
    let ask = || {
        Request::post(format!("/v1beta/models/{MODEL}:generateContent"))
            .body(Full::new(Bytes::from_static(b"{}")))
            .unwrap()
    };
    drop(service.clone().oneshot(ask()).await.unwrap());
    let began = Instant::now();
    let refused = service.oneshot(ask()).await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
    // Clients still learn when it would help.
    let wait = refused.body().verdict().wait().unwrap().stated();
    assert!(wait > Duration::from_secs(50), "{wait:?}");
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("retryDelay"));
}

// Two relays that serve the same model shared one count.
#[tokio::test(start_paused = true)]
async fn two_upstreams_with_one_model_are_counted_apart() {
    let store =
        Arc::new(crate::store::MemoryStore::new().clock(RuntimeClock::starting_at(start())));
    let limits = Limits::unlimited().rpm(1);
    let shared = |base: &'static str| {
        let upstream = Upstream::gemini_api(http::Uri::from_static(base));
        layer(limits).store(store.clone()).upstream(upstream.id()).on_exhausted(OnExhausted::Refuse)
    };
    let mut statuses = Vec::new();
    for base in ["https://a.example", "https://b.example", "https://a.example"] {
        let service = guard(
            &shared(base),
            service_fn(|request| async move {
                Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
            }),
        );
        let response = service.oneshot(request(1, 1, CallOptions::new())).await.unwrap();
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 429]);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_refused_at_once_with_the_true_wait() {
    let layer = layer(Limits::unlimited().rpm(1)).on_exhausted(OnExhausted::Refuse);
    let sent = Arc::new(AtomicU32::new(0));
    let service = guard(
        &layer,
        service_fn({
            let sent = sent.clone();
            move |request| {
                sent.fetch_add(1, Ordering::Relaxed);
                async move { Ok::<_, Error>(answer(&request, 200, Verdict::delivering())) }
            }
        }),
    );
    drop(service.clone().oneshot(request(7, 1, CallOptions::new())).await.unwrap());
    let trail = Trail::new();
    let options = CallOptions::new().trail(trail.clone());
    let refused = service.clone().oneshot(request(7, 1, options)).await.unwrap();
    assert_eq!((refused.status().as_u16(), sent.load(Ordering::Relaxed)), (429, 1));
    let verdict = refused.body().verdict();
    assert_eq!((verdict.charge(), verdict.quota()), (Charge::None, QuotaCharge::None));
    assert!(trail.to_string().contains("our own count"));
    advance(verdict.wait().unwrap().not_before()).await;
    assert_eq!(service.oneshot(request(7, 1, CallOptions::new())).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_turn_and_the_expected_wait_is_reported() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let layer = layer(Limits::unlimited().rpm(1)).on_wait({
        let told = told.clone();
        move |wait| told.lock().unwrap().push(wait.expected)
    });
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    drop(service.clone().oneshot(request(7, 1, CallOptions::new())).await.unwrap());
    let trail = Trail::new();
    let options = CallOptions::new().trail(trail.clone());
    let began = Instant::now();
    assert_eq!(service.oneshot(request(7, 1, options)).await.unwrap().status(), 200);
    let waited = began.elapsed();
    let expected = told.lock().unwrap()[0];
    assert!(waited.abs_diff(expected) <= Duration::from_millis(2), "{waited:?}, told {expected:?}");
    assert!(matches!(trail.steps()[0], Step::Waited { why: WaitReason::OwnQuota, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_turn_would_come_after_its_deadline_is_refused_at_once() {
    let layer = layer(Limits::unlimited().rpm(1));
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    drop(service.clone().oneshot(request(7, 1, CallOptions::new())).await.unwrap());
    let began = Instant::now();
    let options = CallOptions::new().deadline(Duration::from_secs(30));
    let refused = service.oneshot(request(7, 1, options)).await.unwrap();
    assert_eq!((refused.status().as_u16(), began.elapsed()), (429, Duration::ZERO));
    assert_eq!(layer.usage(&key()).unwrap().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_lets_through_and_counts() {
    let layer = layer(Limits::unlimited().rpm(2)).on_exhausted(OnExhausted::Shadow);
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    for _ in 0..5 {
        assert_eq!(
            service.clone().oneshot(request(7, 1, CallOptions::new())).await.unwrap().status(),
            200
        );
    }
    assert_eq!(layer.counts().shadow_refused, 3);
}

#[tokio::test(start_paused = true)]
async fn a_heavy_call_is_not_overtaken_by_light_ones() {
    let layer = layer(Limits::unlimited().tpm(100))
        .on_exhausted(OnExhausted::Wait { at_most: Duration::from_secs(10_000) });
    let order = Arc::new(Mutex::new(Vec::new()));
    let service = guard(
        &layer,
        service_fn({
            let order = order.clone();
            move |request: Request<AttemptBody>| {
                order.lock().unwrap().push(request.body().call().input_tokens_estimate);
                async move { Ok::<_, Error>(answer(&request, 200, Verdict::delivering())) }
            }
        }),
    );
    let mut calls = FuturesUnordered::new();
    for tokens in [90, 100, 1, 2, 95, 3] {
        let mut call = Box::pin(service.clone().oneshot(request(tokens, 1, CallOptions::new())));
        assert!(call.as_mut().now_or_never().is_some() || tokens != 90);
        if tokens != 90 {
            calls.push(call);
        }
    }
    while calls.next().await.is_some() {}
    assert_eq!(*order.lock().unwrap(), [90, 100, 1, 2, 95, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_instance_that_was_made_ready_is_the_one_that_is_called() {
    #[derive(Debug)]
    struct Probe {
        ready: bool,
    }
    impl Clone for Probe {
        fn clone(&self) -> Self {
            Self { ready: false }
        }
    }
    impl Service<Request<AttemptBody>> for Probe {
        type Response = Answer;
        type Error = Error;
        type Future = std::future::Ready<Result<Answer, Error>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            self.ready = true;
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, request: Request<AttemptBody>) -> Self::Future {
            assert!(std::mem::replace(&mut self.ready, false), "called without being ready");
            std::future::ready(Ok(answer(&request, 200, Verdict::delivering())))
        }
    }
    let layer = layer(Limits::unlimited().rpm(1));
    let mut service = guard(&layer, Probe { ready: false });
    for _ in 0..3 {
        service.ready().await.unwrap().call(request(1, 1, CallOptions::new())).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_day_closes_the_model_to_midnight_pacific_whatever_the_hint_says() {
    let hint = WaitHint::new(Duration::from_secs(2), WaitSource::RetryInfo);
    // 2026-03-08 12:59 Pacific daylight time (20:00 UTC).
    let to_midnight = Duration::from_secs(10 * 3600)..Duration::from_secs(12 * 3600);
    // It is remembered where nothing is limited, too.
    for limits in [Limits::unlimited().rpm(100), Limits::unlimited()] {
        let (layer, sent) = (layer(limits), Arc::new(AtomicU32::new(0)));
        let counted = sent.clone();
        let service = guard(
            &layer,
            service_fn(move |request| {
                let (outcome, hint) = (Outcome::RateLimitedDay, Some(hint));
                let verdict = Verdict::refused_locally(outcome, hint, true, Detail::default());
                counted.fetch_add(1, Ordering::Relaxed);
                async move { Ok::<_, Error>(answer(&request, 429, verdict)) }
            }),
        );
        let ask = || service.clone().oneshot(request(1, 1, CallOptions::new()));
        drop(ask().await.unwrap());
        for _ in 0..5 {
            let refused = ask().await.unwrap();
            let wait = refused.body().verdict().wait().unwrap().stated();
            assert!(to_midnight.contains(&wait), "{wait:?}");
            assert_eq!(refused.body().verdict().outcome(), Outcome::RateLimitedDay);
        }
        assert_eq!(sent.load(Ordering::Relaxed), 1);
        assert_eq!((layer.reopen(), layer.reopen()), (1, 0));
        drop(ask().await.unwrap());
        assert_eq!(sent.load(Ordering::Relaxed), 2, "a tier was upgraded: it is asked again");
        tokio::time::advance(to_midnight.end).await;
        drop(ask().await.unwrap());
        assert_eq!(sent.load(Ordering::Relaxed), 3, "it is another day");
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_far_below_the_limit_rests_the_model_and_keeps_the_limit() {
    let layer = layer(Limits::unlimited().rpm(100)).on_exhausted(OnExhausted::Refuse);
    let verdict = Verdict::refused_locally(Outcome::RateLimited, None, true, Detail::default());
    let service = guard(
        &layer,
        service_fn(move |request| {
            let verdict = verdict.clone();
            async move { Ok::<_, Error>(answer(&request, 429, verdict)) }
        }),
    );
    drop(service.clone().oneshot(request(1, 1, CallOptions::new())).await.unwrap());
    let refused = service.oneshot(request(1, 1, CallOptions::new())).await.unwrap();
    assert_eq!(refused.body().verdict().outcome(), Outcome::Overloaded);
    assert_eq!(layer.usage(&key()).unwrap().entries[0].limit, Some(100));
}

#[tokio::test(start_paused = true)]
async fn retries_stop_while_first_attempts_still_pass() {
    let layer = layer(Limits::unlimited().rpd(10))
        .keep_for_first_attempts(30)
        .on_exhausted(OnExhausted::Refuse);
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    let retry = || {
        let state = CallState::new(CallOptions::new());
        let _ = state.new_attempt();
        request_of(1, 1, state)
    };
    let mut passed = 0;
    while service.clone().oneshot(retry()).await.unwrap().status() == 200 {
        passed += 1;
    }
    assert_eq!(passed, 7);
    assert_eq!(service.oneshot(request(1, 1, CallOptions::new())).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn alerts_come_once_a_crossing_by_callback_and_channel() {
    let told = Arc::new(AtomicU32::new(0));
    let layer = layer(Limits::unlimited().rpm(10)).on_alert({
        let told = told.clone();
        move |alert| {
            assert_eq!((alert.threshold_percent, alert.taken), (70, 7));
            told.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut channel = layer.alerts();
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    for _ in 0..10 {
        drop(service.clone().oneshot(request(1, 1, CallOptions::new())).await.unwrap());
    }
    assert_eq!(told.load(Ordering::Relaxed), 1);
    channel.changed().await.unwrap();
    assert_eq!(channel.borrow().as_ref().unwrap().dimension, QuotaDimension::RequestsPerMinute);
}

#[tokio::test(start_paused = true)]
async fn keys_of_one_project_share_its_quota_and_are_not_kept() {
    let project = ProjectId::new("studio");
    let layer = layer(Limits::unlimited().rpm(2))
        .on_exhausted(OnExhausted::Refuse)
        .project_by_credential([9; 16], [("AIza-one", project.clone()), ("AIza-two", project)]);
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    let mut statuses = Vec::new();
    for name in ["AIza-one", "AIza-two", "AIza-one", "AIza-three"] {
        let mut request = request(1, 1, CallOptions::new());
        request.headers_mut().insert("x-goog-api-key", name.parse().unwrap());
        statuses.push(service.clone().oneshot(request).await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 429, 200]);
    assert!(!format!("{layer:?} {:?}", layer.usages()).contains("AIza"));
}

// OAuth's tokens change by the hour: each is a project of its own, and nobody asks with it again.
#[tokio::test(start_paused = true)]
async fn however_many_keys_come_the_counts_are_bounded_and_those_at_rest_make_room() {
    let layer = layer(Limits::unlimited().rpm(1).rpd(5))
        .on_exhausted(OnExhausted::Refuse)
        .project_by_credential([9; 16], []);
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    let send = |name: String| {
        let mut request = request(1, 1, CallOptions::new());
        request.headers_mut().insert("x-goog-api-key", name.parse().unwrap());
        let answer = service.clone().oneshot(request);
        async move {
            let answer = answer.await.unwrap();
            let status = answer.status().as_u16();
            let _ = answer.into_body().collect().await;
            status
        }
    };
    for n in 0..5_000 {
        send(format!("today-{n}")).await;
    }
    let most = layer.usages().len();
    assert!(most <= 4_097, "{most}");
    advance(Duration::from_secs(25 * 3600)).await;
    for n in 0..100 {
        assert_eq!(send(format!("tomorrow-{n}")).await, 200, "{n}");
    }
    assert_eq!(send("tomorrow-7".to_owned()).await, 429, "and each has a count of its own");
    assert!(layer.usages().len() <= 4_097);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Calls come, wait, are dropped at any moment; nothing stays behind.
    #[test]
    fn nothing_leaks_whenever_a_call_is_dropped(
        calls in proptest::collection::vec((0u64..90_000, 0u64..200_000, 1u64..60, 0u64..40_000), 1..24), rpm in 1u64..6, tpm in 60u64..200,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let layer = layer(Limits::unlimited().rpm(rpm).tpm(tpm).rpd(1_000))
                .on_exhausted(OnExhausted::Wait { at_most: Duration::from_secs(1_000) });
            let service = guard(&layer, service_fn(|request: Request<AttemptBody>| async move {
                sleep(Duration::from_millis(request.body().call().input_tokens_estimate * 300)).await;
                Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
            }));
            let mut tasks: FuturesUnordered<_> = calls
                .iter()
                .map(|&(starts_ms, lives_ms, tokens, reads_ms)| {
                    let service = service.clone();
                    async move {
                        sleep(Duration::from_millis(starts_ms)).await;
                        let call = async {
                            let response = service.oneshot(request(tokens, 1, CallOptions::new())).await.unwrap();
                            sleep(Duration::from_millis(reads_ms)).await;
                            response.into_body().collect().await.unwrap();
                        };
                        let _ = tokio::time::timeout(Duration::from_millis(lives_ms), call).await;
                    }
                })
                .collect();
            while tasks.next().await.is_some() {}
            let handle = layer.handle(&key()).unwrap();
            let totals = handle.totals();
            for dimension in QuotaDimension::ALL {
                assert_eq!(totals.outstanding.get(dimension), 0);
                assert_eq!(totals.taken.get(dimension), totals.settled.get(dimension) + totals.given_back.get(dimension));
            }
            assert_eq!(handle.usage().waiting, 0);
            advance(Duration::from_secs(120)).await;
            let minute = handle.usage().entries[0];
            assert_eq!((minute.used, minute.reserved, minute.remaining), (0, 0, Some(rpm)));
        });
    }

    /// Whoever came first is served first, whatever the weights.
    #[test]
    fn the_queue_is_served_in_order(weights in proptest::collection::vec(1u64..100, 2..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let layer = layer(Limits::unlimited().tpm(100)).on_exhausted(OnExhausted::Wait { at_most: Duration::from_secs(100_000) });
            let handle = layer.handle(&key()).unwrap();
            let served = Mutex::new(Vec::new());
            let queue = weights
                .iter()
                .enumerate()
                .map(|(i, &tokens)| {
                    let (handle, served) = (handle.clone(), &served);
                    async move {
                        let mut reservation = handle.reserve(tokens, 1, None).await.unwrap();
                        reservation.sent();
                        served.lock().unwrap().push(i);
                    }
                });
            // Polled in order, so that they join the queue in that order.
            futures::future::join_all(queue).await;
            let served = served.lock().unwrap().clone();
            assert_eq!(served, (0..weights.len()).collect::<Vec<_>>());
        });
    }
}

#[test]
fn the_call_of_these_tests_is_one_that_is_counted() {
    assert_eq!(call(1, 1).model.as_ref().unwrap().as_str(), MODEL);
}
