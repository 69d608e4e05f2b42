//! Lanes: how an image is bought, and which one an item takes. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How an image is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Lane {
    /// Google's priority tier: up to twice the price, served first. Only by request.
    Priority,
    /// The list price, at once.
    Standard,
    /// The standard price, in the hours in which calls are likeliest to succeed.
    Deferred,
    /// Google's flex tier: half the price, "queues 1 to 15 minutes" and may be turned away (Gemini
    /// API documentation, flex inference, 2026-08).
    Flex,
    /// Google's Batch API: half the price, within 24 hours, with a quota of its own.
    Batch,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 5] =
        [Self::Priority, Self::Standard, Self::Deferred, Self::Flex, Self::Batch];

    /// The word for it in files and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Priority => "priority",
            Self::Standard => "standard",
            Self::Deferred => "deferred",
            Self::Flex => "flex",
            Self::Batch => "batch",
        }
    }

    /// The lane of that word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.as_str() == word)
    }

    /// Whether it costs half of the list price (Gemini API documentation, pricing, 2026-07).
    pub(crate) fn is_half_price(self) -> bool {
        matches!(self, Self::Flex | Self::Batch)
    }

    /// The most that a call can cost in lane `to`, if it can cost so much in this one. It never
    /// becomes less, and `to` is none that is dearer than `standard`. Only batches are half the price
    /// for certain: a flex call may be served, and charged, as a standard one.
    pub(crate) fn worst_in(self, to: Self, worst_microusd: u64) -> u64 {
        match self == Self::Batch && to != Self::Batch {
            true => worst_microusd.saturating_mul(2),
            false => worst_microusd,
        }
    }

    /// What the request says of its tier.
    pub(crate) fn service_tier(self) -> Option<&'static str> {
        match self {
            Self::Priority => Some("priority"),
            Self::Flex => Some("flex"),
            Self::Standard | Self::Deferred | Self::Batch => None,
        }
    }
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the choice of a lane depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Situation {
    /// How long until the image must be there. `None`: no deadline.
    pub left: Option<Duration>,
    /// The lanes that may be chosen. Empty: `standard` alone.
    pub allowed: Vec<Lane>,
    /// How long until the off-peak hours begin; `None` where they have begun, or are not known.
    pub off_peak_in: Option<Duration>,
}

/// What the Batch API needs: "within 24 hours" (Gemini API documentation, Batch API, 2026-07), and
/// two hours for what fails in it to be drawn otherwise. The two hours are ours.
pub const BATCH_NEEDS: Duration = Duration::from_secs(26 * 3600);

/// What the flex tier needs: twice its longest queue of 15 minutes, and one standard call after it.
pub const FLEX_NEEDS: Duration = Duration::from_secs(40 * 60);

/// Chooses the cheapest allowed lane that meets the deadline; `deferred` in place of `standard`
/// where the off-peak hours begin in time. `priority` is never chosen.
///
/// ```
/// use std::time::Duration;
/// use tower_gemini_jobs::{Lane, lane::{Situation, choose}};
///
/// let mut situation = Situation::default();
/// assert_eq!(choose(&situation), Lane::Standard);
/// situation.allowed = vec![Lane::Standard, Lane::Flex, Lane::Batch];
/// assert_eq!(choose(&situation), Lane::Batch); // no deadline
/// situation.left = Some(Duration::from_secs(3 * 3600));
/// assert_eq!(choose(&situation), Lane::Flex);
/// situation.left = Some(Duration::from_secs(600));
/// assert_eq!(choose(&situation), Lane::Standard);
/// ```
#[must_use]
pub fn choose(situation: &Situation) -> Lane {
    let Situation { left, allowed, off_peak_in } = situation;
    let has = |lane| allowed.contains(&lane);
    let fits = |needs: Duration| left.is_none_or(|left| left >= needs);
    if has(Lane::Batch) && fits(BATCH_NEEDS) {
        return Lane::Batch;
    }
    if has(Lane::Flex) && fits(FLEX_NEEDS) {
        return Lane::Flex;
    }
    match off_peak_in {
        Some(wait) if has(Lane::Deferred) && fits(wait.saturating_add(FLEX_NEEDS)) => {
            Lane::Deferred
        }
        _ => Lane::Standard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        // A lane that cannot meet the deadline loses the image; one that nobody allowed spends what
        // nobody agreed to.
        #[test]
        fn a_chosen_lane_is_allowed_and_leaves_time(
            left in proptest::option::of(0_u64..200_000),
            mask in 0_usize..32,
            off_peak in proptest::option::of(0_u64..90_000),
        ) {
            let left = left.map(Duration::from_secs);
            let allowed: Vec<_> = Lane::ALL
                .into_iter()
                .enumerate()
                .filter_map(|(at, lane)| (mask & (1 << at) != 0).then_some(lane))
                .collect();
            let off_peak_in = off_peak.map(Duration::from_secs);
            let lane = choose(&Situation { left, allowed: allowed.clone(), off_peak_in });
            prop_assert!(lane == Lane::Standard || allowed.contains(&lane));
            prop_assert_ne!(lane, Lane::Priority);
            let needs = match lane {
                Lane::Batch => BATCH_NEEDS,
                Lane::Flex => FLEX_NEEDS,
                Lane::Deferred => off_peak_in.unwrap() + FLEX_NEEDS,
                _ => Duration::ZERO,
            };
            prop_assert!(left.is_none_or(|left| left >= needs));
        }
    }
}
