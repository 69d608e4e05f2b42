//! What the guard reports of itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::limits::{QuotaDimension, QuotaKey};

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

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) waited: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) shadow_refused: AtomicU64,
    pub(crate) store_exchanges: AtomicU64,
    pub(crate) store_failures: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> GuardCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GuardCounts {
            waited: read(&self.waited),
            refused: read(&self.refused),
            shadow_refused: read(&self.shadow_refused),
            store_exchanges: read(&self.store_exchanges),
            store_failures: read(&self.store_failures),
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
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

/// Shows how much of one dimension is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DimensionUsage {
    /// Which dimension.
    pub dimension: QuotaDimension,
    /// The limit as it is known now; `None` where nothing limits it.
    pub limit: Option<u64>,
    /// Counted, by calls that have ended.
    pub used: u64,
    /// Held by calls that are still running.
    pub reserved: u64,
    /// What may still be taken; `None` where nothing limits it.
    pub remaining: Option<u64>,
    /// When the whole allowance is back if nothing more is taken.
    pub resets_in: Duration,
}
