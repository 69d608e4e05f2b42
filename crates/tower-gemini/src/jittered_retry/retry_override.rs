//! How one request is retried, where a layer outside knows better than the policy.

use std::sync::Arc;

use super::RetryPolicy;

/// How one request is to be retried, in its extensions: put there by a layer outside, such as a
/// fallback whose targets are tried a number of times each, and read by
/// [`JitteredRetry`](crate::JitteredRetry).
///
/// A policy of its own replaces the layer's, all but the retry budget, which all calls share unless
/// the policy brings one.
#[derive(Debug, Clone, Default)]
pub struct RetryOverride {
    policy: Option<Arc<RetryPolicy>>,
    attempts: Option<u32>,
}

impl RetryOverride {
    /// Retries as the layer does.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Retries by this policy.
    #[must_use]
    pub fn policy(mut self, policy: Arc<RetryPolicy>) -> Self {
        self.policy = Some(policy);
        self
    }

    /// At most so many sends in all.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// The policy that holds, given the layer's own.
    pub(super) fn over(&self, own: &RetryPolicy) -> RetryPolicy {
        let policy = match &self.policy {
            Some(policy) => RetryPolicy::clone(policy).budget_of(own),
            None => own.clone(),
        };
        match self.attempts {
            Some(attempts) => policy.attempts(attempts),
            None => policy,
        }
    }
}
