use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tower_layer::Layer;

use super::outages::Outages;
use super::resend::Resends;
use super::service::Shared;
use super::{JitteredRetry, RetryPolicy};
use crate::stage::AttemptService;

/// Makes [`JitteredRetry`] services that share one retry budget, one source of randomness, and what
/// they know of outages and of calls that failed.
#[derive(Debug, Clone)]
pub struct JitteredRetryLayer {
    shared: Arc<Shared>,
}

impl JitteredRetryLayer {
    /// Retries by `policy`.
    #[must_use]
    pub fn new(policy: RetryPolicy) -> Self {
        let random = Mutex::new(fastrand::Rng::new());
        Self {
            shared: Arc::new(Shared { policy, random, resends: None, outages: Outages::default() }),
        }
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
        self.with(|shared| shared.random = Mutex::new(fastrand::Rng::with_seed(seed)))
    }

    /// Lets the resend of a client that retries by itself go on with the call that failed: its
    /// attempts count, one more is made, and not before the next would have been. A request counts
    /// as a resend when it is identical, from the same caller, and comes within `window` of the
    /// moment in which the next attempt would have been made. Default: zero, each request is a call
    /// of its own.
    #[must_use]
    pub fn continue_resends(self, window: Duration) -> Self {
        self.with(|shared| shared.resends = Resends::within(window))
    }

    fn with(self, change: impl FnOnce(&mut Shared)) -> Self {
        let Shared { policy, random, resends, .. } = &*self.shared;
        let random = random.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let resends = resends.as_ref().and_then(|resends| Resends::within(resends.window()));
        let (policy, outages) = (policy.clone(), Outages::default());
        let mut shared = Shared { policy, random: Mutex::new(random), resends, outages };
        change(&mut shared);
        Self { shared: Arc::new(shared) }
    }
}

impl<S: AttemptService> Layer<S> for JitteredRetryLayer {
    type Service = JitteredRetry<S>;

    fn layer(&self, inner: S) -> Self::Service {
        JitteredRetry { inner, shared: self.shared.clone() }
    }
}
