//! Sends nothing that might pass what you are ready to spend, and says which cap it might have
//! passed.
//!
//! ```
//! use std::convert::Infallible;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_gemini::spending::Caps;
//! use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, SpendingLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = service_fn(|_| async {
//!     let body = br#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AAAA"}}]},
//!         "finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":1120,"totalTokenCount":1125,
//!         "candidatesTokensDetails":[{"modality":"IMAGE","tokenCount":1120}]}}"#;
//!     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(body))))
//! });
//! let spending = SpendingLayer::new().per_day(Caps::none().at_most_usd(1.6));
//! let gemini = CollectRequestLayer::new().layer(spending.layer(ClassifyGeminiErrorLayer::new().layer(client)));
//! let request = || {
//!     Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
//!         .body(Full::new(Bytes::from_static(br#"{"generationConfig":{"imageConfig":{"imageSize":"1K"}}}"#)))
//! };
//!
//! let answer = gemini.clone().oneshot(request()?).await?;
//! answer.into_body().collect().await?;
//! let day = &spending.spent()[0];
//! assert_eq!(day.settled.cost().to_string(), "$0.1340 to $0.1344");
//! assert_eq!(day.cost_per_image().unwrap().to_string(), "$0.1340 to $0.1344");
//!
//! // What is left of the day might not suffice for another, should it be made with ten drafts.
//! let refused = gemini.oneshot(request()?).await?;
//! assert_eq!(refused.status(), 429);
//! # Ok(()) }
//! ```
//!
//! # How it counts
//!
//! Before an attempt is sent, the most it can come to is set aside: the upper end of its cost by
//! the catalogue, one send, one request of quota, and its time. When its answer has been read to
//! its end, has failed or was dropped, what it came to takes that place, as the interval that
//! [`cost_of`](tower_gemini_core::cost::cost_of) gives. So what is spent and set aside together
//! never passes a cap, whatever the order in which calls end, as long as no bill passes its upper
//! end.
//!
//! An upper end is high: ten drafts and eight thousand tokens of thought beside the image. It is
//! held only while the attempt runs; an answer that counts its tokens is settled at what it
//! counted. A cap below the upper end of one attempt lets nothing through.
//!
//! Money has two caps: what surely was paid, and what was or may have been. The second is the one
//! that protects a purse.
//!
//! # A plan's worst case
//!
//! [`worst_case`] says what a call can come to with all its attempts and targets, before anything
//! is sent. Given to the layer with [`SpendingLayer::plan`], it refuses a call at its first byte
//! and not at its third attempt.
//!
//! # Order in the stack
//!
//! Inside [`JitteredRetry`](crate::JitteredRetry) and the fallbacks, outside
//! [`AttemptTimeout`](crate::AttemptTimeout): it sees each attempt, and reads what the call came to
//! before from its trail.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | caps | none | yours to set |
//! | periods | the day | ours: an account without caps is still readable |
//! | zone of days and months | Pacific | Google's quota days begin there (Gemini API documentation, rate limits, 2026-07) |
//! | time set aside | the call's deadline, at most 600 s | the longest limit of [`AttemptTimeout`](crate::AttemptTimeout) |
//!
//! # Errors
//!
//! The inner service's own. A refusal is an answer in Google's format: 429 with a `RetryInfo` where
//! the next period helps, and 402 where no waiting does, `ErrorInfo.reason` `SPENDING_CAP`,
//! `domain` `tower-gemini`, and the cap in its message and metadata. Its verdict is `NotSent`:
//! nothing was charged and no target is at fault.
//!
//! # Cancel safety
//!
//! A dropped attempt that had been sent is settled as what it is, maybe charged up to its worst;
//! one that had not is given back whole. Nothing stays set aside.

mod account;
mod caps;
mod layer;
mod plan;
mod service;

pub use account::{Account, CapReached, Period, Reservation, Spent};
pub use caps::{Amounts, Caps, Dimension};
pub use layer::SpendingLayer;
pub use plan::{Plan, worst_case};
pub use service::{ResponseFuture, Spending};
