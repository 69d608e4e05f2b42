//! Gets a smaller image when the large one does not come: 4K, then 2K, then 1K.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::BodyExt;
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::{call::ImageSize, target::Served};
//! use tower_gemini::{GeminiStack, ResolutionFallbackLayer, WireBody};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // As in the outage of 2026-01-21: 4K runs into the server's deadline, 2K does not.
//! let upstream = service_fn(|request: Request<WireBody>| async move {
//!     let body = request.into_body().collect().await.unwrap().to_bytes();
//!     Ok::<_, std::io::Error>(if body.windows(4).any(|window| window == b"\"4K\"") {
//!         let body = r#"{"error":{"code":504,"message":"Deadline expired before operation could complete.","status":"DEADLINE_EXCEEDED"}}"#;
//!         Response::builder().status(504).body(body.to_owned()).unwrap()
//!     } else {
//!         let body = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQ=="}}]},"finishReason":"STOP"}]}"#;
//!         Response::new(body.to_owned())
//!     })
//! });
//! let stack = GeminiStack::new().resolution(ResolutionFallbackLayer::new()).raw(upstream);
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
//! of one of 1K, and in the outage of 2026-01-21 about 95 % of the 1K images came, 70 % at 2K and
//! fewer than 20 % at 4K (APIYI, post-mortem of the outage of 2026-01-21). After a charge no smaller
//! image is asked for, and after a possible charge (our own timeout) only within the caller's
//! [allowance](crate::CallOptions::maybe_charged_resends). A caller who [keeps the
//! size](crate::target::MustKeep::size) gets it or nothing. Only sizes that the model makes are
//! asked for; 512 only where [`Ladder::down_to`] says so, and the model has it.
//!
//! # What comes back
//!
//! The first response that is no deadline and no overload, or the last one. Its size is in the
//! trail and in [`Served`](crate::target::Served), an extension of the response.
//!
//! # Order
//!
//! Above [`JitteredRetry`](crate::JitteredRetry), and in [`GeminiStack`](crate::GeminiStack) below
//! [`ModelFallback`](crate::ModelFallback): there both are one walk, and
//! [`FallbackOrder`](crate::model_fallback::FallbackOrder) says which gives way first. In a stack
//! composed by hand the inner one of the two gives way first.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | sizes | 4K, 2K, 1K | APIYI, post-mortem of the outage of 2026-01-21 |
//! | steps down after | deadline, overload, and our own timeouts within the allowance | the same |
//! | attempts at each size but the last | 1 | the same, simple ladder: "immediate downgrade" |
//! | attempts at the last size | the retry's own, or what a fallback above says | |
//! | deadline | the call's own, for all sizes together | |
//!
//! # Errors
//!
//! The inner service's own.
//!
//! # Cancel safety
//!
//! Dropping the future drops the attempt; the trail keeps what was sent.

mod layer;
pub mod presets;

use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

pub use self::layer::ResolutionFallbackLayer;
use crate::body::{CallBody, JudgedBody};
use crate::error::Error;
use crate::optional::OptionalFuture;
use crate::stage::CallService;
use crate::walk::Fallback;
pub use crate::walk::Ladder;

/// Asks for a smaller image when the large one does not come. See the [module](self).
#[derive(Debug, Clone)]
pub struct ResolutionFallback<S>(Fallback<S>);

impl<S: CallService> Service<Request<CallBody>> for ResolutionFallback<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        self.0.call(request)
    }
}
