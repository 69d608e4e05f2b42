//! Sends only what Google's quota allows, across tasks, processes and restarts, so that the quota
//! is never found out by a refusal.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_gemini::core::verdict::{Charge, Outcome};
//! use tower_gemini::quota_guard::{Limits, OnExhausted};
//! use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, QuotaGuardLayer};
//! # use std::sync::Arc;
//! # use tower_gemini::{body::ReplayBody, call::{Call, ModelId, Verb}, context::CallContext};
//! # fn request() -> Request<ReplayBody> {
//! #     let mut call = Call::unrecognised();
//! #     (call.model, call.verb, call.images) = (Some(ModelId::new("gemini-3-pro-image")), Verb::Generate, 1);
//! #     let body = ReplayBody::whole(vec!["{}".into()], None, Arc::new(call), CallContext::new());
//! #     Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(body).unwrap()
//! # }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let client = service_fn(|_| async { Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from_static(b"{}")))) });
//! let quota = QuotaGuardLayer::new(Limits::unlimited().rpm(1).rpd(1_000)).on_exhausted(OnExhausted::Refuse);
//! let guarded = ServiceBuilder::new().layer(quota.clone()).layer(ClassifyGeminiErrorLayer::new()).service(client);
//! let first = guarded.clone().oneshot(request()).await.unwrap();
//! assert_eq!(first.status(), 200);
//!
//! // The second of the minute is not sent. It is answered as Google would have answered, and costs nothing.
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
//! project and per model; 503s and 400s count too, and the day ends at midnight Pacific. A client
//! that finds out by being refused has spent a request to learn it.
//!
//! # What it does
//!
//! - **All or nothing over four dimensions.** In no window of 60 seconds and in no Pacific day more
//!   is sent than the limit, whatever the calls weigh and however they overlap.
//! - **Reserved before sending, held to the end of the body.** The answer's `usageMetadata`
//!   replaces the estimate of tokens. Only what was surely not counted (never sent) is given back;
//!   a dropped call settles by how far it got.
//! - **First come, first served.** A call that has to wait is told how long (trail, `tracing`,
//!   [`on_wait`](QuotaGuardLayer::on_wait)), and is refused at once when its turn would come after
//!   its deadline. Heavy calls are not overtaken.
//! - **Learning.** A refusal of Google's that names its limit corrects ours; an exhausted day is
//!   closed until midnight Pacific, whatever the hint says; a refusal without details, far below
//!   our limits, is a lack of capacity: the model rests, the limit stays. Lowered limits are tried
//!   upward again.
//! - **The day** is Pacific by rule, both daylight changes included, without a time zone database.
//!   A clock set back grants nothing twice; a clock that ran far ahead and came back leaves what it
//!   took counted.
//! - **Shared counts** ([`store`]): a file for restarts, Redis or Valkey for many machines.
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
//! | limits | none: every call passes | Google publishes none; [`tiers`] has those of the articles, with their dates |
//! | when used up | wait, at most 120 s | the longest wait of [`JitteredRetry`](crate::jittered_retry) (article 004) |
//! | window | 60 s | article 003 and Google's rate-limit pages |
//! | margin of the window | 500 ms | ours: what two requests may come nearer to each other on the way; costs 0.8 % of the allowance |
//! | kept for first attempts | 10 % of the day | ours: 503s count against the day, so retries of an outage could spend all of it |
//! | alerts | at 70 % | article 004 |
//! | 429 for a minute, without a hint | rests 60 s | gemini-cli |
//! | 429 without details, far below our limits | rests 10 s | article 004 (first wait after an overload) |
//! | lowered limits | a tenth up after 10 min | ours: ten windows |
//! | lease from a store | 1 s, at most 1/16 of a limit | ours: costs 1.7 % of the allowance, asks once a second |
//! | store's time limit | 500 ms | ours: a thousand times a script's usual time; an image takes tens of seconds |
//! | store fails | closed | a quota that is exceeded closes the project to everybody |
//!
//! # Errors
//!
//! The inner service's own. A refusal of this layer is an *answer*: 429 `RESOURCE_EXHAUSTED` with
//! `RetryInfo`, `QuotaFailure` and an `ErrorInfo` of the domain [`tower-gemini`](REFUSAL_DOMAIN),
//! charge and quota charge none.
//!
//! # Cancel safety
//!
//! Dropping a call that waits leaves the line and takes nothing along. Dropping one that was sent
//! counts it as used. Dropping one while a store is asked leaves the exchange to the next in line,
//! so no grant is lost. With a store, one task a model lives for about as long as a lease, to give
//! back what an idle process had left.

pub(crate) mod admission;
mod alerts;
mod exchange;
mod gate;
mod handle;
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
    Admission, Denied, Moment, Receipt, RestReason, SLOT_MS, Standing, Totals, Violation, WINDOW_MS,
};
pub use alerts::QuotaAlert;
pub use handle::{QuotaHandle, QuotaReservation};
pub use layer::QuotaGuardLayer;
pub use limits::{Limits, ProjectId, QuotaAmounts, QuotaDimension, QuotaKey};
pub use service::{QuotaGuard, ResponseFuture};
pub use settings::{OnExhausted, StoreFailure};
pub use usage::{DimensionUsage, GuardCounts, QuotaUsage, QuotaWait};

#[cfg(test)]
mod tests;
