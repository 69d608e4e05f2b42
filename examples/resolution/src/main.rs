//! Run with
//!
//! ```not_rust
//! cargo run -p resolution
//! ```
//!
//! Gets a smaller image while 4K fails, as in outages it does first.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower::ServiceExt as _;
use tower_gemini::target::Served;
use tower_gemini::{GeminiStack, ResolutionFallbackLayer};
use tower_gemini_sim::{Fault, Outages, Sim, Size, Weather};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    // A simulated Gemini in an outage that lasts for hours and fails 4K only.
    let overload = Outages::new(Fault::DeadlineExpired504)
        .mean_up(Duration::ZERO)
        .mean_down(Duration::from_secs(100_000))
        .share(0.0)
        .share_at(Size::K4, 1.0);
    let sim = Sim::builder().weather(Weather::calm().outages(overload)).tiny_images(true).build();

    // 4K, then 2K, then 1K; after one failure, since another attempt at 4K is unlikely to differ.
    let gemini =
        GeminiStack::new().resolution(ResolutionFallbackLayer::new()).images(sim.service());

    let answer = gemini.oneshot(request("4K")?).await?;
    let served = answer.extensions().get::<Served>().ok_or("the stack says what it served")?;
    for given_up in &served.given_up {
        writeln!(out, "given up: {given_up}")?;
    }
    let sizes: Vec<_> = sim.ledger().requests().iter().filter_map(|record| record.size).collect();
    writeln!(out, "the server saw {} requests", sim.requests())?;
    writeln!(out, "the image was drawn at {}", sizes.last().map_or("?", |size| size.as_str()))?;
    Ok(())
}

fn request(size: &str) -> http::Result<Request<Full<Bytes>>> {
    let body = format!(
        r#"{{"contents":[{{"parts":[{{"text":"a red apple"}}]}}],
            "generationConfig":{{"imageConfig":{{"imageSize":"{size}"}}}}}}"#
    );
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "any key")
        .body(Full::from(body))
}

#[tokio::test(start_paused = true)]
async fn the_image_comes_at_2k() {
    let mut out = Vec::new();
    app(&mut out).await.expect("an image");
    let out = String::from_utf8_lossy(&out);
    assert!(out.contains("given up: size 4K → 2K"), "{out}");
    assert!(out.contains("the image was drawn at 2K"), "{out}");
}
