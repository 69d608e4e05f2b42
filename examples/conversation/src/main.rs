//! Run with
//!
//! ```not_rust
//! cargo run -p conversation
//! ```
//!
//! Edits an image in a second turn. Gemini signs its images and refuses a history without the
//! signatures, which many clients drop: the stack puts them back.

use std::error::Error;
use std::io::Write;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use tower_gemini::{GeminiStack, ThoughtSignaturesLayer};
use tower_gemini_sim::Sim;

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let sim = Sim::quick([]);
    let bare = GeminiStack::new().json(sim.service());
    let gemini = GeminiStack::new().signatures(ThoughtSignaturesLayer::new()).json(sim.service());

    // The first turn: the answer's content is what goes into the history.
    let mut history = vec![turn("user", json!([{ "text": "a red apple" }]))];
    let answer = gemini.clone().oneshot(request(&history)?).await?;
    let answer: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
    let mut parts = answer["candidates"][0]["content"]["parts"].clone();

    // What a client does that keeps its history in another shape: the signatures are gone.
    for part in parts.as_array_mut().into_iter().flatten() {
        part.as_object_mut().and_then(|part| part.remove("thoughtSignature"));
    }
    history.push(turn("model", parts));
    history.push(turn("user", json!([{ "text": "now a green one" }])));

    let refused = bare.oneshot(request(&history)?).await?;
    writeln!(out, "without the layer: {}", refused.status())?;
    let edited = gemini.oneshot(request(&history)?).await?;
    writeln!(out, "with the layer:    {}", edited.status())?;
    Ok(())
}

fn turn(role: &str, parts: Value) -> Value {
    json!({ "role": role, "parts": parts })
}

fn request(history: &[Value]) -> http::Result<Request<Full<Bytes>>> {
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "any key")
        .body(Full::from(json!({ "contents": history }).to_string()))
}

#[tokio::test(start_paused = true)]
async fn the_second_turn_succeeds_with_the_layer_only() {
    let mut out = Vec::new();
    app(&mut out).await.expect("answers");
    let out = String::from_utf8_lossy(&out);
    assert!(out.contains("without the layer: 400 Bad Request"), "{out}");
    assert!(out.contains("with the layer:    200 OK"), "{out}");
}
