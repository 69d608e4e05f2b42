//! Sees what becomes of every call: events, metrics, figures by the hour and the day, and what they
//! mean in words.
//!
//! The layers write what they decide into the call's [`Trail`](tower_gemini_core::trail::Trail). This one
//! reads along with it, times the call, sees its answer's body to its end, and tells it from one
//! place: as `tracing` events, as counters and histograms of the `metrics` facade, and in an
//! [`Observatory`] that can be asked at any time.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_gemini::observe::{Health, ObserveLayer};
//! use tower_gemini::GeminiStack;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // Any client will do; this one has no capacity.
//! let client = service_fn(|_| async {
//!     let body = br#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
//!     Ok::<_, std::io::Error>(Response::builder().status(503).body(Full::new(Bytes::from_static(body))).unwrap())
//! });
//! let layer = ObserveLayer::new();
//! let observatory = layer.observatory();
//! let gemini = layer.layer(GeminiStack::new().raw(client));
//!
//! for _ in 0..5 {
//!     let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(Full::new(Bytes::new())).unwrap();
//!     let response = gemini.clone().oneshot(request).await.unwrap();
//!     // A call is over when its body is.
//!     response.into_body().collect().await.unwrap();
//! }
//! let report = observatory.report();
//! assert_eq!((report.last_hour.calls, report.hour.health), (5, Health::Failing));
//! assert_eq!(report.hour.short(), "no capacity");
//! assert!(report.recent[0].sentence.contains("503 (overloaded)"));
//! # }
//! ```
//!
//! For a stack that answers with [`FinalImage`](crate::FinalImage)s there is
//! [`ObserveLayer::whole_answers`].
//!
//! # Order in the stack
//!
//! Outermost, outside [`CollectRequest`](crate::CollectRequest) and outside whatever finishes calls
//! whose callers left: only there are all attempts of a call, and its caller, in sight. Of two
//! observing layers the outer one tells. The call's short name ([`CallId`]) and its trail are in
//! the response's extensions.
//!
//! # Events
//!
//! One for each step of a trail, and one for the call, all with the target `tower_gemini::observe`
//! and the same field names. Fields that say nothing are left out.
//!
//! | `step` | level | says | beside `call`, `attempt`, `model`, `size`, `outcome`, `charge` |
//! | --- | --- | --- | --- |
//! | `attempt` | debug | an attempt ended, its body too | `status`, `quota`, `reason`, `cost_at_least_microusd`, `cost_at_most_microusd`, `took_ms` |
//! | `waited` | debug | a wait begins | `delay_ms`, `why`: `backoff`, `server_hint`, `own_quota`, `quiet_hours` |
//! | `stopped` | debug | nothing more is sent | `why`: as in the trail's JSON (`attempts_used_up`, `charged` …) |
//! | `fell_back` | info | a fallback leaves a target | `from`, `to`; `outcome` is what it leaves for |
//! | `skipped` | debug | a fallback passes a target over | `to`: the target, `why`, `delay_ms`: how long it still rests |
//! | `degraded` | info | something else is asked for | `why`: all that is given up |
//! | `succeeded` | debug | a retired model's successor takes its place | `from`, `to` |
//! | `preferred` | debug | another model is to lead | `from`, `to`, `why` |
//! | `signed` | debug | signatures are written into the request | |
//! | `caller_left` | info | the call goes on without its caller | |
//! | `kept`, `not_kept` | info | what became of such an answer | `why` |
//! | `redeemed` | info | a kept answer is given | `took_ms`: its age, and what it cost then |
//! | `call` | info | the call is over; the message is a sentence about it | `outcome`, `charge` and cost of the whole call, `took_ms`; `attempt` is how many |
//!
//! `attempt` counts from 1; beside a decision stands what the attempt before it ended in. `outcome`
//! is a word of [`Outcome`](tower_gemini_core::verdict::Outcome) or [`CallOutcome`]. A call that shows a
//! systemic outage is told as a warning. Layers have events of their own only for what no trail
//! holds: alerts of a quota, failures of a store, lessons learned. Prompts are in no event.
//!
//! # Metrics
//!
//! | name | kind | labels |
//! | --- | --- | --- |
//! | `gemini_calls_total` | counter | `kind` (`generate`, `other`), `outcome` |
//! | `gemini_attempts_total` | counter | `model`, `outcome`, `charge` |
//! | `gemini_call_duration_seconds` | histogram | `result` (`success`, `failure`, `caller_left`) |
//! | `gemini_attempt_duration_seconds` | histogram | `model`, `outcome` |
//! | `gemini_wait_seconds` | histogram | `why` |
//! | `gemini_calls_in_flight` | gauge | |
//! | `gemini_images_delivered_total`, `gemini_drafts_total` | counter | |
//! | `gemini_cost_at_least_microusd_total`, `gemini_cost_at_most_microusd_total` | counter | `model` |
//! | `gemini_unpriced_attempts_total` | counter | `model`: attempts that the counter before leaves out |
//! | `gemini_cost_per_image_microusd` | histogram | `bound` (`at_least`, `at_most`) |
//! | `gemini_quota_requests_at_least_total`, `gemini_quota_requests_at_most_total` | counter | `model` |
//! | `gemini_resends_total`, `gemini_fallbacks_total` | counter | |
//! | `gemini_moved_on_total` | counter | `outcome` that was left for |
//! | `gemini_degradations_total` | counter | `what` |
//! | `gemini_skipped_targets_total`, `gemini_stops_total`, `gemini_preferred_total`, `gemini_not_kept_answers_total` | counter | `why` |
//! | `gemini_callers_left_total`, `gemini_kept_answers_total`, `gemini_redeemed_answers_total` | counter | |
//! | `gemini_quota_used_ratio` | gauge | `model`, `dimension`; set by [`record_quota`] |
//! | `gemini_circuits_open` | gauge | set by [`record_circuits`] |
//!
//! `model` is a model of the catalogue, `other` or `none`: callers cannot make series. The ratio of
//! 429s to 503s is `sum(rate(gemini_attempts_total{outcome=~"rate_limit.*|spend.*|quota.*"}[1h])) /
//! sum(rate(gemini_attempts_total{outcome="overloaded"}[1h]))`. With no recorder installed a metric
//! costs an atomic load.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | failure targets | < 5 % off peak, < 20 % at peak | article 001 |
//! | peak hours | none known: both targets are shown | yours to say |
//! | too aggressive | more than 80 % of the failures are 429s | article 001 |
//! | fewest calls that say something | 5 ([`FEWEST_CALLS`]) | ours: one failure in four is no rate |
//! | figures | twelve times five minutes, 48 hours, 30 days, in UTC | hourly is enough (article 001) |
//! | calls kept with their trails | 50, of each a hundred steps | ours: about 1 MB at worst |
//! | models by name | the built-in catalogue's | |
//!
//! Rates are of calls that ask a model to make something, and whose callers stayed. An answer is
//! delivered when its body was read to its end, or when as many bytes were read as it announced.
//!
//! # Errors
//!
//! The inner service's own, unchanged.
//!
//! # Cancel safety
//!
//! A call that is dropped is counted once, as one whose caller left, after the layers inside have
//! written down what may have been paid. What becomes of an attempt that goes on without its caller
//! is told when it is known.

mod body;
mod clip;
mod diagnosis;
mod events;
mod latency;
mod layer;
mod measure;
mod names;
mod observatory;
mod outcome;
mod recent;
mod report;
mod sentence;
mod service;
mod tally;

pub use body::ObservedBody;
pub use diagnosis::{
    Cause, Diagnosis, FEWEST_CALLS, Health, HealthTargets, LimitKind, USELESS_AGAINST_503,
};
pub use layer::{ObserveLayer, ObserveWholeLayer};
pub use measure::{describe_metrics, record_circuits, record_quota};
pub use observatory::{CallId, Observatory};
pub use outcome::{CallOutcome, FailureKind};
pub use recent::FinishedCall;
pub use report::{Hour, ModelWindow, Report, Seconds, Wait, Window};
pub use service::{Observe, ObserveWhole, ResponseFuture, WholeFuture};
