//! Stores that share counts between layers, processes and machines.
//!
//! A process always counts for itself. With a store it also draws on *leases*: one exchange asks
//! for several calls at once, the store counts all of them at the end of the lease, and what is
//! left goes back with the next exchange. A busy process asks about once a second, and no window
//! is ever exceeded: whenever within the lease a call is sent, the store has counted it as sent at
//! the last moment. A process that dies loses what was left of one lease until the window (or, for
//! daily requests, the day) is over; that is the price of never guessing that a call was not sent.
//!
//! | store | shared by | survives |
//! | --- | --- | --- |
//! | none (the default) | one layer and its clones | nothing |
//! | [`MemoryStore`] | every layer that is given it | nothing |
//! | `RedbStore` of `tower-gemini-store` | one process at a time | kill -9 and restart |
//! | `RedisStore` of `tower-gemini-store` | every process that reaches the server | every client; what the server persists |
//! | `PostgresStore` of `tower-gemini-store` | every process that reaches the server | every client, and a crash of the server |
//!
//! # Spending
//!
//! A [`SpendingStore`] keeps what is spent in the same places, without leases: each attempt reserves
//! its worst case, and replaces it by what it came to. Memory, redb and Postgres keep
//! [`StoredSpending`], which is the account that a layer has without a store; the script of
//! `RedisStore` is tested against it.
//!
//! # Keys
//!
//! Everything is stored under a [`QuotaKey`]: the upstream's identity (name, kind, base URL and
//! project), the project that the quota belongs to, and the model. Two upstreams never share a
//! count, even if their model names are equal.
//! Several API keys of one project share one count when the project is named.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tower_gemini_core::redact::redact;

use crate::quota_guard::limits::{Limits, QuotaAmounts, QuotaKey};

mod counts;
mod journal;
mod memory;
mod records;
mod spending;

pub use crate::quota_guard::admission::Booking;
pub use crate::spending::account::StoredPage;
pub use counts::StoredCounts;
pub use journal::{
    CallFingerprint, Claim, Journal, JournalChange, JournalFuture, JournalRecord, JournalResponse,
    JournalState, JournalTable, MemoryJournal, TableChange,
};
pub use memory::MemoryStore;
pub use records::RecordStore;
pub use spending::{
    OpenSpend, SpendAsk, SpendReply, SpendSettlement, SpendingBooks, SpendingFuture, SpendingStore,
    StoredSpending,
};

/// The future that [`QuotaStore::exchange`] returns.
pub type ExchangeFuture = Pin<Box<dyn Future<Output = Result<Reply, StoreError>> + Send>>;

/// Counts quota for several processes.
///
/// One exchange refunds, reports and asks, atomically over all dimensions. An implementation must
/// not block: the guard applies its own time limit, and its own policy for a store that fails.
pub trait QuotaStore: fmt::Debug + Send + Sync {
    /// Refunds what was left over and asks for more.
    fn exchange(&self, exchange: Exchange) -> ExchangeFuture;
}

/// What a process reports and asks for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Exchange {
    /// Whose quota.
    pub key: QuotaKey,
    /// The limits as the process knows them.
    pub limits: Limits,
    /// Added to each window.
    pub margin: Duration,
    /// How long the grant may be used. It is counted at the end of that time.
    pub lease: Duration,
    /// What one call needs.
    pub need: QuotaAmounts,
    /// How many such calls at most. 0 asks for nothing: the exchange only reports.
    pub most: u32,
    /// Requests of the day to leave over.
    pub day_reserve: u64,
    /// What was granted before and surely not counted by Google, and tokens used beyond what was
    /// granted.
    pub refunds: Vec<Refund>,
    /// What was sent while the store could not be asked.
    pub unreported: QuotaAmounts,
    /// Google reported that the present day is exhausted (`true`), or an operator that it is open
    /// again (`false`).
    pub close_day: Option<bool>,
    /// The day's count as the process last received it. Only for a store that lost its memory:
    /// others may have refunded since.
    pub day_floor: Option<(i32, u64)>,
}

impl Exchange {
    /// Asks for one call, and for up to `most` if there is that much. For a store's own tests.
    #[must_use]
    pub fn new(key: QuotaKey, limits: Limits, need: QuotaAmounts, most: u32) -> Self {
        Self {
            key,
            limits,
            margin: Duration::from_millis(500),
            lease: Duration::from_secs(1),
            need,
            most,
            day_reserve: 0,
            refunds: Vec::new(),
            unreported: QuotaAmounts::default(),
            close_day: None,
            day_floor: None,
        }
    }
}

/// Corrects an earlier grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refund {
    /// Where the grant was counted.
    pub booking: Booking,
    /// Surely not used.
    pub unused: QuotaAmounts,
    /// Used beyond the estimate.
    pub extra_tokens: u64,
}

impl Refund {
    pub(crate) fn new(booking: Booking) -> Self {
        Self { booking, unused: QuotaAmounts::default(), extra_tokens: 0 }
    }
}

/// What a store answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Reply {
    /// How many calls were granted; 0 is a refusal.
    pub granted: u32,
    /// Where they were counted.
    pub booking: Booking,
    /// After a refusal: when to ask again. `None` when no waiting helps.
    pub retry_after: Option<Duration>,
    /// What all processes together have taken.
    pub taken: QuotaAmounts,
    /// The Pacific day by the store's clock.
    pub day: i32,
}

impl Reply {
    /// Makes a reply. For implementations of [`QuotaStore`].
    #[must_use]
    pub fn new(granted: u32, booking: Booking, taken: QuotaAmounts, day: i32) -> Self {
        Self { granted, booking, retry_after: None, taken, day }
    }

    /// Refuses, and says when to ask again.
    #[must_use]
    pub fn refused(retry_after: Option<Duration>, taken: QuotaAmounts, day: i32) -> Self {
        Self { retry_after, ..Self::new(0, Booking::default(), taken, day) }
    }
}

/// Says why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError {
    what: String,
}

impl StoreError {
    /// A store that failed. `what` is shown to people, so keys in it are redacted.
    #[must_use]
    pub fn new(what: impl fmt::Display) -> Self {
        Self { what: redact(&what.to_string()).into_owned() }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store failed: {}", self.what)
    }
}

impl std::error::Error for StoreError {}
