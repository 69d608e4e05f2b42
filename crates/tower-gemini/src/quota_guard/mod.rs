//! Sends only what Google's quota allows, across tasks, processes and restarts, so that no refusal
//! is needed to find the limit.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::quota_guard::{Limits, OnExhausted};
//! use tower_gemini::verdict::{Charge, Outcome};
//! use tower_gemini::{
//!     ClassifyGeminiErrorLayer, CollectRequestLayer, QuotaGuardLayer, SingleAttemptLayer, WireBody, compose,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let client = service_fn(|_: Request<WireBody>| async {
//!     Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from_static(b"{}"))))
//! });
//! let quota = QuotaGuardLayer::new(Limits::unlimited().rpm(1).rpd(1_000)).on_exhausted(OnExhausted::Refuse);
//! let layers = (CollectRequestLayer::new(), SingleAttemptLayer::new(), quota, ClassifyGeminiErrorLayer::new());
//! let guarded = compose(layers, client);
//! let request = || {
//!     let body = Full::new(Bytes::from_static(b"{}"));
//!     Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(body).unwrap()
//! };
//! let first = guarded.clone().oneshot(request()).await.unwrap();
//! assert_eq!(first.status(), 200);
//!
//! // The second of the minute is not sent. The response is what Google's would have been, and costs nothing.
//! let second = guarded.oneshot(request()).await.unwrap();
//! assert_eq!(second.status(), 429);
//! let verdict = second.body().verdict();
//! assert_eq!((verdict.outcome(), verdict.charge()), (Outcome::RateLimitedMinute, Charge::None));
//! assert!(verdict.wait().is_some());
//! # }
//! ```
//!
//! # Why
//!
//! Google counts requests, input tokens and images a minute and requests a day, all at once, per
//! project and per model; 503s and 400s count too, and the day ends at midnight Pacific. A refusal
//! costs a request.
//!
//! # What it does
//!
//! - **Admits a call in all four dimensions or in none.** No window of 60 seconds and no Pacific day
//!   exceeds its limit, whatever the calls weigh and however they overlap.
//! - **Reserves before sending, holds to the end of the body.** The response's `usageMetadata`
//!   replaces the estimate of tokens. Only what was surely not counted (never sent) is given back; a
//!   dropped call settles by how far its request got.
//! - **Serves waiting calls in FIFO order.** The expected wait is in the trail, in `tracing` and
//!   passed to [`on_wait`](QuotaGuardLayer::on_wait). A call whose turn would come after its deadline
//!   is refused at once. Heavy calls are not overtaken.
//! - **Refuses without making others wait.** A refusal states when it would help. Our own retry does
//!   not wait longer for it than [`OnExhausted`] allows.
//! - **Learns from refusals.** A refusal of Google's that names its limit corrects ours; an exhausted
//!   day stays closed until midnight Pacific, whatever the hint says; a refusal without details, far
//!   below our limits, is a lack of capacity: the model rests, the limit stays. Lowered limits are
//!   raised again step by step.
//! - **Remembers a closed day without any limits**, for each upstream, project and model. An
//!   operator who knows better ends it with [`reopen`](QuotaGuardLayer::reopen).
//! - **Knows the Pacific day** by rule, both daylight changes included, without a time zone database.
//!   A clock that is set back grants nothing twice.
//! - **Counts per upstream, project and model.** Several API keys of a named project share one count.
//! - **Shares counts** through a [`store`](crate::store): a file for restarts, Redis or Valkey for
//!   many machines.
//!
//! # Order in the stack
//!
//! Inside [`JitteredRetry`](crate::JitteredRetry), so that each attempt is counted; outside
//! [`AttemptTimeout`](crate::AttemptTimeout), so that waiting for quota does not use up an
//! attempt's time.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | limits | none: every call passes, but for days that Google closed | Google publishes none; [`tiers`] lists published ones, with their dates |
//! | exhausted | wait, at most 120 s | the longest wait of [`JitteredRetry`](crate::jittered_retry) (APIYI, guide to 429s, 2026-02) |
//! | window | 60 s | Google's rate-limit pages, 2026-02 |
//! | margin of the window | 500 ms | ours: how much closer two requests may get on the way; costs 0.8 % of the quota |
//! | kept for first attempts | 10 % of the day | ours: 503s count against the day, so retries of an outage could use all of it |
//! | alerts | at 70 % | APIYI, guide to 429s, 2026-02 |
//! | 429 for a minute, without a hint | rests 60 s | gemini-cli |
//! | 429 without details, far below our limits | rests 10 s | APIYI, guide to 429s, 2026-02 (first wait after an overload) |
//! | lowered limits | a tenth up after 10 min | ours: ten windows |
//! | lease from a store | 1 s, at most 1/16 of a limit | ours: costs 1.7 % of the quota, asks once a second |
//! | store's time limit | 500 ms | ours: a thousand times a script's usual time; an image takes tens of seconds |
//! | store fails | nothing is let through | a quota that is exceeded closes the project to everybody |
//!
//! # Errors
//!
//! The inner service's own. A refusal of this layer is a *response*: 429 `RESOURCE_EXHAUSTED` with
//! `RetryInfo`, `QuotaFailure` and an `ErrorInfo` of the domain [`tower-gemini`](REFUSAL_DOMAIN),
//! charge and quota charge none.
//!
//! # Cancel safety
//!
//! A call that is dropped while it waits leaves the queue and takes nothing. One that may have been
//! sent counts as used. An exchange with a store runs on a task of its own, so no grant is lost when
//! the call that asked is dropped. With a store, one more task a key lives for about as long as a
//! lease, to refund what an idle process had left.

pub(crate) mod admission;
mod alerts;
mod exchange;
mod gate;
mod handle;
mod hooks;
mod layer;
mod learn;
mod lease;
pub(crate) mod limits;
mod refusal;
mod service;
mod settings;
mod state;
pub mod tiers;
mod usage;

use crate::reservation::queue;

/// What `gate` locks with: the tests that try every interleaving substitute another.
mod sync {
    pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
}

pub use crate::refusal::REFUSAL_DOMAIN;
pub use admission::{
    Admission, Denied, DimensionUsage, Moment, Receipt, RestReason, SLOT_MS, Totals, Violation,
    WINDOW_MS,
};
pub use alerts::QuotaAlert;
pub use handle::{QuotaHandle, QuotaReservation};
pub use layer::QuotaGuardLayer;
pub use limits::{Limits, ProjectId, QuotaAmounts, QuotaDimension, QuotaKey};
pub use service::QuotaGuard;
pub use settings::{OnExhausted, StoreFailure};
pub use usage::{GuardCounts, QuotaUsage, QuotaWait};

#[cfg(test)]
mod tests;
