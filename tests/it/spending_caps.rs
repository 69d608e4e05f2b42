//! Caps over whole stacks, held against the simulator's bill.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tower::{Layer, Service, ServiceExt};
use tower_gemini::CallOptions;
use tower_gemini::Error;
use tower_gemini::call::Call;
use tower_gemini::catalog::Catalog;
use tower_gemini::jittered_retry::{Backoff, RetryPolicy};
use tower_gemini::spending::{Caps, Plan, worst_case};
use tower_gemini::trail::{Step, StopReason, Trail};
use tower_gemini::verdict::Charge;
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer,
    SpendingLayer,
};
use tower_gemini_sim::{Fault, Sim};

use crate::harness::{Scenario, TAG, cases, faults, in_paused_time};

fn stack(
    scenario: &Scenario,
    sim: &Sim,
    spending: &SpendingLayer,
) -> impl Service<
    Request<Full<Bytes>>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = Error> + Unpin + use<>>,
    Error = Error,
> + Clone
+ use<> {
    let classified = ClassifyGeminiErrorLayer::new().layer(sim.service());
    let timed = AttemptTimeoutLayer::new().limit(scenario.attempt_limit).layer(classified);
    let retry = JitteredRetryLayer::new(scenario.policy.clone()).seed(scenario.seed);
    CollectRequestLayer::new().layer(retry.layer(spending.layer(timed)))
}

fn ask(scenario: &Scenario, tag: &str, trail: &Trail) -> Request<Full<Bytes>> {
    let mut request = scenario.request(tag);
    request
        .extensions_mut()
        .insert(CallOptions::new().maybe_charged_resends(scenario.allowance).trail(trail.clone()));
    request
}

fn call_of(scenario: &Scenario) -> Call {
    let (head, body) = scenario.request(TAG).into_parts();
    let body = in_paused_time(body.collect()).unwrap().to_bytes();
    Call::parse(&head.method, &head.uri, &head.headers, Some(&body))
}

/// The most that one attempt at a scenario's call can come to.
fn attempt(scenario: &Scenario) -> u64 {
    worst_case(Catalog::builtin(), &Plan::of(&call_of(scenario))).at_most_microusd
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    (
        proptest::collection::vec(faults(), 0..10),
        prop::sample::select(vec!["1K", "2K", "4K"]),
        0_u64..200_000,
        any::<u64>(),
        0_u32..3,
        1_000_u64..600_000,
    )
        .prop_map(|(faults, size, latency, seed, allowance, limit)| Scenario {
            size,
            latency: Duration::from_millis(latency),
            seed,
            allowance,
            policy: RetryPolicy::uniform(
                5,
                Backoff::exponential(Duration::from_secs(1), 2.0, Duration::from_secs(60)),
            ),
            attempt_limit: Duration::from_millis(limit),
            ..Scenario::new(faults)
        })
}

proptest! {
    #![proptest_config(cases(1000))]

    /// Calls side by side, some of them dropped at any moment: what the server charged is within
    /// the account, the account within its caps, and nothing stays set aside.
    #[test]
    fn the_bill_never_passes_the_cap_and_the_account_holds_the_bill(
        scenario in scenarios(),
        money in 0_u64..8,
        sends in proptest::option::of(0_u64..12),
        patience in proptest::collection::vec(proptest::option::of(0_u64..400_000), 1..5),
    ) {
        let cap = attempt(&scenario) * money / 2;
        let mut caps = Caps::none().at_most_microusd(cap);
        if let Some(sends) = sends {
            caps = caps.attempts(sends);
        }
        let (bill, sent, spent) = in_paused_time(async {
            let sim = scenario.sim();
            let spending = SpendingLayer::new().per(tower_gemini::spending::Period::Every(Duration::from_secs(1 << 33)), caps);
            let gemini = stack(&scenario, &sim, &spending);
            let calls = patience.iter().enumerate().map(|(n, patience)| {
                let call = gemini.clone().oneshot(ask(&scenario, &format!("{n}"), &Trail::new()));
                let read = async move {
                    if let Ok(response) = call.await {
                        let _ = response.into_body().collect().await;
                    }
                };
                async move {
                    let patience = Duration::from_millis(patience.unwrap_or(86_400_000));
                    let _ = tokio::time::timeout(patience, read).await;
                }
            });
            futures::future::join_all(calls).await;
            // What was given up runs on at the server.
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let totals = sim.totals();
            (totals.cost_microusd, totals.requests as u64, spending.spent())
        });
        for page in &spent {
            prop_assert_eq!(page.reserved, Default::default(), "nothing stays set aside");
            prop_assert!(page.settled.cost().contains(bill), "{} in {}", bill, page.settled.cost());
            prop_assert_eq!(page.settled.attempts, sent);
        }
        let capped = spent.iter().find(|page| page.caps == caps).unwrap();
        prop_assert!(capped.settled.at_most_microusd <= cap && bill <= cap, "{bill} of {cap}");
        prop_assert!(sends.is_none_or(|sends| sent <= sends), "{sent} of {sends:?}");
    }

    /// Before the first byte, against the simulator's own bill afterwards.
    #[test]
    fn no_schedule_costs_more_than_its_worst_case(scenario in scenarios()) {
        let (bill, sends, trail) = in_paused_time(async {
            let sim = scenario.sim();
            let trail = Trail::new();
            let gemini = stack(&scenario, &sim, &SpendingLayer::new());
            if let Ok(response) = gemini.oneshot(ask(&scenario, TAG, &trail)).await {
                let _ = response.into_body().collect().await;
            }
            tokio::time::sleep(Duration::from_secs(3600)).await;
            (sim.ledger().cost_microusd(TAG), sim.ledger().sends(TAG) as u64, trail)
        });
        let worst = worst_case(Catalog::builtin(), &Plan::of(&call_of(&scenario)).attempts(5).allowance(scenario.allowance));
        prop_assert!(bill <= worst.at_most_microusd, "{bill} of {worst:?}");
        prop_assert!(sends <= worst.attempts);
        prop_assert!(trail.cost().contains(bill));
        if let Some(each) = trail.cost_per_image() {
            prop_assert!(trail.images_delivered() == 1 && each.contains(bill));
        }
    }
}

