//! The invariants of DESIGN.md, for random schedules of every fault, delay, cut point, deadline and
//! policy.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestError, TestRunner};
use tower::{Service, ServiceExt};
use tower_gemini::Error;
use tower_gemini::jittered_retry::{Backoff, Jitter, RetryPolicy, presets};
use tower_gemini::verdict::Verdict;
use tower_gemini_sim::{Fault, Refusal};

use crate::harness::{
    Ask, Report, Scenario, Violation, Wire, cases, faults, in_paused_time, run, run_on, violations,
};

fn policies() -> impl Strategy<Value = (RetryPolicy, bool)> {
    let ms = |range: std::ops::Range<u64>| range.prop_map(Duration::from_millis);
    let jitters = prop::sample::select(vec![
        Jitter::None,
        Jitter::Full,
        Jitter::Equal,
        Jitter::Decorrelated,
        Jitter::Additive(Duration::from_secs(1)),
    ]);
    prop_oneof![
        // Made anew for each case: clones share one retry budget.
        2 => Just(()).prop_map(|()| (RetryPolicy::recommended(), true)),
        // Most of them do not read hints; the recommended one and the random ones do.
        1 => prop::sample::select(presets::all()).prop_map(|(_, policy)| (policy, false)),
        3 => (1u32..9, ms(1..30_000), 1.0f64..4.0, ms(1..300_000), jitters, 0u32..3).prop_map(
            |(attempts, initial, factor, cap, jitter, empty)| {
                let backoff = Backoff::exponential(initial, factor, cap).jitter(jitter);
                (RetryPolicy::uniform(attempts, backoff).empty_answers(empty), true)
            }
        ),
    ]
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    (
        proptest::collection::vec(faults(), 0..10),
        prop::sample::select(vec![Ask::Whole, Ask::Whole, Ask::Sse, Ask::Array]),
        prop::sample::select(vec!["1K", "2K", "4K"]),
        0u64..400_000,
        any::<u64>(),
        proptest::option::of(1_000u64..3_000_000),
        0u32..3,
        policies(),
        1_000u64..900_000,
    )
        .prop_map(
            |(faults, ask, size, latency, seed, deadline, allowance, (policy, hints), limit)| {
                Scenario {
                    ask,
                    size,
                    latency: Duration::from_millis(latency),
                    seed,
                    deadline: deadline.map(Duration::from_millis),
                    allowance,
                    policy,
                    hints,
                    attempt_limit: Duration::from_millis(limit),
                    ..Scenario::new(faults)
                }
            },
        )
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn no_schedule_breaks_an_invariant(scenario in scenarios()) {
        let report = in_paused_time(run(&scenario));
        let found = violations(&scenario, &report);
        prop_assert!(found.is_empty(), "{found:?}\n{report}");
    }

    // The default: nobody has bought any risk.
    #[test]
    fn without_allowance_nothing_is_sent_after_a_charge(scenario in scenarios()) {
        let scenario = Scenario { allowance: 0, ..scenario };
        let report = in_paused_time(run(&scenario));
        prop_assert_eq!(report.ledger.sends_after_charge(crate::harness::TAG), 0);
    }
}

/// The planted faults: what many clients do, on the same client, judged by the same ledger.
#[derive(Clone, Copy)]
enum Fault2 {
    RetriesRefusals,
    RetriesTimeouts,
}

/// A retry layer as it is often written. It never asks what an attempt cost.
#[derive(Clone)]
struct NaiveRetry {
    wire: Wire,
    what: Fault2,
    limit: Duration,
}

impl NaiveRetry {
    async fn call(self, request: Request<Full<Bytes>>) -> Result<Response<Whole>, Error> {
        let (parts, body) = request.into_parts();
        let mut last = Err(Error::truncated(Verdict::interrupted()));
        for _ in 0..4 {
            let request = Request::from_parts(parts.clone(), body.clone());
            let attempt = async {
                let mut wire = self.wire.clone();
                let response = ServiceExt::<Request<Full<Bytes>>>::ready(&mut wire)
                    .await?
                    .call(request)
                    .await?;
                let (parts, body) = response.into_parts();
                Ok::<_, tower_gemini_sim::SimError>((parts, body.collect().await?.to_bytes()))
            };
            match tokio::time::timeout(self.limit, attempt).await {
                Ok(Ok((parts, bytes))) => {
                    let has_image = bytes.windows(10).any(|window| window == b"inlineData");
                    let retry = matches!(self.what, Fault2::RetriesRefusals)
                        && parts.status == 200
                        && !has_image;
                    last = Ok(Response::from_parts(
                        parts,
                        Full::new(bytes).map_err(never as fn(_) -> _),
                    ));
                    if !retry {
                        break;
                    }
                }
                Ok(Err(error)) => {
                    last = Err(Error::transport(error.into(), Verdict::interrupted()));
                    break;
                }
                Err(_) => {
                    last = Err(Error::truncated(Verdict::interrupted()));
                    if !matches!(self.what, Fault2::RetriesTimeouts) {
                        break;
                    }
                }
            }
        }
        last
    }
}

