//! The ladders of APIYI's post-mortem of the outage of 2026-01-21.

use tower_gemini_core::call::ImageSize::{self, K1, K2, K4};

use super::Ladder;
use crate::jittered_retry::{RetryPolicy, presets};

/// A ladder as its source states it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LadderPreset {
    /// What it is called here.
    pub name: &'static str,
    /// Who states it, and when.
    pub source: &'static str,
    /// Its sizes.
    pub sizes: &'static [ImageSize],
    /// How each size is retried.
    retry: fn() -> RetryPolicy,
}

/// "Immediate downgrade": one attempt at each size.
pub const ONE_ATTEMPT_EACH: LadderPreset = LadderPreset {
    name: "one_attempt_each",
    source: "APIYI, post-mortem of the outage of 2026-01-21",
    sizes: &[K4, K2, K1],
    retry: RetryPolicy::never,
};

/// "Full client": three attempts at each size, 30 and 60 s between them.
pub const THREE_ATTEMPTS_EACH: LadderPreset =
    LadderPreset { name: "three_attempts_each", retry: presets::linear_30s, ..ONE_ATTEMPT_EACH };

/// "Conservative": 4K and then 1K at once, which its source puts at 95 % in the outage (2K at 70 %).
pub const STRAIGHT_TO_1K: LadderPreset =
    LadderPreset { name: "straight_to_1k", sizes: &[K4, K1], ..ONE_ATTEMPT_EACH };

/// Every preset.
pub const ALL: [LadderPreset; 3] = [ONE_ATTEMPT_EACH, THREE_ATTEMPTS_EACH, STRAIGHT_TO_1K];

impl LadderPreset {
    /// The ladder.
    #[must_use]
    pub fn ladder(&self) -> Ladder {
        Ladder::new(self.sizes.iter().copied()).retried((self.retry)())
    }
}
