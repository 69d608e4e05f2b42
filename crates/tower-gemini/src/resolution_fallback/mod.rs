//! Gets a smaller image when the large one does not come: 4K, then 2K, then 1K.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::BodyExt;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_gemini::{call::ImageSize, target::Served};
//! use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, ResolutionFallbackLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // As in the outage of 2026-01-21: 4K runs into the server's deadline, 2K does not.
//! let upstream = service_fn(|request: Request<tower_gemini::body::ReplayBody>| async move {
//!     let body = request.into_body().collect().await.unwrap().to_bytes();
//!     Ok::<_, std::io::Error>(if body.windows(4).any(|window| window == b"\"4K\"") {
//!         let body = r#"{"error":{"code":504,"message":"Deadline expired before operation could complete.","status":"DEADLINE_EXCEEDED"}}"#;
//!         Response::builder().status(504).body(body.to_owned()).unwrap()
//!     } else {
//!         let body = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQ=="}}]},"finishReason":"STOP"}]}"#;
//!         Response::new(body.to_owned())
//!     })
//! });
//! let stack = ServiceBuilder::new()
//!     .layer(CollectRequestLayer::new())
//!     .layer(ResolutionFallbackLayer::new())
//!     .layer(ClassifyGeminiErrorLayer::new())
//!     .service(upstream);
//! let json = r#"{"contents":[{"parts":[{"text":"a cat"}]}],"generationConfig":{"imageConfig":{"imageSize":"4K"}}}"#;
//! let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(json.to_owned()).unwrap();
//! let answer = stack.oneshot(request).await.unwrap();
//! let served = answer.extensions().get::<Served>().unwrap();
//! assert_eq!(served.size, Some(ImageSize::K2));
//! assert!(served.is_degraded());
//! # }
//! ```
//!
//! # When it steps down
//!
//! After a deadline or an overload: an image of 4K costs the service about sixteen times the work
//! of one of 1K (article 000), and in the outage of 2026-01-21 about 95 % of the 1K images came, 70
//! % at 2K and fewer than 20 % at 4K (the article's own figures). What was charged is never asked
//! for again, and what may have been (our own timeout) only out of the caller's
//! [`Allowance`](tower_gemini_core::context::Allowance). A caller who [keeps the
//! size](tower_gemini_core::target::MustKeep::size) gets it or nothing. Only sizes that the model
//! makes are asked for; 512 only where [`Ladder::down_to`] says so, and the model has it.
//!
//! # What comes back
//!
//! The first answer that is no deadline and no overload, or the last one. Its size is in the trail
//! and in [`Served`](tower_gemini_core::target::Served) in the answer's extensions.
//!
//! # Order in the stack
//!
//! Inside or outside [`ModelFallback`](crate::ModelFallback), always outside
//! [`JitteredRetry`](crate::JitteredRetry). The inner one of the two fallbacks gives way first:
//! with this one inside, a model is tried at smaller sizes before another one is ("keep the model",
//! the order of [`GeminiStack`](crate::GeminiStack)); with this one outside, every model is tried
//! at the size before the size is given up ("keep the size").
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | sizes | 4K, 2K, 1K | article 000 |
//! | steps down after | deadline, overload, and our own timeouts as far as the allowance goes | article 000 |
//! | attempts at each size but the last | 1 | article 000, simple ladder: "immediate downgrade" |
//! | attempts at the last size | the retry's own, or what a fallback outside says | |
//!
//! # Errors
//!
//! The inner service's own. Nothing is added.
//!
//! # Cancel safety
//!
//! Dropping the future drops the attempt; the trail keeps what was sent.

mod ladder;
mod layer;
pub mod presets;
mod service;

pub use ladder::Ladder;
pub use layer::ResolutionFallbackLayer;
pub use service::ResolutionFallback;
