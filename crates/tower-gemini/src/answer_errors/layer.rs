use crate::stage::CallerService;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tower_layer::Layer;

use super::{AnswerErrors, RetryHeaders};
use crate::clock::{Clock, SystemClock};

/// Makes [`AnswerErrors`] services.
#[derive(Debug, Clone)]
pub struct AnswerErrorsLayer {
    pub(super) told: RetryHeaders,
    pub(super) clock: Arc<dyn Clock>,
}

impl AnswerErrorsLayer {
    /// Creates a layer with the defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        Self { told: RetryHeaders::default(), clock: Arc::new(SystemClock) }
    }

    /// Sets the status of an error that was or may have been charged. Clients with retries of their
    /// own pay again after a 408, 409, 429 or 5xx.
    #[must_use]
    pub fn status_when_charged(mut self, status: StatusCode) -> Self {
        self.told.charged = status;
        self
    }

    /// Sets the longest wait that `Retry-After` states. A longer one (a day's limit is hours away)
    /// stands in `x-closed-for`, which no client sleeps for. Default: 120 s.
    #[must_use]
    pub fn longest_retry_after(mut self, wait: Duration) -> Self {
        self.told.longest_retry_after = wait;
        self
    }

    /// Sets the wall clock that the time to midnight Pacific is computed from.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

impl Default for AnswerErrorsLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: CallerService<Failure = crate::Error>> Layer<S> for AnswerErrorsLayer {
    type Service = AnswerErrors<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AnswerErrors::new(inner, self.clone())
    }
}
