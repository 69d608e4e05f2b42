//! What callers hung up on after it may have been paid for is finished, kept, and given to their next identical request, once.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tower::{Layer, Service, ServiceExt};
use tower_gemini::answer_errors::HasVerdict;
use tower_gemini::core::context::CallOptions;
use tower_gemini::core::error::Error;
use tower_gemini::core::trail::{Step, StopReason, Trail};
use tower_gemini::core::verdict::Charge;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::keep_paid::KeptBody;
use tower_gemini::model_fallback::Chain;
use tower_gemini::stack::Judged;
use tower_gemini::{CollectRequest, CollectRequestLayer, GeminiStack, KeepPaid, KeepPaidLayer, ObserveLayer};
use tower_gemini_sim::{Fault, Latency, Sim, SimBody, SimService};

use crate::harness::{Ask, Scenario, TAG, cases, faults, in_paused_time};

type Kept = CollectRequest<KeepPaid<Judged<SimService>>>;

fn stack(scenario: &Scenario, sim: &Sim, keep: &KeepPaidLayer) -> Kept {
    CollectRequestLayer::new().layer(keep.layer(scenario.stack().judged(sim.service())))
}

fn request(scenario: &Scenario, trail: &Trail) -> Request<Full<Bytes>> {
    let mut request = scenario.request(TAG);
    request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
    request
}

/// The answer to its end, or the error that it ended with.
async fn whole<S, B>(service: S, request: Request<Full<Bytes>>) -> Result<(u16, Bytes), Error>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Error>,
    B: Body<Data = Bytes, Error = Error>,
{
    let (parts, body) = service.oneshot(request).await?.into_parts();
    Ok((parts.status.as_u16(), body.collect().await?.to_bytes()))
}

/// How far a caller is patient.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// It hangs up after so long, head or no head.
    Time(u64),
    /// It takes the head and so many chunks.
    Chunks(usize),
}

/// What a caller has when it goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// All of an answer, or an error that says what it cost.
    WithWord,
    WithNothing,
}

/// Sends a call and hangs up.
async fn hang_up(service: Kept, request: Request<Full<Bytes>>, patience: Patience) -> Left {
    match patience {
        Patience::Time(milliseconds) => {
            match tokio::time::timeout(Duration::from_millis(milliseconds), whole(service, request)).await {
                Ok(_) => Left::WithWord,
                Err(_) => Left::WithNothing,
            }
        }
        Patience::Chunks(chunks) => {
            let Ok(answer) = service.oneshot(request).await else { return Left::WithWord };
            let mut body: KeptBody<_> = answer.into_body();
            for _ in 0..chunks {
                if !matches!(body.frame().await, Some(Ok(_))) {
                    return Left::WithWord;
                }
            }
            // As much as was announced is all of it, whether or not the end was asked for.
            if body.size_hint().exact() == Some(0) { Left::WithWord } else { Left::WithNothing }
        }
    }
}

fn patience() -> impl Strategy<Value = Patience> {
    prop_oneof![(0u64..60_000).prop_map(Patience::Time), (0usize..4).prop_map(Patience::Chunks)]
}

/// A caller hangs up, and asks again for the same, as every SDK does: twice. Judged by the server's ledger.
///
/// Gives how often the server charged, the final answer, and whether the first one had come whole.
async fn and_again(
    scenario: &Scenario,
    patience: Patience,
    pause: u64,
    keep: &KeepPaidLayer,
) -> (usize, Result<(u16, Bytes), Error>, Sim, Left) {
    let sim = Sim::builder()
        .seed(scenario.seed)
        .script(scenario.faults.clone())
        .latency(Latency::fixed(scenario.latency))
        .tiny_images(true)
        .chunks(700, Duration::from_millis(300))
        .build();
    let service = stack(scenario, &sim, keep);
    let left = hang_up(service.clone(), request(scenario, &Trail::new()), patience).await;
    tokio::time::sleep(Duration::from_millis(pause)).await;
    let answer = whole(service, request(scenario, &Trail::new())).await;
    (sim.ledger().charges(TAG), answer, sim, left)
}

proptest! {
    #![proptest_config(cases(1000))]

    // Good weather: whenever the caller hangs up, both sends together are paid for once, and the second one is answered.
    #[test]
    fn a_caller_who_hangs_up_and_asks_again_pays_once(
        ask in prop::sample::select(vec![Ask::Whole, Ask::Sse, Ask::Array]),
        patience in patience(),
        pause in 0u64..120_000,
    ) {
        let scenario = Scenario { ask, ..Scenario::new([]) };
        in_paused_time(async {
            let keep = KeepPaidLayer::new();
            let (charges, answer, sim, left) = and_again(&scenario, patience, pause, &keep).await;
            let (status, body) = answer.unwrap();
            assert_eq!(status, 200);
            // A caller who was patient to the end asked for two images.
            assert_eq!(charges, 1 + usize::from(left == Left::WithWord));
            let image = sim.image_for(charges - 1).unwrap();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.contains(&base64::Engine::encode(&base64::engine::general_purpose::STANDARD, image)), "the image that was paid for");
            assert_eq!((keep.counts().kept, keep.counts().detached), (0, 0), "given once");
        });
    }

    // Any weather: who was told nothing and asks again gets what was paid for, or is told that it is lost. Both sends are paid for once.
    #[test]
    fn no_weather_makes_a_resend_pay_again(weather in proptest::collection::vec(faults(), 0..4), patience in patience(), pause in 0u64..120_000) {
        let scenario = Scenario { latency: Duration::from_secs(3), ..Scenario::new(weather) };
        in_paused_time(async {
            let keep = KeepPaidLayer::new();
            let (charges, answer, _, left) = and_again(&scenario, patience, pause, &keep).await;
            assert!(keep.drain(Duration::from_secs(86_400)).await, "every detached call ends");
            // Who was told may ask for another.
            assert!(charges <= 1 + usize::from(left == Left::WithWord), "{charges} charges, {left:?}, {answer:?}");
            if left == Left::WithNothing && charges == 1 {
                let told = answer.as_ref().map_or_else(|error| error.charge() == Charge::Maybe, |(status, _)| *status == 200);
                assert!(told, "{answer:?}");
            }
            assert!(keep.counts().kept <= 1);
        });
    }

    // However often its future was polled before it was dropped, a call that did not go out leaves nothing behind, and one that did leaves one task.
    #[test]
    fn a_dropped_call_is_finished_or_gone(polls in 0usize..12) {
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
            assert_eq!((keep.counts().kept, sim.ledger().charges(TAG)), (sent, sent));
        });
    }
}

