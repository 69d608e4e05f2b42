//! How many resends all calls together may make, in whole tokens.

use std::sync::Arc;

use crate::sync::{AtomicU32, Ordering};

/// A bucket that resends are paid from, shared by all clones of a layer.
///
/// When everything fails, a client that retries everything multiplies the load on a service that
/// cannot bear it. The bucket empties then, and only first attempts go out. Whole tokens: a peer's
/// fractions were cut to whole numbers, and 0.6 became all.
///
/// ```
/// use tower_gemini::jittered_retry::RetryBudget;
///
/// let budget = RetryBudget::new(20, 10, 1);
/// assert!(budget.withdraw());
/// assert!(budget.withdraw());
/// assert!(!budget.withdraw());
/// ```
#[derive(Debug, Clone)]
pub struct RetryBudget(Arc<Bucket>);

#[derive(Debug)]
struct Bucket {
    tokens: AtomicU32,
    capacity: u32,
    resend_cost: u32,
    success_refund: u32,
}

impl RetryBudget {
    /// A full bucket of `capacity` tokens. A resend takes `resend_cost`, a success puts
    /// `success_refund` back.
    #[must_use]
    pub fn new(capacity: u32, resend_cost: u32, success_refund: u32) -> Self {
        Self(Arc::new(Bucket {
            tokens: AtomicU32::new(capacity),
            capacity,
            resend_cost,
            success_refund,
        }))
    }

    /// Takes the tokens of one resend, or none at all.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        self.0
            .tokens
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |tokens| {
                tokens.checked_sub(self.0.resend_cost)
            })
            .is_ok()
    }

    /// Gives back the tokens of a resend that was not made after all.
    pub fn give_back(&self) {
        self.add(self.0.resend_cost);
    }

    /// Puts back what a success earns.
    pub fn deposit(&self) {
        self.add(self.0.success_refund);
    }

    /// The tokens left.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.0.tokens.load(Ordering::Acquire)
    }

    fn add(&self, tokens: u32) {
        // A full bucket, the usual state, is left alone: no clone's success makes the others'
        // caches cold.
        if self.tokens() < self.0.capacity {
            let _ = self.0.tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                Some(now.saturating_add(tokens).min(self.0.capacity))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn resends_never_exceed_what_was_saved_and_earned(
            capacity in 0u32..200, cost in 1u32..20, refund in 0u32..5, steps in proptest::collection::vec(any::<bool>(), 0..200),
        ) {
            let budget = RetryBudget::new(capacity, cost, refund);
            let (mut resends, mut successes) = (0u64, 0u64);
            for success in steps {
                if success {
                    budget.deposit();
                    successes += 1;
                } else if budget.clone().withdraw() {
                    resends += 1;
                }
                prop_assert!(budget.tokens() <= capacity);
                prop_assert!(resends * u64::from(cost) <= u64::from(capacity) + successes * u64::from(refund));
            }
        }
    }
}
