//! Completes calls whose clients disconnected, and replays the response to the next identical
//! request.
//!
//! When a client disconnects after dispatch, the response is completed, stored, and replayed to its
//! next identical request.
//!
//! ```
//! use std::time::Duration;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::{GeminiStack, KeepPaidLayer, WireBody};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // It draws for a minute, and every call is charged.
//! let client = service_fn(|request: Request<WireBody>| async move {
//!     let _ = request.into_body().collect().await;
//!     tokio::time::sleep(Duration::from_secs(60)).await;
//!     let body = br#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#;
//!     Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from_static(body))))
//! });
//! let keep = KeepPaidLayer::new();
//! let gemini = GeminiStack::new().keep_paid(keep.clone()).json(client);
//! let request = || {
//!     Request::post("/v1beta/models/gemini-3-pro-image:generateContent").header("x-goog-api-key", "k").body(Full::new(Bytes::from("{}"))).unwrap()
//! };
//!
//! // The client disconnects after half a minute,
//! assert!(tokio::time::timeout(Duration::from_secs(30), gemini.clone().oneshot(request())).await.is_err());
//! assert_eq!(keep.counts().detached, 1);
//! // sends the request again, as every SDK does, and gets the image that was charged.
//! let response = gemini.oneshot(request()).await.unwrap();
//! assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
//! assert_eq!((keep.counts().replayed, keep.counts().stored), (1, 0));
//! # }
//! ```
//!
//! # Why
//!
//! Clients time out, disconnect and send again, and each send is charged: openai's defaults pay
//! three times for one call, others five (measured 2026-11). Gemini knows no idempotency key. But
//! every resend that was measured is byte-identical, so the response to the first answers the
//! second.
//!
//! # What is stored, and for whom
//!
//! * Only what was or may have been charged and has a result: a response, or a refusal that was
//!   charged, whatever its status. A call that waits for quota, or between two attempts, ends with
//!   its client: a resend that was bought is for a client that waits. A detached call ends with the
//!   attempt that was under way.
//! * For the same request of the same caller: method, path, query, content type, body and
//!   credential, as one SHA-256. No credential is stored. Where callers share one credential,
//!   [`CallerId`] tells them apart; where one request can be answered in two formats,
//!   [`ResponseFormat`] says which.
//! * Once. If the client that gets the response disconnects before its end, it is stored again.
//! * Where a response that was or may have been charged is lost (it broke off, ended in an error
//!   that says nothing of money, was too large, too late or one too many, or had to make room and
//!   is in no file), identical requests fail with an error that is *maybe charged*, and nothing is
//!   sent for them: so does the resend of a client that has just received such an error. That ends
//!   60 s after the last of them, or once a request allows it to be charged again
//!   ([`maybe_charged_resends`](crate::CallOptions::maybe_charged_resends)), which is sent.
//! * Never for a concurrent request: two identical requests whose clients are both connected are
//!   two calls. A disconnect may be noticed a moment after the client's next request has come, so a
//!   request waits up to the grace for an identical one to be disconnected.
//! * Never for a continuation, never for calls that generate nothing, never for bodies too large to
//!   hold in memory.
//! * With an `Idempotency-Key`, concurrent requests get the one response too, and later ones as
//!   long as it is stored, however often. A streamed response then comes in one piece. The same key
//!   for another request is answered 422, and for a body that is too large to hold 413; nothing is
//!   sent then ([`IdempotencyKeyRejected`]). A continuation ignores the key.
//!
//! The trail of the first call has [`ClientDisconnected`](crate::trail::Step::ClientDisconnected) and
//! [`Stored`](crate::trail::Step::Stored); that of the second has
//! [`Replayed`](crate::trail::Step::Replayed), no attempt and no cost. A request that fails because
//! of a loss ends with [`EarlierResponseLost`](crate::trail::StopReason::EarlierResponseLost).
//!
//! # Order in the stack
//!
//! Inside [`CollectRequest`](crate::CollectRequest), outside everything that sends. Layers that
//! buffer or change responses belong inside, so that what is stored is what the client would have
//! received. It needs a response body, so it stands over `json` and `raw`. Over `images` it is a
//! compile error: read the image with [`FinalImage::from_json`](crate::FinalImage::from_json).
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | calls completed without a client, at once | 64 | a fourth of the gateway's requests in flight |
//! | bytes stored, and as many of responses in transit | 256 MiB | five 4K images with two drafts (54 MB of JSON each), a hundred of 1K |
//! | who makes room | of the caller that holds most, the oldest | nobody pushes out what a smaller holder has |
//! | requests that wait for one call | 32, further ones get a 429 | more than the workers that share one job |
//! | time for a call without a client | 660 s, 15 min more in the flex tier | Google's own deadline of 600 s (gRPC service config), and the way back |
//! | retention of a stored response | 10 minutes | the longest series of resends that was measured ends within 5 |
//! | grace for an identical call to be disconnected | 100 ms | a closed socket is noticed within a few on loopback; 2 s for a request marked as a resend |
//! | identical requests are told of a loss | 60 s after the last, 11 minutes at most | the longest wait between two resends of google-genai and openai is 60 s; litellm resends after 0.2 s |
//! | kept for a marked resend after a delivery | 30 s | the longest wait of openai's clients between two sends is 8 s; of what had to make room for others the resend is told as of a loss |
//!
//! # Errors
//!
//! Those of the inner service. A request that waits for a detached call past its own deadline ends
//! with a timeout that cost nothing. One whose earlier response was lost ends with an error that is
//! *maybe charged*, so that nobody pays again unawares.
//!
//! # Cancel safety
//!
//! Dropping the future, or the body before its end, detaches the call. That needs a tokio runtime;
//! without one the call ends with its client, and is lost.
//!
//! # A deadline
//!
//! The call's deadline bounds how long its client waits, and not what was paid for: an attempt that
//! is under way then is completed, stored, and replayed to the next identical request, as after a
//! disconnect. The client gets a timeout that is *maybe charged*, and nothing is sent after it.
//!
//! # A crash, and several processes
//!
//! With a [`Journal`] ([`KeepPaidLayer::journal`]) each attempt is recorded
//! before its first byte, and what becomes of the call after that; a whole response is recorded before
//! the last of it goes to its client. After a crash the next identical request, or the same
//! `Idempotency-Key`, gets the response that had arrived, or the error of a loss. Where processes share
//! a journal, a resend gets its response wherever it lands: one that is being made elsewhere is waited
//! for, and each is given once. What is kept for a marked resend after a delivery is in the journal as
//! long: there too it is for a marked resend alone. An attempt that cannot be recorded is not sent
//! ([`Error::is_not_recorded`](crate::Error::is_not_recorded)).
//!
//! That a response was delivered is recorded after the fact, and nobody waits for it. Where a process
//! is killed in between, its journal says that the response is on its way: after the crash the next
//! identical request, marked or not, gets it. So a new call may get an image that its client has
//! already, and is not charged for it; a crash never makes a resend pay again.
//!
//! Recorded is what has a fingerprint: no continuation, and no body that is too large to hold.
//!
//! # The end of a process
//!
//! [`KeepPaidLayer::drain`] waits for detached calls, [`KeepPaidLayer::save_to`] saves what is
//! stored to files, and [`KeepPaidLayer::load_from`] takes it in again. What is lost, or still in
//! flight, is saved as lost; the result of an `Idempotency-Key` is saved whether it was delivered or
//! not.