/// What everybody does: nothing.
#[test]
fn without_the_layer_the_same_check_shows_two_charges() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let service = scenario.stack().raw(sim.service());
        let first =
            tokio::time::timeout(Duration::from_secs(5), whole(service.clone(), request(&scenario, &Trail::new()))).await;
        assert!(first.is_err());
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2);
    });
}

// Servers do not ask for the end of a body whose length was announced: such an answer was kept although it had arrived, and the caller's
// next call got an old image.
#[test]
fn an_answer_that_came_to_its_announced_length_was_delivered() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = Sim::builder().latency(Latency::none()).announce_length(true).tiny_images(false).build();
        let keep = KeepPaidLayer::new();
        let service = stack(&scenario, &sim, &keep);
        let answer = service.clone().oneshot(request(&scenario, &Trail::new())).await.unwrap();
        let mut body = answer.into_body();
        assert!(
            body.size_hint().exact().is_some_and(|length| length > 100_000),
            "it is announced, and longer than what is peeked"
        );
        while body.size_hint().exact() != Some(0) {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        assert_eq!((keep.counts().detached, keep.counts().kept), (0, 0));
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2, "a new call is a new call");
    });
}

#[test]
fn both_trails_say_what_happened() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let (first, second) = (Trail::new(), Trail::new());
        hang_up(service.clone(), request(&scenario, &first), Patience::Time(5_000)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        whole(service, request(&scenario, &second)).await.unwrap();
        assert!(matches!(first.steps()[..], [Step::Attempt(_), Step::CallerLeft, Step::Kept { .. }]), "{first}");
        let [Step::Redeemed { age, cost, .. }] = second.steps()[..] else { panic!("{second}") };
        assert!(age >= Duration::from_secs(40) && cost == first.cost() && cost.at_least_microusd > 0, "{second}");
        assert_eq!(second.cost().at_most_microusd, Some(0), "the second call cost nothing");
    });
}

#[test]
fn two_callers_who_are_both_there_get_an_answer_each() {
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
fn another_caller_never_gets_it_and_neither_does_another_request() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let mut other = request(&scenario, &Trail::new());
        other.headers_mut().insert("x-goog-api-key", HeaderValue::from_static("another"));
        whole(service.clone(), other).await.unwrap();
        let larger = Scenario { size: "2K", ..Scenario::new([]) };
        whole(service.clone(), request(&larger, &Trail::new())).await.unwrap();
        assert_eq!((sim.ledger().charges(TAG), keep.counts().kept), (3, 1));
    });
}

#[test]
fn a_resend_that_comes_before_the_hang_up_is_noticed_waits_for_it() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let first = tokio::spawn(whole(service.clone(), request(&scenario, &Trail::new())));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let resend = tokio::spawn(whole(service, request(&scenario, &Trail::new())));
        tokio::time::sleep(Duration::from_millis(50)).await;
        first.abort();
        resend.await.unwrap().unwrap();
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

#[test]
fn a_marked_resend_gets_what_seemed_delivered_and_an_unmarked_one_does_not() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let send = |count: &'static str| {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("x-stainless-retry-count", HeaderValue::from_static(count));
            whole(service.clone(), request)
        };
        let first = send("0").await.unwrap();
        let resent = send("1").await.unwrap();
        assert_eq!((&first, sim.ledger().charges(TAG)), (&resent, 1));
        send("0").await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2, "a new call is a new call");
    });
}

#[test]
fn what_ends_free_is_not_kept_and_starts_nothing_more() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::HighDemand, Fault::HighDemand]);
        let sim = Sim::builder()
            .script(scenario.faults.clone())
            .latency(Latency::fixed(Duration::from_secs(20)).errors(Duration::from_secs(10)..=Duration::from_secs(10)))
            .tiny_images(true)
            .build();
        let keep = KeepPaidLayer::new();
        let service = stack(&scenario, &sim, &keep);
        let trail = Trail::new();
        hang_up(service.clone(), request(&scenario, &trail), Patience::Time(5_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(
            (sim.requests(), keep.counts().free, keep.counts().kept),
            (1, 1, 0),
            "nobody wants another attempt: {trail}"
        );
    });
}

#[test]
fn a_continuation_is_never_kept_or_shared() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let continuation = || {
            let mut request = request(&scenario, &Trail::new());
            *request.body_mut() = Full::from(r#"{"contents":[{"parts":[{"text":"on"}]}],"continuationToken":"next"}"#);
            request
        };
        hang_up(service.clone(), continuation(), Patience::Time(5_000)).await;
        assert_eq!(keep.counts().detached, 0);
        drop(whole(service, continuation()).await);
        assert_eq!(sim.requests(), 2);
    });
}

