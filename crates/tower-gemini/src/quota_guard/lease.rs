//! What one process holds of a shared store's count: the live lease, and what it has to report.
//! Pure.

use std::time::Duration;

use super::admission::{Admission, Booking, Moment, WINDOW_MS};
use super::limits::{Limits, QuotaAmounts, QuotaDimension, QuotaKey};
use crate::clock::millis;
use crate::store::{Exchange, Refund, Reply};

/// Whether a shared store covers what is asked for.
#[derive(Debug)]
pub(crate) enum Draw {
    /// By this lease; `None` where there is no store, or none that answers.
    Covered(Option<Booking>),
    /// Not before this moment.
    Later(u64),
    /// It must be asked.
    Fetch,
}

#[derive(Debug)]
pub(crate) struct LeasePool {
    lease_ms: u64,
    open_on_last_lease: bool,
    live: Option<LiveLease>,
    /// How many calls the next lease is asked for.
    calls: u32,
    closed_until: Option<u64>,
    down_until: Option<u64>,
    refunds: Vec<Refund>,
    unreported: QuotaAmounts,
    close_day: Option<bool>,
    /// The day and its count as last heard from the store.
    heard: Option<(i32, u64)>,
    heard_taken: QuotaAmounts,
    /// The store failed, and this process goes on within what it had been granted.
    pub(crate) emergency: bool,
    ever_granted: bool,
    pub(crate) flushing: bool,
}

#[derive(Debug, Clone, Copy)]
struct LiveLease {
    left: QuotaAmounts,
    booking: Booking,
    expires_ms: u64,
}

/// A lease is at most this part of any limit, so that a dozen busy processes each find something.
/// Our choice.
const LEASE_PARTS: u64 = 16;
/// The most calls of one lease, whatever the limits.
const LEASE_CALLS: u32 = 4_096;
/// How long a store that failed is left alone. Our choice: long enough that not every call waits
/// for the time limit.
const DOWN_MS: u64 = 1_000;
/// Refunds kept between two exchanges; they are merged by slot and day, so a minute's worth fits.
/// More are dropped, which leaves them counted.
const REFUNDS_KEPT: usize = 256;

impl LeasePool {
    pub(crate) fn new(lease: Duration, open_on_last_lease: bool) -> Self {
        Self {
            lease_ms: millis(lease),
            open_on_last_lease,
            live: None,
            calls: 1,
            closed_until: None,
            down_until: None,
            refunds: Vec::new(),
            unreported: QuotaAmounts::default(),
            close_day: None,
            heard: None,
            heard_taken: QuotaAmounts::default(),
            emergency: false,
            ever_granted: false,
            flushing: false,
        }
    }

    /// Takes these amounts from the live lease, or says when to ask the store.
    pub(crate) fn draw(&mut self, now: Moment, amounts: QuotaAmounts) -> Draw {
        let at = now.steady_ms;
        match &mut self.live {
            Some(live) if at < live.expires_ms && amounts.fits_in(live.left) => {
                live.left = live.left.minus(amounts);
                return Draw::Covered(Some(live.booking));
            }
            _ => {}
        }
        if self.emergency && self.down_until.is_some_and(|until| at < until) {
            self.unreported = self.unreported.plus(amounts);
            return Draw::Covered(None);
        }
        let is_ahead = |until: &u64| at < *until;
        match self.down_until.filter(is_ahead).or(self.closed_until.filter(is_ahead)) {
            Some(until) => Draw::Later(until),
            None => Draw::Fetch,
        }
    }

    /// While the process goes on without the store: when to ask it again.
    pub(crate) fn review_at(&self) -> Option<u64> {
        self.emergency.then(|| self.down_until.unwrap_or(0))
    }

    fn refund(&mut self, booking: Booking, unused: QuotaAmounts, extra_tokens: u64) {
        if unused.is_zero() && extra_tokens == 0 {
            return;
        }
        let known = self.refunds.iter().position(|known| known.booking == booking);
        if known.is_none() && self.refunds.len() < REFUNDS_KEPT {
            self.refunds.push(Refund::new(booking));
        }
        let at = known.unwrap_or(self.refunds.len().saturating_sub(1));
        if let Some(refund) = self.refunds.get_mut(at).filter(|kept| kept.booking == booking) {
            refund.unused = refund.unused.plus(unused);
            refund.extra_tokens += extra_tokens;
        }
    }

    pub(crate) fn put_back(&mut self, now: Moment, booking: Booking, amounts: QuotaAmounts) {
        match &mut self.live {
            Some(live) if live.booking == booking && now.steady_ms < live.expires_ms => {
                live.left = live.left.plus(amounts);
            }
            _ => self.refund(booking, amounts, 0),
        }
    }

    pub(crate) fn settled(&mut self, booking: Booking, amounts: QuotaAmounts, tokens: u64) {
        let reserved = amounts.get(QuotaDimension::TokensPerMinute);
        let unused = QuotaAmounts([0, reserved.saturating_sub(tokens), 0, 0]);
        self.refund(booking, unused, tokens.saturating_sub(reserved));
    }

