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
}
