//! What an observer of calls sees.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::trail::{Attempt, Step, Trail};
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Charge, Outcome};

use super::clip;
use super::outcome::CallOutcome;

/// Sees every call from its start to its end: the basis of metrics, statistics and reports.
///
/// Methods run in whichever task works on the call and must not block. All texts are redacted and
/// of bounded length.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use tower_gemini::ObserveLayer;
/// use tower_gemini::observe::{CallEnd, CallInfo, CallObserver};
///
/// #[derive(Default)]
/// struct Failures(AtomicU64);
/// impl CallObserver for Failures {
///     fn on_end(&self, _: &CallInfo, end: &CallEnd<'_>) {
///         self.0.fetch_add(u64::from(end.outcome.is_failure()), Ordering::Relaxed);
///     }
/// }
///
/// let failures = Arc::new(Failures::default());
/// let layer = ObserveLayer::new().observer(failures.clone());
/// # let _ = layer;
/// ```
pub trait CallObserver: Send + Sync {
    /// A call starts.
    fn on_start(&self, _call: &CallInfo) {}

    /// A request is sent upstream.
    fn on_send(&self, _call: &CallInfo, _kind: SendKind) {}

    /// A step of the call's trail is known; an attempt once its body has ended. Steps of a call
    /// that is completed without its client come after [`on_end`](Self::on_end).
    fn on_step(&self, _call: &CallInfo, _step: &ObservedStep<'_>) {}

    /// The call has ended.
    fn on_end(&self, _call: &CallInfo, _end: &CallEnd<'_>) {}
}

/// The observer of one call.
#[derive(Clone)]
pub(crate) struct OwnObserver(pub(crate) Arc<dyn CallObserver>);

impl fmt::Debug for OwnObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnObserver")
    }
}

/// Identifies a call.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CallInfo {
    /// The `call` of its log lines.
    pub id: CallId,
    /// Whether it asks a model to generate something. Only such calls belong in success rates: a
    /// thousand token counts that succeed are no images.
    pub generates: bool,
}

/// The short name of a call in log lines (`3fa1-2c`), also in the response's extensions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallId(pub(super) Arc<str>);

impl CallId {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendKind {
    /// The first attempt of a call.
    First,
    /// A retry at the same target.
    Retry,
    /// An attempt at another target.
    Fallback,
}

/// A step of a call's trail.
#[derive(Debug)]
#[non_exhaustive]
pub struct ObservedStep<'a> {
    /// The step.
    pub step: &'a Step,
    /// How many requests the call has sent so far.
    pub attempt: u32,
    /// The name under which the model of an attempt is counted: that of the model which responded,
    /// in the layer's catalogue ([`model_label`](super::model_label)). `none` for other steps.
    pub model: &'a str,
}

/// How a call ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallEnd<'a> {
    /// The call's outcome for its client.
    pub outcome: CallOutcome,
    /// From start to end, in the runtime's time.
    pub took: Duration,
    /// One sentence about the call: the message of its `call` event.
    pub sentence: &'a str,
    pub(super) trail: &'a Trail,
    /// Steps that were in the trail before the call.
    pub(super) skip: usize,
}

impl CallEnd<'_> {
    /// Returns the steps of the call so far.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.trail.steps().iter().skip(self.skip).map(clip::step).collect()
    }
}

/// Returns the attempts among steps.
pub fn attempts(steps: &[Step]) -> impl DoubleEndedIterator<Item = &Attempt> {
    steps.iter().filter_map(Step::as_attempt)
}

/// Returns what all attempts among steps cost.
#[must_use]
pub fn cost_of(steps: &[Step]) -> Cost {
    attempts(steps).map(|attempt| attempt.cost).sum()
}

/// Returns how many images the last attempt's response held, drafts included.
#[must_use]
pub fn images_of(steps: &[Step]) -> u32 {
    attempts(steps).next_back().and_then(|last| last.images).unwrap_or(1)
}

/// Returns the worst charge of all attempts among steps.
#[must_use]
pub fn charge_of(steps: &[Step]) -> Charge {
    let severity = |charge: &Charge| match charge {
        Charge::None => 0,
        Charge::Waived => 1,
        Charge::Maybe => 2,
        Charge::Charged => 3,
    };
    attempts(steps).map(|attempt| attempt.charge).max_by_key(severity).unwrap_or(Charge::None)
}

/// Whether a call shows an outage of the whole service: at least three attempts, at two models or
/// more, all failed by the service's own fault.
pub(super) fn is_systemic(steps: &[Step]) -> bool {
    let all: Vec<_> = attempts(steps).collect();
    let is_service_fault = |attempt: &&Attempt| attempt.outcome.is_some_and(is_service_fault);
    all.len() >= 3
        && all.iter().any(|attempt| attempt.model != all[0].model)
        && all.iter().all(is_service_fault)
}

/// Whether the service is at fault (500, 502, 503, 504), and not the request, the account or the
/// connection.
#[must_use]
pub fn is_service_fault(outcome: Outcome) -> bool {
    use Outcome::{BadGateway, Deadline, Internal, Overloaded};
    matches!(outcome, Overloaded | Internal | Deadline | BadGateway)
}