    /// The store is to be told that the day is closed.
    pub(crate) fn close_day(&mut self) {
        self.close_day = Some(true);
    }

    /// The store is to be told that the day is open again, and asked at once.
    pub(crate) fn reopen(&mut self) {
        (self.close_day, self.closed_until) = (Some(false), None);
    }

    /// Whether something is left that others could use.
    pub(crate) fn wants_flush(&self) -> bool {
        self.live.is_some() || !self.refunds.is_empty() || self.close_day.is_some()
    }

    /// When the live lease ends, if there is one.
    pub(crate) fn expires_ms(&self) -> Option<u64> {
        self.live.map(|live| live.expires_ms)
    }

    /// Makes the next exchange: refunds what is left, asks for `need` if there is one.
    pub(crate) fn begin(
        &mut self,
        now: Moment,
        key: &QuotaKey,
        limits: Limits,
        margin: Duration,
        need: Option<(QuotaAmounts, u64)>,
    ) -> Exchange {
        if let Some(live) = self.live.take() {
            // Used up before its time: ask for more. Half of it left over: ask for less.
            if now.steady_ms < live.expires_ms {
                self.calls = self.calls.saturating_mul(2).min(LEASE_CALLS);
            } else if live.left.0[0] * 2 > u64::from(self.calls) {
                self.calls = (self.calls / 2).max(1);
            }
            self.refund(live.booking, live.left, 0);
        }
        let (need, day_reserve) = need.unwrap_or_default();
        let share = QuotaDimension::ALL
            .into_iter()
            .filter_map(|of| Some(limits.get(of)? / LEASE_PARTS / need.get(of).max(1)))
            .min()
            .map_or(LEASE_CALLS, |share| u32::try_from(share).unwrap_or(LEASE_CALLS));
        let most = if need.is_zero() { 0 } else { self.calls.min(share).max(1) };
        Exchange {
            margin,
            lease: Duration::from_millis(self.lease_ms),
            day_reserve,
            refunds: std::mem::take(&mut self.refunds),
            unreported: std::mem::take(&mut self.unreported),
            close_day: std::mem::take(&mut self.close_day),
            day_floor: self.heard,
            ..Exchange::new(key.clone(), limits, need, most)
        }
    }

    /// Takes in the reply to an exchange that began at `sent`. Returns whether the store had been
    /// failing.
    pub(crate) fn apply(
        &mut self,
        sent: Moment,
        now: Moment,
        need: Option<QuotaAmounts>,
        reply: &Reply,
    ) -> bool {
        self.down_until = None;
        self.heard = Some((reply.day, reply.taken.get(QuotaDimension::RequestsPerDay)));
        self.heard_taken = reply.taken;
        if reply.granted > 0 {
            self.ever_granted = true;
            self.closed_until = None;
            self.live = Some(LiveLease {
                left: need.unwrap_or_default().times(u64::from(reply.granted)),
                booking: reply.booking,
                // Counted from before the store was asked, which is never later than by its clock.
                expires_ms: sent.steady_ms.saturating_add(self.lease_ms),
            });
        } else if need.is_some() {
            let wait = |wait| millis(wait).saturating_add(1);
            let ms = reply.retry_after.map_or(WINDOW_MS, wait);
            self.closed_until = Some(now.steady_ms.saturating_add(ms));
        }
        std::mem::take(&mut self.emergency)
    }

    /// Takes in that the store did not answer. Returns the limits to go on with, where the policy
    /// says to go on and the failure is new.
    pub(crate) fn fail(
        &mut self,
        now: Moment,
        unreported: QuotaAmounts,
        admission: &mut Admission,
    ) -> Option<Limits> {
        self.down_until = Some(now.steady_ms.saturating_add(DOWN_MS));
        // What was reported may not have arrived: counting it twice is better than never. Refunds
        // are dropped for the same reason.
        self.unreported = self.unreported.plus(unreported);
        if !self.open_on_last_lease || !self.ever_granted || self.emergency {
            return None;
        }
        self.emergency = true;
        // What all processes took in the last minute was within the limit together, so each may
        // keep its pace.
        let own = admission.taken(now);
        let mut limits = *admission.limits();
        for dimension in QuotaDimension::ALL {
            let Some(limit) = limits.get(dimension) else { continue };
            let mut ours = own.get(dimension);
            if dimension == QuotaDimension::RequestsPerDay {
                // Of what was left of the day when the store last answered, the share that was ours
                // until then.
                let all = self.heard_taken.get(dimension).max(1);
                let left = u128::from(limit.saturating_sub(all));
                let share = left * u128::from(ours) / u128::from(all);
                ours = ours.saturating_add(u64::try_from(share).unwrap_or(0));
            }
            limits = limits.with(dimension, Some(ours.min(limit)));
        }
        Some(limits)
    }
}
