//! Run with
//!
//! ```not_rust
//! cargo run -p spending
//! ```
//!
//! Stops before a day can cost more than three dollars.

use std::error::Error;
use std::io::Write;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower::ServiceExt as _;
use tower_gemini::spending::Caps;
use tower_gemini::{GeminiStack, SpendingLayer};
use tower_gemini_sim::{Latency, Sim};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let sim = Sim::builder().latency(Latency::none()).tiny_images(true).build();

    // What an attempt can cost at most is set aside before it is sent, and corrected when the
    // answer says what it did cost.
    let spending = SpendingLayer::new().per_day(Caps::none().at_most_usd(3.0));
    let gemini = GeminiStack::new().spending(spending.clone()).images(sim.service());

    for number in 1..=40 {
        match gemini.clone().oneshot(request()?).await {
            Ok(answer) => writeln!(out, "{number}: {} bytes", answer.into_body().len)?,
            Err(error) => {
                writeln!(out, "{number}: {error}")?;
                break;
            }
        }
    }
    for day in spending.spent() {
        writeln!(out, "spent today, by our books: {}", day.settled.cost())?;
    }
    let dollars = sim.totals().cost_microusd as f64 / 1e6;
    writeln!(out, "and by the server's:        ${dollars:.4} for {} images", sim.requests())?;
    Ok(())
}

fn request() -> http::Result<Request<Full<Bytes>>> {
    // Naming the size lowers what is set aside.
    let body = r#"{"contents":[{"parts":[{"text":"a red apple"}]}],
        "generationConfig":{"imageConfig":{"imageSize":"1K"}}}"#;
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "any key")
        .body(Full::from(body))
}

#[tokio::test(start_paused = true)]
async fn the_cap_is_kept_by_both_books() {
    let mut out = Vec::new();
    app(&mut out).await.expect("images and a refusal");
    let out = String::from_utf8_lossy(&out);
    assert!(out.matches(" bytes").count() > 5 && out.contains("SPENDING_CAP"), "{out}");
    let truth = out.split("by the server's:        $").nth(1).and_then(|rest| rest.get(..6));
    assert!(truth.and_then(|usd| usd.parse::<f64>().ok()).is_some_and(|usd| usd <= 3.0), "{out}");
}
