//! Gets the image from another model when the one asked for cannot make it, and reports what that
//! gave up.
//!
//! ```
//! use http::{Request, Response};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::target::Served;
//! use tower_gemini::model_fallback::Chain;
//! use tower_gemini::{GeminiStack, WireBody};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // Pro is overloaded, the other model is not.
//! let upstream = service_fn(|request: Request<WireBody>| async move {
//!     Ok::<_, std::io::Error>(if request.uri().path().contains("pro") {
//!         let body = r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
//!         Response::builder().status(503).body(body.to_owned()).unwrap()
//!     } else {
//!         let body = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQ=="}}]},"finishReason":"STOP"}]}"#;
//!         Response::new(body.to_owned())
//!     })
//! });
//! let chain = Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
//! let stack = GeminiStack::new().fallback_to(chain).raw(upstream);
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
//! # Targets
//!
//! A call follows a [`Chain`], starting with the model it asks for: at its place in the chain, or
//! before the chain. It asks for nothing twice. A model that is answered with a 404 is replaced by
//! its successor at once, which costs no retry, and the log says so once. Announced shutdown dates
//! are the earliest possible ones, so a date replaces only fallback targets: the model that the
//! call names is given up only by the API's own response. [`presets`] holds the chains that
//! published guides recommend.
//!
//! With a [`Ladder`](ModelFallbackLayer::ladder), smaller sizes are targets too, and
//! [`FallbackOrder`] says whether the size or the model gives way first.
//! [`GeminiStack`](crate::GeminiStack) sets it where both fallbacks are on.
//!
//! # When a call falls back
//!
//! After verdicts after which another model may succeed: overload, deadlines, faults of the
//! service, a model's quota, a model that is gone. A refused account (credit, key, region) closes
//! all its targets for the call, which goes on to other accounts only. A call never falls back
//! after a charge, and after a possible charge only within the caller's
//! [allowance](crate::CallOptions::maybe_charged_resends). Refused pictures and bad requests are
//! returned: another model would charge again, or refuse as well.
//!
//! # What is given up
//!
//! The request is rewritten for each target (see [`target`](crate::target)). What the target lacks
//! is adapted or dropped, and recorded in the trail and in [`Served`](crate::target::Served), an
//! extension of the response. What the caller [must keep](crate::target::MustKeep) rules targets
//! out.
//!
//! # Circuit breakers
//!
//! A target that keeps failing is left alone: its circuit opens, and calls pass it over before they
//! ask whether the inner service is ready. After the cooldown one call at a time probes it; a
//! success closes the circuit, a failure doubles the cooldown. Each part has a circuit of its own:
//! the model at one size (in the outage of 2026-01-21 1K worked while 4K did not), the model, its
//! quota, and the account; quotas and accounts for each payer, so that in a gateway one caller's
//! empty account closes nothing for the others.
//!
//! A free failure that comes at once costs nothing, so a single one opens no circuit. Circuits open
//! where that saves something: long outages, money, the quota of the day.
//!
//! # When every target fails
//!
//! A call has one deadline, and what failed for free may be tried again within it. So a call whose
//! targets have all failed, or are left alone, waits for the first that is worth another attempt:
//! one whose backoff is over, or whose circuit another call closes. While circuits are open, one
//! call at a time probes each target before its cooldown ends, about once a minute, and all others
//! wait for what comes of it, and are sent within three seconds of a recovery, one after the other.
//! The trail has the wait. Where none can be tried in time, the call
//! gets the last response, or after a wait a 503 in Google's form that says when to come back.
//! [`Circuits`] shows them all.
//!
//! A target gets as many attempts of one call as the retry's policy makes (5), all visits together,
//! and the last is kept for the middle of the time that is left. One with a number or a policy of
//! its own is visited once, as that says. Sizes before the last are visited once too.
//! [`FallbackPolicy::refuse_when_all_open`] waits for nothing.
//!
//! # Retries
//!
//! Are made by the [`JitteredRetry`](crate::JitteredRetry) inside, so that waits, hints, deadlines,
//! allowance and budget are decided in one place. This layer sets how many attempts each target has
//! and by which policy. Where a target has no number of its own, the retry inside decides whether
//! and when it is due again, and this layer comes back to it then: it goes on to another target at
//! once, where there is one, and waits for all of them together in overloads and limits. Without a
//! retry inside, each is tried once.
//!
//! # Order
//!
//! Below [`FinalImageExtract`](crate::FinalImageExtract), above
//! [`JitteredRetry`](crate::JitteredRetry).
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | deadline of a call, from its start | 30 min | ours: the retry's own 15 min, for two targets |
//! | fallbacks after empty responses that are waived | 1 | ours, as the retry's |
//! | order of size and model | [`SizeFirst`](FallbackOrder::SizeFirst) | ours: the model was chosen, the size is often a default |
//! | failures that open a circuit | 3 in a row, after the retries inside | ours: one free failure says little and costs nothing |
//! | refused credentials that open an account's | 2 in a row | ours |
//! | spent days and accounts without credit that do | 1 | only time or money cures them |
//! | calls that wait for a target | 1,000; in the gateway half of its places | ours, as the retry's |
//! | sent after a recovery within | 3 s, or a quarter of the call's time left | as the retry's after an outage: all at once would overload the model anew |
//! | early probes of one circuit | a first cooldown apart | as the retry's in an outage, one a minute |
//! | cooldown of an overloaded model | 1 min, doubled to 5 min | measured, by the example `weather`: 5 to 120 min, as the guides have it, send calls to another model long after an outage is over |
//! | 500, 502 | 1 min, doubled to 15 min | the same guide says 15 to 60 min; a first one is often alone |
//! | quota of a minute | the hint, else 60 s | operators' guides, 2026-02 and 2026-03 |
//! | quota of a day | to midnight Pacific | Gemini API documentation, rate limits (2026-08) |
//! | spend rate | the hint, else 10 min | the same: ten rolling minutes |
//! | no quota, no credit, bad key | 5 min (15 min a model's own), doubled to 1 h | the error guide: new keys take "a few minutes" |
//! | model not found | 1 h, doubled to a day | ours |
//! | signatures | replaced by the documented placeholder | Gemini API documentation, thought signatures (2026-07) |
//! | clock | [`SystemClock`](crate::clock::SystemClock) | |
//!
//! # Errors
//!
//! The inner service's own. When nothing is left to try, the last upstream response; where no target
//! could be tried at all, or the call waited in vain, a 503 in Google's form whose `ErrorInfo` says `domain: tower-gemini`.
//!
//! # Cancel safety
//!
//! Dropping the future drops the attempt or the wait; a circuit that it was probing may be probed by
//! the next call.

mod layer;
pub mod presets;

use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

pub use self::layer::ModelFallbackLayer;
use crate::body::{CallBody, JudgedBody};
use crate::error::Error;
use crate::optional::OptionalFuture;
use crate::stage::CallService;
use crate::walk::Fallback;
pub use crate::walk::{
    Chain, Circuit, CircuitState, Circuits, Cooldowns, FallbackOrder, FallbackPolicy, Reaction,
};

/// Sends a call to another model when its own cannot answer. See the [module](self).
#[derive(Debug, Clone)]
pub struct ModelFallback<S>(Fallback<S>);

impl<S: CallService> Service<Request<CallBody>> for ModelFallback<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        self.0.call(request)
    }
}
