//! Which sizes are tried, and after which outcomes. Pure.

use std::sync::Arc;

use tower_gemini_core::call::ImageSize;
use tower_gemini_core::catalog::Model;
use tower_gemini_core::verdict::Outcome;

use crate::jittered_retry::{RetryOverride, RetryPolicy};

/// The sizes that are tried, largest first, and after which outcomes.
///
/// ```
/// use tower_gemini::resolution_fallback::Ladder;
/// use tower_gemini::call::ImageSize;
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
    /// The defaults listed in [`resolution_fallback`](crate::resolution_fallback).
    #[must_use]
    pub fn recommended() -> Self {
        Self::new([ImageSize::K4, ImageSize::K2, ImageSize::K1])
    }

    /// These sizes.
    #[must_use]
    pub fn new(sizes: impl IntoIterator<Item = ImageSize>) -> Self {
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
        let more = ImageSize::ALL.into_iter();
        let sizes = self.sizes.iter().copied().chain(more).filter(|known| *known >= size);
        self.sizes = Self::new(sizes).sizes;
        self
    }

    /// Steps down after these outcomes only.
    #[must_use]
    pub fn after(mut self, outcomes: impl IntoIterator<Item = Outcome>) -> Self {
        self.outcomes = outcomes.into_iter().collect();
        self
    }

    /// How many times the retry inside tries each size except the last, which follows the retry's
    /// own policy.
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

    /// The next smaller size that the model makes. `None` for what is asked for leaves it at 1K.
    #[must_use]
    pub fn below(&self, size: Option<ImageSize>, model: Option<&Model>) -> Option<ImageSize> {
        let mut below = self.sizes_below(size);
        below.find(|&size| makes(model, size))
    }

    /// Every smaller size, largest first, whatever the model.
    pub(super) fn sizes_below(&self, size: Option<ImageSize>) -> impl Iterator<Item = ImageSize> {
        let asked = size.unwrap_or(ImageSize::K1);
        self.sizes.iter().copied().filter(move |size| *size < asked)
    }

    pub(super) fn steps_down_after(&self, outcome: Outcome) -> bool {
        self.outcomes.contains(&outcome)
    }

    /// Whether it says how the last size is retried too.
    pub(super) fn sets_retries(&self) -> bool {
        self.retry.is_some()
    }

    /// How one size is retried. `otherwise` holds for the last one.
    pub(super) fn retries(&self, otherwise: RetryOverride, is_last: bool) -> RetryOverride {
        match (&self.retry, is_last) {
            (Some(policy), _) => otherwise.policy(policy.clone()),
            (None, false) => otherwise.attempts(self.attempts),
            (None, true) => otherwise,
        }
    }
}

/// Whether a model can be asked for a size; one that is not known can.
pub(super) fn makes(model: Option<&Model>, size: ImageSize) -> bool {
    model.is_none_or(|model| model.accepts_image_size && model.makes(size))
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
            let ladder = Ladder::new(sizes.clone());
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
