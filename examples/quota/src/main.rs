//! Run with
//!
//! ```not_rust
//! cargo run -p quota
//! ```
//!
//! Sends no more than the quota allows: calls wait here for their turn instead of being refused
//! there. To share one quota among processes give the layer a store, as `quota-across-processes`
//! does.

use std::error::Error;
use std::io::Write;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::task::JoinSet;
use tower::ServiceExt as _;
use tower_gemini::quota_guard::Limits;
use tower_gemini::{GeminiStack, QuotaGuardLayer};
use tower_gemini_sim::{Latency, Quota, Sim};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    // A simulated Gemini that takes three requests in any 60 seconds and answers the others 429.
    let quota = Quota { rpm: Some(3), ..Quota::UNLIMITED };
    let sim = Sim::builder().quota(quota).latency(Latency::none()).tiny_images(true).build();

    let guard = QuotaGuardLayer::new(Limits::unlimited().rpm(3));
    let gemini = GeminiStack::new().quota(guard).images(sim.service());

    // Five calls at once: all five get an image, and none a 429.
    let mut calls = JoinSet::new();
    for _ in 0..5 {
        calls.spawn(gemini.clone().oneshot(request()?));
    }
    while let Some(answer) = calls.join_next().await {
        answer??;
    }
    for record in sim.ledger().requests() {
        let second = record.received_at.as_secs();
        writeln!(out, "second {second:>2}: status {}", record.status.unwrap_or_default())?;
    }
    Ok(())
}

fn request() -> http::Result<Request<Full<Bytes>>> {
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "any key")
        .body(Full::from(r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#))
}

#[tokio::test(start_paused = true)]
async fn nothing_is_refused_and_the_last_two_wait_a_minute() {
    let mut out = Vec::new();
    app(&mut out).await.expect("images");
    let out = String::from_utf8_lossy(&out);
    assert_eq!(out.matches("status 200").count(), 5, "{out}");
    assert_eq!(out.matches("second 6").count(), 2, "{out}");
}