#[test]
fn bounds_hold_however_many_callers_leave() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let keep = KeepPaidLayer::new().max_detached(5).max_kept_bytes(20_000).retention(Duration::from_secs(300));
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
        assert!(counts.kept_bytes <= 20_000 && counts.kept >= 1, "{counts:?}");
        assert_eq!(counts.too_many, 35, "{counts:?}");
        tokio::time::sleep(Duration::from_secs(300)).await;
        let counts = keep.counts();
        assert_eq!((counts.kept, counts.kept_bytes), (0, 0), "{counts:?}");
        assert_eq!(counts.never_asked_for, 5, "what was let go is told");
    });
}

#[test]
fn an_answer_that_is_too_large_or_too_late_is_told_and_not_kept() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        for (keep, why) in [
            (KeepPaidLayer::new().max_kept_bytes(100), "too large"),
            (KeepPaidLayer::new().max_detached_time(Duration::from_secs(1)), "too long"),
        ] {
            let sim = scenario.sim();
            let trail = Trail::new();
            hang_up(stack(&scenario, &sim, &keep), request(&scenario, &trail), Patience::Time(5_000)).await;
            assert!(keep.drain(Duration::from_secs(1000)).await);
            assert!(trail.to_string().contains(why), "{trail}");
            assert_eq!((keep.counts().kept, keep.counts().too_large + keep.counts().too_late), (0, 1));
        }
    });
}

#[test]
fn whoever_gets_it_and_hangs_up_leaves_it_for_the_next() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..3 {
            hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Chunks(0)).await;
        }
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!((sim.ledger().charges(TAG), keep.counts().redeemed), (1, 1));
    });
}

#[test]
fn requests_of_one_idempotency_key_are_one_call() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let send = |key: &'static str| {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
            whole(service.clone(), request)
        };
        let (a, b, c) = tokio::join!(send("one"), send("one"), send("two"));
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!(a == b && a != c);
        assert_eq!(send("one").await.unwrap(), a, "and later ones");
        assert_eq!(sim.ledger().charges(TAG), 2);
        // Even when all who asked have gone.
        assert!(tokio::time::timeout(Duration::from_secs(1), send("three")).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        send("three").await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 3);
        let larger = Scenario { size: "2K", ..Scenario::new([]) };
        let mut other = request(&larger, &Trail::new());
        other.headers_mut().insert("idempotency-key", HeaderValue::from_static("one"));
        let (status, body) = whole(service.clone(), other).await.unwrap();
        assert_eq!(status, 422);
        assert!(String::from_utf8_lossy(&body).contains("A new request needs a new key"));
        tokio::time::sleep(Duration::from_secs(700)).await;
        send("one").await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 4, "not for ever");
    });
}

#[test]
fn an_idempotency_key_whose_call_was_paid_for_and_lost_pays_no_second_time() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::ResetAfterGeneration]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        for _ in 0..3 {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("idempotency-key", HeaderValue::from_static("one"));
            let error = whole(service.clone(), request).await.unwrap_err();
            assert!(!error.charge().is_surely_free(), "{error}");
        }
        assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (1, 1));
    });
}

