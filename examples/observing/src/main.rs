//! Run with
//!
//! ```not_rust
//! cargo run -p observing
//! ```
//!
//! Watches what a stack decides: each step as it is taken, and the whole trail of a call at its
//! end. `ObserveLayer` does the same for all calls, as events and metrics.

use std::error::Error;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower::ServiceExt as _;
use tower_gemini::trail::{Step, TrailObserver};
use tower_gemini::{CallOptions, GeminiStack, Trail};
use tower_gemini_sim::{Fault, Shape, Sim};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

/// Collects a line for each step. It is called in the middle of the call, so it must not block.
#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl TrailObserver for Lines {
    fn on_step(&self, step: &Step) {
        let line = match step {
            Step::Attempt(attempt) => {
                let outcome = attempt.outcome.map_or("cut off", |outcome| outcome.as_str());
                format!("attempt: {outcome}, charge {}", attempt.charge)
            }
            Step::Waited { delay, .. } => format!("waited {:.1} s", delay.as_secs_f64()),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    // A simulated Gemini that fails twice and then answers with two drafts before the image.
    let drafts = Fault::Shaped(Shape::with_drafts(2));
    let sim = Sim::quick([Fault::HighDemand, Fault::Internal, drafts]);
    let gemini = GeminiStack::new().images(sim.service());

    let (trail, lines) = (Trail::new(), Arc::new(Lines::default()));
    trail.observe(lines.clone());
    let image = gemini.oneshot(request(trail.clone())?).await?.into_body();

    for line in lines.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "the image: {} bytes, {} drafts left out", image.len, image.drafts)?;
    writeln!(out, "the call: {} attempts, {}", trail.attempts().len(), trail.cost())?;
    Ok(())
}

fn request(trail: Trail) -> http::Result<Request<Full<Bytes>>> {
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "any key")
        .extension(CallOptions::new().trail(trail))
        .body(Full::from(r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#))
}

#[tokio::test(start_paused = true)]
async fn every_attempt_and_wait_is_seen() {
    let mut out = Vec::new();
    app(&mut out).await.expect("an image");
    let out = String::from_utf8_lossy(&out);
    assert_eq!((out.matches("attempt: ").count(), out.matches("waited ").count()), (3, 2), "{out}");
    assert!(out.contains("2 drafts left out") && out.contains("3 attempts, $0.13"), "{out}");
}
