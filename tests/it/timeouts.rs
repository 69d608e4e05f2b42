//! Time: the server gives up first, and our own limits are the last resort.

use std::time::Duration;

use tower_gemini::error::TimeLimit;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini_sim::Fault;

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
