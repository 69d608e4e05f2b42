//! Where a quota is counted that several processes share.
//!
//! A process counts for itself in any case. With a store it also draws on *leases*: an exchange
//! asks for several calls' worth at once, the store counts all of it at the lease's end, and what
//! is left over goes back with the next exchange. So a busy process asks about once a second and no
//! window is ever exceeded: whatever moment of the lease a call is sent at, the store counts it as
//! sent at the last one. A process that dies loses what was left of one lease until the window (or,
//! of the day's requests, the day) is over; that is the price of never guessing that a call was not
//! sent.
//!
//! | store | counts for | survives |
//! | --- | --- | --- |
//! | none (the default) | this layer and its clones | nothing |
//! | [`MemoryStore`] | every layer it is given to | nothing |
//! | `RedbStore` (feature `redb`) | one process at a time | kill -9 and restart |
//! | `RedisStore` (feature `redis`) | every process that reaches the server | every client; of the server, what it keeps |

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use super::admission::{Admission, Moment, Receipt};
use super::limits::{Amounts, Dimension, Limits, QuotaKey};

mod memory;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "redis")]
mod redis;

pub use self::memory::MemoryStore;
pub(crate) use self::memory::wall_ms;
#[cfg(feature = "redb")]
pub use self::redb::RedbStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;

/// The future of [`QuotaStore::exchange`].
pub type Exchanging = Pin<Box<dyn Future<Output = Result<Reply, StoreError>> + Send>>;

/// A count that several processes share.
///
/// One exchange gives back, reports and asks, atomically over all dimensions. An implementation
/// must not block: the guard puts its own time limit on it, and its own policy for a store that
/// fails.
pub trait QuotaStore: fmt::Debug + Send + Sync {
    /// Gives back what was left over, and asks for more.
    fn exchange(&self, exchange: Exchange) -> Exchanging;
}

/// What a process says and asks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Exchange {
    /// Whose quota.
    pub key: QuotaKey,
    /// The limits as the process knows them.
    pub limits: Limits,
    /// Added to each window.
    pub margin: Duration,
    /// How long what is granted may be used for. It is counted at the end of that time.
    pub lease: Duration,
    /// What one call needs.
    pub need: Amounts,
    /// How many such calls at most. 0 asks for nothing: the exchange only reports.
    pub most: u32,
    /// Requests of the day to leave over.
    pub day_reserve: u64,
    /// What was granted before and surely not counted by Google, and tokens used beyond what was
    /// granted.
    pub returns: Vec<Return>,
    /// What was sent while the store could not be asked.
    pub unreported: Amounts,
    /// Google said that the present day is used up.
    pub close_day: bool,
    /// The day as the process last heard it: for a store that lost its memory, and only then, since
    /// others may have given back.
    pub day_floor: Option<(i32, u64)>,
}

impl Exchange {
    /// Asks for one call's worth, and for up to `most` if there is that much. For a store's own
    /// tests.
    #[must_use]
    pub fn new(key: QuotaKey, limits: Limits, need: Amounts, most: u32) -> Self {
        Self {
            key,
            limits,
            margin: Duration::from_millis(500),
            lease: Duration::from_secs(1),
            need,
            most,
            day_reserve: 0,
            returns: Vec::new(),
            unreported: Amounts::default(),
            close_day: false,
            day_floor: None,
        }
    }
}

/// What a process answers for an earlier grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Return {
    /// Where it was counted.
    pub charged: Charged,
    /// Surely not used.
    pub back: Amounts,
    /// Used beyond the estimate.
    pub more_tokens: u64,
}

/// Where a store counted a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Charged {
    /// The slot, in the store's time.
    pub slot: u64,
    /// The Pacific day.
    pub day: i32,
    /// Whether the day after it was charged too, because the lease reaches over midnight.
    pub both_days: bool,
}

/// What a store answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Reply {
    /// How many calls' worth was granted; 0 is a refusal.
    pub granted: u32,
    /// Where it was counted.
    pub charged: Charged,
    /// After a refusal: when to ask again. `None` when no waiting helps.
    pub retry_after: Option<Duration>,
    /// What is taken in all, by all processes.
    pub taken: Amounts,
    /// The Pacific day that the store is in.
    pub day: i32,
}

/// Why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError {
    what: String,
    timed_out: bool,
}

impl StoreError {
    /// A store that failed. `what` is shown to people, so it must hold no secrets.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: tower_gemini_core::redact::redact(&what.into()).into_owned(),
            timed_out: false,
        }
    }

    pub(crate) fn timed_out(after: Duration) -> Self {
        Self { what: format!("no answer within {} ms", after.as_millis()), timed_out: true }
    }

    /// Whether it did not answer in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.timed_out
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the quota store failed: {}", self.what)
    }
}

impl std::error::Error for StoreError {}

