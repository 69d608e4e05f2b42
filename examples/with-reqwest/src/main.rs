//! Run with
//!
//! ```not_rust
//! cargo run -p with-reqwest
//! ```
//!
//! Gives a reqwest client the whole stack, as one reqwest-middleware.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use reqwest_middleware::ClientBuilder;
use tower_gemini::{CallOptions, Trail};
use tower_gemini_reqwest::{GeminiMiddleware, client_builder};
use tower_gemini_sim::{Fault, Sim, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    // A simulated Gemini on a port of its own, which fails once.
    let sim = Sim::quick([Fault::Internal]);
    let server = serve(sim.clone(), ([127, 0, 0, 1], 0).into()).await?;

    // `json` leaves drafts out. `GeminiMiddleware::with` takes a `GeminiStack` of your own.
    let client =
        ClientBuilder::new(client_builder().build()?).with(GeminiMiddleware::new().json()).build();

    let answer = client
        .post(format!("{}/v1beta/models/gemini-3-pro-image:generateContent", server.url()))
        .header("x-goog-api-key", "any key")
        .with_extension(CallOptions::new().deadline(Duration::from_secs(300)))
        .body(r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#)
        .send()
        .await?;

    writeln!(out, "{}", answer.status())?;
    let trail = answer.extensions().get::<Trail>().ok_or("the stack leaves its trail")?.clone();
    writeln!(out, "{} bytes", answer.bytes().await?.len())?;
    // The trail counts the image once its answer was read.
    writeln!(out, "{} attempts, {}", trail.attempts().len(), trail.cost())?;
    server.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn the_second_attempt_brings_the_image() {
    let mut out = Vec::new();
    app(&mut out).await.expect("an answer");
    let out = String::from_utf8_lossy(&out);
    assert!(out.starts_with("200 OK") && out.contains("2 attempts, $0.13"), "{out}");
}
