//! What a caller may want of one call.

use std::time::Duration;

use tower_gemini_core::call::ModelId;
use tower_gemini_core::target::MustKeep;

use crate::jittered_retry::RetryOverride;
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

    /// How many times the call may be sent again after an attempt that may have been paid for.
    /// Default 0.
    #[must_use]
    pub fn maybe_charged_resends(mut self, resends: u32) -> Self {
        self.maybe_charged_resends = Some(resends);
        self
    }

    /// Writes the trail of this call here too, readable even when the call is dropped or fails.
    #[must_use]
    pub fn trail(mut self, trail: Trail) -> Self {
        self.trail = Some(trail);
        self
    }

    /// What no fallback may give up. Default: everything may be given up for an image.
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

    /// Lets [`PeakHourRouter`](crate::PeakHourRouter) hold the call back this long for an hour in
    /// which it is likelier to succeed. Default: it is sent at once.
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