mod body;
mod calls;
mod charges;
mod files;
mod fingerprint;
mod in_flight;
mod journal;
mod layer;
mod progress;
mod registry;
mod room;
mod service;
mod shares;
mod stored;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
pub use crate::identity::{CallerId, ResponseFormat};
use crate::store::Journal;
use crate::trail::NotStoredReason;
pub use body::ResponseBody;
pub use in_flight::CompletableBody;
pub use layer::KeepPaidLayer;
pub use service::{IdempotencyKeyRejected, KeepPaid, StorableService};

/// What is stored now, and what became of the rest since the layer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KeepCounts {
    /// Calls that are completed without their clients, and calls with an `Idempotency-Key` that are
    /// in flight.
    pub detached: usize,
    /// Responses that wait for their clients.
    pub stored: usize,
    /// Losses that no client was told of yet.
    pub losses: usize,
    /// Bytes of all stored responses, those for marked resends and keys included.
    pub stored_bytes: usize,
    /// Responses delivered to a later request.
    pub replayed: u64,
    /// Detached calls that cost nothing.
    pub free: u64,
    /// Detached calls whose response was incomplete or an error.
    pub incomplete: u64,
    /// Detached calls whose response was larger than what may be stored.
    pub too_large: u64,
    /// Calls whose clients disconnected while enough others were detached.
    pub too_many: u64,
    /// Detached calls that took too long.
    pub too_late: u64,
    /// Stored responses that were dropped: no client asked in time, or newer ones needed the room.
    pub expired: u64,
}

/// The settings of the layer, with the defaults of the [module](self).
#[derive(Debug, Clone)]
struct Settings {
    max_detached: usize,
    max_bytes: usize,
    max_time: Duration,
    retention: Duration,
    grace: Duration,
    resend_grace: Duration,
    resend_window: Duration,
    loss_window: Duration,
    clock: Arc<dyn Clock>,
    journal: Option<Arc<dyn Journal>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_detached: 64,
            max_bytes: 256 * 1024 * 1024,
            max_time: Duration::from_secs(660),
            retention: Duration::from_secs(600),
            grace: Duration::from_millis(100),
            resend_grace: Duration::from_secs(2),
            resend_window: Duration::from_secs(30),
            loss_window: Duration::from_secs(60),
            clock: Arc::new(SystemClock),
            journal: None,
        }
    }
}

impl KeepCounts {
    fn count(&mut self, why: NotStoredReason) {
        *match why {
            NotStoredReason::Free => &mut self.free,
            NotStoredReason::Broken => &mut self.incomplete,
            NotStoredReason::TooLarge => &mut self.too_large,
            NotStoredReason::TooMany => &mut self.too_many,
            _ => &mut self.too_late,
        } += 1;
    }
}
