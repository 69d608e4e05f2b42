//! Lets another model lead in the hours in which the one asked for fails most, and lets calls that
//! can wait do so.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use http::{Request, Response};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::clock::RuntimeClock;
//! use tower_gemini::model_fallback::Chain;
//! use tower_gemini::peak_hour_router::{Schedule, Window, Zone};
//! use tower_gemini::{GeminiStack, PeakHourRouterLayer, WireBody};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let evenings = Schedule::new(Zone::named("Asia/Shanghai")?, [Window::daily("18:00", "22:00")])?;
//! let router = PeakHourRouterLayer::new(evenings)
//!     .in_peak("gemini-3.1-flash-image", "gemini-3-pro-image")
//! #     // 2026-01-05, 18:30 in Shanghai.
//! #     .clock(RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_609_000)));
//! let client = service_fn(|request: Request<WireBody>| async move {
//!     assert_eq!(request.uri().path(), "/v1beta/models/gemini-3-pro-image:generateContent");
//!     let body = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQ=="}}]},"finishReason":"STOP"}]}"#;
//!     Ok::<_, std::io::Error>(Response::new(body.to_owned()))
//! });
//! let gemini = GeminiStack::new()
//!     .peak_hours(router)
//!     .fallback_to(Chain::new(["gemini-3.1-flash-image", "gemini-3-pro-image"]))
//!     .raw(client);
//! let request = Request::post("/v1beta/models/gemini-3.1-flash-image:generateContent")
//!     .body(r#"{"contents":[{"parts":[{"text":"a cat"}]}]}"#.to_owned())?;
//! assert_eq!(gemini.oneshot(request).await?.status(), 200);
//! # Ok(()) }
//! ```
//!
//! # What it does
//!
//! It sets the call's [preferred model](crate::CallOptions::prefer_model), with which the
//! [`ModelFallback`](crate::ModelFallback) below starts its chain. It does not change the request:
//! without a fallback below, it changes nothing. It leaves alone continuations and calls whose
//! caller prefers a model.
//!
//! [Deferrable](crate::CallOptions::deferrable_for) calls wait for the next quiet moment, if it
//! comes within the time they may wait and leaves enough of their deadline. Otherwise they are sent
//! at once: half a wait would bring nothing. Without a deadline of the caller's own, the layers'
//! default deadline counts from the end of the wait.
//!
//! # Which hours
//!
//! The guides that name peak hours contradict each other, and none measured them ([`presets`] holds
//! them all). They even disagree which model is the unreliable one. So there is no default schedule.
//!
//! A schedule changes which model answers, and hardly how many images come: the fallback below finds
//! the other model after one free 503. In simulated weeks of outages no schedule, the true one
//! included, delivered more than the fallback alone. Where each request failed by itself, the true
//! one delivered up to 0.06 points more. A schedule saves some of the free 503s, which count against the
//! quota. Hours were learned once, and that lost too; the project's DESIGN.md has the figures.
//!
//! # Order
//!
//! Above [`ModelFallback`](crate::ModelFallback), which reads the preference.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | schedule, routes | none | the guides contradict each other |
//! | reserve before the deadline | 15 min | the deadline of [`RetryPolicy::recommended`](crate::jittered_retry::RetryPolicy::recommended) |
//! | a deferred call looks at the clock | every 10 min | ours: clocks are set, and machines sleep |
//!
//! # Errors
//!
//! The inner service's own. Overlapping windows are refused by [`Schedule::new`] with a
//! [`ConfigError`] that names both.
//!
//! # Cancel safety
//!
//! Dropping the future drops the wait or the call. A deferred call holds no readiness of the inner
//! service while it waits.

mod layer;
pub mod presets;
mod route;
mod schedule;
mod service;

pub use crate::calendar::Zone;
pub use layer::PeakHourRouterLayer;
pub use schedule::{ConfigError, Day, Schedule, Window};
pub use service::PeakHourRouter;