#[test]
fn a_refusal_says_which_cap_and_nothing_was_sent() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let spending = SpendingLayer::new().per_call(Caps::none().at_most_usd(0.01));
        let trail = Trail::new();
        let response =
            stack(&scenario, &sim, &spending).oneshot(ask(&scenario, TAG, &trail)).await.unwrap();
        assert_eq!(response.status(), 402);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["error"]["status"], "RESOURCE_EXHAUSTED");
        assert_eq!(json["error"]["details"][0]["reason"], "SPENDING_CAP");
        assert_eq!(json["error"]["details"][0]["metadata"]["dimension"], "money_at_most");
        assert_eq!(json["error"]["details"][0]["metadata"]["period"], "call");
        let message = json["error"]["message"].as_str().unwrap();
        assert!(
            message.starts_with(
                "Not sent: the cap of $0.0100 at most a call might be passed: $0.0000 taken"
            ),
            "{message}"
        );
        assert_eq!(sim.requests(), 0);
        assert!(trail.steps().contains(&Step::Stopped { why: StopReason::SpendingCap }));
    });
}

#[test]
fn a_calls_own_caps_end_it_where_its_retries_would_pass_them() {
    in_paused_time(async {
        let scenario = Scenario::new(vec![Fault::Overloaded; 9]);
        let sim = scenario.sim();
        let spending = SpendingLayer::new().per_call(Caps::none().attempts(2));
        let trail = Trail::new();
        let response =
            stack(&scenario, &sim, &spending).oneshot(ask(&scenario, TAG, &trail)).await.unwrap();
        assert_eq!(response.status(), 402);
        assert_eq!(sim.ledger().sends(TAG), 2);
        let day = &spending.spent()[0];
        assert_eq!(
            (day.settled.attempts, day.settled.quota_units, day.settled.at_most_microusd),
            (2, 2, 0)
        );

        // With the plan at hand it is refused before its first byte.
        let sim = scenario.sim();
        let spending = spending.plan(|call| Plan::of(call).attempts(5));
        let response = stack(&scenario, &sim, &spending)
            .oneshot(ask(&scenario, TAG, &Trail::new()))
            .await
            .unwrap();
        assert_eq!((response.status().as_u16(), sim.requests()), (402, 0));
    });
}

#[test]
fn a_cap_of_time_is_a_deadline_for_the_attempt() {
    in_paused_time(async {
        let scenario = Scenario { latency: Duration::from_secs(200), ..Scenario::new([]) };
        let sim = scenario.sim();
        let spending =
            SpendingLayer::new().per_call(Caps::none().wall_time(Duration::from_secs(30)));
        let trail = Trail::new();
        let _ = stack(&scenario, &sim, &spending).oneshot(ask(&scenario, TAG, &trail)).await;
        // The server was told to give up first, so that its 504 was free; waits between attempts
        // are not counted.
        let under_way: Duration = trail.attempts().iter().map(|attempt| attempt.took).sum();
        assert!(under_way <= Duration::from_secs(30), "{trail}");
        assert_eq!(sim.ledger().requests()[0].status, Some(504));
        assert_eq!(spending.spent()[0].reserved, Default::default());
    });
}

#[test]
fn an_attempt_that_is_dropped_counts_as_what_it_may_cost_and_no_more() {
    in_paused_time(async {
        let scenario = Scenario { latency: Duration::from_secs(60), ..Scenario::new([]) };
        let sim = scenario.sim();
        let spending = SpendingLayer::new();
        let trail = Trail::new();
        let call = stack(&scenario, &sim, &spending).oneshot(ask(&scenario, TAG, &trail));
        assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
        let day = &spending.spent()[0];
        assert_eq!(day.reserved, Default::default());
        assert_eq!(day.settled.cost(), trail.cost());
        assert_eq!((day.settled.attempts, day.images, day.cost_per_image()), (1, 0, None));
        assert_eq!(trail.attempts()[0].charge, Charge::Maybe);
    });
}

#[test]
fn a_delivered_image_carries_its_price() {
    in_paused_time(async {
        let scenario = Scenario::new([Fault::Overloaded]);
        let sim = scenario.sim();
        let spending = SpendingLayer::new();
        let trail = Trail::new();
        let response =
            stack(&scenario, &sim, &spending).oneshot(ask(&scenario, TAG, &trail)).await.unwrap();
        response.into_body().collect().await.unwrap();
        let day = &spending.spent()[0];
        assert_eq!(day.images, 1);
        assert_eq!(day.cost_per_image(), trail.cost_per_image());
        assert!(day.cost_per_image().unwrap().contains(sim.ledger().cost_microusd(TAG)));
    });
}
