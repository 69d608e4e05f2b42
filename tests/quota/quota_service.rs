use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_gemini::CallOptions;
use tower_gemini::Error;
use tower_gemini::body::{JudgedBody, WireBody};
use tower_gemini::clock::RuntimeClock;
use tower_gemini::quota_guard::{
    Dimension, Limits, ProjectId, QuotaGuard, QuotaGuardLayer, QuotaKey, Saturation,
};
use tower_gemini::trail::{Step, Trail, WaitReason};
use tower_gemini::verdict::{Charge, Detail, Outcome, QuotaCharge, Verdict, WaitHint, WaitSource};

use crate::google::{Google, MODEL, call, request, start};

type Answer = Response<JudgedBody<Full<Bytes>>>;

fn layer(limits: Limits) -> QuotaGuardLayer {
    QuotaGuardLayer::new(limits).clock(Arc::new(RuntimeClock::starting_at(start())))
}

fn key() -> QuotaKey {
    QuotaKey::new("default", MODEL)
}

fn answer(request: &Request<WireBody>, status: u16, verdict: Verdict) -> Answer {
    let (call, context) = (request.body().call().clone(), request.body().context().clone());
    let mut response =
        Response::new(JudgedBody::local(Bytes::from_static(b"{}"), verdict, call, context));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}

