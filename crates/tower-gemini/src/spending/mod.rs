//! Keeps spending within caps: sends nothing that might exceed one, and names the cap.
//!
//! ```
//! use std::convert::Infallible;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::spending::Caps;
//! use tower_gemini::{
//!     ClassifyGeminiErrorLayer, CollectRequestLayer, SingleAttemptLayer, SpendingLayer, WireBody, compose,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = service_fn(|_: Request<WireBody>| async {
//!     let body = br#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AAAA"}}]},
//!         "finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":1120,"totalTokenCount":1125,
//!         "candidatesTokensDetails":[{"modality":"IMAGE","tokenCount":1120}]}}"#;
//!     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(body))))
//! });
//! let spending = SpendingLayer::new().per_day(Caps::none().at_most_usd(1.6));
//! let layers = (
//!     CollectRequestLayer::new(), SingleAttemptLayer::new(), spending.clone(), ClassifyGeminiErrorLayer::new(),
//! );
//! let gemini = compose(layers, client);
//! let request = || {
//!     Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
//!         .body(Full::new(Bytes::from_static(br#"{"generationConfig":{"imageConfig":{"imageSize":"1K"}}}"#)))
//! };
//!
//! let response = gemini.clone().oneshot(request()?).await?;
//! response.into_body().collect().await?;
//! let day = &spending.spent()[0];
//! assert_eq!(day.settled.cost().to_string(), "$0.1340 to $0.1344");
//! assert_eq!(day.cost_per_image().unwrap().to_string(), "$0.1340 to $0.1344");
//!
//! // What is left of the day might not be enough for another, if it were made with ten drafts.
//! let refused = gemini.oneshot(request()?).await?;
//! assert_eq!(refused.status(), 429);
//! # Ok(()) }
//! ```
//!
//! # How it counts
//!
//! Before an attempt is sent, its price is reserved: by default the most that it can cost at the
//! size that is drawn (1K when the request names none), one attempt, one request of quota, and its
//! time. When its response has been read to the end, has failed or was dropped, what it came to
//! replaces the reservation, as the interval that [`cost_of`](tower_gemini_core::cost::cost_of)
//! returns. So what is spent and reserved together never exceeds a cap, whatever the order in which
//! calls end, as long as no bill exceeds its worst case.
//!
//! A worst case is high: by what the catalogue knows, ten drafts and eight thousand tokens of
//! thoughts beside the image. [`reserve_by`](SpendingLayer::reserve_by) assumes fewer drafts, or
//! reserves the expected price: more calls run at once then, and a cap is no hard limit; it can be
//! exceeded by at most the attempts that are running when it is reached.
//!
//! While only the reservations of running attempts block a call, it **waits** in a FIFO queue, up to
//! its deadline (600 s without one). When what is spent blocks it, it is refused at once. A cap never
//! moves a call to another model, unless
//! [`fall_back_when_capped`](SpendingLayer::fall_back_when_capped) says so. A layer
//! [`of_account`](SpendingLayer::of_account) moves it to another account.
//!
//! Money has two caps: what surely was paid, and what was or may have been. The second is the one
//! that protects a budget. A cap below the price of one attempt lets nothing through:
//! [`SpendingLayer::check`] reports it at start.
//!
//! # Restarts, and several processes
//!
//! Without a [store](SpendingLayer::store) an account ends with its process. With one, caps hold over
//! restarts and for all who share it; each attempt asks the store before it is sent. An attempt that
//! a crash left unsettled counts as its worst case. While only reservations of other processes are in
//! the way, a call asks again every 500 ms. While the store fails, calls are refused with 503,
//! `ErrorInfo.reason` `SPENDING_STORE`.
//!
//! # The worst case of a plan
//!
//! [`Plan::worst_case`] returns what a call can come to with all its attempts and targets, before
//! anything is sent. Given to the layer with [`SpendingLayer::plan`], it refuses a call at its first
//! byte and not at its third attempt.
//!
//! # Order in the stack
//!
//! Inside [`JitteredRetry`](crate::JitteredRetry) and the fallbacks, outside
//! [`QuotaGuard`](crate::QuotaGuard) and [`AttemptTimeout`](crate::AttemptTimeout): it sees each
//! attempt, and a call that waits for money holds no quota and uses up no attempt's time.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | caps | none | yours to set |
//! | reserved | the worst case, with the drafts that the catalogue knows of | ours: a cap is a hard limit |
//! | periods | the day | ours: an account without caps is still readable |
//! | zone of days and months | Pacific | Google's quota days begin there (Gemini API documentation, rate limits, 2026-07) |
//! | whose caps | of everything that passes; no account's own | ours |
//! | store | none; 2 s to answer; refused while it fails | ours: a cap is a promise |
//! | time reserved, and the longest wait | the call's deadline, at most 600 s | the longest limit of [`AttemptTimeout`](crate::AttemptTimeout) |
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
//! A dropped attempt that may have been sent is settled as what it is: maybe charged, up to its
//! worst case. One that was not is given back. A call that is dropped while it waits leaves the
//! queue. Nothing stays reserved.

pub(crate) mod account;
mod caps;
mod gate;
mod layer;
mod plan;
mod service;
mod shared;

pub use account::{Account, BlockedBy, CapReached, Period, SpendReservation, Spent};
pub use caps::{CapDimension, Caps, SpendAmounts};
pub use layer::{ConfigError, ReserveBy, SpendingLayer};
pub use plan::Plan;
pub use service::Spending;
