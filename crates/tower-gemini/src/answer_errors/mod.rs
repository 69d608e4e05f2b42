//! Turns errors into answers in Google's form, and tells clients with retries of their own when to
//! stop.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_gemini::{AnswerErrorsLayer, GeminiStack};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let unreachable = service_fn(|_| async {
//!     Err::<Response<Full<Bytes>>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
//! });
//! let service = AnswerErrorsLayer::new().layer(GeminiStack::new().raw(unreachable));
//! let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(Full::new(Bytes::from("{}"))).unwrap();
//! let response = service.oneshot(request).await.unwrap(); // the error type is `Infallible`
//! assert_eq!(response.status(), 503);
//! assert_eq!(response.headers()["x-should-retry"], "false");
//! let body = response.into_body().collect().await.unwrap().to_bytes();
//! assert!(String::from_utf8_lossy(&body).contains("the request could not be sent"));
//! # }
//! ```
//!
//! # Why
//!
//! A server cannot answer with an `Err`, and SDKs behind it understand one form of error: Google's.
//! They also retry on their own, by the status alone. openai's client sends three times by default,
//! others five, whatever it cost (measured 2026-11): so the status and two headers must say what
//! the verdict knows.
//!
//! | what happened | status | `x-should-retry` | `Retry-After` |
//! | --- | --- | --- | --- |
//! | an error answer of the API, surely not charged | its own | `false` for 408, 409, 429 and 5xx: our own retries are spent | the hint, rounded up; for a day's limit the time to midnight Pacific |
//! | an error answer, charged or maybe (a front end's 504, say) | its own where no client sends again after it; else 424, and its own in `x-upstream-status` | `false` | |
//! | not sent | 503 `UNAVAILABLE` | `false` | |
//! | our own time limit, surely not charged | 504 `DEADLINE_EXCEEDED` | `false` | |
//! | the caller's body could not be read | 400 `INVALID_ARGUMENT` | | |
//! | charged or maybe charged, and no answer to show for it | 424 `ABORTED` | `false` | |
//!
//! 424 is *Failed Dependency* (RFC 4918): no client that was measured sends again after a 4xx other
//! than 408, 409 and 429, and most of them do after a 502 or 504. Which status it is can be set.
//!
//! # Order in the stack
//!
//! Outermost, over any judged stack: [`raw`](crate::GeminiStack::raw) and
//! [`json`](crate::GeminiStack::json) answers pass through it byte for byte. It makes a stack fit
//! for `axum`'s `Router::layer`, which asks for a service that never fails.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | status where money is or may be gone | 424 | measured: see above |
//!
//! # Errors
//!
//! None of its own: the service's error is [`Infallible`](std::convert::Infallible). A body that
//! breaks after its head ends with the error of the layer below, so that a server cuts the
//! connection and no client takes a part for the whole.
//!
//! # Cancel safety
//!
//! Dropping the future drops the inner one; nothing else is held.

mod answer;
mod layer;
mod service;

pub(crate) use answer::clients_retry;
pub use answer::{HasVerdict, advise, answer_to, seconds_to_wait};
pub use layer::AnswerErrorsLayer;
pub use service::{AnswerErrors, AnsweredBody, ResponseFuture};
