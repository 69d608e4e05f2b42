//! `tower-gemini` for reqwest and reqwest-middleware: the recommended stack in one line, any tower
//! stack as one middleware, and reqwest as a stack's client.
//!
//! ```
//! use reqwest_middleware::ClientBuilder;
//! use tower_gemini::Trail;
//! use tower_gemini_reqwest::{GeminiMiddleware, client_builder};
//! # use tower_gemini_sim::{Fault, Sim, serve};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let server = serve(Sim::quick([Fault::Internal, Fault::None]), ([127, 0, 0, 1], 0).into()).await?;
//! # let url = server.url();
//! // `url` is that of a server whose first response is a 500.
//! let client = ClientBuilder::new(client_builder().build()?).with(GeminiMiddleware::new().json()).build();
//! let response = client
//!     .post(format!("{url}/v1beta/models/gemini-3-pro-image:generateContent"))
//!     .header("x-goog-api-key", "a-key")
//!     .body(r#"{"contents":[{"parts":[{"text":"a cat"}]}]}"#)
//!     .send()
//!     .await?;
//! assert_eq!(response.status(), 200);
//! let trail = response.extensions().get::<Trail>().unwrap();
//! assert_eq!(trail.attempts().len(), 2);
//! # Ok(()) }
//! ```
//!
//! # Which one
//!
//! | you have | use |
//! | --- | --- |
//! | a program or an SDK on `reqwest-middleware` | [`GeminiMiddleware`] |
//! | the same, and a stack of your own | [`StackMiddleware`] over a [`ChannelLeaf`] |
//! | a tower stack, and reqwest to send with | [`ReqwestService`] |
//!
//! # What a call carries
//!
//! Whatever is in the middleware's extensions reaches the stack:
//! [`CallOptions`](tower_gemini::CallOptions) set with
//! `RequestBuilder::with_extension` are the call's options. The
//! [`Trail`](tower_gemini::trail::Trail) comes back in the response's extensions and in the
//! middleware's, there with an error too. Of what the middleware below left in its extensions, that
//! of the attempt whose response came back stays. Each attempt has the request's own timeout and
//! version.
//!
//! # Order in the chain
//!
//! What is below the stack runs once for each attempt, what is above once for each call. Below is
//! the place of authentication and of tracing; a middleware that retries belongs nowhere in the
//! chain, and finds the stack's bodies impossible to clone.
//!
//! # Errors
//!
//! | what happened | what comes |
//! | --- | --- |
//! | attempts ran out on an error status | the last response, with its body |
//! | the client or a middleware below failed | its own `reqwest_middleware::Error`: `is_connect`, `is_timeout` and `downcast` work as ever |
//! | a layer of ours failed the call | `Error::Middleware` that downcasts to [`Error`](tower_gemini::error::Error) |
//! | somebody else's layer failed the call | `Error::Middleware` that downcasts to [`LayerError`], whose source it is |
//! | the response's body broke off | reqwest's error of reading it, with ours among its causes |
//!
//! A key in `?key=` is hidden in every URL that an error of reqwest's or ours, or a response,
//! carries; what other people's middleware wraps is theirs to hide. The response's URL is otherwise
//! the request's.
//!
//! # Cancel safety
//!
//! Dropping the call drops its attempts, down to their connections. An attempt that a layer gives
//! up is dropped at once too. So nothing can be finished without its caller inside a middleware,
//! whose chain is only lent to the call: put `KeepPaid` (feature `keep-paid` of tower-gemini) into a
//! stack over [`ReqwestService`].
//!
//! # Features
//!
//! * `rustls` (off by default): https with reqwest's own choice of rustls, for programs whose own
//!   `reqwest` dependency has no TLS feature.
//! * `http2` (off by default): HTTP/2 for clients that ask for it, and a server's refusals of
//!   single streams as proof that nothing was done. [`client_builder`] stays with HTTP/1.1.

mod client;
mod error;
mod gemini;
mod leaf;
mod middleware;
mod service;
mod sync_body;

pub use client::client_builder;
pub use error::{LayerError, charge_of};
pub use gemini::GeminiMiddleware;
pub use leaf::{ChannelLeaf, LeafFuture};
pub use middleware::StackMiddleware;
pub use service::{ReqwestService, ResponseFuture};

/// The README's example runs as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