/// One exchange against counts that are all here.
pub(crate) fn exchange_with(admission: &mut Admission, now: Moment, exchange: &Exchange) -> Reply {
    admission.set_limits(exchange.limits);
    for back in &exchange.returns {
        let Charged { slot, day, both_days } = back.charged;
        let receipt = Receipt::from_parts(slot, day, both_days, back.back);
        admission.give_back(receipt);
        admission.add_tokens(receipt, back.more_tokens);
    }
    if !exchange.unreported.is_zero() {
        let receipt = admission.force(now, exchange.unreported, now.steady_ms);
        admission.settle(receipt, None);
    }
    if exchange.close_day {
        admission.close_this_day(now);
    }
    let mut reply = Reply::default();
    let mut calls = exchange.most;
    while calls > 0 {
        let amounts = exchange.need.times(u64::from(calls));
        if admission.fits(now, amounts, exchange.day_reserve) {
            let lease_ms = u64::try_from(exchange.lease.as_millis()).unwrap_or(0);
            let receipt = admission.force(now, amounts, now.steady_ms.saturating_add(lease_ms));
            admission.settle(receipt, None);
            let (slot, day, both_days) = receipt.parts();
            reply.granted = calls;
            reply.charged = Charged { slot, day, both_days };
            break;
        }
        calls /= 2;
    }
    if reply.granted == 0 && exchange.most > 0 {
        let at_ms = admission.earliest(now, exchange.need, exchange.day_reserve);
        reply.retry_after =
            at_ms.map(|at| Duration::from_millis(at.saturating_sub(now.steady_ms).max(1)));
    }
    reply.taken = admission.taken(now);
    reply.day = admission.day().number();
    reply
}

/// What a live lease and everything around it are, in one process.
#[derive(Debug)]
pub(crate) struct Pool {
    lease_ms: u64,
    open_on_last_lease: bool,
    live: Option<Live>,
    /// How many calls the next lease is asked for.
    calls: u32,
    closed_until: Option<u64>,
    down_until: Option<u64>,
    returns: Vec<Return>,
    unreported: Amounts,
    close_day: bool,
    heard: Option<(i32, u64)>,
    heard_taken: Amounts,
    /// The store failed, and we go on within what it had granted us.
    pub(crate) emergency: bool,
    ever_granted: bool,
    pub(crate) flushing: bool,
}

#[derive(Debug, Clone, Copy)]
struct Live {
    left: Amounts,
    charged: Charged,
    expires_ms: u64,
}

/// A lease is at most this part of any limit, so that a dozen busy processes find something left.
/// Ours.
const LEASE_PARTS: u64 = 16;
/// And at most this many calls, whatever the limits.
const LEASE_CALLS: u32 = 4_096;
/// How long a store that failed is left alone. Ours: long enough that its calls do not all wait for
/// the time limit.
const DOWN_MS: u64 = 1_000;
/// Returns kept between two exchanges; they come together by slot and day, so a minute's worth
/// fits. What is beyond is forgotten, which leaves it counted.
const RETURNS_KEPT: usize = 256;

impl Pool {
    pub(crate) fn new(lease: Duration, open_on_last_lease: bool) -> Self {
        Self {
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(1_000),
            open_on_last_lease,
            live: None,
            calls: 1,
            closed_until: None,
            down_until: None,
            returns: Vec::new(),
            unreported: Amounts::default(),
            close_day: false,
            heard: None,
            heard_taken: Amounts::default(),
            emergency: false,
            ever_granted: false,
            flushing: false,
        }
    }

    pub(crate) fn draw(
        &mut self,
        now: Moment,
        amounts: Amounts,
    ) -> super::gate::Draw<Option<Charged>> {
        use super::gate::Draw;
        if let Some(live) = &mut self.live {
            if now.steady_ms < live.expires_ms && (0..4).all(|d| amounts.0[d] <= live.left.0[d]) {
                for d in 0..4 {
                    live.left.0[d] -= amounts.0[d];
                }
                return Draw::Covered(Some(live.charged));
            }
        }
        if let Some(until) = self.down_until {
            if now.steady_ms < until {
                if self.emergency {
                    for d in 0..4 {
                        self.unreported.0[d] += amounts.0[d];
                    }
                    return Draw::Covered(None);
                }
                return Draw::Later(until);
            }
        }
        match self.closed_until {
            Some(until) if now.steady_ms < until => Draw::Later(until),
            _ => Draw::Fetch,
        }
    }

    /// Going on without the store: when to ask it again.
    pub(crate) fn review_at(&self) -> Option<u64> {
        self.emergency.then(|| self.down_until.unwrap_or(0))
    }

    fn push_return(&mut self, charged: Charged, back: Amounts, more_tokens: u64) {
        if back.is_zero() && more_tokens == 0 {
            return;
        }
        if let Some(known) = self.returns.iter_mut().find(|known| known.charged == charged) {
            for d in 0..4 {
                known.back.0[d] += back.0[d];
            }
            known.more_tokens += more_tokens;
        } else if self.returns.len() < RETURNS_KEPT {
            self.returns.push(Return { charged, back, more_tokens });
        }
    }

    pub(crate) fn put_back(&mut self, now: Moment, charged: Option<Charged>, amounts: Amounts) {
        let Some(charged) = charged else { return };
        match &mut self.live {
            Some(live) if live.charged == charged && now.steady_ms < live.expires_ms => {
                for d in 0..4 {
                    live.left.0[d] += amounts.0[d];
                }
            }
            _ => self.push_return(charged, amounts, 0),
        }
    }

