//! What the guard reports of itself.

use std::time::Duration;

use super::admission::DimensionUsage;
use super::limits::QuotaKey;

/// Describes a call that is about to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaWait {
    /// Whose quota.
    pub key: QuotaKey,
    /// How long it is expected to wait.
    pub expected: Duration,
    /// How many are before it.
    pub ahead: usize,
}

/// Counts what the guard did since the layer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GuardCounts {
    /// Calls that waited.
    pub waited: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls that shadow mode let through and would have been refused.
    pub shadow_refused: u64,
    /// Exchanges with the shared store.
    pub store_exchanges: u64,
    /// Of them, those that failed or took too long.
    pub store_failures: u64,
}

/// Shows how much of one (upstream, project, model)'s quota is used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaUsage {
    /// Whose quota.
    pub key: QuotaKey,
    /// All four dimensions.
    pub entries: [DimensionUsage; 4],
    /// How many calls wait in the FIFO queue.
    pub waiting: usize,
    /// Whether the service reported that this day's quota is exhausted: nothing is let through until
    /// midnight Pacific, whatever the counts say.
    pub day_closed: bool,
}

impl QuotaUsage {
    /// What is left of the scarcest dimension, from 0 (nothing, or a day that the service closed) to 1
    /// (all of it, or no limit).
    #[must_use]
    pub fn share_left(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a share")]
        let share = |entry: &DimensionUsage| match (entry.remaining, entry.limit) {
            (Some(left), Some(limit)) if limit > 0 => left as f64 / limit as f64,
            (Some(_), Some(_)) => 0.0,
            _ => 1.0,
        };
        let whole = if self.day_closed { 0.0 } else { 1.0 };
        self.entries.iter().map(share).fold(whole, f64::min)
    }
}