/// Everybody had left, and the time for finishing it alone had begun: whoever asks again by the name is there again, and is waited for.
#[test]
fn who_comes_back_to_a_key_is_not_told_that_it_took_too_long_alone() {
    in_paused_time(async {
        let scenario = Scenario { latency: Duration::from_secs(20), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new().max_detached_time(Duration::from_secs(10)));
        let service = stack(&scenario, &sim, &keep);
        let left = whole(service.clone(), with(&scenario, KEY, "one"));
        assert!(tokio::time::timeout(Duration::from_secs(2), left).await.is_err());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (status, _) = whole(service, with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!((status, sim.ledger().charges(TAG)), (200, 1));
    });
}

/// Runs in real time: files are written by threads that a paused clock does not wait for.
fn in_real_time<F: Future>(case: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(case)
}

#[test]
fn what_is_kept_is_written_down_and_taken_in_again_without_a_secret() {
    let dir = std::env::temp_dir().join(format!("keep-paid-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(30), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let first = stack(&scenario, &sim, &keep);
        hang_up(first, request(&scenario, &Trail::new()), Patience::Time(10)).await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        assert_eq!(keep.save_to(&dir).await.unwrap(), 1);
        std::fs::write(dir.join("torn.answer"), b"{\"version\":1").unwrap();
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            assert!(!String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains("sentinel"), "{}", path.display());
            #[cfg(unix)]
            if !path.ends_with("torn.answer") {
                let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
                assert_eq!(mode & 0o077, 0, "its owner's alone");
            }
        }
        // A process that is killed right after it has loaded loses nothing.
        for _ in 0..2 {
            assert_eq!(KeepPaidLayer::new().load_from(&dir).await.unwrap(), 1);
        }
        let next = KeepPaidLayer::new();
        assert_eq!(next.load_from(&dir).await.unwrap(), 1);
        let (status, body) = whole(stack(&scenario, &sim, &next), request(&scenario, &Trail::new())).await.unwrap();
        assert!(status == 200 && !body.is_empty());
        assert_eq!(sim.ledger().charges(TAG), 1);
        // The file goes with its answer; the damaged one is put aside for a person.
        for _ in 0..200 {
            let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            if left == ["torn.damaged"] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        assert_eq!(KeepPaidLayer::new().load_from(dir.join("nowhere")).await.unwrap(), 0);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_became_of_an_idempotency_key_outlives_the_process() {
    let dir = std::env::temp_dir().join(format!("keep-named-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario::new([Fault::None, Fault::ResetAfterGeneration]);
        let scenario = Scenario { latency: Duration::from_millis(1), ..scenario };
        let sim = scenario.sim();
        let send = |keep: &KeepPaidLayer, key: &'static str| {
            let mut request = request(&scenario, &Trail::new());
            request.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
            whole(stack(&scenario, &sim, keep), request)
        };
        let first = KeepPaidLayer::new();
        let answer = send(&first, "drawn").await.unwrap();
        assert!(!send(&first, "lost").await.unwrap_err().charge().is_surely_free());
        assert_eq!(first.save_to(&dir).await.unwrap(), 2);
        for _ in 0..2 {
            let next = KeepPaidLayer::new();
            assert_eq!(next.load_from(&dir).await.unwrap(), 2);
            assert_eq!(send(&next, "drawn").await.unwrap(), answer);
            assert!(!send(&next, "lost").await.unwrap_err().charge().is_surely_free());
        }
        assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (2, 2));
        // Not for ever: the files go when they are too old.
        let late = KeepPaidLayer::new().retention(Duration::ZERO);
        assert_eq!(late.load_from(&dir).await.unwrap(), 0);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Waits until so many files are left, for 5 s at most: they are removed by threads.
async fn files_left(dir: &std::path::Path, count: usize) -> usize {
    let left = || std::fs::read_dir(dir).unwrap().count();
    for _ in 0..500 {
        if left() == count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    left()
}

#[test]
fn the_file_of_a_key_goes_when_its_time_is_over() {
    let dir = std::env::temp_dir().join(format!("keep-named-old-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        whole(stack(&scenario, &sim, &first), with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!(first.save_to(&dir).await.unwrap(), 1);
        let next = KeepPaidLayer::new().retention(Duration::from_secs(1));
        assert_eq!(next.load_from(&dir).await.unwrap(), 1);
        assert_eq!(files_left(&dir, 1).await, 1);
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        // Looked through when the next one comes.
        whole(stack(&scenario, &sim, &next), with(&scenario, KEY, "two")).await.unwrap();
        assert_eq!(files_left(&dir, 0).await, 0);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Its caller would not be known by it, and damaged it is not.
#[test]
fn what_another_version_wrote_down_stays_where_it_is() {
    let dir = std::env::temp_dir().join(format!("keep-version-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        whole(stack(&scenario, &sim, &first), with(&scenario, KEY, "one")).await.unwrap();
        first.save_to(&dir).await.unwrap();
        let path = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
        let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
        assert!(text.starts_with("{\"version\":2,"), "{text}");
        std::fs::write(&path, text.replacen(":2,", ":1,", 1)).unwrap();
        assert_eq!(KeepPaidLayer::new().load_from(&dir).await.unwrap(), 0);
        assert!(path.exists());
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Nothing came of it that a later process could give: its next request is told so, and pays no second time.
#[test]
fn an_error_of_a_key_that_may_have_cost_something_is_written_down_as_lost() {
    let dir = std::env::temp_dir().join(format!("keep-error-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let client = tower::service_fn(|_: Request<tower_gemini::core::body::ReplayBody>| async {
            let answer = Response::builder().status(504).body(Full::new(Bytes::from("upstream request timeout")));
            Ok::<_, std::io::Error>(answer.unwrap())
        });
        let scenario = Scenario::new([]);
        let service = |keep: &KeepPaidLayer| CollectRequestLayer::new().layer(keep.layer(GeminiStack::new().judged(client)));
        let first = KeepPaidLayer::new();
        let answer = service(&first).oneshot(with(&scenario, KEY, "one")).await.unwrap();
        let charge = answer.body().verdict().map(tower_gemini::core::verdict::Verdict::charge);
        assert_eq!((answer.status().as_u16(), charge), (504, Some(Charge::Maybe)), "its verdict comes along");
        assert_eq!(first.save_to(&dir).await.unwrap(), 1);
        let next = KeepPaidLayer::new();
        assert_eq!(next.load_from(&dir).await.unwrap(), 1);
        let lost = whole(service(&next), with(&scenario, KEY, "one")).await.unwrap_err();
        assert_eq!(lost.charge(), Charge::Maybe, "{lost}");
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

fn with(scenario: &Scenario, name: &'static str, value: &'static str) -> Request<Full<Bytes>> {
    let mut request = request(scenario, &Trail::new());
    request.headers_mut().insert(name, HeaderValue::from_static(value));
    request
}

const RETRY_COUNT: &str = "x-stainless-retry-count";
const KEY: &str = "idempotency-key";

/// Whoever is being given a kept answer is there, as far as its next request can know.
#[test]
fn a_resend_that_comes_before_the_hang_up_of_a_redeemed_answer_is_noticed_waits_for_it() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Time(1_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        for _ in 0..3 {
            let redeemed = service.clone().oneshot(request(&scenario, &Trail::new())).await.unwrap();
            let next = tokio::spawn(whole(service.clone(), request(&scenario, &Trail::new())));
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(redeemed);
            // It is left in turn.
            next.abort();
            let _ = next.await;
        }
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!((sim.ledger().charges(TAG), keep.counts().kept), (1, 0));
    });
}

#[test]
fn an_answer_from_a_file_that_is_cut_on_its_way_is_there_for_the_next_request() {
    let dir = std::env::temp_dir().join(format!("keep-cut-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(30), ..Scenario::new([]) };
        let sim = Sim::builder().latency(Latency::fixed(scenario.latency)).build();
        let keep = KeepPaidLayer::new();
        hang_up(stack(&scenario, &sim, &keep), request(&scenario, &Trail::new()), Patience::Time(10)).await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        keep.save_to(&dir).await.unwrap();
        let next = KeepPaidLayer::new();
        next.load_from(&dir).await.unwrap();
        let service = stack(&scenario, &sim, &next);
        hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Chunks(2)).await;
        assert_eq!(next.counts().kept, 1);
        let (_, body) = whole(service, request(&scenario, &Trail::new())).await.unwrap();
        assert!(body.len() > 500_000, "{}", body.len());
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// From its end on, however long it took.
#[test]
fn a_key_is_remembered_from_the_end_of_its_call_on() {
    in_paused_time(async {
        let scenario = Scenario { latency: Duration::from_secs(250), ..Scenario::new([]) };
        let sim = scenario.sim();
        let service = stack(&scenario, &sim, &KeepPaidLayer::new().retention(Duration::from_secs(260)));
        let first = whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap(), first);
        assert_eq!(sim.ledger().charges(TAG), 1);
        tokio::time::sleep(Duration::from_secs(61)).await;
        whole(service, with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!(sim.ledger().charges(TAG), 2, "not for ever");
    });
}

#[test]
fn an_answer_of_a_key_that_had_to_make_room_is_lost_and_not_paid_for_again() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let service = stack(&scenario, &sim, &KeepPaidLayer::new());
        let (_, body) = whole(service.clone(), with(&scenario, KEY, "sized")).await.unwrap();
        let keep = KeepPaidLayer::new().max_kept_bytes(body.len() + body.len() / 2);
        let service = stack(&scenario, &sim, &keep);
        let first = whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!(whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap(), first);
        whole(service.clone(), with(&scenario, KEY, "two")).await.unwrap();
        whole(service.clone(), with(&scenario, KEY, "two")).await.unwrap();
        let lost = whole(service, with(&scenario, KEY, "one")).await.unwrap_err();
        assert!(!lost.charge().is_surely_free() && lost.to_string().contains("another key asks again"), "{lost}");
        assert_eq!(sim.ledger().charges(TAG), 3);
    });
}

#[test]
fn a_key_whose_call_was_under_way_at_the_end_pays_no_second_time() {
    let dir = std::env::temp_dir().join(format!("keep-under-way-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_secs(30), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let call = whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "one"));
        assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
        assert!(!keep.drain(Duration::from_millis(50)).await);
        assert_eq!(keep.save_to(&dir).await.unwrap(), 1);
        let next = KeepPaidLayer::new();
        assert_eq!(next.load_from(&dir).await.unwrap(), 1);
        let lost = whole(stack(&scenario, &sim, &next), with(&scenario, KEY, "one")).await.unwrap_err();
        assert!(!lost.charge().is_surely_free(), "{lost}");
        assert_eq!(sim.requests(), 1);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Two deliberate calls that are alike: the resend of the second is not given the answer of the first.
#[test]
fn a_resend_waits_for_its_own_call_and_takes_no_other_ones_answer() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let (_, first) = whole(service.clone(), with(&scenario, RETRY_COUNT, "0")).await.unwrap();
        hang_up(service.clone(), with(&scenario, RETRY_COUNT, "0"), Patience::Time(1_000)).await;
        let (_, second) = whole(service, with(&scenario, RETRY_COUNT, "1")).await.unwrap();
        assert_ne!(first, second);
        assert_eq!((sim.ledger().charges(TAG), keep.counts().kept), (2, 0));
    });
}

#[test]
fn an_answer_that_is_given_late_is_there_for_a_resend_right_after() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        hang_up(service.clone(), with(&scenario, RETRY_COUNT, "0"), Patience::Time(1_000)).await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        let first = whole(service.clone(), with(&scenario, RETRY_COUNT, "1")).await.unwrap();
        assert_eq!(whole(service, with(&scenario, RETRY_COUNT, "2")).await.unwrap(), first);
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

#[test]
fn calls_with_a_key_take_no_place_of_those_whose_callers_left() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new().max_detached(1));
        let service = stack(&scenario, &sim, &keep);
        let named = tokio::spawn(whole(service.clone(), with(&scenario, KEY, "one")));
        tokio::time::sleep(Duration::from_millis(500)).await;
        hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Time(1_000)).await;
        named.await.unwrap().unwrap();
        assert!(keep.drain(Duration::from_secs(100)).await);
        assert_eq!((keep.counts().too_many, keep.counts().kept), (0, 1));
    });
}

/// A call waits for its next attempt: nobody is there to want it, and nothing was paid.
#[test]
fn a_call_with_a_key_whose_callers_all_left_before_it_went_out_is_not_sent() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::HighDemand, Fault::None]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        let mut callers = Vec::new();
        for _ in 0..3 {
            callers.push(tokio::spawn(whole(service.clone(), with(&scenario, KEY, "one"))));
            tokio::task::yield_now().await;
        }
        while sim.ledger().totals().requests == 0 || sim.ledger().totals().charged > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The first attempt has ended free by now, and the wait for the next has begun.
        tokio::time::sleep(scenario.latency + Duration::from_millis(50)).await;
        for caller in callers {
            caller.abort();
            let _ = caller.await;
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(sim.requests(), 1);
        assert!(keep.drain(Duration::ZERO).await);
        whole(service, with(&scenario, KEY, "one")).await.unwrap();
        assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (2, 1));
    });
}

/// An attempt that ended free and the next one in one breath: the second is out, and may be paid for.
#[test]
fn a_call_without_its_caller_that_fell_back_is_finished() {
    in_paused_time(async {
        let client = tower::service_fn(|request: Request<tower_gemini::core::body::ReplayBody>| async move {
            let falls_back = request.uri().path().contains("flash");
            let _ = request.into_body().collect().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let (status, body) = if falls_back {
                (
                    200,
                    r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#,
                )
            } else {
                (503, r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#)
            };
            Ok::<_, std::io::Error>(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
        });
        let keep = KeepPaidLayer::new();
        let stack = GeminiStack::new()
            .retry_policy(RetryPolicy::never())
            .fallback_to(Chain::of(["gemini-3-pro-image", "gemini-3.1-flash-image"]));
        let service = CollectRequestLayer::new().layer(keep.layer(stack.judged(client)));
        let (scenario, trail) = (Scenario::new([]), Trail::new());
        let call = whole(service.clone(), request(&scenario, &trail));
        assert!(tokio::time::timeout(Duration::from_secs(2), call).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        assert_eq!((trail.attempts().len(), keep.counts().kept, keep.counts().free), (2, 1, 0), "{trail}");
    });
}

/// All answers on their way share one bound: what is over it is not held, and the callers who stay get all of theirs.
#[test]
fn answers_on_their_way_are_held_within_the_bound_all_together() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = Sim::builder()
            .latency(Latency::fixed(scenario.latency))
            .tiny_images(true)
            .chunks(200, Duration::from_secs(1))
            .build();
        let (_, body) = whole(stack(&scenario, &sim, &KeepPaidLayer::new()), request(&scenario, &Trail::new())).await.unwrap();
        let keep = KeepPaidLayer::new().max_kept_bytes(3 * body.len());
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
        assert!(counts.kept >= 1 && counts.too_large >= 1 && counts.kept + counts.too_large as usize == 7, "{counts:?}");
        // And the room is there again.
        hang_up(service, request(&scenario, &Trail::new()), Patience::Chunks(1)).await;
        assert!(keep.drain(Duration::from_secs(1000)).await);
        assert_eq!(keep.counts().too_large, counts.too_large);
    });
}

/// A front end's 504 may have cost something and is nothing to give to anybody. Its caller was not told: the next request is, once.
#[test]
fn an_error_that_may_have_cost_something_is_not_kept() {
    in_paused_time(async {
        let client = tower::service_fn(|request: Request<tower_gemini::core::body::ReplayBody>| async move {
            let _ = request.into_body().collect().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let answer = Response::builder().status(504).body(Full::new(Bytes::from("upstream request timeout")));
            Ok::<_, std::io::Error>(answer.unwrap())
        });
        let keep = KeepPaidLayer::new();
        let service = CollectRequestLayer::new().layer(keep.layer(GeminiStack::new().judged(client)));
        let scenario = Scenario::new([]);
        let call = whole(service.clone(), with(&scenario, RETRY_COUNT, "0"));
        assert!(tokio::time::timeout(Duration::from_secs(2), call).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        let lost = whole(service.clone(), with(&scenario, RETRY_COUNT, "1")).await.unwrap_err();
        assert_eq!((lost.charge(), keep.counts().kept, keep.counts().broken), (Charge::Maybe, 0, 1));
        assert!(lost.to_string().contains("asking once more sends it"), "{lost}");
        let (status, _) = whole(service, with(&scenario, RETRY_COUNT, "0")).await.unwrap();
        assert_eq!((status, keep.counts().redeemed), (504, 0));
    });
}

#[test]
fn who_bought_the_risk_is_sent_again_after_a_loss() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::ResetAfterGeneration, Fault::ResetAfterGeneration]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let service = stack(&scenario, &sim, &keep);
        hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        let mut bought = request(&scenario, &Trail::new());
        bought.extensions_mut().insert(CallOptions::new().maybe_charged_resends(1));
        // The one that was bought is spent on the earlier send: this one's own loss is told.
        assert_eq!(whole(service.clone(), bought).await.unwrap_err().charge(), Charge::Maybe);
        assert_eq!(sim.ledger().charges(TAG), 2);
        assert_eq!(whole(service, request(&scenario, &Trail::new())).await.unwrap().0, 200);
        assert_eq!(sim.ledger().charges(TAG), 3, "it was told: asking again is another call");
    });
}

