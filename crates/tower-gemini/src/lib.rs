//! Tower layers that make calls to Gemini's image models dependable, and never pay twice.
//!
//! | layer | what it does |
//! | --- | --- |
//! | [`AnswerErrors`] | answers where a stack fails, in Google's form, and says when not to ask again |
//! | [`Observe`] | tells what becomes of every call: events, metrics, figures by the hour, and what they mean |
//! | [`CollectRequest`] | holds the request's body, so that it can be sent again, and reads the [`Call`](call::Call) |
#![cfg_attr(
    feature = "keep-paid",
    doc = "| [`KeepPaid`] | completes calls whose clients disconnected after dispatch, and replays the response to the next identical request |"
)]
//! | [`FinalImageExtract`] | gives the final image, or the same JSON without the drafts |
//! | [`ModelFallback`] | gets the image from another model, in another place, and says what that gave up |
//! | [`ResolutionFallback`] | gets a smaller image when the large one does not come |
//! | [`ThoughtSignatures`] | gives the API back the signatures that it asks for in further turns |
//! | [`PeakHourRouter`] | lets another model lead in peak hours, and calls that can wait do so |
//! | [`JitteredRetry`] | sends again what was surely not paid for, when that may help |
//! | [`Spending`] | sends nothing that might pass what you are ready to spend |
//! | [`QuotaGuard`] | sends only what the quota allows |
//! | [`AttemptTimeout`] | ends an attempt in time, and lets the server give up first |
//! | [`ClassifyGeminiError`] | reads what an answer means from its body, not from its status |
//!
//! That is the order of the stack too, from your code down to the client. [`GeminiStack`] is that
//! order, ready made.

pub mod answer_errors;
pub mod attempt_timeout;
pub mod body;
pub mod calendar;
mod call_options;
mod call_state;
pub mod classify_gemini_error;
pub mod clock;
pub mod collect_request;
pub mod error;
pub mod final_image_extract;
pub mod headers;
pub mod jittered_retry;
#[cfg(feature = "keep-paid")]
pub mod keep_paid;
pub mod model_fallback;
pub mod observe;
mod optional;
pub mod peak_hour_router;
pub mod quota_guard;
mod ready;
mod refusal;
mod reservation;
pub mod resolution_fallback;
mod single_attempt;
pub mod spending;
pub mod stack;
pub mod stage;
pub mod store;
pub mod thought_signatures;
mod timer;
pub mod trail;
mod walk;

pub use answer_errors::{AnswerErrors, AnswerErrorsLayer};
pub use attempt_timeout::{AttemptTimeout, AttemptTimeoutLayer};
pub use body::{AttemptBody, CallBody, JudgedBody, WireBody};
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
pub use peak_hour_router::{PeakHourRouter, PeakHourRouterLayer};
pub use quota_guard::{QuotaGuard, QuotaGuardLayer};
pub use resolution_fallback::{ResolutionFallback, ResolutionFallbackLayer};
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
