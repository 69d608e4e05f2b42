//! Admits a call in all four dimensions or in none. Pure: times are handed in as [`Moment`]s.
//!
//! Minutes are counted in slots. A slot leaves the window only when its youngest entry is a whole
//! minute (and the margin) old, so no window of 60 seconds ever exceeds the limit; the price is one
//! slot's length of allowance.

use std::time::Duration;

use super::limits::{Limits, QuotaAmounts, QuotaDimension};
use crate::calendar::PacificDay;

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds on a clock that only goes forward, from any beginning.
    pub steady_ms: u64,
    /// Milliseconds since 1970 in UTC, on a clock that somebody may set.
    pub wall_ms: i64,
}

impl Moment {
    /// This moment, later.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Self {
        Self {
            steady_ms: self.steady_ms.saturating_add(ms),
            wall_ms: self.wall_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)),
        }
    }
}

/// The window Google counts minutes in (Google's rate-limit pages, 2026-02): the last 60
/// seconds.
pub const WINDOW_MS: u64 = 60_000;
/// The length of a slot. A quarter of a second costs 0.4 % of the allowance and bounds a model's
/// memory to 256 slots.
pub const SLOT_MS: u64 = 250;

/// Where something was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Booking {
    /// The slot, in the time of the process or store that counts.
    pub slot: u64,
    /// The Pacific day.
    pub day: i32,
    /// Whether the next day was charged too: so near midnight that Google may count it in either.
    pub both_days: bool,
}

/// Stands for what was taken, to be settled or given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub(crate) booking: Booking,
    pub(crate) amounts: QuotaAmounts,
}

impl Receipt {
    /// What was taken.
    #[must_use]
    pub fn amounts(&self) -> QuotaAmounts {
        self.amounts
    }
}

/// Says why nothing was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denied {
    /// When it would fit if nothing else came, in steady milliseconds; `None` when it never will.
    pub at_ms: Option<u64>,
    /// Every dimension that is exceeded.
    pub violations: Vec<Violation>,
    /// What refuses although no count does.
    pub rest: Option<RestReason>,
}

impl Denied {
    fn delay_to(&mut self, at_ms: Option<u64>) {
        self.at_ms = self.at_ms.zip(at_ms).map(|(a, b)| a.max(b));
    }
}

/// One dimension that is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// Which.
    pub dimension: QuotaDimension,
    /// Its limit as we know it.
    pub limit: u64,
    /// What is taken of it.
    pub used: u64,
    /// What was asked for.
    pub asked: u64,
    /// When it would fit, in steady milliseconds; `None` when it never will.
    pub at_ms: Option<u64>,
}

/// Says why a model rests although our counts would let a call through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestReason {
    /// Google reported that the day is exhausted, whatever we counted.
    DayExhausted,
    /// Google reported that a minute's limit is reached, and for how long.
    MinuteExhausted,
    /// A 429 far below our limit: Google has no capacity, our quota is fine.
    Capacity,
    /// The account spends too fast or has no means to pay.
    Account,
    /// What is left of the day is kept for first attempts, and this is not one.
    KeptForFirstAttempts,
    /// The shared store refuses, or did not answer.
    Store,
}

impl RestReason {
    /// Returns the name used in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        [
            "day_exhausted",
            "minute_exhausted",
            "capacity",
            "account",
            "kept_for_first_attempts",
            "store",
        ][self as usize]
    }
}

/// Shows how much of one dimension is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DimensionUsage {
    /// Which dimension.
    pub dimension: QuotaDimension,
    /// The limit as it is known now; `None` where nothing limits it.
    pub limit: Option<u64>,
    /// Counted in the present window or day, by calls that have ended.
    pub used: u64,
    /// Held by calls that are still running.
    pub reserved: u64,
    /// What may still be taken; `None` where nothing limits it.
    pub remaining: Option<u64>,
    /// When the whole allowance is back if nothing more is taken.
    pub resets_in: Duration,
}

