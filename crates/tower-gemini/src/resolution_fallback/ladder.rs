//! Which size follows on which: pure.

use std::sync::Arc;

use tower_gemini_core::call::ImageSize;
use tower_gemini_core::catalog::Model;
use tower_gemini_core::verdict::Outcome;

use crate::jittered_retry::{RetryOverride, RetryPolicy};

/// The sizes that are tried, largest first, and after which outcomes.
///
/// ```
/// use tower_gemini::call::ImageSize;
/// use tower_gemini::resolution_fallback::Ladder;
///
/// let ladder = Ladder::recommended();
/// assert_eq!(ladder.below(Some(ImageSize::K4), None), Some(ImageSize::K2));
/// assert_eq!(ladder.below(Some(ImageSize::K1), None), None);
/// assert_eq!(ladder.down_to(ImageSize::Px512).below(None, None), Some(ImageSize::Px512));
/// ```
#[derive(Debug, Clone)]
pub struct Ladder {
    sizes: Vec<ImageSize>,
    outcomes: Vec<Outcome>,
    attempts: u32,
    retry: Option<Arc<RetryPolicy>>,
}

impl Ladder {
    /// The defaults listed in the [module](super).
    #[must_use]
    pub fn recommended() -> Self {
        Self::of([ImageSize::K4, ImageSize::K2, ImageSize::K1])
    }

    /// These sizes.
    #[must_use]
    pub fn of(sizes: impl IntoIterator<Item = ImageSize>) -> Self {
        let mut sizes: Vec<_> = sizes.into_iter().collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.dedup();
        Self {
            sizes,
            outcomes: vec![Outcome::Deadline, Outcome::Overloaded, Outcome::Interrupted],
            attempts: 1,
            retry: None,
        }
    }

    /// Every size down to this one, where the model makes it.
    #[must_use]
    pub fn down_to(mut self, size: ImageSize) -> Self {
        let rest = ImageSize::ALL.into_iter().filter(|known| *known >= size);
        let sizes =
            Self::of(self.sizes.iter().copied().filter(|known| *known >= size).chain(rest)).sizes;
        self.sizes = sizes;
        self
    }

    /// Steps down after these outcomes only.
    #[must_use]
    pub fn after(mut self, outcomes: impl IntoIterator<Item = Outcome>) -> Self {
        self.outcomes = outcomes.into_iter().collect();
        self
    }

    /// How many times each size is tried by the retry inside, the last one apart, which its own
    /// policy rules.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How each size is retried, the last one too.
    #[must_use]
    pub fn retried(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(Arc::new(policy));
        self
    }

    /// The size below, of those that the model makes. `None` for what is asked for leaves it at 1K.
    #[must_use]
    pub fn below(&self, size: Option<ImageSize>, model: Option<&Model>) -> Option<ImageSize> {
        let asked = size.unwrap_or(ImageSize::K1);
        let makes = |size: ImageSize| {
            model.is_none_or(|model| model.accepts_image_size && model.makes(size))
        };
        self.sizes.iter().copied().find(|size| *size < asked && makes(*size))
    }

    pub(super) fn steps_down_after(&self, outcome: Outcome) -> bool {
        self.outcomes.contains(&outcome)
    }

    /// How one size is retried. What a layer outside says holds for the last one.
    pub(super) fn retries(&self, outer: RetryOverride, is_last: bool) -> RetryOverride {
        match (&self.retry, is_last) {
            (Some(policy), _) => outer.policy(policy.clone()),
            (None, false) => outer.attempts(self.attempts),
            (None, true) => outer,
        }
    }
}

impl Default for Ladder {
    fn default() -> Self {
        Self::recommended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tower_gemini_core::catalog::Catalog;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn every_ladder_goes_down_and_ends(
            sizes in prop::collection::vec(prop::sample::select(ImageSize::ALL.to_vec()), 0..6),
            asked in prop::option::of(prop::sample::select(ImageSize::ALL.to_vec())), which in 0usize..20,
        ) {
            let models: Vec<_> = Catalog::builtin().models().collect();
            let model = models.get(which).copied();
            let ladder = Ladder::of(sizes.clone());
            let (mut at, mut steps) = (asked, 0);
            while let Some(next) = ladder.below(at, model) {
                prop_assert!(next < at.unwrap_or(ImageSize::K1));
                prop_assert!(sizes.contains(&next));
                prop_assert!(model.is_none_or(|model| model.makes(next)));
                (at, steps) = (Some(next), steps + 1);
                prop_assert!(steps <= 3);
            }
        }
    }
}
