//! Run with
//!
//! ```not_rust
//! cargo run -p fallback
//! ```
//!
//! Gets the image from another model while the one asked for is overloaded, and says so.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower::ServiceExt as _;
use tower_gemini::GeminiStack;
use tower_gemini::model_fallback::Chain;
use tower_gemini::target::Served;
use tower_gemini_sim::{Fault, Outages, Sim, Weather};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    // A simulated Gemini whose Pro model answers 503 for hours. Its other models work.
    let overload = Outages::new(Fault::HighDemand)
        .model("gemini-3-pro-image")
        .mean_up(Duration::ZERO)
        .mean_down(Duration::from_secs(100_000));
    let sim = Sim::builder().weather(Weather::calm().outages(overload)).tiny_images(true).build();

    let chain = Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
    let gemini = GeminiStack::new().fallback_to(chain).images(sim.service());

    let answer = gemini.oneshot(request()?).await?;
    let served = answer.extensions().get::<Served>().ok_or("the stack says what it served")?;
    for given_up in &served.given_up {
        writeln!(out, "given up: {given_up}")?;
    }
    let image = answer.into_body();
    writeln!(out, "received: {} bytes of {}", image.len, image.mime)?;

    let ledger = sim.ledger();
    for record in ledger.requests() {
        writeln!(out, "the server saw {} and charged {}", record.model, record.charged)?;
    }
    Ok(())
}

fn request() -> http::Result<Request<Full<Bytes>>> {
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "any key")
        .body(Full::from(r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#))
}

#[tokio::test(start_paused = true)]
async fn the_image_comes_from_the_other_model() {
    let mut out = Vec::new();
    app(&mut out).await.expect("an image");
    let out = String::from_utf8_lossy(&out);
    assert!(out.contains("given up: model gemini-3-pro-image → gemini-3.1-flash-image"), "{out}");
    assert_eq!(out.matches("charged true").count(), 1, "{out}");
}
