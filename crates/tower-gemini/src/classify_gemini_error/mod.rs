//! Reads what a response means from its body, and puts the verdict beside it.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::verdict::{Charge, Outcome};
//! use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, SingleAttemptLayer, WireBody, compose};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let upstream = service_fn(|_: Request<WireBody>| async {
//!     let body = br#"{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}"#;
//!     Ok::<_, std::io::Error>(Response::builder().status(503).body(Full::new(Bytes::from_static(body))).unwrap())
//! });
//! let request = Request::post("/v1beta/models/gemini-3.1-flash-image:generateContent").body(String::new()).unwrap();
//! let layers = (CollectRequestLayer::new(), SingleAttemptLayer::new(), ClassifyGeminiErrorLayer::new());
//! let response = compose(layers, upstream).oneshot(request).await.unwrap();
//! assert_eq!(response.body().verdict().outcome(), Outcome::Overloaded);
//! assert_eq!(response.body().verdict().charge(), Charge::None);
//! # }
//! ```
//!
//! # Why
//!
//! A 429 may be a minute's limit, a day's, no quota at all, an account's spending, or Google's own
//! capacity; a 200 may be a refusal, an empty response or an error. The status alone decides wrongly
//! in each of these.
//!
//! # When the verdict is known
//!
//! Of an error the whole body is read, up to a bound, and given back unchanged; so the connection
//! can be used again even when the response is dropped. Of a 2xx the first 64 KiB are read: a response
//! that ends within them is judged before its head is released, a longer one is an image on its
//! way. Of a stream, reading stops at the first event with content. After that the response is judged
//! as it passes, and ends with an error where it is not whole.
//!
//! # Order in the stack
//!
//! Innermost, right above the client, which is any [`WireClient`](crate::stage::WireClient).
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | bytes of a 2xx read before its head is released | 64 KiB | refusals and empty responses recorded so far stay below 3 KiB |
//! | bytes of an error read | 256 KiB | linkerd drains to 64 KiB; error pages with embedded assets are larger |
//! | `Accept-Encoding` | replaced by `identity` | a body that cannot be read cannot be judged, and images do not compress |
//!
//! # Errors
//!
//! An [`Error`](crate::error::Error) where the client fails: not charged when the
//! [evidence] says that it was never sent, otherwise *maybe charged*.
//!
//! # Cancel safety
//!
//! Dropping the future or the body drops the client's. The trail then says that the attempt was cut
//! off and may have been charged.

pub mod evidence;
mod layer;
mod service;

pub use layer::ClassifyGeminiErrorLayer;
pub use service::ClassifyGeminiError;
