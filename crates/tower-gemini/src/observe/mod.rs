//! Observes what becomes of every call: `tracing` events, metrics, and hooks for statistics.
//!
//! Layers record what they decide in the call's [`Trail`](crate::trail::Trail). `Observe`
//! follows that trail, times the call, watches its response's body to its end, and reports all of it
//! from one place.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::observe::{CallEnd, CallInfo, CallObserver, ObserveLayer};
//! use tower_gemini::GeminiStack;
//!
//! /// Collects the sentence about each call.
//! #[derive(Default)]
//! struct Sentences(Mutex<Vec<String>>);
//! impl CallObserver for Sentences {
//!     fn on_end(&self, _: &CallInfo, end: &CallEnd<'_>) {
//!         self.0.lock().unwrap().push(end.sentence.to_owned());
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // Any client works; this one has no capacity.
//! let client = service_fn(|_| async {
//!     let body = br#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
//!     Ok::<_, std::io::Error>(Response::builder().status(503).body(Full::new(Bytes::from_static(body))).unwrap())
//! });
//! let sentences = Arc::new(Sentences::default());
//! let layer = ObserveLayer::new().observer(sentences.clone());
//! let gemini = GeminiStack::new().observe(layer).raw(client);
//!
//! let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(Full::new(Bytes::new())).unwrap();
//! let response = gemini.oneshot(request).await.unwrap();
//! // A call ends with its body.
//! response.into_body().collect().await.unwrap();
//! assert!(sentences.0.lock().unwrap()[0].contains("503 (overloaded)"));
//! # }
//! ```
//!
//! For a stack that returns [`FinalImage`](crate::FinalImage)s use [`ObserveLayer::whole_responses`].
//!
//! # Order in the stack
//!
//! Outermost, outside [`CollectRequest`](crate::CollectRequest) and outside the layer that completes
//! calls of disconnected clients: only there are all attempts of a call, and its client, visible. Of
//! two observing layers the outer one reports. The call's short name ([`CallId`]) and its trail are
//! in the response's extensions.
//!
//! # Events
//!
//! One per step of a trail and one per call, all with target `tower_gemini::observe` and the same
//! field names. Fields without a value are omitted. `model` is the model that responded. Where the
//! response names another one than the request did, `asked` is the request's; where it names
//! another service tier, `tier` is the one that it was served in.
//!
//! | `step` | level | reports | next to `call`, `attempt`, `model`, `size`, `outcome`, `charge` |
//! | --- | --- | --- | --- |
//! | `attempt` | debug | the end of an attempt, body included | `status`, `quota`, `reason`, `cost_at_least_microusd`, `cost_at_most_microusd`, `took_ms` |
//! | `waited` | debug | the start of a wait | `delay_ms`, `why`: `backoff`, `server_hint`, `own_quota`, `pacing`, `spending_cap`, `cooldown`, `outage`, `quiet_hours` |
//! | `stopped` | debug | that nothing more is sent | `why`: as in the trail's JSON (`attempts_used_up`, `charged` …) |
//! | `fell_back` | info | that a fallback leaves a target | `from`, `to`; `outcome` is the cause |
//! | `skipped` | debug | that a fallback skips a target | `to`: the target, `why`, `delay_ms`: its remaining cooldown |
//! | `degraded` | info | that the next attempt requests less | `why`: everything given up |
//! | `replaced` | debug | that a retired model is replaced by its successor | `from`, `to` |
//! | `preferred` | debug | that another model is tried first | `from`, `to`, `why` |
//! | `signed` | debug | that thought signatures were added to the request | |
//! | `interaction` | debug | that the response named its interaction | `reason`: the id |
//! | `fetched` | info | that an interaction whose response broke off was fetched by its id | `why`: `poll`, `stream`; `status`; `reason`: the status of the interaction |
//! | `client_disconnected` | info | that the client disconnected and the attempt continues | |
//! | `stored`, `not_stored` | info | what became of such a response | `why` |
//! | `replayed` | info | that a stored response is replayed | `took_ms`: its age, and its cost then |
//! | `call` | info | the end of the call; the message is a sentence about it | `outcome`, `charge` and cost of the whole call, `took_ms`; `attempt` is the number of attempts |
//!
//! `attempt` counts from 1; a decision carries the outcome of the attempt before it. `outcome` is a
//! name of [`Outcome`](crate::verdict::Outcome) or [`CallOutcome`]. A call that shows a
//! systemic outage is a warning. Layers emit events of their own only for what is not part of a
//! call: quota alerts, failures of a store. No event contains a prompt.
//!
//! # Metrics
//!
//! With the feature `metrics`, recorded through the facade of the crate `metrics`:
//!
//! | name | kind | labels |
//! | --- | --- | --- |
//! | `gemini_calls_total` | counter | `kind` (`generate`, `other`), `outcome` |
//! | `gemini_attempts_total` | counter | `model`, `outcome`, `charge` |
//! | `gemini_call_duration_seconds` | histogram | `result` (`success`, `failure`, `client_disconnected`) |
//! | `gemini_attempt_duration_seconds` | histogram | `model`, `outcome` |
//! | `gemini_wait_seconds` | histogram | `why` |
//! | `gemini_calls_in_flight` | gauge | |
//! | `gemini_images_delivered_total`, `gemini_drafts_total` | counter | |
//! | `gemini_cost_at_least_microusd_total`, `gemini_cost_at_most_microusd_total` | counter | `model` |
//! | `gemini_unpriced_attempts_total` | counter | `model`: attempts that the upper bound leaves out |
//! | `gemini_cost_per_image_microusd` | histogram | `bound` (`at_least`, `at_most`) |
//! | `gemini_quota_requests_at_least_total`, `gemini_quota_requests_at_most_total` | counter | `model` |
//! | `gemini_retries_total`, `gemini_fallback_attempts_total` | counter | |
//! | `gemini_fallbacks_total` | counter | `outcome` that caused it |
//! | `gemini_degradations_total` | counter | `what` |
//! | `gemini_skipped_targets_total`, `gemini_stops_total`, `gemini_preferred_total`, `gemini_not_stored_responses_total` | counter | `why` |
//! | `gemini_continued_calls_total`, `gemini_client_disconnects_total`, `gemini_stored_responses_total`, `gemini_replayed_responses_total` | counter | |
//! | `gemini_quota_used_ratio` | gauge | `model`, `dimension`; set by `record_quota` |
//! | `gemini_circuits_open` | gauge | set by `record_circuits` |
//!
//! `model` is a model of the catalogue, `other` or `none`, so clients cannot create series. The
//! ratio of 429s to 503s is
//! `sum(rate(gemini_attempts_total{outcome=~"rate_limit.*|spend.*|quota.*"}[1h])) /
//! sum(rate(gemini_attempts_total{outcome="overloaded"}[1h]))`. Without a recorder a metric costs an
//! atomic load.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | models by name | those of the built-in catalogue | |
//! | observers | none but metrics | |
//!
//! A response is delivered when its body was read to its end, or when as many bytes were read as it
//! announced.
//!
//! # Errors
//!
//! The inner service's own, unchanged.
//!
//! # Cancel safety
//!
//! A dropped call is reported once, as one whose client disconnected, after the inner layers have
//! recorded what may have been charged. The outcome of an attempt that continues without its client
//! is reported when it is known.

