//! How one call is retried, where its caller or a layer outside knows better than the policy.

use std::sync::Arc;

use super::{Before, RetryPolicy};

/// How one call is to be retried by [`JitteredRetry`](crate::JitteredRetry): set by its caller with
/// [`CallOptions::retry`](crate::CallOptions::retry), or by a fallback whose targets are tried a
/// number of times each.
///
/// A policy of its own replaces the layer's, all but the retry budget, which all calls share unless
/// the policy brings one.
#[derive(Debug, Clone, Default)]
pub struct RetryOverride {
    policy: Option<Arc<RetryPolicy>>,
    attempts: Option<u32>,
    has_elsewhere: bool,
    has_other_account: bool,
    comes_back: Option<Box<Before>>,
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
        (self.policy, self.comes_back) = (Some(policy), None);
        self
    }

    /// At most so many sends in all.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        (self.attempts, self.comes_back) = (Some(attempts), None);
        self
    }

    /// Something else can be asked for at once, another model or a smaller size.
    pub(crate) fn elsewhere(mut self, has_elsewhere: bool) -> Self {
        self.has_elsewhere = has_elsewhere;
        self
    }

    pub(crate) fn has_elsewhere(&self) -> bool {
        self.has_elsewhere
    }

    /// Another account can be asked at once.
    pub(crate) fn other_account(mut self, has_other_account: bool) -> Self {
        self.has_other_account |= has_other_account;
        self
    }

    pub(crate) fn has_other_account(&self) -> bool {
        self.has_other_account
    }

    /// A fallback outside comes back for resends that have long to wait, and for all of them where
    /// something else can be asked for at once. A number of attempts or a policy that is set after
    /// this ends it.
    pub(crate) fn comes_back(mut self, before: Before) -> Self {
        self.comes_back = Some(Box::new(before));
        self
    }

    /// What is remembered of the attempts made so far, where a fallback comes back for further ones.
    pub(crate) fn before(&self) -> Option<&Before> {
        self.comes_back.as_deref()
    }

    /// The policy that holds in place of the layer's own, where this changes anything.
    pub(crate) fn over(&self, own: &RetryPolicy) -> Option<RetryPolicy> {
        let policy = match &self.policy {
            Some(policy) => RetryPolicy::clone(policy).budget_of(own),
            None if self.attempts.is_some() => own.clone(),
            None => return None,
        };
        Some(match self.attempts {
            Some(attempts) => policy.attempts(attempts),
            None => policy,
        })
    }
}