type Whole =
    http_body_util::combinators::MapErr<Full<Bytes>, fn(std::convert::Infallible) -> Error>;

fn never(never: std::convert::Infallible) -> Error {
    match never {}
}

/// The first violation that random schedules find in a naive policy.
fn caught(what: Fault2) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut runner = TestRunner::new(cases(1000));
    let result = runner.run(&scenarios(), |scenario| {
        let scenario = Scenario { allowance: 0, hints: false, deadline: None, ..scenario };
        let report: Report = in_paused_time(async {
            let sim = scenario.sim();
            let wire = Wire::new(sim.service());
            let naive = NaiveRetry { wire: wire.clone(), what, limit: scenario.attempt_limit };
            run_on(
                &scenario,
                &sim,
                &wire,
                tower::service_fn(move |request| naive.clone().call(request)),
            )
            .await
        });
        // A naive client keeps no trail: only what it did is judged.
        let violations: Vec<_> = violations(&scenario, &report)
            .into_iter()
            .filter(|v| *v != Violation::LedgerWrong)
            .collect();
        if violations.is_empty() {
            Ok(())
        } else {
            Err(TestCaseError::fail(format!("{violations:?}")))
        }
    });
    if let Err(TestError::Fail(reason, _)) = result {
        for violation in [
            Violation::ResentAfterCharge,
            Violation::ResentAfterMaybe,
            Violation::RetriedNonRetryable,
        ] {
            if reason.message().contains(&format!("{violation:?}")) {
                found.push(violation);
            }
        }
    }
    found
}

#[test]
fn a_policy_that_retries_refusals_is_caught() {
    let found = caught(Fault2::RetriesRefusals);
    assert!(
        found.contains(&Violation::RetriedNonRetryable)
            || found.contains(&Violation::ResentAfterCharge),
        "{found:?}"
    );
}

#[test]
fn a_policy_that_retries_after_timeouts_is_caught() {
    let found = caught(Fault2::RetriesTimeouts);
    assert!(
        found.contains(&Violation::ResentAfterCharge)
            || found.contains(&Violation::ResentAfterMaybe),
        "{found:?}"
    );
}

#[test]
fn waiting_cures_an_overload_and_a_minutes_limit() {
    let scenario = Scenario::new([
        Fault::HighDemand,
        Fault::RateLimitMinute {
            retry_after: Duration::from_millis(34_074),
            limit: tower_gemini_sim::Limit::Requests,
        },
    ]);
    let report = in_paused_time(run(&scenario));
    assert_eq!(violations(&scenario, &report), []);
    assert_eq!(report.answer.as_ref().unwrap().0, 200);
    assert_eq!((report.records().len(), report.ledger.charges(crate::harness::TAG)), (3, 1));
    assert!(report.trail.waited() >= Duration::from_millis(34_074 + 5_000));
}

#[test]
fn a_refusal_is_paid_once_and_given_back_as_it_came() {
    let scenario = Scenario::new([Fault::Refused(Refusal::ImageSafety)]);
    let report = in_paused_time(run(&scenario));
    assert_eq!(report.records().len(), 1);
    let (status, bytes, broken) = report.answer.unwrap();
    assert_eq!((status, broken.is_none()), (200, true));
    assert!(String::from_utf8(bytes).unwrap().contains("IMAGE_SAFETY"));
}

#[test]
fn when_attempts_run_out_the_last_answer_comes_back_with_its_body() {
    let scenario = Scenario::new(vec![Fault::Overloaded; 20]);
    let report = in_paused_time(run(&scenario));
    assert_eq!(report.records().len(), 5);
    let (status, bytes, _) = report.answer.unwrap();
    assert_eq!(status, 503);
    assert!(String::from_utf8(bytes).unwrap().contains("overloaded"));
}

#[test]
fn a_lost_connection_is_sent_again_only_for_an_allowance() {
    let lost = Scenario::new([Fault::ResetAfterGeneration]);
    let report = in_paused_time(run(&lost));
    assert_eq!(report.records().len(), 1);
    let error = report.answer.unwrap_err();
    assert!(error.is_transport());
    assert_eq!(
        error.to_string(),
        "the connection broke after the request was sent: the connection was reset before an answer: connection reset; it may have been charged"
    );

    let bought = Scenario { allowance: 1, ..lost };
    let report = in_paused_time(run(&bought));
    assert_eq!(report.answer.unwrap().0, 200);
    assert_eq!(report.ledger.charges(crate::harness::TAG), 2);
}
