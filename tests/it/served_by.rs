//! What a response says it was served by, against the ledger of the server: another model than the
//! one asked for, or another tier, both without a word.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tower::{ServiceExt, layer::Layer};
use tower_gemini::call::ServiceTier;
use tower_gemini::{
    CallOptions, ClassifyGeminiErrorLayer, CollectRequestLayer, SingleAttemptLayer, SpendingLayer,
    Trail,
};
use tower_gemini_sim::{Fault, Latency, Record, Shape, Sim, Tier};

use crate::harness::{TAG, cases, in_paused_time};

const PATIENCE: Duration = Duration::from_secs(7200);

/// A call by its model, method, tier and size.
type Asked = (&'static str, &'static str, &'static str, &'static str);

fn request((model, method, tier, size): Asked, trail: &Trail) -> Request<Full<Bytes>> {
    let image = match size {
        "" => serde_json::json!({}),
        size => serde_json::json!({ "imageSize": size }),
    };
    let mut body = serde_json::json!({
        "contents": [{ "parts": [{ "text": "a cat" }] }], "generationConfig": { "imageConfig": image },
    });
    if !tier.is_empty() {
        body["serviceTier"] = tier.into();
    }
    let uri = format!("https://gemini.example/v1beta/models/{model}:{method}");
    Request::post(uri)
        .header("x-goog-api-key", "key-1")
        .header("x-sim-call", TAG)
        .extension(CallOptions::new().trail(trail.clone()))
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap()
}

/// One attempt, read for so long: its trail, what the layer settled it as, whether it was read to a
/// good end, and the server's record of it.
fn sent(asked: Asked, fault: Fault, patience: Duration) -> (Trail, SpendingLayer, bool, Record) {
    in_paused_time(async {
        let latency = Latency::fixed(Duration::from_secs(20));
        let sim = Sim::builder()
            .latency(latency)
            .tiny_images(true)
            .chunks(400, Duration::from_secs(1))
            .revive("gemini-3-pro-image-preview")
            .script([fault])
            .build();
        let (trail, spending) = (Trail::new(), SpendingLayer::new());
        let classified = ClassifyGeminiErrorLayer::new().layer(sim.service());
        let attempts = SingleAttemptLayer::new().layer(spending.layer(classified));
        let stack = CollectRequestLayer::new().layer(attempts);
        let read = async {
            let response: Response<_> = stack.oneshot(request(asked, &trail)).await.ok()?;
            let is_good = response.status().is_success();
            response.into_body().collect().await.ok().filter(|_| is_good)
        };
        let is_whole = matches!(tokio::time::timeout(patience, read).await, Ok(Some(_)));
        // What was given up runs on at the server.
        tokio::time::sleep(PATIENCE).await;
        let record = sim.ledger().requests()[0].clone();
        (trail, spending, is_whole, record)
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    (
        prop::sample::select(vec![
            "gemini-2.5-flash-image",
            "gemini-2.5-flash-image-preview",
            "gemini-3.1-flash-image-preview",
            "gemini-3-pro-image-preview",
            "gemini-3.1-flash-image",
            "gemini-3-pro-image",
        ]),
        prop::sample::select(vec![
            "generateContent",
            "streamGenerateContent?alt=sse",
            "streamGenerateContent",
        ]),
        prop::sample::select(vec!["", "flex", "priority"]),
        prop::sample::select(vec!["", "1K", "2K", "4K"]),
    )
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => any::<bool>().prop_map(|named| Fault::Rerouted { named }),
        2 => Just(Fault::TierDowngraded),
        2 => prop::sample::select(vec![
            Fault::None, Fault::ResetAfterGeneration, Fault::NoAnswer { charged: true },
            Fault::StreamErrorTail { charged: true }, Fault::NoImage, Fault::MaxTokens,
        ]),
        1 => (0_usize..6000).prop_map(|at| Fault::CutBody { at }),
        1 => (0_u8..4).prop_map(|drafts| Fault::Shaped(Shape {
            no_usage: true, ..Shape::with_drafts(drafts)
        })),
    ]
}

proptest! {
    #![proptest_config(cases(1_000))]

    /// However it is read, or given up.
    #[test]
    fn the_cost_of_an_attempt_holds_the_bill_of_whatever_served_it(
        asked in asked(), fault in faults(), patience in prop_oneof![Just(PATIENCE), (1_u64..60).prop_map(Duration::from_secs)],
    ) {
        let (trail, spending, is_whole, record) = sent(asked, fault.clone(), patience);
        let bill = record.cost_microusd;
        prop_assert!(trail.cost().contains(bill), "{bill}: {trail}");
        for page in spending.spent() {
            prop_assert!(page.settled.cost().contains(bill), "{bill} in {}", page.settled.cost());
        }
        let attempt = &trail.attempts()[0];
        if let (Fault::Rerouted { named }, true) = (&fault, is_whole) {
            let served = attempt.served_by.as_ref().map(|model| model.as_str());
            prop_assert_eq!(served, record.served_by.as_deref().filter(|_| *named), "{}", trail);
        }
        if fault == Fault::TierDowngraded && record.tier == Tier::Standard && asked.2 == "priority" && is_whole {
            prop_assert_eq!(attempt.served_tier, Some(ServiceTier::Standard));
        }
        if let Some(model) = &attempt.served_by {
            prop_assert_eq!(Some(model.as_str()), record.served_by.as_deref(), "it says nothing wrong");
        }
    }
}

// A refusal was reported to cost an image's price where its stream was dropped.
#[test]
fn a_stream_that_is_given_up_may_have_held_no_image() {
    for seconds in 1..60 {
        let asked = ("gemini-3-pro-image", "streamGenerateContent?alt=sse", "", "");
        let patience = Duration::from_secs(seconds);
        let (trail, _, _, record) = sent(asked, Fault::NoImage, patience);
        let bill = record.cost_microusd;
        assert!(trail.cost().contains(bill), "{bill} after {seconds} s: {trail}");
    }
}

/// Flex and priority were reported as "from half to all" and "from once to twice" the price.
#[test]
fn a_tier_that_the_response_names_makes_the_interval_narrow() {
    let pro = ("gemini-3-pro-image", "generateContent");
    let cost = |tier: &'static str, fault: Fault| {
        let (trail, ..) = sent((pro.0, pro.1, tier, "1K"), fault, PATIENCE);
        let cost = trail.cost();
        (cost.at_least_microusd, cost.at_most_microusd.unwrap())
    };
    let (least, most) = cost("", Fault::None);
    assert_eq!(cost("flex", Fault::None), (least / 2, most.div_ceil(2)));
    assert_eq!(cost("priority", Fault::None), (least / 4 * 7, most * 2));
    assert_eq!(cost("priority", Fault::TierDowngraded), (least, most));
}
