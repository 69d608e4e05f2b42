//! What holds for every chain and every schedule of faults.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::json;
use tower::{Layer, ServiceExt};
use tower_gemini::CallOptions;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::model_fallback::Chain;
use tower_gemini::target::{MustKeep, Target};
use tower_gemini::trail::{Step, Trail};
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer,
    ModelFallbackLayer, ResolutionFallbackLayer,
};
use tower_gemini_sim::{Fault, Latency, Sim, Size};

use crate::fallback_stack::request;
use crate::harness::{cases, faults, in_paused_time, is_ambiguous};

const MODELS: [&str; 4] = [
    "gemini-3-pro-image",
    "gemini-3.1-flash-image",
    "gemini-2.5-flash-image",
    "gemini-3.1-flash-lite-image",
];

#[derive(Debug, Clone)]
struct Case {
    /// Models and their attempts; 0 sets no number.
    chain: Vec<(usize, u32)>,
    wraps: bool,
    asked: usize,
    size: &'static str,
    /// 0 no ladder, 1 inside, 2 outside.
    ladder: u8,
    allowance: u32,
    deadline: Option<u64>,
    keeps_size: bool,
    calls: usize,
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::collection::vec((0usize..4, 0u32..4), 0..6),
        any::<bool>(),
        0usize..2,
        prop::sample::select(vec!["1K", "2K", "4K"]),
        0u8..3,
        prop_oneof![4 => Just(0u32), 1 => 1u32..3],
        prop::option::weighted(0.3, 1u64..2000),
        any::<bool>(),
        1usize..4,
    )
        .prop_map(
            |(chain, wraps, asked, size, ladder, allowance, deadline, keeps_size, calls)| Case {
                chain,
                wraps,
                asked,
                size,
                ladder,
                allowance,
                deadline,
                keeps_size,
                calls,
            },
        )
}

