//! The demonstration's storm through the whole gateway but its sockets, in paused time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower_gemini_sim::{Latency, Sim};

use crate::config::{Config, EXAMPLE};
use crate::handler::handle;
use crate::snapshot::Snapshot;

const CALLS: usize = 120;
const AT_ONCE: usize = 16;

/// How many of the calls deliver an image, and how long all of them take.
async fn delivered(config: &Config, seed: u64) -> (usize, Duration) {
    let latency = Latency::fixed(Duration::from_secs(2));
    let sim = Sim::builder().storm().seed(seed).latency(latency).tiny_images(true).build();
    let gateway = Arc::new(Snapshot::over(sim.service(), config, None).unwrap());
    let started = Instant::now();
    let calls = futures::stream::iter(0..CALLS).map(|n| {
        let (gateway, ledger) = (gateway.clone(), sim.clone());
        let body = format!(r#"{{"contents":[{{"parts":[{{"text":"apple {n}"}}]}}]}}"#);
        let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
            .header("x-goog-api-key", "AIzaSyA-storm-key-0123456789abcdefghijk")
            .header("x-sim-call", n.to_string())
            .body(Body::from(body))
            .unwrap();
        async move {
            let (parts, body) = handle(gateway, started, request).await.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let text = String::from_utf8_lossy(&body);
            let is_image = parts.status.is_success() && text.contains("inlineData");
            if !is_image && std::env::var_os("STORM_FAILURES").is_some() {
                let ledger = ledger.ledger();
                let attempts: Vec<String> = ledger
                    .of_call(&n.to_string())
                    .map(|one| format!("{:.0?} {} {}", one.received_at, one.model, one.outcome))
                    .collect();
                println!("{:.0?} call {n}: {} after {attempts:?}", started.elapsed(), parts.status);
            }
            is_image
        }
    });
    let delivered =
        calls.buffer_unordered(AT_ONCE).filter(|ok| std::future::ready(*ok)).count().await;
    let ledger = sim.ledger();
    let twice = (0..CALLS).filter(|n| ledger.sends_after_charge(&n.to_string()) > 0).count();
    assert_eq!(twice, 0, "nothing is sent after a charge");
    (delivered, started.elapsed())
}

// The demonstration delivered 75 of 120 with the default file, and 18 with the fallback chain and
// `sizes = true` of its own comments.
#[tokio::test(start_paused = true)]
async fn the_storm_loses_few_images_and_the_fallback_chain_saves_more() {
    let models = EXAMPLE.lines().find(|line| line.starts_with("models = []")).unwrap();
    let models = models.split_once(": [").unwrap().1;
    let chain = format!("[fallback]\nmodels = [{models}\nsizes = true\n");
    let (plain, chain) = (Config::default(), Config::parse(&chain, "gateway.toml").unwrap());
    let mut results = Vec::new();
    for seed in 0..6 {
        let ((without, took), (with, took_with)) =
            (delivered(&plain, seed).await, delivered(&chain, seed).await);
        println!(
            "storm {seed}: {without} of {CALLS} delivered in {took:.0?}; with the chain {with} in \
             {took_with:.0?}"
        );
        results.push((seed, without, with));
    }
    for (seed, without, with) in results {
        assert!(without >= 100, "storm {seed}: {without} delivered with the default file");
        assert!(with >= 108, "storm {seed}: {with} delivered with the fallback chain");
    }
}
