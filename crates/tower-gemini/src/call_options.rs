//! Per-call options, and handles of calls.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tower_gemini_core::call::ModelId;
use tower_gemini_core::target::MustKeep;
use tower_gemini_core::verdict::{Charge, Verdict};

use crate::call_memory::CallMemory;
use crate::call_state::{CallState, severity};
use crate::error::Error;
use crate::jittered_retry::RetryOverride;
use crate::observe::observer::{CallObserver, OwnObserver};
use crate::trail::Trail;

/// Per-call options, set in the request's extensions and read by
/// [`CollectRequest`](crate::CollectRequest).
///
/// ```
/// use std::time::Duration;
/// use tower_gemini::{CallOptions, Trail};
///
/// let trail = Trail::new(); // readable while the call runs, and after it was dropped
/// let options = CallOptions::new()
///     .deadline(Duration::from_secs(120))
///     .maybe_charged_resends(1)
///     .trail(trail.clone());
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(options);
/// ```
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    pub(crate) deadline: Option<Duration>,
    pub(crate) maybe_charged_resends: Option<u32>,
    pub(crate) trail: Option<Trail>,
    pub(crate) must_keep: MustKeep,
    pub(crate) preferred: Option<ModelId>,
    pub(crate) patience: Option<Duration>,
    pub(crate) retry: RetryOverride,
    pub(crate) is_idempotent: bool,
    pub(crate) handle: Option<CallHandle>,
    pub(crate) memory: Option<Arc<dyn CallMemory>>,
    pub(crate) observer: Option<OwnObserver>,
}

impl CallOptions {
    /// No options: the layers' own settings hold.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The time the whole call may take, all attempts and waits included.
    #[must_use]
    pub fn deadline(mut self, within: Duration) -> Self {
        self.deadline = Some(within);
        self
    }

    /// How many times the call may be resent after an attempt that may have been charged.
    /// Default 0.
    #[must_use]
    pub fn maybe_charged_resends(mut self, resends: u32) -> Self {
        self.maybe_charged_resends = Some(resends);
        self
    }

    /// Records the steps of this call in this trail, readable even when the call is dropped or fails.
    #[must_use]
    pub fn trail(mut self, trail: Trail) -> Self {
        self.trail = Some(trail);
        self
    }

    /// What no fallback may give up. Default: everything may be given up.
    #[must_use]
    pub fn must_keep(mut self, must_keep: MustKeep) -> Self {
        self.must_keep = must_keep;
        self
    }

    /// The model that [`ModelFallback`](crate::ModelFallback) tries first, in place of the one
    /// that the call names. Without that layer it changes nothing.
    #[must_use]
    pub fn prefer_model(mut self, model: ModelId) -> Self {
        self.preferred = Some(model);
        self
    }

    /// Lets [`PeakHourRouter`](crate::PeakHourRouter) delay the call this long for an hour in which
    /// it is likelier to succeed. Default: it is sent at once.
    #[must_use]
    pub fn deferrable_for(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// How [`JitteredRetry`](crate::JitteredRetry) retries this call, in place of its own policy.
    #[must_use]
    pub fn retry(mut self, retry: RetryOverride) -> Self {
        self.retry = retry;
        self
    }

    /// Says that sending the request twice does no harm, for requests that the library does not
    /// recognise. It changes nothing for calls that can be charged.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.is_idempotent = true;
        self
    }

    /// Makes this request part of the call that the handle stands for. Default: a call of its own.
    #[must_use]
    pub fn handle(mut self, handle: CallHandle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// Accounts for what is held of the response, and is dropped when the call has ended, with its
    /// client or without. Default: nothing is accounted for.
    #[must_use]
    pub fn memory(mut self, memory: Arc<dyn CallMemory>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Reports this call to an observer of its own, after those of
    /// [`ObserveLayer`](crate::ObserveLayer): for what knows the request, such as a span below its
    /// caller's. Without that layer it changes nothing. Default: none.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn CallObserver>) -> Self {
        self.observer = Some(OwnObserver(observer));
        self
    }

    /// The time the whole call may take, where it was set.
    #[must_use]
    pub fn deadline_within(&self) -> Option<Duration> {
        self.deadline
    }

    /// The trail that was set, or one that is set now: for layers outside the one that starts the
    /// call.
    pub fn trail_mut(&mut self) -> &mut Trail {
        self.trail.get_or_insert_default()
    }
}

impl CallState {
    /// The state of a call with these options that starts now.
    pub(crate) fn new(options: CallOptions) -> Self {
        let CallOptions { deadline, maybe_charged_resends, must_keep, patience, .. } = options;
        let trail = options.trail.unwrap_or_default();
        Self::open(trail, must_keep, deadline, maybe_charged_resends, patience, options.preferred)
            .with_memory(options.memory)
    }
}

/// One call that may pass through the stack more than once, as when a retrying client stands above
/// it.
///
/// A further request with the same handle is sent if nothing before it was charged. If an earlier
/// one may have been charged, the request fails before anything is sent, unless the caller allows
/// it ([`CallOptions::maybe_charged_resends`]); what was charged is never resent, nor is an
/// interaction whose id is known. O(1) to clone; the clones stand for the same call.
#[derive(Clone, Default)]
pub struct CallHandle(Arc<Mutex<Vec<CallState>>>);

impl CallHandle {
    /// A call that has not been sent.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The most that any of its attempts was or may have been charged so far.
    #[must_use]
    pub fn charge(&self) -> Charge {
        let passes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let charges = passes.iter().map(CallState::worst_charge);
        charges.max_by_key(|&charge| severity(charge)).unwrap_or(Charge::None)
    }

    fn has_interaction(&self) -> bool {
        let passes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passes.iter().any(CallState::has_interaction)
    }

    /// Adds a pass, or returns an error if it must not be sent.
    pub(crate) fn enter(&self, state: &CallState) -> Result<(), Error> {
        let charge = self.charge();
        let allowed = match charge {
            Charge::None | Charge::Waived => true,
            Charge::Maybe => {
                !self.has_interaction() && state.permit_after(&Verdict::interrupted()).is_some()
            }
            Charge::Charged => false,
        };
        if !allowed {
            return Err(Error::sent_before(charge).with_trail(state.trail().clone()));
        }
        // What was free before says nothing more.
        let mut passes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passes.retain(|state| !state.worst_charge().is_surely_free());
        passes.push(state.clone());
        Ok(())
    }
}

impl fmt::Debug for CallHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallHandle").field("charge", &self.charge()).finish()
    }
}