/// Sums up everything that ever happened, for audits: what was taken is settled, given back or
/// outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Totals {
    /// Taken since the beginning.
    pub taken: QuotaAmounts,
    /// Of it, settled as counted.
    pub settled: QuotaAmounts,
    /// Of it, given back as surely not counted.
    pub given_back: QuotaAmounts,
    /// Of it, neither yet.
    pub outstanding: QuotaAmounts,
}

/// Index of the day's dimension; those before it are a minute's.
const DAY: usize = QuotaDimension::RequestsPerDay.index();

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    taken: [u64; 3],
    /// The part of it whose calls are still running.
    open: [u64; 3],
}

impl Slot {
    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        for d in 0..DAY {
            self.taken[d] = with(self.taken[d], other.taken[d]);
            self.open[d] = with(self.open[d], other.open[d]);
        }
    }

    fn add(&mut self, other: &Self) {
        self.combine(other, u64::saturating_add);
    }

    fn remove(&mut self, other: &Self) {
        self.combine(other, u64::saturating_sub);
    }

    /// A call with these amounts has ended.
    fn close(&mut self, amounts: QuotaAmounts) {
        for (open, amount) in self.open.iter_mut().zip(amounts.0) {
            *open = open.saturating_sub(amount);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct DayCount {
    number: i32,
    taken: u64,
    open: u64,
}

/// Days remembered. Two are needed at midnight; the rest is for clocks that are set back and forth.
const DAYS_KEPT: usize = 8;

/// The counts of one (project, model).
///
/// ```
/// use tower_gemini::quota_guard::{Admission, QuotaAmounts, Limits, Moment};
///
/// let mut admission = Admission::new(Limits::unlimited().rpm(2).ipm(2), 0);
/// let now = Moment { steady_ms: 0, wall_ms: 1_773_000_000_000 };
/// let one = QuotaAmounts::for_call(120, 1);
/// let first = admission.take(now, one, 0).unwrap();
/// admission.take(now, one, 0).unwrap();
/// let denied = admission.take(now, one, 0).unwrap_err();
/// // A minute, and the slot that the first two fell into.
/// assert_eq!(denied.at_ms, Some(60_250));
/// // The first was never sent, so it is given back and a third fits.
/// admission.give_back(first);
/// assert!(admission.take(now, one, 0).is_ok());
/// ```
#[derive(Debug, Clone)]
pub struct Admission {
    limits: Limits,
    margin_ms: u64,
    /// How many slots beside its own an entry stays.
    stay: u64,
    slots: Box<[Slot]>,
    mask: u64,
    /// The oldest slot that is still in the window.
    oldest: u64,
    /// The youngest slot that was written to.
    top: u64,
    now_slot: u64,
    /// The sums over all slots in the window.
    window: Slot,
    days: Vec<DayCount>,
    day: PacificDay,
    /// What counts today although the clock said another day when it was taken. Only today: a clock
    /// that was a year ahead for a minute locks none of the days to come.
    carried: u64,
    rest: Option<(u64, RestReason)>,
    /// Google reported that this day is exhausted.
    closed_day: Option<i32>,
    totals: Totals,
}

/// How far ahead of its clock a shared store writes: a lease is counted at its end.
const AHEAD_MS: u64 = 2_000;

impl Admission {
    /// Starts with nothing taken. `margin_ms` is added to each window: how much closer two requests
    /// may be on arrival than they were when they were sent.
    #[must_use]
    pub fn new(limits: Limits, margin_ms: u64) -> Self {
        let stay = (WINDOW_MS + margin_ms).div_ceil(SLOT_MS);
        let slots =
            usize::try_from(stay + AHEAD_MS / SLOT_MS + 3).unwrap_or(256).next_power_of_two();
        Self {
            limits,
            margin_ms,
            stay,
            slots: vec![Slot::default(); slots].into_boxed_slice(),
            mask: slots as u64 - 1,
            oldest: 0,
            top: 0,
            now_slot: 0,
            window: Slot::default(),
            days: Vec::with_capacity(DAYS_KEPT + 1),
            day: PacificDay::holding(0),
            carried: 0,
            rest: None,
            closed_day: None,
            totals: Totals::default(),
        }
    }

    /// Returns the limits it keeps now.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Keeps other limits from now on. What was taken stays taken.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Returns everything that ever happened.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn slot(&self, slot: u64) -> &Slot {
        &self.slots[(slot & self.mask) as usize]
    }

    /// Changes a slot and the sums over the window, while the slot is in it.
    fn correct(&mut self, slot: u64, change: impl FnOnce(&mut Slot)) {
        if slot < self.oldest || slot > self.top {
            return;
        }
        let entry = &mut self.slots[(slot & self.mask) as usize];
        self.window.remove(entry);
        change(entry);
        self.window.add(entry);
    }

    /// When an entry in this slot leaves the window.
    fn leaves_at(&self, slot: u64) -> u64 {
        (slot + 1 + self.stay).saturating_mul(SLOT_MS)
    }

    fn advance(&mut self, now: Moment) {
        if !self.day.holds(now.wall_ms) {
            let before = std::mem::replace(&mut self.day, PacificDay::holding(now.wall_ms));
            let is_set_back = self.day.number() < before.number();
            self.carried = if is_set_back { self.taken_ahead() } else { 0 };
        }
        let slot = now.steady_ms / SLOT_MS;
        if slot <= self.now_slot {
            // The same slot, the usual case; or a clock that was set back, which grants nothing.
            return;
        }
        self.now_slot = slot;
        let keep_from = slot.saturating_sub(self.stay);
        while self.oldest < keep_from && self.oldest <= self.top {
            let gone = std::mem::take(&mut self.slots[(self.oldest & self.mask) as usize]);
            self.window.remove(&gone);
            self.oldest += 1;
        }
        self.oldest = self.oldest.max(keep_from);
    }

    /// What was taken in days ahead of the present one: before the clock was set back, while
    /// Google's was not.
    fn taken_ahead(&self) -> u64 {
        let ahead = self.days.iter().filter(|day| day.number > self.day.number());
        ahead.map(|day| day.taken).sum()
    }

    /// What counts of the present day.
    fn today(&self) -> Option<&DayCount> {
        self.days.iter().find(|day| day.number == self.day.number())
    }

    /// What is taken of one dimension.
    fn used(&self, d: usize) -> u64 {
        self.window
            .taken
            .get(d)
            .copied()
            .unwrap_or_else(|| self.today().map_or(0, |day| day.taken).saturating_add(self.carried))
    }

    fn day_mut(&mut self, number: i32) -> Option<&mut DayCount> {
        self.days.iter_mut().find(|day| day.number == number)
    }

    fn add_day(&mut self, number: i32, amount: u64) {
        if let Some(day) = self.day_mut(number) {
            day.taken += amount;
            day.open += amount;
            return;
        }
        self.days.push(DayCount { number, taken: amount, open: amount });
        if self.days.len() > DAYS_KEPT {
            let days = self.days.iter().enumerate();
            if let Some((oldest, _)) = days.min_by_key(|(_, day)| day.number) {
                self.days.swap_remove(oldest);
            }
        }
    }

    fn midnight_steady(&self, now: Moment) -> u64 {
        let left = u64::try_from(self.day.end_ms().saturating_sub(now.wall_ms)).unwrap_or(0);
        now.steady_ms.saturating_add(left)
    }

    /// Takes these amounts in every dimension, or nothing in any.
    ///
    /// `day_reserve` requests of the day must be left over: retries leave them to first attempts.
    ///
    /// # Errors
    ///
    /// [`Denied`], with every dimension that is exceeded and when it would not be.
    pub fn take(
        &mut self,
        now: Moment,
        amounts: QuotaAmounts,
        day_reserve: u64,
    ) -> Result<Receipt, Denied> {
        if self.fits(now, amounts, day_reserve) {
            return Ok(self.force(now, amounts, now.steady_ms));
        }
        Err(self.denied(now, amounts, day_reserve))
    }

    /// Whether [`take`](Self::take) would take.
    #[must_use]
    pub fn fits(&mut self, now: Moment, amounts: QuotaAmounts, day_reserve: u64) -> bool {
        self.advance(now);
        let rests = self.rest.is_some_and(|(until, _)| now.steady_ms < until)
            || self.closed_day == Some(self.day.number());
        !rests
            && (0..4).all(|d| match self.limits.0[d] {
                Some(limit) => self.excess(d, limit, amounts.0[d], day_reserve) == 0,
                None => true,
            })
    }

    /// By how much this amount would exceed the limit of a dimension. A call that asks for nothing
    /// of a dimension cannot be refused by it, however full it is.
    fn excess(&self, d: usize, limit: u64, asked: u64, day_reserve: u64) -> u64 {
        let reserve = if d == DAY { day_reserve } else { 0 };
        match asked {
            0 => 0,
            _ => self.used(d).saturating_add(asked).saturating_add(reserve).saturating_sub(limit),
        }
    }

    /// Counts these amounts whether they fit or not (shadow mode, and stores that already decided).
    /// The entry is dated `at_ms`, which may be a little ahead of now and is never before it.
    pub fn force(&mut self, now: Moment, amounts: QuotaAmounts, at_ms: u64) -> Receipt {
        self.advance(now);
        let ahead = at_ms.min(now.steady_ms.saturating_add(AHEAD_MS)) / SLOT_MS;
        let slot = ahead.max(self.now_slot);
        self.top = self.top.max(slot);
        let [requests, tokens, images, per_day] = amounts.0;
        let entry = Slot { taken: [requests, tokens, images], open: [requests, tokens, images] };
        self.slots[(slot & self.mask) as usize].add(&entry);
        self.window.add(&entry);
        let number = self.day.number();
        // Sent now, counted by Google a moment later: near midnight that may be in the next day.
        let last_ms = i64::try_from(
            self.margin_ms + slot.saturating_mul(SLOT_MS).saturating_sub(now.steady_ms),
        )
        .unwrap_or(0);
        let both_days = self.day.end_ms().saturating_sub(now.wall_ms) <= last_ms;
        self.add_day(number, per_day);
        if both_days {
            self.add_day(number + 1, per_day);
        }
        self.totals.taken = self.totals.taken.plus(amounts);
        self.totals.outstanding = self.totals.outstanding.plus(amounts);
        Receipt { booking: Booking { slot, day: number, both_days }, amounts }
    }

    /// When these amounts would fit, in steady milliseconds, if nothing else came; `None` if never.
    #[must_use]
    pub fn earliest(
        &mut self,
        now: Moment,
        amounts: QuotaAmounts,
        day_reserve: u64,
    ) -> Option<u64> {
        self.advance(now);
        self.denied(now, amounts, day_reserve).at_ms
    }

    /// Says why [`take`](Self::take) would refuse, and until when, as of the last look at the
    /// clock. Changes nothing.
    #[must_use]
    pub fn denied(&self, now: Moment, amounts: QuotaAmounts, day_reserve: u64) -> Denied {
        let mut denied = Denied { at_ms: Some(now.steady_ms), violations: Vec::new(), rest: None };
        for dimension in QuotaDimension::ALL {
            let d = dimension.index();
            let Some(limit) = self.limits.0[d] else { continue };
            let asked = amounts.0[d];
            let excess = self.excess(d, limit, asked, day_reserve);
            if excess == 0 {
                continue;
            }
            let at_ms = match d {
                _ if asked > limit => None,
                DAY => Some(self.midnight_steady(now)),
                _ => Some(self.freed_at(d, excess)),
            };
            let used = self.used(d);
            if used.saturating_add(asked) <= limit {
                denied.rest = Some(RestReason::KeptForFirstAttempts);
            }
            denied.delay_to(at_ms);
            denied.violations.push(Violation { dimension, limit, used, asked, at_ms });
        }
        if let Some((until, reason)) = self.rest.filter(|(until, _)| now.steady_ms < *until) {
            denied.delay_to(Some(until));
            denied.rest = Some(reason);
        }
        if self.closed_day == Some(self.day.number()) {
            denied.delay_to(Some(self.midnight_steady(now)));
            denied.rest = Some(RestReason::DayExhausted);
        }
        denied
    }

    /// When enough of one minute's dimension has left the window.
    fn freed_at(&self, d: usize, mut needed: u64) -> u64 {
        for slot in self.oldest..=self.top {
            let taken = self.slot(slot).taken[d];
            if taken >= needed {
                return self.leaves_at(slot);
            }
            needed -= taken;
        }
        self.leaves_at(self.top)
    }

    /// Records that the call ended and was counted, or may have been. `tokens` are those that the
    /// response reports, where it does: they replace the estimate while the entry is in the window.
    pub fn settle(&mut self, receipt: Receipt, tokens: Option<u64>) {
        let reserved = receipt.amounts.0[1];
        let actual = tokens.unwrap_or(reserved);
        self.correct(receipt.booking.slot, |entry| {
            entry.taken[1] = entry.taken[1].saturating_sub(reserved) + actual;
            entry.close(receipt.amounts);
        });
        self.close(receipt, false);
    }

    /// Records that the call was surely not counted: all of it may be used by another.
    pub fn give_back(&mut self, receipt: Receipt) {
        self.correct(receipt.booking.slot, |entry| {
            for (taken, amount) in entry.taken.iter_mut().zip(receipt.amounts.0) {
                *taken = taken.saturating_sub(amount);
            }
            entry.close(receipt.amounts);
        });
        self.close(receipt, true);
    }

    /// Adds tokens that a settled call used beyond its estimate.
    pub fn add_tokens(&mut self, booking: Booking, tokens: u64) {
        self.correct(booking.slot, |entry| entry.taken[1] += tokens);
    }

    /// Closes a receipt in the days and the totals.
    fn close(&mut self, receipt: Receipt, give_back: bool) {
        let amount = receipt.amounts.0[DAY];
        let Booking { day, both_days, .. } = receipt.booking;
        let days = [Some(day), both_days.then_some(day + 1)];
        for number in days.into_iter().flatten() {
            if let Some(day) = self.day_mut(number) {
                day.open = day.open.saturating_sub(amount);
                if give_back {
                    day.taken = day.taken.saturating_sub(amount);
                }
            }
        }
        self.totals.outstanding = self.totals.outstanding.minus(receipt.amounts);
        let side = if give_back { &mut self.totals.given_back } else { &mut self.totals.settled };
        *side = side.plus(receipt.amounts);
    }

    /// Lets nothing through before `until_ms`. A longer rest wins over a shorter one.
    pub fn rest_until(&mut self, until_ms: u64, reason: RestReason) {
        if self.rest.is_none_or(|(until, _)| until < until_ms) {
            self.rest = Some((until_ms, reason));
        }
    }

    /// Lets nothing through until midnight Pacific: Google reported that the day is exhausted.
    pub fn close_this_day(&mut self, now: Moment) {
        self.advance(now);
        self.closed_day = Some(self.day.number());
    }

    /// Whether the service closed the present day.
    #[must_use]
    pub fn is_day_closed(&mut self, now: Moment) -> bool {
        self.advance(now);
        self.closed_day == Some(self.day.number())
    }

    /// Ends a closed day and a rest: calls pass as far as the counts allow. `true` if there was
    /// one.
    pub fn reopen(&mut self, now: Moment) -> bool {
        self.advance(now);
        let closed = self.closed_day.take() == Some(self.day.number());
        closed | self.rest.take().is_some_and(|(until, _)| now.steady_ms < until)
    }

    /// Counts at least this much of that day, as a store reported it.
    pub fn day_is_at_least(&mut self, number: i32, taken: u64) {
        match self.day_mut(number) {
            Some(day) => day.taken = day.taken.max(taken),
            None => {
                self.add_day(number, taken);
                if let Some(day) = self.day_mut(number) {
                    day.open = 0;
                }
            }
        }
    }

    /// Returns how much of every dimension is used.
    #[must_use]
    pub fn usage(&mut self, now: Moment) -> [DimensionUsage; 4] {
        self.advance(now);
        QuotaDimension::ALL.map(|dimension| {
            let d = dimension.index();
            let taken = self.used(d);
            let open = self
                .window
                .open
                .get(d)
                .copied()
                .unwrap_or_else(|| self.today().map_or(0, |day| day.open));
            let resets_at_ms = match d {
                DAY => self.midnight_steady(now),
                _ if taken == 0 => now.steady_ms,
                _ => self.freed_at(d, taken),
            };
            let limit = self.limits.0[d];
            DimensionUsage {
                dimension,
                limit,
                used: taken.saturating_sub(open),
                reserved: open,
                remaining: limit.map(|limit| limit.saturating_sub(taken)),
                resets_in: Duration::from_millis(resets_at_ms.saturating_sub(now.steady_ms)),
            }
        })
    }

    /// Returns what counts in each dimension now.
    #[must_use]
    pub fn taken(&mut self, now: Moment) -> QuotaAmounts {
        self.advance(now);
        QuotaAmounts(std::array::from_fn(|d| self.used(d)))
    }

    /// Whether nothing counts any more, now or until this day ends: a new one would give the same
    /// results.
    #[must_use]
    pub fn is_at_rest(&mut self, now: Moment) -> bool {
        self.taken(now).is_zero()
            && self.totals.outstanding.is_zero()
            && self.rest.is_none_or(|(until, _)| until <= now.steady_ms)
            && self.closed_day != Some(self.day.number())
    }

    /// Returns the present day.
    #[must_use]
    pub fn day(&self) -> PacificDay {
        self.day
    }

    /// Returns what must outlive the process: each slot of the window that is not empty, oldest
    /// first, and each day.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Snapshot {
        let slots = (self.oldest..=self.top)
            .map(|slot| (slot, self.slot(slot).taken))
            .filter(|(_, taken)| *taken != [0; 3])
            .collect();
        let days = self.days.iter().map(|day| (day.number, day.taken)).collect();
        Snapshot { slots, days, closed_day: self.closed_day }
    }

    /// Takes over a [`snapshot`](Self::snapshot).
    pub(crate) fn restore(&mut self, snapshot: &Snapshot) {
        let held = self.oldest..self.oldest.saturating_add(self.slots.len() as u64);
        // Only what fits the ring; what is older has left the window, whatever clock wrote it.
        for (slot, taken) in snapshot.slots.iter().filter(|(slot, _)| held.contains(slot)) {
            self.top = self.top.max(*slot);
            let entry = Slot { taken: *taken, open: [0; 3] };
            self.slots[(slot & self.mask) as usize].add(&entry);
            self.window.add(&entry);
        }
        for &(number, taken) in &snapshot.days {
            self.day_is_at_least(number, taken);
        }
        self.carried = self.taken_ahead();
        self.closed_day = snapshot.closed_day;
    }

    /// Begins at this moment instead of at zero, before anything was taken.
    pub(crate) fn begin_at(&mut self, now: Moment) {
        self.now_slot = now.steady_ms / SLOT_MS;
        self.oldest = self.now_slot.saturating_sub(self.stay);
        self.top = self.oldest;
        self.day = PacificDay::holding(now.wall_ms);
    }
}

/// The part of an [`Admission`] that outlives a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) slots: Vec<(u64, [u64; 3])>,
    pub(crate) days: Vec<(i32, u64)>,
    pub(crate) closed_day: Option<i32>,
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
