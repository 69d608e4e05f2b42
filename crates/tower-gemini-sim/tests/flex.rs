//! The flex tier: half the price, a queue, and the first to be turned away. And what is billed
//! otherwise than it was asked for.
// The exemption of tests from these lints does not reach helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{CAT, FLASH31, PRO, generate, post, send};
use http::Request;
use http_body_util::Full;
use tower_gemini_sim::{Fault, Latency, Scenario, Sim, Tier};
use tower_service::Service as _;

fn sim(toml: &str) -> Sim {
    let builder = Scenario::parse(toml).unwrap().builder();
    builder.latency(Latency::fixed(Duration::from_secs(20))).tiny_images(true).build()
}

fn flex(method: &str) -> Request<Full<Bytes>> {
    let body = CAT.replacen('{', r#"{ "service_tier": "FLEX","#, 1);
    post(format!("https://gemini.example/v1beta/models/{PRO}:{method}"), body)
}

/// A share in every hour.
fn shed(share: f64) -> String {
    format!("[flex]\nshed_by_hour = {:?}", [share; 24])
}

#[tokio::test(start_paused = true)]
async fn flex_costs_half_of_what_standard_costs() {
    let sim = sim("");
    let standard = send(&sim, generate(PRO)).await.unwrap().json();
    let half = send(&sim, flex("generateContent")).await.unwrap().json();
    let (ledger, tier) = (sim.ledger(), |answer: &serde_json::Value| {
        answer["usageMetadata"]["serviceTier"].as_str().map(str::to_owned)
    });
    let costs: Vec<_> =
        ledger.requests().iter().map(|record| (record.flex, record.cost_microusd)).collect();
    assert!(costs[0].1 > 134_400, "{costs:?}");
    assert_eq!(costs[1], (true, costs[0].1 / 2));
    assert_eq!((tier(&standard), tier(&half).as_deref()), (None, Some("flex")));
}

#[tokio::test(start_paused = true)]
async fn a_shed_call_costs_nothing_and_standard_is_not_shed() {
    let sim = sim(&(shed(1.0) + "\nshed_in_stream = 1.0"));
    let refused = send(&sim, flex("generateContent")).await.unwrap();
    assert_eq!((refused.status, refused.json()["error"]["code"].as_u64()), (503, Some(503)));
    let broken = send(&sim, flex("streamGenerateContent?alt=sse")).await.unwrap();
    assert!(broken.status == 200 && broken.text().contains("\n  \"error\": {\n    \"code\": 503"));
    assert_eq!((sim.totals().cost_microusd, sim.totals().generated), (0, 0));
    assert_eq!(send(&sim, generate(FLASH31)).await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn as_many_are_shed_as_the_hour_says() {
    let mut by_hour = [0.0; 24];
    by_hour[1] = 0.3;
    let sim = sim(&format!("[flex]\nshed_by_hour = {by_hour:?}"));
    // A call in 20 s of virtual time, or at once when it is shed.
    let (mut early, mut late) = (0, Vec::new());
    while sim.now() < Duration::from_secs(2 * 3600 - 60) {
        let in_second_hour = sim.now() >= Duration::from_secs(3600);
        let is_shed = send(&sim, flex("generateContent")).await.unwrap().status == 503;
        if in_second_hour { late.push(is_shed) } else { early += usize::from(is_shed) }
    }
    let share = late.iter().filter(|is_shed| **is_shed).count() as f64 / late.len() as f64;
    assert!(early == 0 && (0.2..0.4).contains(&share), "{early}, {share}");
}

#[tokio::test(start_paused = true)]
async fn a_flex_call_queues_and_costs_nothing_until_it_is_served() {
    let sim = sim("[flex]\nqueue_seconds = [60, 900]");
    let mut times = Vec::new();
    for _ in 0..50 {
        let began = sim.now();
        // The server's own deadline of ten minutes does not run in its queue.
        assert_eq!(send(&sim, flex("generateContent")).await.unwrap().status, 200);
        times.push((sim.now() - began).as_secs());
    }
    assert!(times.iter().all(|time| (80..=920).contains(time)), "{times:?}");
    assert!(times.iter().max() > Some(&700) && times.iter().min() < Some(&250), "{times:?}");

    // A caller's deadline does.
    let mut request = flex("generateContent");
    request.headers_mut().insert("x-server-timeout", "60".parse().unwrap());
    assert_eq!(send(&sim, request).await.unwrap().status, 504);
    let call = sim.service().call(flex("generateContent"));
    tokio::time::timeout(Duration::from_secs(50), call).await.unwrap_err();
    assert_eq!(sim.totals().charged, 50);

    let began = sim.now();
    assert_eq!(send(&sim, generate(PRO)).await.unwrap().status, 200);
    assert_eq!(sim.now() - began, Duration::from_secs(20), "standard does not queue");
}

#[tokio::test(start_paused = true)]
async fn a_downgraded_call_is_billed_as_standard_and_only_its_tier_says_so() {
    let sim = Sim::quick([Fault::None, Fault::None, Fault::TierDowngraded]);
    let priority = CAT.replacen('{', r#"{ "serviceTier": "priority","#, 1);
    let uri = format!("https://gemini.example/v1beta/models/{PRO}:generateContent");
    send(&sim, generate(PRO)).await.unwrap();
    let mut named = Vec::new();
    for _ in 0..2 {
        let taken = send(&sim, post(&uri, priority.clone())).await.unwrap();
        let tier = taken.json()["usageMetadata"]["serviceTier"].as_str().map(str::to_owned);
        named.push((taken.tier.clone(), tier));
    }
    let name = |tier: &str| (Some(tier.to_owned()), Some(tier.to_owned()));
    assert_eq!(named, [name("priority"), name("standard")]);
    let ledger = sim.ledger();
    let [standard, priority, downgraded] = ledger.requests() else { panic!("three") };
    assert_eq!(priority.cost_microusd, standard.cost_microusd * 180 / 100);
    assert_eq!(downgraded.cost_microusd, standard.cost_microusd);
    assert_eq!((priority.tier, downgraded.tier), (Tier::Priority, Tier::Standard));
}

#[tokio::test(start_paused = true)]
async fn a_rerouted_call_is_billed_as_the_successor_that_draws_it() {
    let faults = [true, false].map(|named| Fault::Rerouted { named });
    let sim = Sim::quick(faults.into_iter().chain([Fault::None]));
    let mut named = Vec::new();
    for model in ["gemini-2.5-flash-image", "gemini-3.1-flash-image-preview", FLASH31] {
        let answer = send(&sim, generate(model)).await.unwrap().json();
        named.push(answer["modelVersion"].as_str().map(str::to_owned));
    }
    assert_eq!(named, [Some(FLASH31.to_owned()), None, Some(FLASH31.to_owned())]);
    let ledger = sim.ledger();
    let [first, second, own] = ledger.requests() else { panic!("three") };
    assert_eq!(first.served_by.as_deref(), Some(FLASH31));
    assert_eq!((second.served_by.as_deref(), own.served_by.as_deref()), (Some(FLASH31), None));
    assert!(first.cost_microusd > 67_000, "{}", first.cost_microusd);
    assert_eq!((first.cost_microusd, second.cost_microusd), (own.cost_microusd, own.cost_microusd));
}
