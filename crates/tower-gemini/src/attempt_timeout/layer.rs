use std::time::Duration;

use tower_gemini_core::call::ImageSize;
use tower_layer::Layer;

use super::AttemptTimeout;
use super::limits::{Limits, index};
use crate::stage::AttemptService;

/// Makes [`AttemptTimeout`] services.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttemptTimeoutLayer {
    limits: Limits,
}

impl AttemptTimeoutLayer {
    /// The defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The limit of attempts at this size.
    #[must_use]
    pub fn limit_for(mut self, size: ImageSize, limit: Duration) -> Self {
        if let Some(slot) = self.limits.by_size.get_mut(index(size)) {
            *slot = limit;
        }
        self
    }

    /// The longest limit that a caller can ask for with `X-Server-Timeout`. A limit of a size that
    /// is longer holds all the same.
    #[must_use]
    pub fn longest(mut self, limit: Duration) -> Self {
        self.limits.longest = limit;
        self
    }

    /// The limit of every attempt, whatever its size.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limits.by_size = [limit; 4];
        self.limits.other = limit;
        self
    }

    /// How much earlier than we the server is asked to give up.
    #[must_use]
    pub fn server_margin(mut self, margin: Duration) -> Self {
        self.limits.margin = margin;
        self
    }

    /// The longest gap between two chunks of a body.
    #[must_use]
    pub fn idle_limit(mut self, limit: Duration) -> Self {
        self.limits.idle = Some(limit);
        self
    }

    /// Lets a body trickle as slowly as it likes, within the attempt's limit.
    #[must_use]
    pub fn no_idle_limit(mut self) -> Self {
        self.limits.idle = None;
        self
    }
}

impl<S: AttemptService> Layer<S> for AttemptTimeoutLayer {
    type Service = AttemptTimeout<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AttemptTimeout::new(inner, self.limits)
    }
}
