//! A Gemini you can argue with: real images, real refusals and real bills, in process or over HTTP.
//!
//! A [`Sim`] answers the requests of Gemini's image models as the API does, goes wrong when it is
//! told to, and keeps a [ledger](LedgerSnapshot) of what really happened: which requests were
//! received, which images were made, what was charged, and what the caller got for it. It shares no
//! code with the layers that it tests, so that no mistake is shared either.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! use http_body_util::{BodyExt, Full};
//! use tower_gemini_sim::{Delivered, Fault, Sim};
//! use tower_service::Service;
//!
//! let sim = Sim::quick([Fault::HighDemand]);
//! let mut gemini = sim.service();
//! let request = || {
//!     http::Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
//!         .header("x-goog-api-key", "a-key")
//!         .header("x-sim-call", "cat")
//!         .body(Full::from(r#"{ "contents": [{ "parts": [{ "text": "a cat" }] }] }"#))
//!         .unwrap()
//! };
//!
//! let overloaded = gemini.call(request()).await.unwrap();
//! assert_eq!(overloaded.status(), 503);
//! let answer = gemini.call(request()).await.unwrap();
//! assert_eq!(answer.status(), 200);
//! let body = answer.into_body().collect().await.unwrap().to_bytes();
//! assert!(body.starts_with(b"{\n  \"candidates\": ["));
//!
//! let ledger = sim.ledger();
//! assert_eq!((ledger.sends("cat"), ledger.charges("cat")), (2, 1));
//! assert_eq!(ledger.requests()[1].delivered, Delivered::Full);
//! # });
//! ```
//!
//! # What it simulates
//!
//! * The Developer API and Vertex AI under any prefix (`generateContent`, `streamGenerateContent`
//!   as events and as an array, `countTokens`, Imagen's `predict`), the OpenAI-style
//!   `chat/completions` and `images/generations`, and `interactions`.
//! * The checks of the real server: keys, models that were retired, sizes in lower case, ratios,
//!   missing signatures, and so on.
//! * Faults by [script](Builder::script) or by [chance](Builder::weather),
//!   [limits](Builder::quota), and [time](Builder::latency), on tokio's clock: a paused runtime
//!   simulates a day in seconds.
//! * A header `x-server-timeout: 30` makes the server give up after 30 seconds with a 504, which is
//!   not charged.
//! * A header `x-sim-call: some-tag` ties the attempts of one call together in the ledger.
//!
//! # What is charged
//!
//! | outcome | charged |
//! | --- | --- |
//! | the model ran to the end, whatever became of the answer | its tokens |
//! | the caller went away while the model ran | its tokens (a [setting](Builder::abort_charges)) |
//! | refused after generation | input and thinking |
//! | the answer says "You will not be charged" | nothing |
//! | blocked prompt | its input (a [setting](Builder::blocked_prompts_charge)) |
//! | 4xx and 5xx, refused connection | nothing |
//!
//! Every request that was received counts against the project's limits, a 429 only [if
//! configured](Quota::counts_rejected).
//!
//! # What it leaves out
//!
//! `images/edits`, batches, files, HTTP/2, and the ratio of reference images (without `aspectRatio`
//! an image is square).

mod answer;
mod body;
mod errors;
mod fault;
mod hash;
mod image;
mod json;
mod ledger;
mod model;
mod quota;
mod request;
#[cfg(feature = "serve")]
mod serve;
mod service;
mod weather;

pub use answer::ImageOptions;
pub use body::{SimBody, SimError, SimErrorKind};
pub use fault::{BadRequest, Block, Fault, Forbidden, Limit, NotFound, Refusal, Shape};
pub use hash::hash64;
pub use ledger::{Delivered, LedgerSnapshot, Record, Totals};
pub use model::{Price, Size};
pub use quota::Quota;
#[cfg(feature = "serve")]
pub use serve::{ServeHandle, serve};
pub use service::{Builder, RequestNumber, Sim, SimFuture, SimService};
pub use weather::{Each, Latency, Outages, Weather};
