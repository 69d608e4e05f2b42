//! Run with
//!
//! ```not_rust
//! cargo run -p hand-composed
//! ```
//!
//! Composes every layer by hand, in the order of the stack. An order that would lose money does
//! not compile, and the error names the layer and its place. Most programs want `GeminiStack`,
//! which is this order ready made.

use std::error::Error;
use std::io::Write;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tower::ServiceExt as _;
use tower_gemini::final_image_extract::FinalImageJsonLayer;
use tower_gemini::model_fallback::Chain;
use tower_gemini::quota_guard::Limits;
use tower_gemini::spending::Caps;
use tower_gemini::{
    AnswerErrorsLayer, AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer,
    JitteredRetryLayer, KeepPaidLayer, ModelFallbackLayer, ObserveLayer, PeakHourRouterLayer,
    QuotaGuardLayer, ResolutionFallbackLayer, SpendingLayer, ThoughtSignaturesLayer, compose,
};
use tower_gemini_sim::{Fault, Sim};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let sim = Sim::quick([Fault::Internal]);
    let chain = Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
    let gemini = compose(
        (
            // Any request: errors become responses, and calls are observed.
            AnswerErrorsLayer::new(),
            ObserveLayer::new(),
            // From here on a call: its body is held, so that it can be sent again.
            CollectRequestLayer::new(),
            KeepPaidLayer::new(),
            FinalImageJsonLayer::new(),
            ThoughtSignaturesLayer::new(),
            PeakHourRouterLayer::off(),
            ModelFallbackLayer::new(chain),
            ResolutionFallbackLayer::new(),
            JitteredRetryLayer::recommended(),
            // From here on single attempts.
            SpendingLayer::new().per_day(Caps::none().at_most_usd(20.0)),
            QuotaGuardLayer::new(Limits::unlimited().rpm(60)),
            AttemptTimeoutLayer::new(),
            ClassifyGeminiErrorLayer::new(),
        ),
        sim.service(),
    );

    let answer = gemini.oneshot(request()?).await?;
    writeln!(out, "{}", answer.status())?;
    let body = answer.into_body().collect().await?.to_bytes();
    writeln!(out, "{} bytes of JSON, after {} requests", body.len(), sim.requests())?;
    Ok(())
}

fn request() -> http::Result<Request<Full<Bytes>>> {
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "any key")
        .body(Full::from(r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#))
}

#[tokio::test(start_paused = true)]
async fn the_stack_of_all_layers_answers_after_a_failure() {
    let mut out = Vec::new();
    app(&mut out).await.expect("an answer");
    let out = String::from_utf8_lossy(&out);
    assert!(out.starts_with("200 OK") && out.contains("after 2 requests"), "{out}");
}
