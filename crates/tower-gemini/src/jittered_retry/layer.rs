use std::sync::{Arc, Mutex};

use tower_layer::Layer;

use super::service::Shared;
use super::{JitteredRetry, RetryPolicy};
use crate::stage::AttemptService;

/// Makes [`JitteredRetry`] services that share one retry budget and one source of randomness.
#[derive(Debug, Clone)]
pub struct JitteredRetryLayer {
    shared: Arc<Shared>,
}

impl JitteredRetryLayer {
    /// Retries by `policy`.
    #[must_use]
    pub fn new(policy: RetryPolicy) -> Self {
        Self { shared: Arc::new(Shared { policy, random: Mutex::new(fastrand::Rng::new()) }) }
    }

    /// Retries by [`RetryPolicy::recommended`].
    #[must_use]
    pub fn recommended() -> Self {
        Self::new(RetryPolicy::recommended())
    }

    /// Switched off: one attempt of each call, as [`SingleAttempt`](crate::SingleAttempt) makes.
    #[must_use]
    pub fn off() -> Self {
        Self::new(RetryPolicy::never())
    }

    /// Draws jitter from this seed, so that a run can be repeated.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Self { shared: Arc::new(Shared { policy: self.shared.policy.clone(), random }) }
    }
}

impl<S: AttemptService> Layer<S> for JitteredRetryLayer {
    type Service = JitteredRetry<S>;

    fn layer(&self, inner: S) -> Self::Service {
        JitteredRetry { inner, shared: self.shared.clone() }
    }
}
