//! Gets the image from another model when the one asked for cannot make it, and says what that gave
//! up.
//!
//! ```
//! use http::{Request, Response};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::target::Served;
//! use tower_gemini::model_fallback::Chain;
//! use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer, ModelFallbackLayer};
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // Pro is overloaded, the other model is not.
//! let upstream = service_fn(|request: Request<_>| async move {
//!     Ok::<_, std::io::Error>(if request.uri().path().contains("pro") {
//!         let body = r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
//!         Response::builder().status(503).body(body.to_owned()).unwrap()
//!     } else {
//!         let body = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQ=="}}]},"finishReason":"STOP"}]}"#;
//!         Response::new(body.to_owned())
//!     })
//! });
//! let stack = ServiceBuilder::new()
//!     .layer(CollectRequestLayer::new())
//!     .layer(ModelFallbackLayer::new(Chain::of(["gemini-3-pro-image", "gemini-3.1-flash-image"])))
//!     .layer(ClassifyGeminiErrorLayer::new())
//!     .service(upstream);
//! let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
//!     .body(r#"{"contents":[{"parts":[{"text":"a cat"}]}]}"#.to_owned())
//!     .unwrap();
//! let answer = stack.oneshot(request).await.unwrap();
//! assert_eq!(answer.status(), 200);
//! let served = answer.extensions().get::<Served>().unwrap();
//! assert_eq!(served.model.as_ref().unwrap().as_str(), "gemini-3.1-flash-image");
//! assert_eq!(served.given_up[0].to_string(), "model gemini-3-pro-image → gemini-3.1-flash-image");
//! # }
//! ```
//!
//! # Where a call goes
//!
//! Along a [`Chain`], from the model asked for on: at its place in the chain, or in front of it. No
//! target is visited twice. A model whose date has passed, or that is answered 404, is followed by
//! its successor at once, which costs no retry and is said once. [`presets`] holds the chains of
//! the articles.
//!
//! # What moves a call on
//!
//! Verdicts after which another model may do better: overload, deadlines, faults of the service, a
//! model's quota, a model that is gone. A refused account (credit, key, region) closes all its
//! targets, and moves on to those of other accounts only. What was charged never moves on, and what
//! may have been only out of the caller's [`Allowance`](tower_gemini_core::context::Allowance).
//! Refused pictures and bad requests stay: another model would charge again, or refuse as well.
//!
//! # What is given up
//!
//! The request is rewritten for each target ([`core::target`](tower_gemini_core::target)); what the
//! target lacks is adapted or dropped, written into the trail and into
//! [`Served`](tower_gemini_core::target::Served) in the answer's extensions. What the caller [must
//! keep](tower_gemini_core::target::MustKeep) makes a target ineligible.
//!
//! # Health
//!
//! A target that failed rests; resting targets are passed over at once, before anybody asks whether
//! the inner service is ready. After the rest one call at a time tries it; a success brings it
//! back, a failure doubles the rest. Sizes rest each for themselves: in the outage of 2026-01-21 1K
//! worked while 4K did not. Quotas and accounts rest for their own payer: in a gateway one caller's
//! empty account closes nothing for the others. When every target rests, the one that is due first
//! is tried before its time, by one call at a time; the others are refused with a 503 in Google's
//! form that says how long to wait. [`Health`] is there to look at.
//!
//! # Retries
//!
//! Are those of the [`JitteredRetry`](crate::JitteredRetry) inside: this layer tells it, for each
//! request, how many attempts a target has, and by which policy, in a
//! [`RetryOverride`](crate::jittered_retry::RetryOverride). So waits, hints, deadlines, allowance
//! and budget are decided in one place and by one pure function, whoever wraps it. A target without
//! attempts of its own is tried once where another can be tried at once, and by the retry's policy
//! where none is left. Without a retry inside, each is tried once.
//!
//! # Order in the stack
//!
//! Inside [`FinalImageExtract`](crate::FinalImageExtract), outside
//! [`JitteredRetry`](crate::JitteredRetry). With [`ResolutionFallback`](crate::ResolutionFallback)
//! inside, a model is tried at smaller sizes before another one is ("keep the model"); with it
//! outside, every model is tried before the size is given up ("keep the size").
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | deadline of a call | 30 min | ours: the retry's own 15 min, for two targets |
//! | moves after empty answers that are waived | 1 | ours, as the retry's |
//! | rests after | 1 failure | ours: the retries inside have been made already |
//! | overloaded model | the catalogue's `recovery_minutes`, first to longest; else Flash 5 to 15 min, Pro 30 to 120 min | article 001 |
//! | 500, 502 | 1 min, doubled to 15 min | article 001 says 15 to 60 min; a first one is often alone |
//! | minute's quota | the hint, else 60 s | articles 003 and 004 |
//! | day's quota | to midnight Pacific where a clock is given, else 1 h | Gemini API documentation, rate limits (2026-08) |
//! | spend rate | the hint, else 10 min | the same: ten rolling minutes |
//! | no quota, no credit, bad key | 5 min (15 min a model's own), doubled to 1 h | article 001: new keys take "a few minutes" |
//! | model not found | 1 h, doubled to a day | ours |
//! | signatures | replaced by the documented placeholder | Gemini API documentation, thought signatures (2026-07) |
//!
//! # Errors
//!
//! The inner service's own. When nothing is left to try, the last upstream answer; where no target
//! could be tried at all, a 503 in Google's form whose `ErrorInfo` says `domain: tower-gemini`.
//!
//! # Cancel safety
//!
//! Dropping the future drops the attempt; a probe that it held is free for the next call.

mod chain;
mod health;
mod layer;
mod policy;
pub mod presets;
mod refusal;
mod service;
mod walk;

pub use chain::Chain;
pub use health::{Condition, CoolDowns, Health, TargetHealth};
pub use layer::ModelFallbackLayer;
pub use policy::{FallbackPolicy, Move};
pub use service::ModelFallback;
pub(crate) use service::served;