/// One chain in one weather: judged by the server's ledger.
fn holds(case: &Case, script: Vec<Fault>, seed: u64) -> Result<(), TestCaseError> {
    in_paused_time(async {
        let sim = Sim::builder()
            .seed(seed)
            .script(script)
            .latency(Latency::fixed(Duration::from_secs(20)))
            .tiny_images(true)
            .build();
        let mut chain = Chain::default();
        for (model, attempts) in &case.chain {
            let target = Target::new(MODELS[*model]);
            chain = chain.then(match attempts {
                0 => target,
                attempts => target.attempts(*attempts),
            });
        }
        if case.wraps {
            chain = chain.wrapping();
        }
        let fallback = ModelFallbackLayer::new(chain);
        let (inside, outside) = match case.ladder {
            1 => (ResolutionFallbackLayer::new(), ResolutionFallbackLayer::off()),
            2 => (ResolutionFallbackLayer::off(), ResolutionFallbackLayer::new()),
            _ => (ResolutionFallbackLayer::off(), ResolutionFallbackLayer::off()),
        };
        let retry = JitteredRetryLayer::new(RetryPolicy::recommended()).seed(seed);
        let judged =
            AttemptTimeoutLayer::new().layer(ClassifyGeminiErrorLayer::new().layer(sim.service()));
        let service = CollectRequestLayer::new()
            .layer(outside.layer(fallback.layer(inside.layer(retry.layer(judged)))));
        for call in 0..case.calls {
            let tag = call.to_string();
            let trail = Trail::new();
            let mut options =
                CallOptions::new().maybe_charged_resends(case.allowance).trail(trail.clone());
            if let Some(deadline) = case.deadline {
                options = options.deadline(Duration::from_secs(deadline));
            }
            if case.keeps_size {
                options = options.must_keep(MustKeep::nothing().size());
            }
            let mut request: Request<Full<Bytes>> = request(
                MODELS[case.asked],
                &tag,
                &json!({ "imageConfig": { "imageSize": case.size } }),
            );
            request.extensions_mut().insert(options);
            let started = tokio::time::Instant::now();
            let ended = tokio::time::timeout(Duration::from_secs(86_400), async {
                if let Ok(answer) = service.clone().oneshot(request).await {
                    let _ = answer.into_body().collect().await;
                }
            })
            .await;
            prop_assert!(ended.is_ok(), "it did not end");
            if let Some(deadline) = case.deadline {
                prop_assert!(
                    started.elapsed() <= Duration::from_secs(deadline) + Duration::from_millis(5)
                );
            }
            let ledger = sim.ledger();
            let records: Vec<_> = ledger.of_call(&tag).cloned().collect();
            // By the trail, which knows the size of requests that were refused before they were
            // read.
            let mut visits: Vec<_> =
                trail.attempts().iter().map(|a| (a.model.clone(), a.size)).collect();
            prop_assert_eq!(visits.len(), records.len(), "the trail has every send");
            visits.dedup();
            let mut once = visits.clone();
            once.sort();
            once.dedup();
            // No more sends to a target than it has attempts; the retry's own five where it has no
            // number of its own.
            for (model, size) in &once {
                let name = model.as_ref().map_or("", |model| model.as_str());
                let of_chain = |name: &str| {
                    let links = case.chain.iter().filter(|(index, _)| MODELS[*index] == name);
                    links.map(|(_, attempts)| if *attempts == 0 { 5 } else { *attempts }).max()
                };
                // A model that is asked for and stands in no chain is a link of its own, whoever's
                // successor it is besides.
                let is_own = |name: &str| {
                    name == MODELS[case.asked]
                        && case.chain.iter().all(|(index, _)| *index != case.asked)
                };
                // A successor takes over the place of the model it replaces, and its attempts, and
                // so does the successor's own.
                let mut inherited: Vec<(String, u32)> = Vec::new();
                for step in trail.steps() {
                    let Step::Replaced { model, successor } = step else { continue };
                    let before = inherited.iter().filter(|(name, _)| *name == model);
                    let before = before.map(|(_, attempts)| *attempts).max();
                    let own = is_own(&model).then_some(5);
                    let attempts = before.max(of_chain(&model)).max(own).unwrap_or(5);
                    inherited.push((successor, attempts));
                }
                let inherited = inherited.iter().filter(|(successor, _)| successor == name);
                let caps = inherited.map(|(_, attempts)| *attempts).chain(of_chain(name));
                let cap = caps.chain(is_own(name).then_some(5)).max().unwrap_or(5) as usize;
                let sent = trail
                    .attempts()
                    .iter()
                    .filter(|a| a.model == *model && a.size == *size)
                    .count();
                // A call comes back only to a target without a number of attempts.
                let visited = visits.iter().filter(|visit| *visit == &(model.clone(), *size));
                prop_assert!(cap == 5 || visited.count() == 1, "visited twice: {}", trail);
                prop_assert!(
                    sent <= cap,
                    "{} sends to {}, which has {}: {}",
                    sent,
                    name,
                    cap,
                    trail
                );
            }
            if case.keeps_size {
                let asked = Size::parse(case.size);
                prop_assert!(
                    records.iter().all(|record| record.size.is_none_or(|size| Some(size) == asked)),
                    "{}",
                    trail
                );
            }
            let after_charge = records.windows(2).filter(|pair| pair[0].charged).count();
            let after_maybe = records.windows(2).filter(|pair| is_ambiguous(&pair[0])).count();
            prop_assert!(after_charge <= case.allowance as usize, "{}", trail);
            prop_assert!(after_maybe <= case.allowance as usize, "{}", trail);
            prop_assert!(
                case.allowance > 0 || ledger.sends_after_charge(&tag) == 0,
                "paid twice: {}",
                trail
            );
            // No rewrite is refused for what we put into it: every 400 was scripted.
            for record in &records {
                prop_assert!(
                    record.status != Some(400) || record.outcome == record.fault.name(),
                    "{:?}\n{}",
                    record,
                    trail
                );
            }
            prop_assert!(trail.cost().contains(ledger.cost_microusd(&tag)), "{}", trail);
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn chains_end_keep_to_their_attempts_and_never_pay_twice(
        case in case(), script in prop::collection::vec(faults(), 0..30), seed in any::<u64>(),
    ) {
        holds(&case, script, seed)?;
    }
}

// The model that is asked for rests, and so does the successor of the chain's only one, which is
// the same model: tried early, it is the caller's own, with as many attempts as that has.
#[test]
fn a_model_that_is_asked_for_and_succeeds_another_keeps_its_own_attempts() {
    let case = Case {
        chain: vec![(2, 1)],
        wraps: false,
        asked: 1,
        size: "1K",
        ladder: 0,
        allowance: 0,
        deadline: None,
        keeps_size: false,
        calls: 3,
    };
    let script = vec![
        Fault::CutBody { at: 0 },
        Fault::NotFound(tower_gemini_sim::NotFound::Model),
        Fault::Overloaded,
    ];
    holds(&case, script, 0).unwrap();
}

// Both links retire towards one model, the first through the second: it has the attempts of both.
#[test]
fn the_attempts_of_a_link_travel_along_a_line_of_successors() {
    let case = Case {
        chain: vec![(2, 2), (1, 1)],
        wraps: false,
        asked: 2,
        size: "1K",
        ladder: 0,
        allowance: 0,
        deadline: None,
        keeps_size: false,
        calls: 2,
    };
    for gone in [tower_gemini_sim::NotFound::Retired, tower_gemini_sim::NotFound::Model] {
        let script = [Fault::NotFound(gone), Fault::NotFound(gone), Fault::Overloaded];
        holds(&case, script.to_vec(), 0).unwrap();
    }
}
