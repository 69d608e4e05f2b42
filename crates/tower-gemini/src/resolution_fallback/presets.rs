//! The ladders of article 000 (outage post-mortem of 2026-01-21), each cited.

use tower_gemini_core::call::ImageSize::{K1, K2, K4};

use super::Ladder;
use crate::jittered_retry::{RetryPolicy, presets};

/// Article 000, simple: 4K, 2K, 1K, one attempt each.
#[must_use]
pub fn article_000_simple() -> Ladder {
    Ladder::of([K4, K2, K1]).retried(RetryPolicy::never())
}

/// Article 000, full client: three attempts at each size, 30 and 60 s between them.
#[must_use]
pub fn article_000_full() -> Ladder {
    Ladder::of([K4, K2, K1]).retried(presets::article_000_ladder())
}

/// Article 000, "conservative": 4K and then 1K at once, which it puts at 95 % in the outage (2K at
/// 70 %).
#[must_use]
pub fn article_000_conservative() -> Ladder {
    Ladder::of([K4, K1]).retried(RetryPolicy::never())
}
