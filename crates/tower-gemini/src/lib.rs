//! Tower layers that make calls to Gemini's image models dependable, and never pay twice.
//!
//! | layer | what it does |
//! | --- | --- |
//! | [`AnswerErrors`] | turns errors into responses in Google's form, and tells clients with retries when to stop |
//! | [`Observe`] | reports every call: `tracing` events, metrics, and hooks for statistics |
//! | [`CollectRequest`] | holds the request's body so that it can be replayed, and reads the [`Call`](call::Call) |
#![cfg_attr(
    feature = "keep-paid",
    doc = "| [`KeepPaid`] | completes calls whose clients disconnected after dispatch, and replays the response to the next identical request |"
)]
//! | [`FinalImageExtract`] | returns the final image, decoded, or the same JSON without the drafts |
//! | [`ThoughtSignatures`] | restores the thought signatures that the API checks in further turns |
//! | [`PeakHourRouter`] | tries another model first in peak hours, and delays calls that can wait |
//! | [`ModelFallback`] | falls back to other models and upstreams, and reports what that gave up |
//! | [`ResolutionFallback`] | falls back to smaller images when a large one fails |
//! | [`JitteredRetry`] | retries attempts that were certainly not charged, when that may help |
//! | [`Spending`] | sends nothing that could exceed a spending cap |
//! | [`QuotaGuard`] | sends only what the quota allows |
//! | [`AttemptTimeout`] | ends attempts in time, and lets the server time out first |
//! | [`ClassifyGeminiError`] | decides what a response means by its body, not by its status |
//! | [`ResumeInteractions`] | fetches an interaction whose response broke off by its id, and delivers it |
//!
//! The table has the order of the stack, from your code down to the client. [`GeminiStack`] is that
//! order, ready made, with a slot for each layer.

mod access;
pub mod answer_errors;
pub mod attempt_timeout;
pub mod body;
pub mod calendar;
mod call_memory;
mod call_options;
mod call_state;
pub mod classify_gemini_error;
pub mod clock;
pub mod collect_request;
pub mod error;
pub mod final_image_extract;
pub mod headers;
pub mod identity;
pub mod jittered_retry;
#[cfg(feature = "keep-paid")]
pub mod keep_paid;
pub mod model_fallback;
pub mod observe;
mod optional;
mod pacing;
pub mod peak_hour_router;
pub mod quota_guard;
mod ready;
mod refusal;
mod reservation;
pub mod resolution_fallback;
pub mod resume_interactions;
mod single_attempt;
pub mod spending;
pub mod stack;
pub mod stage;
pub mod store;
mod sync;
pub mod thought_signatures;
mod timer;
pub mod trail;
mod walk;

pub use answer_errors::{AnswerErrors, AnswerErrorsLayer};
pub use attempt_timeout::{AttemptTimeout, AttemptTimeoutLayer};
pub use body::{AttemptBody, CallBody, JudgedBody, WireBody};
pub use call_memory::CallMemory;
pub use call_options::{CallHandle, CallOptions};
pub use classify_gemini_error::{ClassifyGeminiError, ClassifyGeminiErrorLayer};
pub use collect_request::{CollectRequest, CollectRequestLayer};
pub use error::Error;
pub use final_image_extract::{FinalImage, FinalImageExtract, FinalImageExtractLayer};
pub use jittered_retry::{JitteredRetry, JitteredRetryLayer};
#[cfg(feature = "keep-paid")]
pub use keep_paid::{KeepPaid, KeepPaidLayer};
pub use model_fallback::{ModelFallback, ModelFallbackLayer};
pub use observe::{Observe, ObserveLayer};
pub use optional::OptionalFuture;
pub use pacing::{Pacing, PacingLayer};
pub use peak_hour_router::{PeakHourRouter, PeakHourRouterLayer};
pub use quota_guard::{QuotaGuard, QuotaGuardLayer};
pub use resolution_fallback::{ResolutionFallback, ResolutionFallbackLayer};
pub use resume_interactions::{ResumeInteractions, ResumeInteractionsLayer};
pub use single_attempt::{SingleAttempt, SingleAttemptLayer};
pub use spending::{Spending, SpendingLayer};
pub use stack::{GeminiStack, compose};
pub use thought_signatures::{ThoughtSignatures, ThoughtSignaturesLayer};
pub use tower_gemini_core::{
    call, catalog, charge_rules, classify, cost, redact, scan, target, verdict,
};
pub use trail::Trail;

/// The examples of the repository's README and of the crate's run as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../README.md")]
struct Readme;