/// Whatever cannot be kept is told to whoever asks for it, and once.
#[test]
fn what_was_lost_of_a_call_without_its_caller_is_told_once() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        for keep in [
            KeepPaidLayer::new().max_kept_bytes(100),
            KeepPaidLayer::new().max_detached_time(Duration::from_secs(1)),
            KeepPaidLayer::new().max_detached(0),
        ] {
            let sim = scenario.sim();
            let service = stack(&scenario, &sim, &keep);
            hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
            assert!(keep.drain(Duration::from_secs(1000)).await);
            let trail = Trail::new();
            let lost = whole(service.clone(), request(&scenario, &trail)).await.unwrap_err();
            assert_eq!((lost.charge(), sim.requests()), (Charge::Maybe, 1), "{lost}");
            assert!(matches!(trail.steps()[..], [Step::Stopped { why: StopReason::LostBefore }]), "{trail}");
            assert_eq!(whole(service, request(&scenario, &Trail::new())).await.unwrap().0, 200);
        }
    });
}

/// One that had to make room for others was paid for all the same.
#[test]
fn an_answer_that_had_to_make_room_is_told_as_lost() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let (_, body) = whole(stack(&scenario, &sim, &KeepPaidLayer::new()), request(&scenario, &Trail::new())).await.unwrap();
        let keep = KeepPaidLayer::new().max_kept_bytes(body.len() + body.len() / 2);
        let service = stack(&scenario, &sim, &keep);
        for key in ["first", "second"] {
            hang_up(service.clone(), with(&scenario, "x-goog-api-key", key), Patience::Time(5_000)).await;
            assert!(keep.drain(Duration::from_secs(100)).await);
        }
        let lost = whole(service.clone(), with(&scenario, "x-goog-api-key", "first")).await.unwrap_err();
        assert_eq!(lost.charge(), Charge::Maybe);
        assert_eq!(whole(service, with(&scenario, "x-goog-api-key", "second")).await.unwrap().0, 200);
        assert_eq!(sim.ledger().charges(TAG), 3, "the one to measure, and two");
    });
}