fn guard<S>(layer: &QuotaGuardLayer, inner: S) -> QuotaGuard<S> {
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
        .saturation(Saturation::Wait { at_most: Duration::from_secs(100_000) });
    let service = guard(
        &layer,
        service_fn({
            let google = google.clone();
            move |request| google.clone().answer(request)
        }),
    );
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    // Enough of them that the answers' slowness never leaves allowance unused.
    let workers = limits.get(Dimension::RequestsPerMinute).unwrap_or(60) * 3;
    let mut running: FuturesUnordered<_> = (0..workers)
        .map(|worker| {
            let service = service.clone();
            async move {
                let mut random = fastrand::Rng::with_seed(seed ^ worker);
                while Instant::now() < end {
                    let request = request(random.u64(tokens.0..=tokens.1), 1, CallContext::new());
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
    let layer = QuotaGuardLayer::unlimited();
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    service.oneshot(request(1, 1, CallContext::new())).await.unwrap();
    assert!(layer.ledgers().is_empty());
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
    let response = service.oneshot(request(7, 1, CallContext::new())).await.unwrap();
    let entry = |layer: &QuotaGuardLayer| layer.ledger(&key()).unwrap().entries[0];
    assert_eq!((entry(&layer).reserved, entry(&layer).used), (1, 0));
    response.into_body().collect().await.unwrap();
    let after = entry(&layer);
    assert_eq!((after.reserved, after.used, after.remaining), (0, 1, Some(4)));
    assert!(after.resets_in > Duration::from_secs(60) && after.resets_in < Duration::from_secs(62));
    let day = layer.ledger(&key()).unwrap().entries[3];
    assert_eq!((day.used, day.remaining), (1, Some(8)));
}

#[tokio::test(start_paused = true)]
async fn only_what_was_surely_not_counted_is_given_back() {
    for (verdict, used) in [(Verdict::not_sent(), 0), (Verdict::interrupted(), 1)] {
        assert_eq!(verdict.quota() == QuotaCharge::None, used == 0);
        let layer = layer(Limits::unlimited().rpm(5));
        let service = guard(
            &layer,
            service_fn(move |_: Request<WireBody>| {
                let verdict = verdict.clone();
                async move { Err::<Answer, _>(Error::transport("down".into(), verdict)) }
            }),
        );
        service.oneshot(request(7, 1, CallContext::new())).await.unwrap_err();
        let entry = layer.ledger(&key()).unwrap().entries[0];
        assert_eq!((entry.used, entry.reserved), (used, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_settles_by_how_far_it_got() {
    let layer = layer(Limits::unlimited().rpm(5));
    let mut service = guard(
        &layer,
        service_fn(|_: Request<WireBody>| std::future::pending::<Result<Answer, Error>>()),
    );
    let entry = |layer: &QuotaGuardLayer| layer.ledger(&key()).unwrap().entries[0];
    // Never polled: never sent.
    drop(service.call(request(7, 1, CallContext::new())));
    assert_eq!((entry(&layer).used, entry(&layer).reserved), (0, 0));
    // Polled once: it may be on its way.
    let mut sent = Box::pin(service.call(request(7, 1, CallContext::new())));
    assert!(sent.as_mut().now_or_never().is_none());
    assert_eq!((entry(&layer).used, entry(&layer).reserved), (0, 1));
    drop(sent);
    assert_eq!((entry(&layer).used, entry(&layer).reserved), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_refused_at_once_with_the_true_wait() {
    let layer = layer(Limits::unlimited().rpm(1)).saturation(Saturation::Refuse);
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
    drop(service.clone().oneshot(request(7, 1, CallContext::new())).await.unwrap());
    let trail = Trail::new();
    let context = CallOptions::new().trail(trail.clone()).into_context(Instant::now().into_std());
    let refused = service.clone().oneshot(request(7, 1, context)).await.unwrap();
    assert_eq!((refused.status().as_u16(), sent.load(Ordering::Relaxed)), (429, 1));
    let verdict = refused.body().verdict();
    assert_eq!((verdict.charge(), verdict.quota()), (Charge::None, QuotaCharge::None));
    assert!(trail.to_string().contains("our own count"));
    advance(verdict.wait().unwrap().not_before()).await;
    assert_eq!(service.oneshot(request(7, 1, CallContext::new())).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_turn_and_is_told_how_long() {
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
    drop(service.clone().oneshot(request(7, 1, CallContext::new())).await.unwrap());
    let trail = Trail::new();
    let context = CallOptions::new().trail(trail.clone()).into_context(Instant::now().into_std());
    let began = Instant::now();
    assert_eq!(service.oneshot(request(7, 1, context)).await.unwrap().status(), 200);
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
    drop(service.clone().oneshot(request(7, 1, CallContext::new())).await.unwrap());
    let began = Instant::now();
    let context =
        CallOptions::new().deadline(Duration::from_secs(30)).into_context(began.into_std());
    let refused = service.oneshot(request(7, 1, context)).await.unwrap();
    assert_eq!((refused.status().as_u16(), began.elapsed()), (429, Duration::ZERO));
    assert_eq!(layer.ledger(&key()).unwrap().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_lets_through_and_counts() {
    let layer = layer(Limits::unlimited().rpm(2)).saturation(Saturation::Shadow);
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    for _ in 0..5 {
        assert_eq!(
            service.clone().oneshot(request(7, 1, CallContext::new())).await.unwrap().status(),
            200
        );
    }
    assert_eq!(layer.counts().shadow_refused, 3);
}

#[tokio::test(start_paused = true)]
async fn a_heavy_call_is_not_overtaken_by_light_ones() {
    let layer = layer(Limits::unlimited().tpm(100))
        .saturation(Saturation::Wait { at_most: Duration::from_secs(10_000) });
    let order = Arc::new(Mutex::new(Vec::new()));
    let service = guard(
        &layer,
        service_fn({
            let order = order.clone();
            move |request: Request<WireBody>| {
                order.lock().unwrap().push(request.body().call().input_tokens_estimate);
                async move { Ok::<_, Error>(answer(&request, 200, Verdict::delivering())) }
            }
        }),
    );
    let mut calls = FuturesUnordered::new();
    for tokens in [90, 100, 1, 2, 95, 3] {
        let mut call = Box::pin(service.clone().oneshot(request(tokens, 1, CallContext::new())));
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
    impl Service<Request<WireBody>> for Probe {
        type Response = Answer;
        type Error = Error;
        type Future = std::future::Ready<Result<Answer, Error>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            self.ready = true;
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, request: Request<WireBody>) -> Self::Future {
            assert!(std::mem::replace(&mut self.ready, false), "called without being ready");
            std::future::ready(Ok(answer(&request, 200, Verdict::delivering())))
        }
    }
    let layer = layer(Limits::unlimited().rpm(1));
    let mut service = guard(&layer, Probe { ready: false });
    for _ in 0..3 {
        service.ready().await.unwrap().call(request(1, 1, CallContext::new())).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_day_closes_the_model_to_midnight_pacific_whatever_the_hint_says() {
    let layer = layer(Limits::unlimited().rpm(100));
    let hint = WaitHint::new(Duration::from_secs(2), WaitSource::RetryInfo);
    let verdict =
        Verdict::refused_locally(Outcome::RateLimitedDay, Some(hint), true, Detail::default());
    let service = guard(
        &layer,
        service_fn(move |request| {
            let verdict = verdict.clone();
            async move { Ok::<_, Error>(answer(&request, 429, verdict)) }
        }),
    );
    drop(service.clone().oneshot(request(1, 1, CallContext::new())).await.unwrap());
    let refused = service.oneshot(request(1, 1, CallContext::new())).await.unwrap();
    let wait = refused.body().verdict().wait().unwrap().stated();
    // 2026-03-08 12:59 Pacific daylight time (20:00 UTC) to midnight.
    assert!(
        wait > Duration::from_secs(10 * 3600) && wait < Duration::from_secs(12 * 3600),
        "{wait:?}"
    );
    assert_eq!(refused.body().verdict().outcome(), Outcome::RateLimitedDay);
}

#[tokio::test(start_paused = true)]
async fn a_429_far_below_the_limit_rests_the_model_and_keeps_the_limit() {
    let layer = layer(Limits::unlimited().rpm(100)).saturation(Saturation::Refuse);
    let verdict = Verdict::refused_locally(Outcome::RateLimited, None, true, Detail::default());
    let service = guard(
        &layer,
        service_fn(move |request| {
            let verdict = verdict.clone();
            async move { Ok::<_, Error>(answer(&request, 429, verdict)) }
        }),
    );
    drop(service.clone().oneshot(request(1, 1, CallContext::new())).await.unwrap());
    let refused = service.oneshot(request(1, 1, CallContext::new())).await.unwrap();
    assert_eq!(refused.body().verdict().outcome(), Outcome::Overloaded);
    assert_eq!(layer.ledger(&key()).unwrap().entries[0].limit, Some(100));
}

#[tokio::test(start_paused = true)]
async fn retries_stop_while_first_attempts_still_pass() {
    let layer = layer(Limits::unlimited().rpd(10))
        .keep_for_first_attempts(30)
        .saturation(Saturation::Refuse);
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    let retry = || {
        let context = CallContext::new();
        let _ = context.trail().begin_attempt(None, None);
        request(1, 1, context)
    };
    let mut passed = 0;
    while service.clone().oneshot(retry()).await.unwrap().status() == 200 {
        passed += 1;
    }
    assert_eq!(passed, 7);
    assert_eq!(service.oneshot(request(1, 1, CallContext::new())).await.unwrap().status(), 200);
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
        drop(service.clone().oneshot(request(1, 1, CallContext::new())).await.unwrap());
    }
    assert_eq!(told.load(Ordering::Relaxed), 1);
    channel.changed().await.unwrap();
    assert_eq!(channel.borrow().as_ref().unwrap().dimension, Dimension::RequestsPerMinute);
}

#[tokio::test(start_paused = true)]
async fn keys_of_one_project_share_its_quota_and_are_not_kept() {
    let project = ProjectId::new("studio");
    let layer = layer(Limits::unlimited().rpm(2))
        .saturation(Saturation::Refuse)
        .project_by_credential([9; 16], [("AIza-one", project.clone()), ("AIza-two", project)]);
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    let mut statuses = Vec::new();
    for name in ["AIza-one", "AIza-two", "AIza-one", "AIza-three"] {
        let mut request = request(1, 1, CallContext::new());
        request.headers_mut().insert("x-goog-api-key", name.parse().unwrap());
        statuses.push(service.clone().oneshot(request).await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 429, 200]);
    assert!(!format!("{layer:?} {:?}", layer.ledgers()).contains("AIza"));
}

// OAuth's tokens change by the hour: each is a project of its own, and nobody asks with it again.
#[tokio::test(start_paused = true)]
async fn however_many_keys_come_the_counts_are_bounded_and_those_at_rest_make_room() {
    let layer = layer(Limits::unlimited().rpm(1).rpd(5))
        .saturation(Saturation::Refuse)
        .project_by_credential([9; 16], []);
    let service = guard(
        &layer,
        service_fn(|request| async move {
            Ok::<_, Error>(answer(&request, 200, Verdict::delivering()))
        }),
    );
    let send = |name: String| {
        let mut request = request(1, 1, CallContext::new());
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
    let most = layer.ledgers().len();
    assert!(most <= 4_097, "{most}");
    advance(Duration::from_secs(25 * 3600)).await;
    for n in 0..100 {
        assert_eq!(send(format!("tomorrow-{n}")).await, 200, "{n}");
    }
    assert_eq!(send("tomorrow-7".to_owned()).await, 429, "and each has a count of its own");
    assert!(layer.ledgers().len() <= 4_097);
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
                .saturation(Saturation::Wait { at_most: Duration::from_secs(1_000) });
            let service = guard(&layer, service_fn(|request: Request<WireBody>| async move {
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
                            let response = service.oneshot(request(tokens, 1, CallContext::new())).await.unwrap();
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
            for dimension in Dimension::ALL {
                assert_eq!(totals.outstanding.get(dimension), 0);
                assert_eq!(totals.taken.get(dimension), totals.settled.get(dimension) + totals.given_back.get(dimension));
            }
            assert_eq!(handle.ledger().waiting, 0);
            advance(Duration::from_secs(120)).await;
            let minute = handle.ledger().entries[0];
            assert_eq!((minute.used, minute.reserved, minute.remaining), (0, 0, Some(rpm)));
        });
    }

    /// Whoever came first is served first, whatever the weights.
    #[test]
    fn the_line_is_served_in_order(weights in proptest::collection::vec(1u64..100, 2..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let layer = layer(Limits::unlimited().tpm(100)).saturation(Saturation::Wait { at_most: Duration::from_secs(100_000) });
            let handle = layer.handle(&key()).unwrap();
            let served = Mutex::new(Vec::new());
            let line = weights
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
            // Polled in the order of their places, so that they get in line in that order.
            futures::future::join_all(line).await;
            let served = served.lock().unwrap().clone();
            assert_eq!(served, (0..weights.len()).collect::<Vec<_>>());
        });
    }
}

#[test]
fn the_call_made_here_is_one_that_is_counted() {
    assert_eq!(call(1, 1).model.as_ref().unwrap().as_str(), MODEL);
}
