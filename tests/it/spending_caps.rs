//! Caps over whole stacks, held against the simulator's bill.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tower::{Layer, Service, ServiceExt};
use tower_gemini::CallOptions;
use tower_gemini::Error;
use tower_gemini::call::{Call, ModelId};
use tower_gemini::catalog::Catalog;
use tower_gemini::cost::Cost;
use tower_gemini::jittered_retry::{Backoff, RetryPolicy};
use tower_gemini::spending::{Caps, ConfigError, Period, Plan, ReserveBy};
use tower_gemini::trail::{Step, StopReason, Trail};
use tower_gemini::verdict::Charge;
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer,
    SingleAttemptLayer, SpendingLayer,
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
pub(crate) fn attempt(scenario: &Scenario) -> u64 {
    Plan::new(&call_of(scenario)).worst_case(Catalog::builtin()).at_most_microusd
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
            let spending = SpendingLayer::new().per(Period::Every(Duration::from_secs(1 << 33)), caps);
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
        let plan = Plan::new(&call_of(&scenario)).attempts(5).allowance(scenario.allowance);
        let worst = plan.worst_case(Catalog::builtin());
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
        let spending = spending.plan(|call| Plan::new(call).attempts(5));
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

/// An unsized call, as most callers make it.
fn unsized_call(tag: &str) -> Request<Full<Bytes>> {
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "AIzaSyA-sentinel-key-0123456789abcdefghij")
        .header("x-sim-call", tag)
        .body(Full::from(r#"{"contents":[{"role":"user","parts":[{"text":"a cat"}]}]}"#))
        .unwrap()
}

/// Asks for `calls` images, four at a time. Returns how many were made and what they cost.
fn four_at_a_time(calls: usize, spending: &SpendingLayer) -> (usize, u64) {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let gemini = stack(&scenario, &sim, spending);
        let workers = (0..4).map(|worker| {
            let gemini = gemini.clone();
            async move {
                let mut made = 0;
                for n in (worker..calls).step_by(4) {
                    let call = gemini.clone().oneshot(unsized_call(&n.to_string()));
                    let Ok(response) = call.await else { continue };
                    made += usize::from(response.status() == 200);
                    let _ = response.into_body().collect().await;
                }
                made
            }
        });
        let made = futures::future::join_all(workers).await.into_iter().sum();
        assert_eq!(spending.spent().iter().find(|page| page.reserved != Default::default()), None);
        (made, sim.totals().cost_microusd)
    })
}

// $2.74 was reserved for each unsized Pro call and the others were refused: a cap of $7 with four
// parallel calls made 2 of 50 images.
#[test]
fn a_cap_is_used_up_whatever_runs_side_by_side() {
    const CAP: u64 = 7_000_000;
    let caps = Caps::none().at_most_microusd(CAP);
    for (reserve_by, least) in [
        (ReserveBy::WorstCase { drafts: None }, 38),
        (ReserveBy::WorstCase { drafts: Some(2) }, 46),
        (ReserveBy::WorstCase { drafts: Some(0) }, 48),
        (ReserveBy::Expected, 49),
    ] {
        let spending = SpendingLayer::new().total(caps).reserve_by(reserve_by);
        let (made, bill) = four_at_a_time(50, &spending);
        assert!(made >= least, "{made} of 50 for {bill} by {reserve_by:?}");
        // Within the cap; by the expected price, beyond it by the calls in flight at most.
        let beyond = if reserve_by == ReserveBy::Expected { 4 * 140_000 } else { 0 };
        assert!(bill <= CAP + beyond, "{bill} by {reserve_by:?}");
    }
}

#[test]
fn a_call_waits_while_only_reservations_block_and_the_first_is_served_first() {
    let scenario = Scenario { latency: Duration::from_secs(10), ..Scenario::new([]) };
    // Room for one worst case at a time, and for five images.
    let cap = attempt(&scenario) + 5 * 136_000;
    in_paused_time(async {
        let sim = scenario.sim();
        let spending = SpendingLayer::new().total(Caps::none().at_most_microusd(cap));
        let gemini = stack(&scenario, &sim, &spending);
        let began = tokio::time::Instant::now();
        let trails: Vec<_> = (0..4).map(|_| Trail::new()).collect();
        let calls = trails.iter().enumerate().map(|(n, trail)| {
            let call = gemini.clone().oneshot(ask(&scenario, &n.to_string(), trail));
            async move {
                let response = call.await.unwrap();
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                began.elapsed().as_secs()
            }
        });
        assert_eq!(futures::future::join_all(calls).await, [10, 20, 30, 40]);
        assert!(trails[3].to_string().contains("for what running attempts have reserved"));
        assert_eq!(spending.spent().last().unwrap().refused, 0);
    });
}