#[test]
fn a_loss_outlives_the_process_until_it_is_told() {
    let dir = std::env::temp_dir().join(format!("keep-lost-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(300), ..Scenario::new([]) };
        let sim = scenario.sim();
        // One is lost, and one is not finished yet.
        let keep = KeepPaidLayer::new().max_detached(1);
        let of = |caller| with(&scenario, "x-goog-api-key", caller);
        for caller in ["ann", "ben"] {
            hang_up(stack(&scenario, &sim, &keep), of(caller), Patience::Time(20)).await;
        }
        assert_eq!(keep.save_to(&dir).await.unwrap(), 2);
        let next = KeepPaidLayer::new();
        assert_eq!((next.load_from(&dir).await.unwrap(), next.counts().kept), (2, 0));
        let service = stack(&scenario, &sim, &next);
        for caller in ["ann", "ben"] {
            assert_eq!(whole(service.clone(), of(caller)).await.unwrap_err().charge(), Charge::Maybe);
        }
        assert_eq!((sim.requests(), files_left(&dir, 0).await), (2, 0));
        assert_eq!(whole(service, of("ann")).await.unwrap().0, 200);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_refusal_that_is_given_again_is_a_refusal_in_every_figure() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::Refused(tower_gemini_sim::Refusal::ImageSafety)]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let observe = ObserveLayer::new();
        let service = observe.layer(stack(&scenario, &sim, &keep));
        let call = whole(service.clone(), request(&scenario, &Trail::new()));
        assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
        assert!(keep.drain(Duration::from_secs(100)).await);
        whole(service, request(&scenario, &Trail::new())).await.unwrap();
        let hour = observe.observatory().report().last_hour;
        assert_eq!((sim.requests(), hour.images, hour.successes), (1, 0, 0));
    });
}

