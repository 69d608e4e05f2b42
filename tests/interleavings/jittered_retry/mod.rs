//! The budget of resends.

use shuttle::sync::Arc;

use crate::sync::{AtomicU32, Ordering};
use crate::{check, join};
use budget::RetryBudget;

#[path = "../../../crates/tower-gemini/src/jittered_retry/budget.rs"]
mod budget;

/// Stands in for a resend that a fallback makes.
pub(crate) struct ComeBack;

pub fn no_token_is_spent_twice_or_lost() {
    check(|| {
        let budget = RetryBudget::new(20, 10, 3);
        assert!(budget.withdraw());
        let resends = Arc::new(AtomicU32::new(1));
        join((0..3).map(|n| {
            let (budget, resends) = (budget.clone(), resends.clone());
            move || {
                if n > 0 {
                    budget.deposit();
                }
                resends.fetch_add(u32::from(budget.withdraw()), Ordering::SeqCst);
            }
        }));
        let resends = resends.load(Ordering::SeqCst);
        assert_eq!(budget.tokens(), 20 + 2 * 3 - resends * 10);
        assert_eq!(resends, 2, "what came in is no third resend");
    });
}

pub fn the_bucket_never_overflows() {
    check(|| {
        let budget = RetryBudget::new(20, 10, 7);
        assert!(budget.withdraw());
        join((0..3).map(|_| {
            let budget = budget.clone();
            move || {
                budget.deposit();
                assert!(budget.tokens() <= 20);
            }
        }));
        assert_eq!(budget.tokens(), 20);
    });
}
