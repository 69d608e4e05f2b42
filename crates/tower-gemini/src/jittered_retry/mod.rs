//! Sends again what was surely not paid for, when that may help, after a wait that neither hurries
//! the server nor keeps step with everybody else.
//!
//! ```
//! use std::time::Duration;
//! use tower_gemini::JitteredRetryLayer;
//! use tower_gemini::verdict::Outcome;
//! use tower_gemini::jittered_retry::{Backoff, Jitter, OutcomePolicy, RetryPolicy};
//!
//! let policy = RetryPolicy::recommended()
//!     .deadline(Duration::from_secs(600))
//!     .on(Outcome::Overloaded, OutcomePolicy::new(4, Backoff::exponential(Duration::from_secs(10), 2.0, Duration::from_secs(120))
//!         .jitter(Jitter::Equal)));
//! let layer = JitteredRetryLayer::new(policy);
//! # let _ = layer;
//! ```
//!
//! # What is sent again
//!
//! Only what surely was not charged. After a charged response nothing is sent again. After one that
//! *may* have been charged (a timeout, a reset) a further attempt is made only within what the
//! caller allows ([`CallOptions::maybe_charged_resends`](crate::CallOptions::maybe_charged_resends)),
//! 0 by default. Empty responses that the API waives have a small budget of their own. No policy can
//! change that: a further attempt needs a permit that only such a verdict grants.
//!
//! # How long it waits
//!
//! A server's hint is a floor: jitter goes upward from it, never below, rounded up to the
//! millisecond. A hint longer than the policy waits ends the call at once with the server's answer.
//! No wait outlives the deadline, and an attempt that could not end before it is not started.
//!
//! # Calls wait for the end of an outage together
//!
//! Overloads last: 70 % are over within an hour, 90 % within two (article on 503s, 2026-03). After
//! three in a row, of whichever calls, a model counts as in an outage at that size and tier. Then one
//! attempt a minute is sent to find out whether it is over, and all other calls wait, within their
//! deadline (15 minutes where they have none), to be sent when it is, spread over three seconds, and
//! to wait again if it is known by then that it is not over. A call keeps its last attempt for the
//! middle of the time that it has left. One that has no time to wait, or finds too many waiting,
//! gets a 503 of ours (`MODEL_IN_OUTAGE`) that says when the next attempt is due. Calls with a chain
//! of models wait for all of them together, in [`model_fallback`](crate::model_fallback); calls with
//! smaller sizes to go to wait at the smallest. [`RetryPolicy::outages`] sets this.
//!
//! # Clients that resend by themselves
//!
//! An SDK that resends what failed multiplies our attempts: five sends of google-genai times three
//! of ours are fifteen requests, each of them a unit of the day's quota. With
//! [`continue_resends`](JitteredRetryLayer::continue_resends) an identical request of the same caller
//! goes on with the call that failed: one attempt, not before the next would have been made. If the
//! server named a longer wait than the request can wait, it is refused, and nothing is sent.
//!
//! # What comes back
//!
//! When attempts run out, the last upstream answer with its body, not an error of ours. Where an
//! outage leaves no time for another, the 503 above.
//!
//! # Order in the stack
//!
//! Inside fallbacks, outside [`AttemptTimeout`](crate::AttemptTimeout). Needs
//! [`CollectRequest`](crate::CollectRequest) outside and
//! [`ClassifyGeminiError`](crate::ClassifyGeminiError) inside.
//!
//! # Defaults ([`RetryPolicy::recommended`])
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | attempts in all | 5 | what the official SDKs use when retry is on |
//! | deadline of a call | 15 min, 30 min in the flex tier | ours: one 4K attempt at its limit, and a wait; a longer one is a queue's business |
//! | longest wait | 120 s | operators' guide to RESOURCE_EXHAUSTED, 2026-02 (503) |
//! | minute's limit, no hint | 5 s, doubled to 60 s | operators' error guide for Nano Banana Pro, 2026-02 (429) |
//! | overload | 10 s, doubled to 120 s | operators' guide to RESOURCE_EXHAUSTED, 2026-02 (503): articles that start at 1 s outlive 1 in 70 outages |
//! | 500, 502, not sent, and 499 within the allowance | 1 s, doubled to 32 s | operators' troubleshooting guide for Nano Banana 2, 2026-03 (502 and 503) |
//! | an outage | three overloads in a row; one attempt a minute of all calls; at most 1,000 wait, in the gateway half of its places | measured, by the example `weather`: 99 % of a batch instead of 85 %, with 56 % of the quota |
//! | jitter | equal (half fixed, half random) | ours: full jitter halves the mean wait, which an overload does not want |
//! | upward jitter on a hint | up to 20 %, at least 250 ms | gemini-cli (0 to 20 %) |
//! | empty answers that are waived | 1 resend | ours |
//! | resends continue their call | off; the gateway: 60 s | the longest wait between two sends of google-genai |
//! | retry budget | none | measured, by the example `weather`: with 100 tokens, 10 a resend and 1 back for a success, a batch delivers 18 % in place of 85 % |
//!
//! [`presets`] holds the numbers of every article and of the official clients.
//!
//! # Errors
//!
//! The inner service's own, and [`Error`](crate::Error) where the call's deadline ends an attempt.
//!
//! # Cancel safety
//!
//! Dropping the future drops the attempt or the wait; no task runs on, and the trail keeps what was
//! sent.

mod backoff;
mod budget;
mod come_back;
mod layer;
mod outages;
mod policy;
pub mod presets;
mod resend;
mod retry_override;
mod service;

pub use backoff::{Backoff, Jitter};
pub use budget::RetryBudget;
pub(crate) use come_back::{Before, ComeBack};
pub use layer::JitteredRetryLayer;
pub use outages::OutagePolicy;
pub(crate) use outages::SPREAD;
pub use policy::{Decision, OutcomePolicy, RetryPolicy, RetryState, Situation};
pub use retry_override::RetryOverride;
pub use service::JitteredRetry;
