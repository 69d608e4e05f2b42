//! A simulated Gemini image API for tests and demonstrations, in process or over HTTP.
//!
//! A [`Sim`] answers the requests of Gemini's image models as the API does, fails when told to, and
//! keeps a [ledger](LedgerSnapshot) of what really happened: which requests it received, which
//! images it generated, what it charged, and how much of each answer was delivered. It shares no
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
//! let url = "https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent";
//! let request = || {
//!     http::Request::post(url)
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
//!   `chat/completions` and `images/generations`, and `interactions`, which are stored: they can be
//!   fetched by their ids, whole or as a stream behind an event, run in the background, and be
//!   cancelled.
//! * [Batches](Builder::batches) with the files that they need, [faults](BatchFault) of their own,
//!   and [webhooks](Sim::take_webhooks). `BATCH.md` beside this crate has each shape with its source.
//! * The checks of the real server: keys, retired models, sizes in lower case, ratios, missing
//!   signatures, and so on.
//! * Faults by [script](Builder::script), by [chance](Weather::with) or for a
//!   [period](Weather::outages), [limits](Builder::quota), and [latency](Builder::latency), on
//!   tokio's clock: a paused runtime simulates a day in seconds.
//! * [`Scenario`]: all of that in a TOML file, with the calls that meet it.
//! * [`Builder::storm`]: a documented mix of all of these for demonstrations.
//!
//! # Headers
//!
//! * `x-server-timeout: 30` makes the server give up after 30 seconds with a 504, which is not
//!   charged.
//! * `x-sim-call: some-tag` ties the attempts of one call together in the ledger.
//!
//! # What is charged
//!
//! | outcome | charged |
//! | --- | --- |
//! | the model finished, whether or not the response arrived | its tokens |
//! | the caller disconnected while the model ran | its tokens ([setting](Builder::abort_charges)) |
//! | refused after generation | input and thinking |
//! | the response says "You will not be charged" | nothing |
//! | blocked prompt | its input ([setting](Builder::blocked_prompts_charge)) |
//! | 4xx and 5xx, refused connection | nothing |
//! | line of a batch, once the batch has ended with its response | half of its tokens' price |
//! | line of a batch with an error, batch that failed or expired | nothing |
//!
//! Every request that was received counts against the project's limits; a 429 does only [if
//! configured](Quota::counts_rejected).
//!
//! # What it leaves out
//!
//! `images/edits`, files other than those of batches, HTTP/2, and the ratio of reference images (without `aspectRatio`
//! an image is square).

#![cfg_attr(docsrs, feature(doc_cfg))]

/// Declares one consuming setter a field.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident $(=> $field:ident)?: $value:ty,)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, value: $value) -> Self {
            setters!(@ self $name $($field)?) = value;
            self
        })*
    };
    (@ $self:ident $name:ident) => { $self.$name };
    (@ $self:ident $name:ident $field:ident) => { $self.$field };
}

mod answer;
mod api_error;
mod batch;
mod body;
mod builder;
#[cfg(feature = "serve")]
mod connection;
mod dialect;
mod error;
mod fault;
mod files;
mod hash;
mod image;
mod interactions;
mod json;
mod ledger;
mod model;
mod observed;
mod outage;
mod quota;
mod reply;
mod request;
mod scenario;
#[cfg(feature = "serve")]
mod serve;
mod service;
mod stored;
mod weather;
mod webhook;

pub use answer::ImageOptions;
pub use batch::{BatchRecord, BatchState, LineRecord};
pub use body::SimBody;
pub use builder::{Batches, Builder};
pub use error::{ScenarioError, SimError, SimErrorKind};
pub use fault::{BadRequest, BatchFault, Block, Fault, Forbidden, Limit, NotFound, Refusal, Shape};
pub use hash::hash64;
pub use ledger::{Delivered, LedgerSnapshot, Record, Totals};
pub use model::{Price, Size, Tier};
pub use observed::{Fit, ModelFit, OBSERVATIONS_HEADER, Observation, Observations};
pub use outage::{Each, Outages};
pub use quota::Quota;
pub use scenario::{ArrivalKind, Arrivals, Scenario, Wanted};
#[cfg(feature = "serve")]
pub use serve::{ServeHandle, serve};
pub use service::{RequestNumber, Sim, SimFuture, SimService};
pub use weather::{Flex, Latency, Weather};

/// Locks a mutex whose holder may have panicked: every change under these locks is complete.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The README's example runs as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
