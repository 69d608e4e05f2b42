//! Time: the server gives up first, and our own limits are the last resort.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, sleep, timeout};
use tower::limit::ConcurrencyLimit;
use tower::{Service, ServiceExt};
use tower_gemini::clock::RuntimeClock;
use tower_gemini::error::{Error, TimeLimit};
use tower_gemini::jittered_retry::{Backoff, RetryPolicy};
use tower_gemini::model_fallback::Chain;
use tower_gemini::peak_hour_router::presets;
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini::{
    CallOptions, GeminiStack, JitteredRetryLayer, KeepPaidLayer, PeakHourRouterLayer,
    ResolutionFallbackLayer,
};
use tower_gemini_sim::{Fault, Sim, SimService};

use crate::harness::{Ask, Scenario, TAG, in_paused_time, run, violations};

fn once(faults: impl IntoIterator<Item = Fault>) -> Scenario {
    Scenario { policy: RetryPolicy::never(), ..Scenario::new(faults) }
}

#[test]
fn a_late_answer_is_given_up_by_the_server_and_costs_nothing() {
    let scenario = once([Fault::Late { latency: Duration::from_secs(400) }]);
    let report = in_paused_time(run(&scenario));
    assert_eq!(report.answer.unwrap().0, 504);
    assert_eq!(report.elapsed, Duration::from_secs(295), "five seconds before our own limit");
    assert_eq!(report.ledger.charges(TAG), 0);
    assert_eq!(report.trail.attempts()[0].charge, Charge::None);
}

#[test]
fn a_dead_connection_ends_at_our_own_limit_and_may_have_been_charged() {
    let scenario = once([Fault::NoAnswer { charged: true }]);
    let report = in_paused_time(run(&scenario));
    let error = report.answer.as_ref().unwrap_err();
    assert!(error.is_timeout());
    assert_eq!(error.time_limit(), Some(TimeLimit::Attempt));
    assert_eq!(error.charge(), Charge::Maybe);
    assert_eq!(report.elapsed, Duration::from_secs(300));
    assert_eq!(violations(&scenario, &report), []);
}

#[test]
fn a_body_that_stalls_ends_with_an_error_and_is_charged() {
    let scenario = once([Fault::StallBody { at: 400 }]);
    let report = in_paused_time(run(&scenario));
    // So little came that the answer was still being peeked: the attempt's limit ends it.
    assert!(report.answer.as_ref().is_err_and(|error| error.is_timeout()), "{report}");
    assert_eq!(violations(&scenario, &report), []);
}

#[test]
fn the_deadline_of_the_call_shortens_its_attempts() {
    let scenario = Scenario {
        deadline: Some(Duration::from_secs(40)),
        ..Scenario::new([Fault::Overloaded, Fault::NoAnswer { charged: false }])
    };
    let report = in_paused_time(run(&scenario));
    let error = report.answer.as_ref().unwrap_err();
    assert_eq!(error.time_limit(), Some(TimeLimit::Deadline));
    assert_eq!(report.elapsed, Duration::from_secs(40));
    assert_eq!(violations(&scenario, &report), []);
}

#[test]
fn a_deadline_that_has_passed_sends_nothing() {
    let scenario = Scenario { deadline: Some(Duration::ZERO), ..Scenario::new([]) };
    let report = in_paused_time(run(&scenario));
    let error = report.answer.unwrap_err();
    assert_eq!((error.verdict().outcome(), error.charge()), (Outcome::NotSent, Charge::None));
    assert_eq!(report.ledger.sends(TAG), 0);
}

#[test]
fn a_stream_that_trickles_is_not_held_and_not_cut() {
    let scenario = Scenario {
        ask: Ask::Sse,
        ..once([Fault::Trickle { chunk: 200, every: Duration::from_secs(2) }])
    };
    let report = in_paused_time(run(&scenario));
    let (status, _, broken) = report.answer.as_ref().unwrap();
    assert_eq!((*status, broken.is_none()), (200, true), "{report}");
    assert_eq!(violations(&scenario, &report), []);
}