    pub(crate) fn settled(
        &mut self,
        charged: Option<Charged>,
        amounts: Amounts,
        tokens: Option<u64>,
    ) {
        let (Some(charged), Some(tokens)) = (charged, tokens) else { return };
        let reserved = amounts.get(Dimension::TokensPerMinute);
        let back = Amounts([0, reserved.saturating_sub(tokens), 0, 0]);
        self.push_return(charged, back, tokens.saturating_sub(reserved));
    }

    pub(crate) fn mark_day_closed(&mut self) {
        self.close_day = true;
    }

    /// Whether something is left that others could use.
    pub(crate) fn wants_flush(&self) -> bool {
        self.live.is_some() || !self.returns.is_empty() || self.close_day
    }

    /// When the live lease ends, if there is one.
    pub(crate) fn expires_ms(&self) -> Option<u64> {
        self.live.map(|live| live.expires_ms)
    }

    /// The next exchange: gives back what is left, asks for `need` if there is one.
    pub(crate) fn begin(
        &mut self,
        now: Moment,
        key: &QuotaKey,
        limits: Limits,
        margin: Duration,
        need: Option<(Amounts, u64)>,
    ) -> Exchange {
        if let Some(live) = self.live.take() {
            // Used up before its time: ask for more. Half of it left over: ask for less.
            if now.steady_ms < live.expires_ms {
                self.calls = self.calls.saturating_mul(2).min(LEASE_CALLS);
            } else if live.left.0[0] * 2 > u64::from(self.calls) {
                self.calls = (self.calls / 2).max(1);
            }
            self.push_return(live.charged, live.left, 0);
        }
        let (need, day_reserve) = need.unwrap_or_default();
        let share = (0..4)
            .filter_map(|d| Some(limits.0[d]? / LEASE_PARTS / need.0[d].max(1)))
            .min()
            .map_or(LEASE_CALLS, |share| u32::try_from(share).unwrap_or(LEASE_CALLS));
        let most = if need.is_zero() { 0 } else { self.calls.min(share).max(1) };
        Exchange {
            key: key.clone(),
            limits,
            margin,
            lease: Duration::from_millis(self.lease_ms),
            need,
            most,
            day_reserve,
            returns: std::mem::take(&mut self.returns),
            unreported: std::mem::take(&mut self.unreported),
            close_day: std::mem::take(&mut self.close_day),
            day_floor: self.heard,
        }
    }

    /// The store answered an exchange that began at `sent`. `true` if it had been failing.
    pub(crate) fn apply(
        &mut self,
        sent: Moment,
        now: Moment,
        need: Amounts,
        asked: bool,
        reply: &Reply,
    ) -> bool {
        self.down_until = None;
        self.heard = Some((reply.day, reply.taken.get(Dimension::RequestsPerDay)));
        self.heard_taken = reply.taken;
        if reply.granted > 0 {
            self.ever_granted = true;
            self.closed_until = None;
            self.live = Some(Live {
                left: need.times(u64::from(reply.granted)),
                charged: reply.charged,
                // Counted from before the store was asked, which is never later than its own
                // reckoning.
                expires_ms: sent.steady_ms.saturating_add(self.lease_ms),
            });
        } else if asked {
            let ms = reply.retry_after.map_or(super::admission::WINDOW_MS, |wait| {
                u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
            });
            self.closed_until = Some(now.steady_ms.saturating_add(ms));
        }
        std::mem::take(&mut self.emergency)
    }

    /// The store did not answer. Returns the limits to go on with, where the policy says to go on
    /// and this is news.
    pub(crate) fn fail(
        &mut self,
        now: Moment,
        unreported: Amounts,
        admission: &mut Admission,
    ) -> Option<Limits> {
        self.down_until = Some(now.steady_ms.saturating_add(DOWN_MS));
        // What was reported may not have arrived; twice is better than never. What was given back
        // is forgotten for the same reason.
        for d in 0..4 {
            self.unreported.0[d] += unreported.0[d];
        }
        if !self.open_on_last_lease || !self.ever_granted || self.emergency {
            return None;
        }
        self.emergency = true;
        // What every process had taken in the last minute is within the limit together, so each may
        // keep that pace.
        let own = admission.taken(now);
        let mut limits = *admission.limits();
        for dimension in Dimension::ALL {
            let Some(limit) = limits.get(dimension) else { continue };
            let ours = own.get(dimension);
            let ours = if dimension == Dimension::RequestsPerDay {
                // Of what was left of the day when the store was last heard, the share that was
                // ours until then.
                let all = self.heard_taken.get(dimension).max(1);
                let share =
                    u128::from(limit.saturating_sub(all)) * u128::from(ours) / u128::from(all);
                ours.saturating_add(u64::try_from(share).unwrap_or(0))
            } else {
                ours
            };
            limits = limits.with(dimension, Some(ours.min(limit)));
        }
        Some(limits)
    }
}
