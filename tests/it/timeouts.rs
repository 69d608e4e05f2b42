//! Time: the server gives up first, and our own limits are the last resort.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, sleep, timeout};
use tower::limit::ConcurrencyLimit;
use tower::{Service, ServiceExt, service_fn};
use tower_gemini::body::WireBody;
use tower_gemini::clock::RuntimeClock;
use tower_gemini::error::{Error, TimeLimit};
use tower_gemini::jittered_retry::{Backoff, RetryPolicy};
use tower_gemini::model_fallback::Chain;
use tower_gemini::peak_hour_router::presets;
use tower_gemini::stage::WireClient;
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini::{
    AttemptTimeoutLayer, CallOptions, GeminiStack, JitteredRetryLayer, KeepPaidLayer,
    PeakHourRouterLayer, ResolutionFallbackLayer,
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
    let head_after = in_paused_time(async {
        let began = Instant::now();
        let stack = scenario.stack().raw(scenario.sim().service());
        stack.oneshot(scenario.request(TAG)).await.unwrap();
        began.elapsed()
    });
    let (body, head) = (report.elapsed - scenario.latency, head_after - scenario.latency);
    assert!(head < body / 2, "the head came after {head:?}, the end after {body:?}");
}

/// A response that begins an image; its pieces come this long after one another.
fn paced(
    kind: &'static str,
    pieces: Vec<(Duration, String)>,
) -> (impl WireClient, Arc<AtomicUsize>) {
    let read = Arc::<AtomicUsize>::default();
    let count = read.clone();
    let client = service_fn(move |_: Request<WireBody>| {
        let count = count.clone();
        let pieces = stream::iter(pieces.clone()).then(move |(after, piece)| {
            let count = count.clone();
            async move {
                sleep(after).await;
                count.fetch_add(1, Ordering::Relaxed);
                Ok::<_, io::Error>(Frame::data(Bytes::from(piece)))
            }
        });
        let response = Response::builder().header("content-type", kind);
        ready(Ok::<_, io::Error>(response.body(StreamBody::new(pieces.boxed())).unwrap()))
    });
    (client, read)
}

/// An image of so many pieces of 16 KiB, between a beginning and an end.
fn pieces(count: usize) -> Vec<String> {
    let begin =
        r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":""#;
    let end = r#""}}]},"finishReason":"STOP"}]}"#;
    let middle = std::iter::repeat_n("A".repeat(16 * 1024), count);
    std::iter::once(begin.to_owned()).chain(middle).chain([end.to_owned()]).collect()
}

fn seconds_apart(seconds: u64, pieces: Vec<String>) -> Vec<(Duration, String)> {
    pieces.into_iter().map(|piece| (Duration::from_secs(seconds), piece)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_body_ends_at_the_idle_limit_and_may_have_been_charged() {
    for (last_after, is_cut) in [(119, false), (121, true)] {
        let mut pieces = seconds_apart(0, pieces(9));
        pieces.last_mut().unwrap().0 = Duration::from_secs(last_after);
        let began = Instant::now();
        let (client, _) = paced("application/json", pieces);
        let stack = once([]).stack().raw(client);
        let response = stack.oneshot(once([]).request(TAG)).await.unwrap();
        let body = response.into_body().collect().await;
        assert_eq!(body.is_err(), is_cut, "after {last_after} s");
        if let Err(error) = body {
            assert_eq!(error.time_limit(), Some(TimeLimit::Idle), "{error}");
            assert!(!error.charge().is_surely_free(), "{error}");
            assert_eq!(began.elapsed(), Duration::from_secs(120));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_slow_by_itself_is_not_timed() {
    let (client, _) = paced("application/json", seconds_apart(1, pieces(9)));
    let stack = once([]).stack().timeout(
        AttemptTimeoutLayer::new()
            .limit(Duration::from_secs(3_600))
            .idle_limit(Duration::from_secs(60)),
    );
    let response = stack.raw(client).oneshot(once([]).request(TAG)).await.unwrap();
    let mut body = response.into_body();
    // Each piece is waited for a second, and then taken in after a hundred.
    while let Some(frame) = body.frame().await {
        frame.unwrap();
        sleep(Duration::from_secs(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_read_ahead_than_decides_what_a_response_means() {
    let event = |text: &str| {
        format!("data: {{\"candidates\":[{{\"content\":{{\"parts\":[{text}]}}}}]}}\r\n\r\n")
    };
    let words = event(r#"{"text":"a cat"}"#);
    let stream = [vec![event("")], vec![words; 8]].concat();
    // 64 KiB of a whole response; of a stream the first event with content.
    for (ask, kind, pieces, ahead) in
        [(Ask::Whole, "application/json", pieces(9), 5), (Ask::Sse, "text/event-stream", stream, 2)]
    {
        let scenario = Scenario { ask, ..once([]) };
        let (client, read) = paced(kind, seconds_apart(1, pieces));
        let response = scenario.stack().raw(client).oneshot(scenario.request(TAG)).await.unwrap();
        let read = || read.load(Ordering::Relaxed);
        assert_eq!(read(), ahead, "{ask:?}, at the head");
        let mut body = response.into_body();
        for frames in 1..9 {
            body.frame().await.unwrap().unwrap();
            sleep(Duration::from_secs(20)).await;
            assert_eq!(read(), ahead.max(frames), "{ask:?}, after {frames} frames");
        }
    }
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
    let never = futures::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
    let began = Instant::now();
    let stack = GeminiStack::new().raw(sim.service());
    let call = stack.oneshot(within_half_a_minute(StreamBody::new(never)));
    let ended = timeout(Duration::from_secs(3_600), call).await;
    let error = ended.expect("it ends").err().unwrap();
    assert_eq!(error.time_limit(), Some(TimeLimit::Deadline), "{error}");
    assert_eq!((error.charge(), began.elapsed()), (Charge::None, Duration::from_secs(30)));
    assert_eq!(sim.requests(), 0);
}