// A limit of 300 s ended what a caller waited 900 s for, and a flex call while it queued.
#[test]
fn a_caller_that_waits_longer_and_a_flex_call_get_the_time_that_they_need() {
    let status_of = |late: u64, header: Option<&str>, flex: bool| {
        in_paused_time(async {
            let scenario = once([Fault::Late { latency: Duration::from_secs(late) }]);
            let sim = Sim::builder()
                .script(scenario.faults.clone())
                .server_deadline(Duration::from_secs(3_600))
                .tiny_images(true)
                .build();
            let mut request = scenario.request(TAG);
            if let Some(seconds) = header {
                request.headers_mut().insert("x-server-timeout", seconds.parse().unwrap());
            }
            if flex {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body = String::from_utf8(body.to_vec()).unwrap();
                let body = body.replacen('{', r#"{"serviceTier":"flex","#, 1);
                let mut whole = scenario.request(TAG);
                *whole.body_mut() = Full::from(body);
                request = whole;
            }
            let response = scenario.stack().raw(sim.service()).oneshot(request).await.unwrap();
            response.status().as_u16()
        })
    };
    assert_eq!(status_of(400, None, false), 504);
    assert_eq!(status_of(880, Some("900"), false), 200);
    assert_eq!(status_of(896, Some("900"), false), 504, "the server gives up before we do");
    assert_eq!(status_of(1_300, Some("9000"), false), 504, "the longest is twenty minutes");
    assert_eq!(status_of(1_100, None, true), 200);
}

/// A call for an image with a deadline of 30 s, at this host, that waits for quiet hours.
fn within_half_a_minute<B>(body: B) -> Request<B> {
    let path = "https://g.example/v1beta/models/gemini-3-pro-image:generateContent";
    let mut request = Request::post(path).header("x-goog-api-key", "k").body(body).unwrap();
    let options = CallOptions::new().deadline(Duration::from_secs(30));
    request.extensions_mut().insert(options.deferrable_for(Duration::from_secs(30)));
    request
}

/// What a call meets before it asks for the client's only place, which another has taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// It fails for free.
    Failure,
    /// It waits in a layer for longer than a second.
    Wait,
}

async fn waits_for_a_place<S, B>(before: Before, stack: impl Fn(ConcurrencyLimit<SimService>) -> S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Error, Future: Send>,
    S: Clone + Send + 'static,
    B: Send + 'static,
{
    let failures = usize::from(before == Before::Failure);
    let faults = [Fault::Overloaded, Fault::Late { latency: Duration::from_secs(200) }];
    let sim = Sim::quick(faults.into_iter().skip(1 - failures));
    let stack = stack(ConcurrencyLimit::new(sim.service(), 1));
    let request = || within_half_a_minute(Full::from(r#"{"contents":[{"parts":[{"text":"x"}]}]}"#));
    let mut longer = request();
    longer.extensions_mut().insert(CallOptions::new().deadline(Duration::from_secs(600)));
    let (mut first, mut second) = (request(), longer);
    if before == Before::Nothing {
        std::mem::swap(&mut first, &mut second);
    }
    let began = Instant::now();
    let first = tokio::spawn(stack.clone().oneshot(first));
    sleep(Duration::from_secs(1)).await;
    let second_began = Instant::now();
    let second = tokio::spawn(stack.oneshot(second));
    let (call, began) = match before {
        Before::Nothing => (second, second_began),
        Before::Failure | Before::Wait => (first, began),
    };
    let error = call.await.unwrap().err().unwrap();
    assert_eq!(error.time_limit(), Some(TimeLimit::Deadline), "{error}");
    assert_eq!((error.charge(), began.elapsed()), (Charge::None, Duration::from_secs(30)));
    sleep(Duration::from_secs(900)).await;
    assert_eq!(sim.requests(), 1 + failures, "nobody would wait for another");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_after_the_deadline_however_late_the_client_has_a_place_for_it() {
    let policy = RetryPolicy::uniform(4, Backoff::constant(Duration::from_secs(10)));
    let plain = || GeminiStack::new().retry(JitteredRetryLayer::new(policy.clone()));
    waits_for_a_place(Before::Failure, |client| plain().raw(client)).await;
    let keep = KeepPaidLayer::new;
    waits_for_a_place(Before::Failure, |client| plain().keep_paid(keep()).raw(client)).await;
    // A fallback is always ready, and so is whatever stands over it.
    let chain = || Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
    waits_for_a_place(Before::Nothing, |client| plain().fallback_to(chain()).raw(client)).await;
    let ladder = ResolutionFallbackLayer::new;
    waits_for_a_place(Before::Nothing, |client| plain().resolution(ladder()).raw(client)).await;
    // 13:59:50, ten seconds before the end of a peak.
    let clock = RuntimeClock::starting_at(UNIX_EPOCH + Duration::from_secs(1_767_707_990));
    let router = PeakHourRouterLayer::new(presets::TEN_TO_FOURTEEN_UTC.schedule());
    let router = router.clock(clock).reserve(Duration::ZERO);
    waits_for_a_place(Before::Wait, |client| plain().peak_hours(router.clone()).raw(client)).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stalls_ends_at_the_deadline_and_nothing_of_it_is_sent() {
    let sim = Sim::quick([]);
    let never = futures::stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>();
    let began = Instant::now();
    let stack = GeminiStack::new().raw(sim.service());
    let call = stack.oneshot(within_half_a_minute(StreamBody::new(never)));
    let ended = timeout(Duration::from_secs(3_600), call).await;
    let error = ended.expect("it ends").err().unwrap();
    assert_eq!(error.time_limit(), Some(TimeLimit::Deadline), "{error}");
    assert_eq!((error.charge(), began.elapsed()), (Charge::None, Duration::from_secs(30)));
    assert_eq!(sim.requests(), 0);
}