#[test]
fn a_call_that_waits_for_reservations_waits_no_longer_than_its_deadline() {
    let scenario = Scenario { latency: Duration::from_secs(100), ..Scenario::new([]) };
    let cap = attempt(&scenario) + 200_000;
    in_paused_time(async {
        let sim = scenario.sim();
        let spending = SpendingLayer::new().per_day(Caps::none().at_most_microusd(cap));
        let gemini = stack(&scenario, &sim, &spending);
        let first = gemini.clone().oneshot(ask(&scenario, "first", &Trail::new()));
        let mut hurried = scenario.request("hurried");
        hurried.extensions_mut().insert(CallOptions::new().deadline(Duration::from_secs(7)));
        let began = tokio::time::Instant::now();
        let second = async {
            let refused = gemini.clone().oneshot(hurried).await;
            assert!(
                refused.is_err_and(|error| error.is_timeout()) || began.elapsed().as_secs() == 7
            );
            began.elapsed().as_secs()
        };
        // A third that gave up in the queue leaves nothing behind.
        let gone = gemini.clone().oneshot(ask(&scenario, "gone", &Trail::new()));
        let gone = tokio::time::timeout(Duration::from_secs(3), gone);
        let (first, second, gone) = tokio::join!(first, second, gone);
        assert_eq!((second, gone.is_err()), (7, true));
        first.unwrap().into_body().collect().await.unwrap();
        assert_eq!((sim.ledger().sends("hurried"), sim.ledger().sends("gone")), (0, 0));
        assert_eq!(spending.spent()[0].reserved, Default::default());
    });
}

#[test]
fn what_is_spent_refuses_at_once_and_reservations_do_not() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let sim = scenario.sim();
        let spending = SpendingLayer::new()
            .total(Caps::none().at_most_usd(3.0))
            .starting_balance(Cost::exactly(2_000_000));
        let began = tokio::time::Instant::now();
        let response = stack(&scenario, &sim, &spending)
            .oneshot(ask(&scenario, TAG, &Trail::new()))
            .await
            .unwrap();
        // A total does not start anew: no waiting helps.
        assert_eq!((response.status().as_u16(), sim.requests()), (402, 0));
        assert_eq!(began.elapsed(), Duration::ZERO);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&body);
        assert!(
            text.contains("the cap of $3.0000 at most in total might be passed: $2.0000 taken")
        );
        assert_eq!(spending.spent().last().unwrap().refused, 1);
    });
}

// A refusal for money said that another model may help, and the chain moved the call to it.
#[test]
fn a_cap_moves_no_call_to_another_model_unless_asked_to() {
    in_paused_time(async {
        let scenario = Scenario::new([]);
        let capped = SpendingLayer::new().per_call(Caps::none().at_most_usd(0.01));
        for (spending, helps) in [(capped.clone(), false), (capped.fall_back_when_capped(), true)] {
            let classified = ClassifyGeminiErrorLayer::new().layer(scenario.sim().service());
            let attempts = SingleAttemptLayer::new().layer(spending.layer(classified));
            let gemini = CollectRequestLayer::new().layer(attempts);
            let response = gemini.oneshot(scenario.request(TAG)).await.unwrap();
            assert_eq!(response.body().verdict().another_model_helps(), helps);
            assert_eq!(response.status(), 402);
        }
    });
}

#[test]
fn a_cap_below_the_price_of_one_attempt_is_reported_at_start() {
    let models = || [(ModelId::new("gemini-3-pro-image"), None)];
    let capped = |usd| SpendingLayer::new().total(Caps::none().at_most_usd(usd));
    let error = capped(1.5).check(models()).unwrap_err();
    assert!(
        matches!(&error, ConfigError::CapBelowOneAttempt { period, cap: 1_500_000, .. } if period == "total")
    );
    assert!(
        error.to_string().starts_with("the cap of $1.5000 at most in total is below the $1.57")
    );
    assert!(capped(1.6).check(models()).is_ok());
    let two_drafts = capped(1.5).reserve_by(ReserveBy::WorstCase { drafts: Some(2) });
    assert!(two_drafts.check(models()).is_ok());
    let per_call = SpendingLayer::new().per_call(Caps::none().at_most_usd(0.1));
    assert!(per_call.check(models()).is_err());
    assert!(per_call.check([(ModelId::new("gemini-99-image"), None)]).is_ok(), "no price");
}

proptest! {
    #![proptest_config(cases(300))]

    /// Whatever the weather: by the expected price a cap is exceeded by at most what the attempts
    /// in flight can cost.
    #[test]
    fn the_expected_price_passes_a_cap_by_at_most_the_calls_in_flight(
        scenario in scenarios(), money in 1_u64..8, calls in 1_usize..6,
    ) {
        let cap = attempt(&scenario) * money / 4;
        let bill = in_paused_time(async {
            let sim = scenario.sim();
            let spending = SpendingLayer::new()
                .total(Caps::none().at_most_microusd(cap))
                .reserve_by(ReserveBy::Expected);
            let gemini = stack(&scenario, &sim, &spending);
            let calls = (0..calls).map(|n| {
                let call = gemini.clone().oneshot(ask(&scenario, &n.to_string(), &Trail::new()));
                async move {
                    if let Ok(response) = call.await {
                        let _ = response.into_body().collect().await;
                    }
                }
            });
            futures::future::join_all(calls).await;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(spending.spent().last().unwrap().reserved, Default::default());
            sim.totals().cost_microusd
        });
        prop_assert!(bill <= cap + calls as u64 * attempt(&scenario), "{bill} of {cap}");
    }
}