#[test]
fn what_is_written_down_twice_is_one_answer() {
    let dir = std::env::temp_dir().join(format!("keep-twice-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(30), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        hang_up(stack(&scenario, &sim, &keep), request(&scenario, &Trail::new()), Patience::Time(10)).await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        keep.save_to(&dir).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        keep.save_to(&dir).await.unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "what is written down already stays as it is");
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_was_given_after_it_was_written_down_is_not_given_again() {
    let dir = std::env::temp_dir().join(format!("keep-given-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(30), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        hang_up(stack(&scenario, &sim, &keep), request(&scenario, &Trail::new()), Patience::Time(10)).await;
        assert!(keep.drain(Duration::from_secs(10)).await);
        keep.save_to(&dir).await.unwrap();
        whole(stack(&scenario, &sim, &keep), request(&scenario, &Trail::new())).await.unwrap();
        assert_eq!(keep.counts().redeemed, 1);
        assert_eq!(files_left(&dir, 0).await, 0, "a file goes when its answer has been given");
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_key_written_down_under_way_and_then_with_its_answer_has_its_answer() {
    let dir = std::env::temp_dir().join(format!("keep-under-way-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(200), ..Scenario::new([]) };
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let call = tokio::spawn(whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "one")));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(keep.save_to(&dir).await.unwrap(), 1);
        let answer = call.await.unwrap().unwrap();
        assert_eq!(keep.save_to(&dir).await.unwrap(), 1);
        let next = KeepPaidLayer::new();
        next.load_from(&dir).await.unwrap();
        assert_eq!(whole(stack(&scenario, &sim, &next), with(&scenario, KEY, "one")).await.unwrap(), answer);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_was_taken_in_is_written_down_elsewhere_too() {
    let dir = std::env::temp_dir().join(format!("keep-else-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        let answer = whole(stack(&scenario, &sim, &first), with(&scenario, KEY, "one")).await.unwrap();
        first.save_to(dir.join("a")).await.unwrap();
        let second = KeepPaidLayer::new();
        second.load_from(dir.join("a")).await.unwrap();
        assert_eq!(second.save_to(dir.join("b")).await.unwrap(), 1);
        let third = KeepPaidLayer::new();
        assert_eq!(third.load_from(dir.join("b")).await.unwrap(), 1);
        assert_eq!(whole(stack(&scenario, &sim, &third), with(&scenario, KEY, "one")).await.unwrap(), answer);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_file_of_a_lost_key_is_not_doubled_by_each_process() {
    let dir = std::env::temp_dir().join(format!("keep-lost-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([Fault::ResetAfterGeneration]) };
        let (sim, mut keep) = (scenario.sim(), KeepPaidLayer::new());
        let _ = whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "one")).await;
        for _ in 0..3 {
            keep.save_to(&dir).await.unwrap();
            keep = KeepPaidLayer::new();
            keep.load_from(&dir).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_key_that_made_room_is_still_known_after_a_kill() {
    let dir = std::env::temp_dir().join(format!("keep-room-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    in_real_time(async {
        let scenario = Scenario { latency: Duration::from_millis(1), ..Scenario::new([]) };
        let (sim, first) = (scenario.sim(), KeepPaidLayer::new());
        let (_, body) = whole(stack(&scenario, &sim, &first), with(&scenario, KEY, "one")).await.unwrap();
        first.save_to(&dir).await.unwrap();
        let keep = KeepPaidLayer::new().max_kept_bytes(body.len() + body.len() / 2);
        keep.load_from(&dir).await.unwrap();
        whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "two")).await.unwrap();
        whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "two")).await.unwrap();
        assert!(whole(stack(&scenario, &sim, &keep), with(&scenario, KEY, "one")).await.is_err(), "told lost");
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Killed: nothing is saved.
        let charges = sim.ledger().charges(TAG);
        let next = KeepPaidLayer::new();
        next.load_from(&dir).await.unwrap();
        let _ = whole(stack(&scenario, &sim, &next), with(&scenario, KEY, "one")).await;
        assert_eq!(sim.ledger().charges(TAG), charges, "paid again");
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn no_bound_in_time_is_no_panic() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        for keep in [KeepPaidLayer::new().max_detached_time(Duration::MAX), KeepPaidLayer::new().grace(Duration::MAX)] {
            let sim = scenario.sim();
            let service = stack(&scenario, &sim, &keep);
            hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
            assert!(keep.drain(Duration::from_secs(100)).await);
            let (status, _) = whole(service, request(&scenario, &Trail::new())).await.unwrap();
            assert_eq!((status, sim.ledger().charges(TAG)), (200, 1));
        }
    });
}

#[test]
fn a_body_may_be_dropped_with_no_bound_in_time() {
    in_paused_time(async {
        let scenario = Scenario { ask: Ask::Sse, ..Scenario::new([]) };
        let sim = Sim::builder()
            .latency(Latency::fixed(Duration::from_secs(3)))
            .tiny_images(true)
            .chunks(700, Duration::from_millis(300))
            .build();
        let keep = KeepPaidLayer::new().max_detached_time(Duration::MAX);
        let left = hang_up(stack(&scenario, &sim, &keep), request(&scenario, &Trail::new()), Patience::Chunks(1)).await;
        assert_eq!(left, Left::WithNothing);
        assert!(keep.drain(Duration::from_secs(100)).await);
        assert_eq!(keep.counts().kept, 1);
    });
}

#[test]
fn an_error_within_a_200_is_not_kept() {
    in_paused_time(async {
        let client = tower::service_fn(move |r: Request<tower_gemini::core::body::ReplayBody>| async move {
            let _ = r.into_body().collect().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let busy = r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
            Ok::<_, std::io::Error>(
                Response::builder()
                    .status(200)
                    .header("content-type", "application/json")
                    .body(Full::new(Bytes::from(busy)))
                    .unwrap(),
            )
        });
        let scenario = Scenario::new([]);
        let keep = KeepPaidLayer::new();
        let service = CollectRequestLayer::new().layer(keep.layer(GeminiStack::new().judged(client)));
        let _ = tokio::time::timeout(Duration::from_secs(2), service.clone().oneshot(request(&scenario, &Trail::new()))).await;
        assert_eq!(keep.counts().detached, 1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let told = whole(service, request(&scenario, &Trail::new())).await.unwrap_err();
        assert_eq!(
            (told.charge(), keep.counts().redeemed),
            (Charge::Maybe, 0),
            "an error of which nobody knows what it cost is not kept"
        );
    });
}

/// What cannot be held cannot be told from another: with a key it is not sent at all.
#[test]
fn a_request_too_large_to_hold_is_not_sent_with_a_key() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let (sim, keep) = (scenario.sim(), KeepPaidLayer::new());
        let stack = scenario.stack().judged(sim.service());
        let service = CollectRequestLayer::new().max_held_bytes(10).layer(keep.layer(stack));
        let (status, body) = whole(service.clone(), with(&scenario, KEY, "one")).await.unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(status == 413 && text.contains("Send it without the key, or smaller"), "{status} {text}");
        assert_eq!(sim.requests(), 0);
        assert_eq!(whole(service, request(&scenario, &Trail::new())).await.unwrap().0, 200);
    });
}

/// On four threads, with hang-ups at any moment: each key pays once, each caller without one for what it got and one more, and nobody waits
/// for ever.
#[test]
fn hang_ups_on_four_threads_pay_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    runtime.block_on(async {
        let scenario = Scenario::new([]);
        let latency = Latency::fixed(Duration::from_millis(6));
        let sim = Sim::builder().latency(latency).tiny_images(true).chunks(700, Duration::from_millis(1)).build();
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
                            let _ = tokio::time::timeout(patience, whole(service.clone(), request)).await;
                        }
                        tokio::time::timeout(hangs, whole(service, last)).await.expect("it hangs").unwrap();
                    });
                }
                // One client, one request after the other.
                let tag = format!("alone-{round}-{n}");
                let (service, sim, requests) = (service.clone(), sim.clone(), [(); 7].map(|()| ask(&tag, "x-goog-api-key")));
                tasks.spawn(async move {
                    let ([requests @ .., last], mut came) = (requests, 0);
                    for request in requests {
                        let patience = Duration::from_micros(fastrand::u64(0..15_000));
                        came += usize::from(
                            tokio::time::timeout(patience, whole(service.clone(), request))
                                .await
                                .is_ok_and(|answer| answer.is_ok()),
                        );
                    }
                    tokio::time::timeout(hangs, whole(service, last)).await.expect("it hangs").unwrap();
                    let charges = sim.ledger().charges(&tag);
                    assert!(charges <= came + 1, "{tag}: {charges} charges, {came} came");
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
        hang_up(service.clone(), request(&scenario, &Trail::new()), Patience::Time(5_000)).await;
        assert!(keep.drain(Duration::from_secs(100)).await);
        let printed = format!("{keep:?} {service:?} {:?}", Arc::new(keep.counts()));
        assert!(!printed.contains("sentinel"), "{printed}");
    });
}

/// The body of the stack is one that a server can send.
#[allow(dead_code, reason = "it is the types that are tested")]
fn a_kept_body_is_a_servers_body(body: KeptBody<tower_gemini::core::body::JudgedBody<SimBody>>) -> axum::body::Body {
    axum::body::Body::new(body)
}
