//! Lets another model lead in the hours in which the one asked for fails most, and lets calls that
//! can wait do so.
//!
//! ```
//! use std::convert::Infallible;
//! use std::time::{Duration, SystemTime};
//! use http::{Request, Response};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_gemini::PeakHourRouterLayer;
//! use tower_gemini::clock::RuntimeClock;
//! use tower_gemini::context::PreferModel;
//! use tower_gemini::peak_hour_router::{Schedule, Window, Zone};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let evenings = Schedule::new(Zone::named("Asia/Shanghai")?, [Window::daily("18:00", "22:00")])?;
//! let router = PeakHourRouterLayer::new(evenings)
//!     .in_peak("gemini-3.1-flash-image", "gemini-3-pro-image")
//! #     // 2026-01-05, 18:30 in Shanghai.
//! #     .clock(RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_609_000)));
//! let gemini = router.layer(service_fn(|request: Request<String>| async move {
//!     let lead = request.extensions().get::<PreferModel>().map(|model| model.0.to_string());
//!     Ok::<_, Infallible>(Response::new(lead.unwrap_or_default()))
//! }));
//! let request = Request::post("/v1beta/models/gemini-3.1-flash-image:generateContent").body(String::new())?;
//! assert_eq!(gemini.oneshot(request).await?.into_body(), "gemini-3-pro-image");
//! # Ok(()) }
//! ```
//!
//! # What it does
//!
//! It says which model should be tried first: a
//! [`PreferModel`](tower_gemini_core::context::PreferModel) in the request's extensions. A fallback
//! that reads it starts its chain there; the request itself is not touched, so that without such a
//! layer inside nothing changes. Continuations, and calls that bring a preference of their own, are
//! left alone.
//!
//! Calls marked [`Deferrable`](tower_gemini_core::context::Deferrable) wait for the next quiet
//! moment, where it comes within their patience and leaves enough of their deadline. Where it does
//! not, they go at once: half a wait would bring nothing.
//!
//! # Whose hours?
//!
//! The articles that name peak hours contradict each other, and none measured them ([`presets`]
//! holds them all). Even which model is the unreliable one is told both ways. So there is no
//! default schedule, and hours can be [learned](Learning):
//!
//! * For each model and hour of the week the failure rate is the mean of a Beta distribution. The
//!   preset is its prior, worth some calls; attempts are read from the call's trail as they come
//!   back, those inside retry and fallback too; what was seen fades.
//! * Only what tells of the service's hour counts: overload, deadlines, 500s and broken answers
//!   against answers. A quota of the caller's own, a bad request or a refused connection say
//!   nothing.
//! * Exploring (off unless asked for) tries the model of which less is known, and only where every
//!   failure of it that is remembered was free.
//! * A [shadow](Learning::shadow) learns and compares, and changes nothing.
//!
//! # Order in the stack
//!
//! Outside the fallback that reads the preference. It takes any request and any answer; where
//! [`CollectRequest`](crate::CollectRequest) is outside of it, it reads the model from bodies too,
//! and otherwise from paths alone.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | schedule, routes | none | the articles contradict each other |
//! | learning | off | ours: routing should not move unless asked to |
//! | the prior is worth | 20 calls | ours: at 45 % against 12 %, as many calls tell the two apart |
//! | half-life | 14 days | article 002 (Mar 2026): the rate of 503s halves about every two weeks after a release |
//! | margin | 0.10 | ours: below it the dearer model is not worth it (article 002: 45 % against 10 to 15 %) |
//! | exploring | 0 | ours |
//! | reserve before the deadline | 15 min | the deadline of [`RetryPolicy::recommended`](crate::jittered_retry::RetryPolicy::recommended) |
//! | a deferred call looks at the clock | every 10 min | ours: clocks are set, and machines sleep |
//!
//! # Errors
//!
//! The inner service's own. Schedules that overlap do not exist: [`Schedule::new`] refuses them
//! with a [`ConfigError`] that names both windows.
//!
//! # Cancel safety
//!
//! Dropping the future drops the wait or the call. A deferred call holds no readiness of the inner
//! service while it waits. A call that was dropped teaches nothing.

mod layer;
mod learned;
pub mod presets;
mod route;
mod schedule;
mod service;

pub use crate::calendar::Zone;
pub use layer::PeakHourRouterLayer;
pub use learned::{HOURS, LearnedHours, Learning, Observation, Shadow, WeekHour};
pub use schedule::{ConfigError, Day, Schedule, Window};
pub use service::{PeakHourRouter, ResponseFuture};
