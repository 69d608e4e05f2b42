//! Holds a request's body so that further attempts can be made, and reads what it asks for.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_gemini::{CallBody, CollectRequestLayer, Error, call::ImageSize};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let inner = service_fn(|request: Request<CallBody>| async move {
//!     assert!(request.body().is_replayable());
//!     assert_eq!(request.body().call().size, Some(ImageSize::K2));
//!     Ok::<_, Error>(Response::new(()))
//! });
//! let request = Request::post("https://generativelanguage.googleapis.com/v1beta/models/gemini-3-pro-image:generateContent")
//!     .body(Full::new(Bytes::from_static(br#"{"generationConfig":{"imageConfig":{"imageSize":"2K"}}}"#)))
//!     .unwrap();
//! CollectRequestLayer::new().layer(inner).oneshot(request).await.unwrap();
//! # }
//! ```
//!
//! # Order in the stack
//!
//! Above every layer that works on calls; below [`Observe`](crate::Observe) and
//! [`AnswerErrors`](crate::AnswerErrors).
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | bytes held | 110 MiB | Gemini's inline limit of 100 MB (announced 2026-01-12), and JSON around it |
//!
//! A larger body is not an error: it is streamed through, sent once, and marked as not replayable.
//!
//! # Errors
//!
//! An [`Error`](crate::error::Error) with
//! [`is_transport`](crate::error::Error::is_transport) `false` and nothing charged,
//! where reading the caller's own body fails, or where it is larger than what is held although its
//! size hint said otherwise.
//!
//! # Cancel safety
//!
//! Dropping the future drops what was read; nothing has been sent.

mod layer;
mod service;

pub use layer::CollectRequestLayer;
pub use service::CollectRequest;
