//! Clients that resend by themselves what our retries have given up: no amplification.

use std::time::Duration;

use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::time::sleep;
use tower::ServiceExt;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::trail::{Step, StopReason};
use tower_gemini::{CallOptions, GeminiStack, JitteredRetryLayer, Trail};
use tower_gemini_sim::{Fault, Limit, Sim};

use crate::harness::{Scenario, cases, in_paused_time};

const WINDOW: Duration = Duration::from_secs(60);

/// A stack of so many attempts that continues resends.
fn stack(attempts: u32) -> GeminiStack {
    let policy = RetryPolicy::recommended().attempts(attempts);
    GeminiStack::new().retry(JitteredRetryLayer::new(policy).seed(7).continue_resends(WINDOW))
}

/// Sends once, as client `key`. The status and the trail.
async fn send(
    scenario: &Scenario,
    sim: &Sim,
    stack: &GeminiStack,
    key: &str,
    deadline: Option<Duration>,
) -> (u16, Trail) {
    // One clone of the layers' state serves every call.
    let trail = Trail::new();
    let mut options = CallOptions::new().trail(trail.clone());
    if let Some(within) = deadline {
        options = options.deadline(within);
    }
    let mut request = scenario.request("call");
    request.headers_mut().insert("x-goog-api-key", key.parse().unwrap());
    request.extensions_mut().insert(options);
    let response = stack.clone().raw(sim.service()).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    (status, trail)
}

/// google-genai with retries on: five sends, 1 s doubled to 60 s between them, a second of jitter.
async fn google_genai(scenario: &Scenario, sim: &Sim, stack: &GeminiStack) -> u16 {
    let mut status = 0;
    for send_number in 0..5 {
        status = send(scenario, sim, stack, "genai", None).await.0;
        if status == 200 {
            break;
        }
        sleep(Duration::from_secs(1 << send_number) + Duration::from_millis(500)).await;
    }
    status
}

fn minute(seconds: u64) -> Fault {
    Fault::RateLimitMinute { retry_after: Duration::from_secs(seconds), limit: Limit::Requests }
}

/// What costs nothing and may pass.
fn passing() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Overloaded),
        Just(Fault::HighDemand),
        Just(Fault::Internal),
        Just(Fault::ExhaustedBare),
        Just(Fault::SharedCapacity),
        (1..110u64).prop_map(minute),
    ]
}

proptest! {
    #![proptest_config(cases(1000))]

    // Five sends of a client times three of ours made fifteen, each a unit of the day's quota.
    #[test]
    fn a_client_that_resends_never_multiplies_our_attempts(
        faults in proptest::collection::vec(passing(), 40),
        attempts in 1..5u32,
    ) {
        in_paused_time(async {
            let (scenario, stack) = (Scenario::new(faults.clone()), stack(attempts));
            let sim = scenario.sim();
            google_genai(&scenario, &sim, &stack).await;
            let records = sim.ledger().requests().to_vec();
            prop_assert_eq!(records.len(), attempts as usize + 4);
            for (n, pair) in records.windows(2).enumerate() {
                if let Fault::RateLimitMinute { retry_after, .. } = faults[n] {
                    let gap = pair[1].received_at - pair[0].ended_at.unwrap();
                    prop_assert!(gap >= retry_after, "{gap:?} after {retry_after:?}");
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn an_outage_that_ends_between_two_resends_is_delivered_and_forgotten() {
    in_paused_time(async {
        let (scenario, stack) = (Scenario::new([const { Fault::Overloaded }; 4]), stack(3));
        let sim = scenario.sim();
        assert_eq!(google_genai(&scenario, &sim, &stack).await, 200);
        assert_eq!(sim.requests(), 5, "three, one that failed, one that was served");
        let (status, trail) = send(&scenario, &sim, &stack, "genai", None).await;
        assert!(status == 200 && trail.steps().len() == 1, "a call of its own: {trail}");
    });
}

#[test]
fn another_caller_another_request_and_a_later_one_are_calls_of_their_own() {
    in_paused_time(async {
        let (scenario, stack) = (Scenario::new([const { Fault::Overloaded }; 40]), stack(3));
        let sim = scenario.sim();
        let sent = async |scenario: &Scenario, key| {
            let before = sim.requests();
            send(scenario, &sim, &stack, key, None).await;
            sim.requests() - before
        };
        let larger = Scenario { size: "2K", ..scenario.clone() };
        assert_eq!(sent(&scenario, "ann").await, 3);
        assert_eq!(sent(&scenario, "ann").await, 1);
        assert_eq!(sent(&scenario, "ben").await, 3);
        assert_eq!(sent(&larger, "ann").await, 3);
        // The next attempt would be made after two minutes at most.
        sleep(Duration::from_secs(120) + WINDOW).await;
        assert_eq!(sent(&scenario, "ann").await, 3);
    });
}

#[test]
fn a_wait_that_the_server_named_is_kept_by_resends_and_one_of_ours_gives_way_to_their_deadline() {
    in_paused_time(async {
        for (fault, status, requests) in [(minute(100), 429, 1), (Fault::Overloaded, 200, 2)] {
            let latency = Duration::from_secs(5);
            let (scenario, stack) = (Scenario { latency, ..Scenario::new([fault]) }, stack(1));
            let sim = scenario.sim();
            send(&scenario, &sim, &stack, "ann", None).await;
            let deadline = Some(Duration::from_secs(30));
            let (told, trail) = send(&scenario, &sim, &stack, "ann", deadline).await;
            assert_eq!((told, sim.requests()), (status, requests), "{trail}");
            let refused =
                |step: &Step| matches!(step, Step::Stopped { why: StopReason::WaitTooLong });
            assert_eq!(trail.steps().iter().any(refused), status == 429, "{trail}");
            assert!(matches!(trail.steps()[0], Step::Continued { attempts: 1 }), "{trail}");
        }
    });
}
