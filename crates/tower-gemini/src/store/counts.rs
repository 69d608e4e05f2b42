//! The counts of one key, as a store keeps them. Pure.

use std::time::Duration;

use super::{Exchange, Refund, Reply};
use crate::clock::millis;
use crate::quota_guard::admission::{Admission, Moment, Receipt, SLOT_MS, Snapshot};
use crate::quota_guard::limits::{Limits, QuotaAmounts};

/// Counts what was granted for one key, and survives a restart as bytes. For stores that keep
/// their counts in this process.
///
/// ```
/// use tower_gemini::quota_guard::{Limits, Moment, QuotaAmounts, QuotaKey};
/// use tower_gemini::store::{Exchange, StoredCounts};
///
/// let now = Moment { steady_ms: 1_773_000_000_000, wall_ms: 1_773_000_000_000 };
/// let key = QuotaKey::new("studio", "gemini-3-pro-image");
/// let ask = Exchange::new(key, Limits::unlimited().rpd(10), QuotaAmounts::for_call(100, 1), 4);
/// let mut counts = StoredCounts::new(now, ask.margin);
/// assert_eq!(counts.exchange(now, &ask).granted, 4);
///
/// let mut restored = StoredCounts::from_bytes(&counts.to_bytes(), now).unwrap();
/// assert_eq!(restored.taken(now), counts.taken(now));
/// assert!(StoredCounts::from_bytes(b"no counts", now).is_none());
/// ```
#[derive(Debug, Clone)]
pub struct StoredCounts {
    admission: Admission,
    margin_ms: u64,
}

impl StoredCounts {
    /// Starts with nothing taken.
    #[must_use]
    pub fn new(now: Moment, margin: Duration) -> Self {
        Self::starting(now, millis(margin))
    }

    fn starting(now: Moment, margin_ms: u64) -> Self {
        let mut admission = Admission::new(Limits::unlimited(), margin_ms);
        admission.begin_at(now);
        Self { admission, margin_ms }
    }

    /// Returns what is taken in each dimension now.
    #[must_use]
    pub fn taken(&mut self, now: Moment) -> QuotaAmounts {
        self.admission.taken(now)
    }

    /// Makes one exchange: refunds, reports and asks. Grants as many calls as fit, at most as many
    /// as were asked for.
    pub fn exchange(&mut self, now: Moment, exchange: &Exchange) -> Reply {
        let admission = &mut self.admission;
        admission.set_limits(exchange.limits);
        for &Refund { booking, unused, extra_tokens } in &exchange.refunds {
            admission.give_back(Receipt { booking, amounts: unused });
            admission.add_tokens(booking, extra_tokens);
        }
        if !exchange.unreported.is_zero() {
            let receipt = admission.force(now, exchange.unreported, now.steady_ms);
            admission.settle(receipt, None);
        }
        match exchange.close_day {
            Some(true) => admission.close_this_day(now),
            Some(false) => drop(admission.reopen(now)),
            None => {}
        }
        let mut booking = None;
        let mut calls = exchange.most;
        while calls > 0 && booking.is_none() {
            let amounts = exchange.need.times(u64::from(calls));
            if admission.fits(now, amounts, exchange.day_reserve) {
                let ends_ms = now.steady_ms.saturating_add(millis(exchange.lease));
                let receipt = admission.force(now, amounts, ends_ms);
                admission.settle(receipt, None);
                booking = Some((calls, receipt.booking));
            }
            calls /= 2;
        }
        let retry_at = match booking {
            None if exchange.most > 0 => {
                admission.earliest(now, exchange.need, exchange.day_reserve)
            }
            _ => None,
        };
        let retry_after =
            retry_at.map(|at| Duration::from_millis(at.saturating_sub(now.steady_ms).max(1)));
        let (granted, booking) = booking.unwrap_or_default();
        let (taken, day) = (admission.taken(now), admission.day().number());
        Reply { retry_after, ..Reply::new(granted, booking, taken, day) }
    }

    /// Returns what must outlive the process, as JSON.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers and lists of numbers: there is nothing in them that JSON cannot hold.
        serde_json::to_vec(&(self.margin_ms, self.admission.snapshot())).unwrap_or_default()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` for anything else.
    ///
    /// Slots are dated by `steady_ms`, which must be wall time here. If the clock was set back
    /// since, they are moved to end now: they look younger than they are, and no window is granted
    /// twice.
    #[must_use]
    pub fn from_bytes(bytes: &[u8], now: Moment) -> Option<Self> {
        let (margin_ms, mut snapshot): (u64, Snapshot) = serde_json::from_slice(bytes).ok()?;
        let newest = snapshot.slots.last().map_or(0, |(slot, _)| *slot);
        // A lease is dated a little ahead, which is no clock that was set back.
        let ahead = newest.saturating_sub(now.steady_ms / SLOT_MS + 8);
        for (slot, _) in &mut snapshot.slots {
            *slot = slot.saturating_sub(ahead);
        }
        let mut counts = Self::starting(now, margin_ms);
        counts.admission.restore(&snapshot);
        Some(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota_guard::limits::QuotaKey;

    #[test]
    fn decoded_counts_are_the_counts_that_were_encoded() {
        let now = Moment { steady_ms: 1_773_000_000_000, wall_ms: 1_773_000_000_000 };
        let mut counts = StoredCounts::new(now, Duration::from_millis(500));
        let key = QuotaKey::new("p", "m");
        let need = QuotaAmounts::for_call(7, 2);
        let mut ask = Exchange::new(key, Limits::unlimited().rpm(60).rpd(9), need, 3);
        counts.exchange(now, &ask);
        ask.close_day = Some(true);
        counts.exchange(Moment { steady_ms: now.steady_ms + 700, ..now }, &ask);
        let decoded = StoredCounts::from_bytes(&counts.to_bytes(), now).unwrap();
        let snapshot = decoded.admission.snapshot();
        assert_eq!((decoded.margin_ms, &snapshot), (500, &counts.admission.snapshot()));
        assert_eq!(snapshot.days, [(20_520, 3)]);
        assert_eq!(snapshot.closed_day, Some(20_520));
        assert!(StoredCounts::from_bytes(b"short", now).is_none());
        ask.close_day = Some(false);
        counts.exchange(Moment { steady_ms: now.steady_ms + 900, ..now }, &ask);
        assert_eq!(counts.admission.snapshot().closed_day, None, "an operator reopened it");
    }

    // A file from the future (its clock was ahead) must not grant the same minute twice.
    #[test]
    fn counts_written_by_a_clock_that_ran_ahead_still_fill_the_window() {
        let late = Moment { steady_ms: 1_773_000_900_000, wall_ms: 1_773_000_900_000 };
        let now = Moment { steady_ms: 1_773_000_000_000, wall_ms: 1_773_000_000_000 };
        let mut counts = StoredCounts::new(late, Duration::ZERO);
        let need = QuotaAmounts::for_call(1, 1);
        let ask = Exchange::new(QuotaKey::new("p", "m"), Limits::unlimited().rpm(4), need, 4);
        assert_eq!(counts.exchange(late, &ask).granted, 4);
        let mut restored = StoredCounts::from_bytes(&counts.to_bytes(), now).unwrap();
        assert_eq!(restored.exchange(now, &ask).granted, 0);
    }
}
