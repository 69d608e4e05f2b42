//! Time: the server gives up first, and our own limits are the last resort.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use tower::ServiceExt;
use tower_gemini::error::TimeLimit;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini_sim::{Fault, Sim};

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
