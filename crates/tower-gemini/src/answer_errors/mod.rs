//! Turns errors into responses in Google's form, and tells clients with retries of their own when to
//! stop.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::{AnswerErrorsLayer, GeminiStack};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let unreachable = service_fn(|_| async {
//!     Err::<Response<Full<Bytes>>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
//! });
//! let stack = GeminiStack::new().answer_errors(AnswerErrorsLayer::new());
//! let service = stack.raw(unreachable);
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
//! A server cannot respond with an `Err`, and SDKs behind it understand one form of error: Google's.
//! They also retry on their own, by the status alone. openai's client sends three times by default,
//! others five, whatever it cost (measured 2026-11). So the status and two headers state what the
//! verdict knows.
//!
//! | what happened | status | `x-should-retry` | `Retry-After` |
//! | --- | --- | --- | --- |
//! | an error of the API, surely not charged | its own | `false` for 408, 409, 429 and 5xx: our own retries are spent | the hint, rounded up, for a day's limit the time to midnight Pacific; beyond 120 s in `x-closed-for` instead |
//! | an error of the API, charged or maybe charged (a front end's 504, say) | its own where no client retries it; else 424, and its own in `x-upstream-status` | `false` | |
//! | not sent | 503 `UNAVAILABLE` | `false` | |
//! | our own time limit, surely not charged | 504 `DEADLINE_EXCEEDED` | `false` | |
//! | the request body could not be read | 400 `INVALID_ARGUMENT` | | |
//! | charged or maybe charged, without a response | 424 `ABORTED` | `false` | |
//!
//! 424 is *Failed Dependency* (RFC 4918): no client that was measured retries a 4xx other than 408,
//! 409 and 429, and most retry a 502 or 504. The status can be set.
//!
//! # Order in the stack
//!
//! Outermost, over a stack with response bodies: the responses of [`raw`](crate::GeminiStack::raw)
//! and [`json`](crate::GeminiStack::json) pass through it byte for byte. A stack of
//! [`images`](crate::GeminiStack::images) has no response body, so this layer over it is a compile
//! error: use `json`, and read the image with
//! [`FinalImage::from_json`](crate::FinalImage::from_json). With this layer a stack fits axum's
//! `Router::layer` and `any_service`, which need a service that never fails.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | status of an error that was or may have been charged | 424 | measured: see above |
//! | longest `Retry-After` | 120 s | openai's client honours waits up to 120 s; google-genai's Interactions client sleeps the 14 hours of a day's limit (measured 2026-11) |
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

mod layer;
mod response;
mod service;

pub use layer::AnswerErrorsLayer;
pub use response::{RetryHeaders, error_response, seconds_to_wait, set_retry_headers};
pub use service::{AnswerErrors, ResponseBody};
