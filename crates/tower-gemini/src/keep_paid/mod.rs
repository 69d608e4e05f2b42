//! Finishes calls whose callers went away after they may have been paid for, and gives the answer
//! to the same caller's next identical request, once.
//!
//! ```
//! use std::time::Duration;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_gemini::body::CallBody;
//! use tower_gemini::{CollectRequestLayer, GeminiStack, KeepPaidLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // It draws for a minute. Each call is paid for.
//! let client = service_fn(|request: Request<CallBody>| async move {
//!     let _ = request.into_body().collect().await;
//!     tokio::time::sleep(Duration::from_secs(60)).await;
//!     let answer = br#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#;
//!     Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from_static(answer))))
//! });
//! let keep = KeepPaidLayer::new();
//! let gemini = CollectRequestLayer::new().layer(keep.layer(GeminiStack::new().judged(client)));
//! let request = || {
//!     Request::post("/v1beta/models/gemini-3-pro-image:generateContent").header("x-goog-api-key", "k").body(Full::new(Bytes::from("{}"))).unwrap()
//! };
//!
//! // The caller gives up after half a minute,
//! assert!(tokio::time::timeout(Duration::from_secs(30), gemini.clone().oneshot(request())).await.is_err());
//! assert_eq!(keep.counts().detached, 1);
//! // asks again, as every SDK does, and gets what it paid for.
//! let answer = gemini.oneshot(request()).await.unwrap();
//! assert!(!answer.into_body().collect().await.unwrap().to_bytes().is_empty());
//! assert_eq!((keep.counts().redeemed, keep.counts().kept), (1, 0));
//! # }
//! ```
//!
//! # Why
//!
//! Clients hang up, time out and send again, and each send is paid for: openai's defaults pay three
//! times for one call, others five (measured 2026-11). Gemini knows no idempotency key. But every
//! resend that was measured is byte-identical, so the answer to the first is the answer to the
//! second.
//!
//! # What is kept, and for whom
//!
//! * Only what was or may have been paid for and came to something: an answer, or a refusal that
//!   cost money, whatever status tells it. A call that waits for quota, or between two attempts
//!   that cost nothing, ends with its caller; one that is being finished ends as soon as an attempt
//!   has cost nothing.
//! * For the same request of the same caller: method, path, query, content type, body and
//!   credential, as a SHA-256 of all of them. No credential is kept. Where callers share one
//!   credential, [`CallerName`] tells them apart; where one request can be answered in two ways,
//!   [`AnswerShape`] says which.
//! * Once. If whoever gets it goes away before its end, it is kept on.
//! * Of what was or may have been paid for and is lost (it broke off, ended in an error that says
//!   nothing of money, was too large, too late or one too many, or had to make room and is not
//!   written down), the next identical request is told, once, with an error that is *maybe
//!   charged*; nothing is sent for it. A client that marks its resends may not have heard: its next
//!   one is told again, within 30 s. Who would rather pay again says so with
//!   [`maybe_charged_resends`](tower_gemini_core::context::CallOptions::maybe_charged_resends).
//! * Never for a request *beside* another: two identical requests of which both callers are there
//!   are two calls. That a client has hung up may be noticed a moment after its next request has
//!   come, so a request waits up to the grace for an identical one to be left.
//! * Never for a continuation, never for calls that make nothing, never for bodies too large to
//!   hold.
//! * With an `Idempotency-Key` of the caller's: requests side by side get the one answer too, later
//!   ones as long as it is kept, however often. A streamed answer comes in one piece then. The same
//!   key for another request is answered 422, and for a body that is too large to be held 413;
//!   nothing is sent then ([`KeyRefused`]). To a continuation a key means nothing.
//!
//! The trail says so: [`CallerLeft`](crate::trail::Step::CallerLeft) and
//! [`Kept`](crate::trail::Step::Kept) in the first call's,
//! [`Redeemed`](crate::trail::Step::Redeemed) in the second's, which has no attempt and
//! costs nothing. One that is told of a loss ends with
//! [`LostBefore`](crate::trail::StopReason::LostBefore).
//!
//! # Order in the stack
//!
//! Inside [`CollectRequest`](crate::CollectRequest), outside everything that sends. Whatever holds
//! answers (cuts drafts out, waits for their end) goes inside it, so that what is kept is what the
//! caller would have got.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | calls finished without a caller, at once | 64 | a fourth of the gateway's requests in flight |
//! | bytes kept, and as many of answers on their way | 256 MiB | five 4K images with two drafts (54 MB of JSON each), a hundred of 1K |
//! | time for a call without a caller | 660 s | Google's own deadline of 600 s (gRPC service config), and the way back |
//! | an answer waits for its caller | 10 minutes | the longest series of resends that was measured ends within 5 |
//! | grace for an identical call to be left | 100 ms | a closed socket is noticed within a few on loopback; 2 s for a request marked as a resend |
//! | kept for a marked resend after a delivery | 30 s | the longest wait of openai's clients between two sends is 8 s |
//!
//! # Errors
//!
//! Those of the inner service. A request that waits for a call without a caller past its own
//! deadline ends with a timeout that cost nothing; one that asks for what was paid for and lost
//! ends with an error that is *maybe charged*, so that nobody pays again unawares.
//!
//! # Cancel safety
//!
//! Dropping the future, or the body before its end, is what this layer is for. Needs a tokio
//! runtime then; without one the call ends with its caller, and is lost.
//!
//! # The end of a process
//!
//! [`KeepPaidLayer::drain`] waits for what is being finished, [`KeepPaidLayer::save_to`] writes
//! down what is kept, and [`KeepPaidLayer::load_from`] takes it in again. What is lost, or not
//! finished yet, is written down as that; and what became of a call with an `Idempotency-Key`,
//! whether its answer was given or not.

mod body;
mod course;
mod detached;
mod files;
mod identity;
mod layer;
mod named;
mod service;
mod shared;
mod store;

pub use body::{Keepable, KeptBody};
pub use identity::{AnswerShape, CallerName};
pub use layer::KeepPaidLayer;
pub use service::{KeepPaid, KeyRefused};

/// What is kept now, and what became of the rest since the layer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KeepCounts {
    /// Calls that are being finished without their callers, and calls of an `Idempotency-Key` that
    /// are under way.
    pub detached: usize,
    /// Answers that wait for their callers.
    pub kept: usize,
    /// Losses that nobody was told of yet.
    pub losses: usize,
    /// Bytes that are held, those for marked resends among them.
    pub kept_bytes: usize,
    /// Answers given to a later request.
    pub redeemed: u64,
    /// Calls left by their callers that came to cost nothing.
    pub free: u64,
    /// Such as broke off.
    pub broken: u64,
    /// Such as are larger than all that may be kept.
    pub too_large: u64,
    /// Such as came while enough others were being finished.
    pub too_many: u64,
    /// Such as took too long.
    pub too_late: u64,
    /// Kept answers that were let go: nobody asked in time, or newer ones needed their place.
    pub never_asked_for: u64,
}
