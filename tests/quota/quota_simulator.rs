//! The simulator enforces real quotas; a guarded stack meets none of them and uses them up.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::ServiceExt;
use tower_gemini::GeminiStack;
use tower_gemini::clock::RuntimeClock;
use tower_gemini::quota_guard::{Limits, OnExhausted, QuotaGuardLayer};
use tower_gemini_sim::{Latency, Quota, Sim};

/// 2026-01-21 20:00 UTC: winter, since the simulator's day begins at 08:00 UTC.
fn start() -> std::time::SystemTime {
    std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_025_600)
}

fn request() -> Request<Full<Bytes>> {
    let body = r#"{"contents":[{"role":"user","parts":[{"text":"a red apple on a white background"}]}],"generationConfig":{"responseModalities":["TEXT","IMAGE"],"imageConfig":{"imageSize":"1K"}}}"#;
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "AIzaSyA-sentinel-key-0123456789abcdefghij")
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_guarded_stack_at_full_demand_sees_no_429_and_uses_the_allowance() {
    const RPM: u64 = 60;
    const RPD: u64 = 1_000;
    let sim = Sim::builder()
        .seed(7)
        .quota(Quota {
            rpm: Some(RPM),
            ipm: Some(RPM),
            rpd: Some(RPD),
            counts_rejected: true,
            ..Quota::UNLIMITED
        })
        .latency(Latency::fixed(Duration::from_secs(20)))
        .starts_at_utc(Duration::from_secs(20 * 3600))
        .tiny_images(true)
        .build();
    let quota = QuotaGuardLayer::new(Limits::unlimited().rpm(RPM).ipm(RPM).rpd(RPD))
        .clock(RuntimeClock::starting_at(start()))
        .keep_for_first_attempts(0)
        .on_exhausted(OnExhausted::Wait { at_most: Duration::from_secs(86_400) });
    let stack = GeminiStack::new().quota(quota.clone());
    let policy = tower_gemini::jittered_retry::RetryPolicy::recommended()
        .deadline(Duration::from_secs(100_000));
    let service = stack.retry_policy(policy).raw(sim.service());
    // From 20:00 UTC over midnight Pacific (08:00 UTC): two days' allowances within 13 hours.
    let end = Instant::now() + Duration::from_secs(13 * 3600);
    let mut workers: FuturesUnordered<_> = (0..40)
        .map(|_| {
            let service = service.clone();
            async move {
                while Instant::now() < end {
                    if let Ok(response) = service.clone().oneshot(request()).await {
                        let _ = response.into_body().collect().await;
                    }
                }
            }
        })
        .collect();
    let _ = tokio::time::timeout_at(end, async { while workers.next().await.is_some() {} }).await;
    drop(workers);
    let ledger = sim.ledger();
    let refused = ledger.requests().iter().filter(|record| record.status == Some(429)).count();
    let received = ledger.totals().received as u64;
    assert_eq!(refused, 0, "of {received}");
    assert!(received * 100 >= 2 * RPD * 95, "{received} of {}", 2 * RPD);
    assert!(received <= 2 * RPD);
}
