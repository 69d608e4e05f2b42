//! Run with
//!
//! ```not_rust
//! cargo run -p with-axum
//! ```
//!
//! Serves Gemini from an axum router in two ways: a route that draws what its query asks for, and
//! a proxy whose clients speak Gemini's own API.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;

use axum::Router;
use axum::body::Body;
use axum::extract::Query;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any_service, get};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;
use tower_gemini::{AnswerErrorsLayer, GeminiStack};
use tower_gemini_sim::{Fault, Sim, SimService};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

/// The router, over a simulated Gemini. `axum::serve(listener, router(…))` puts it on a port.
fn router(gemini: &SimService) -> Router {
    let images = GeminiStack::new().images(gemini.clone());
    let draw = move |Query(query): Query<HashMap<String, String>>| async move {
        let prompt = query.get("prompt").map_or("a red apple", String::as_str);
        let body = serde_json::json!({ "contents": [{ "parts": [{ "text": prompt }] }] });
        let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
            .header("x-goog-api-key", "the server's own key")
            .body(Body::from(body.to_string()));
        let Ok(request) = request else { return StatusCode::BAD_REQUEST.into_response() };
        match images.oneshot(request).await {
            Ok(answer) => {
                let image = answer.into_body();
                ([(header::CONTENT_TYPE, image.mime)], image.bytes).into_response()
            }
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        }
    };
    // axum asks for services that never fail: errors become responses in Google's form.
    let proxy = GeminiStack::new().answer_errors(AnswerErrorsLayer::new()).json(gemini.clone());
    Router::new().route("/draw", get(draw)).route("/v1beta/{*path}", any_service(proxy))
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    // The first request fails; nobody who asks the router sees that.
    let sim = Sim::quick([Fault::Internal]);
    let router = router(&sim.service());

    let drawn = router.clone().oneshot(Request::get("/draw?prompt=a+cat").body(Body::empty())?);
    print(out, "a drawing", drawn.await?).await?;

    let proxied = Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "the caller's key")
        .body(Body::from(r#"{"contents":[{"parts":[{"text":"a dog"}]}]}"#))?;
    print(out, "by proxy", router.oneshot(proxied).await?).await
}

async fn print(out: &mut dyn Write, what: &str, answer: Response) -> Result<(), Box<dyn Error>> {
    let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
    let kind = kind.as_ref().and_then(|kind| kind.to_str().ok()).unwrap_or("nothing").to_owned();
    let status = answer.status();
    let length = answer.into_body().collect().await?.to_bytes().len();
    writeln!(out, "{what}: {status}, {length} bytes of {kind}")?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn both_routes_answer() {
    let mut out = Vec::new();
    app(&mut out).await.expect("answers");
    let out = String::from_utf8_lossy(&out);
    assert!(out.contains("a drawing: 200 OK, ") && out.contains("bytes of image/jpeg"), "{out}");
    assert!(out.contains("by proxy: 200 OK, ") && out.contains("application/json"), "{out}");
}