mod body;
mod clip;
mod events;
mod layer;
#[cfg(feature = "metrics")]
mod metrics;
pub(crate) mod observer;
mod outcome;
mod sentence;
mod service;
mod watch;

pub use body::ObservedBody;
pub use events::{reason_name, wait_name};
pub use layer::{ObserveLayer, ObserveWholeLayer};
#[cfg(feature = "metrics")]
pub use metrics::{describe_metrics, record_circuits, record_quota};
pub use observer::{
    CallEnd, CallId, CallInfo, CallObserver, ObservedStep, SendKind, attempts, charge_of, cost_of,
    images_of, is_service_fault,
};
pub use outcome::CallOutcome;
pub use sentence::is_under_way;
pub use service::{AtBodyEnd, AtHead, EndsCall, Observe, ObserveWhole};

use tower_gemini_core::call::ModelId;
use tower_gemini_core::catalog::Catalog;

/// Returns the name under which a model is counted: its id in the catalogue (aliases and versions
/// count as the model they stand for), `other`, or `none`.
///
/// ```
/// use tower_gemini::call::ModelId;
/// use tower_gemini::catalog::Catalog;
/// use tower_gemini::observe::model_label;
///
/// let label = |name: &str| model_label(Catalog::builtin(), Some(&ModelId::new(name)));
/// assert_eq!(label("nano-banana-pro"), "gemini-3-pro-image");
/// assert_eq!(label("whatever-a-client-types"), "other");
/// assert_eq!(model_label(Catalog::builtin(), None), "none");
/// ```
#[must_use]
pub fn model_label<'a>(catalog: &'a Catalog, model: Option<&ModelId>) -> &'a str {
    let Some(model) = model else { return "none" };
    catalog.lookup_version(model.as_str()).map_or("other", |model| &model.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_models_of_the_catalogue_are_counted_by_name() {
        let of = |model: &str| model_label(Catalog::builtin(), Some(&ModelId::new(model)));
        assert_eq!(of("gemini-3-pro-image"), "gemini-3-pro-image");
        assert_ne!(of("gemini-3-pro-image-preview"), "other", "old names are known");
        assert_eq!((of("whatever-a-client-types"), of("none")), ("other", "other"));
        assert_eq!(model_label(Catalog::builtin(), None), "none");
    }
}
