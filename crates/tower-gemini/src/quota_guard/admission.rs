//! All or nothing over four dimensions: pure. Times come in as [`Moment`]s, nothing is read.
//!
//! Minutes are counted in slots. A slot's content leaves the window only when its youngest entry is
//! a whole minute (and the margin) old, so no window of 60 seconds ever holds more than the limit;
//! the price is one slot's length of allowance.

use super::limits::{Amounts, Dimension, Limits};
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

/// The window Google counts minutes in (article 003 and Google's rate-limit pages): the last 60
/// seconds.
pub const WINDOW_MS: u64 = 60_000;
/// The length of a slot. A quarter of a second costs 0.4 % of the allowance and bounds a model's
/// memory to 256 slots.
pub const SLOT_MS: u64 = 250;

/// What was taken, to be settled or given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    slot: u64,
    day: i32,
    /// Taken so near midnight that Google may count it in either day: it is counted in both.
    both_days: bool,
    amounts: Amounts,
}

impl Receipt {
    /// What was taken.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        self.amounts
    }

    pub(crate) fn from_parts(slot: u64, day: i32, both_days: bool, amounts: Amounts) -> Self {
        Self { slot, day, both_days, amounts }
    }

    pub(crate) fn parts(&self) -> (u64, i32, bool) {
        (self.slot, self.day, self.both_days)
    }
}

/// Why nothing was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denied {
    /// When it would fit if nothing else came, in steady milliseconds; `None` when it never will.
    pub at_ms: Option<u64>,
    /// Every dimension that says no.
    pub violations: Vec<Violation>,
    /// What says no where no count does.
    pub rest: Option<RestReason>,
}

/// One dimension that says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// Which.
    pub dimension: Dimension,
    /// Its limit as we know it.
    pub limit: u64,
    /// What is taken of it.
    pub used: u64,
    /// What was asked for.
    pub asked: u64,
    /// When it would fit, in steady milliseconds; `None` when it never will.
    pub at_ms: Option<u64>,
}

/// Why a model rests although our counts would let a call through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestReason {
    /// Google said that the day's allowance is used up, whatever we counted.
    DayExhausted,
    /// Google said that a minute's limit is reached, and for how long.
    MinuteExhausted,
    /// A 429 far below our limit: Google has no capacity, our quota is fine.
    Capacity,
    /// The account spends too fast or has no means to pay.
    Account,
    /// What is left of the day is kept for first attempts, and this is not one.
    KeptForFirstAttempts,
    /// The store that all processes share says no, or did not answer.
    Store,
}

impl RestReason {
    /// The word used in logs and refusals.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DayExhausted => "day_exhausted",
            Self::MinuteExhausted => "minute_exhausted",
            Self::Capacity => "capacity",
            Self::Account => "account",
            Self::KeptForFirstAttempts => "kept_for_first_attempts",
            Self::Store => "store",
        }
    }
}

/// How one dimension stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// Which dimension.
    pub dimension: Dimension,
    /// The limit as it is known now; `None` where nothing limits it.
    pub limit: Option<u64>,
    /// Counted in the present window or day, by calls that have ended.
    pub used: u64,
    /// Held by calls that are still running.
    pub reserved: u64,
    /// When the whole allowance is back if nothing more is taken, in steady milliseconds.
    pub resets_at_ms: u64,
}

impl Standing {
    /// What may still be taken now; `None` where nothing limits it.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.used.saturating_add(self.reserved)))
    }
}

/// Everything that ever happened, for audits: what was taken is settled, given back or outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Totals {
    /// Taken since the beginning.
    pub taken: Amounts,
    /// Of it, settled as counted.
    pub settled: Amounts,
    /// Of it, given back as surely not counted.
    pub given_back: Amounts,
    /// Of it, neither yet.
    pub outstanding: Amounts,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    taken: [u64; 3],
    open: [u64; 3],
}

#[derive(Debug, Clone, Copy)]
struct DayCell {
    number: i32,
    taken: u64,
    open: u64,
}

/// Days remembered. Two are needed at midnight; the rest is for clocks that are set back and forth.
const DAYS_KEPT: usize = 8;

/// The counts of one (project, model).
///
/// ```
/// use tower_gemini::quota_guard::{Admission, Amounts, Limits, Moment};
///
/// let mut admission = Admission::new(Limits::unlimited().rpm(2).ipm(2), 0);
/// let now = Moment { steady_ms: 0, wall_ms: 1_773_000_000_000 };
/// let one = Amounts::of_call(120, 1);
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
    sums: [u64; 3],
    open: [u64; 3],
    days: Vec<DayCell>,
    day: PacificDay,
    rest: Option<(u64, RestReason)>,
    /// Google said that this day is used up.
    closed_day: Option<i32>,
    totals: Totals,
}

/// How far ahead of its clock a shared ledger writes: a lease is counted at its end.
const AHEAD_MS: u64 = 2_000;

impl Admission {
    /// Nothing taken yet. `margin_ms` is added to each window: what two requests may be nearer to
    /// each other on arrival than they were when they were sent.
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
            sums: [0; 3],
            open: [0; 3],
            days: Vec::with_capacity(DAYS_KEPT + 1),
            day: PacificDay::holding(0),
            rest: None,
            closed_day: None,
            totals: Totals::default(),
        }
    }

    /// The limits it keeps now.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Keeps other limits from now on. What was taken stays taken.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Everything that ever happened.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn slot_mut(&mut self, slot: u64) -> Option<&mut Slot> {
        if slot < self.oldest || slot > self.top {
            return None;
        }
        self.slots.get_mut((slot & self.mask) as usize)
    }

    /// When an entry in this slot leaves the window.
    fn leaves_at(&self, slot: u64) -> u64 {
        (slot + 1 + self.stay).saturating_mul(SLOT_MS)
    }

    fn advance(&mut self, now: Moment) {
        if !self.day.holds(now.wall_ms) {
            self.day = PacificDay::holding(now.wall_ms);
        }
        let slot = now.steady_ms / SLOT_MS;
        if slot <= self.now_slot {
            // The same slot, the usual case; or a clock that went back, which grants nothing.
            return;
        }
        self.now_slot = slot;
        let keep_from = slot.saturating_sub(self.stay);
        while self.oldest < keep_from && self.oldest <= self.top {
            let gone = std::mem::take(&mut self.slots[(self.oldest & self.mask) as usize]);
            for d in 0..3 {
                self.sums[d] = self.sums[d].saturating_sub(gone.taken[d]);
                self.open[d] = self.open[d].saturating_sub(gone.open[d]);
            }
            self.oldest += 1;
        }
        self.oldest = self.oldest.max(keep_from);
    }

    /// What counts against the present day. Days after it count too: they were taken before the
    /// clock was set back, and Google's clock was not.
    fn day_taken(&self) -> u64 {
        self.days
            .iter()
            .filter(|cell| cell.number >= self.day.number())
            .map(|cell| cell.taken)
            .sum()
    }

    fn cell_mut(&mut self, number: i32) -> Option<&mut DayCell> {
        self.days.iter_mut().find(|cell| cell.number == number)
    }

    fn add_day(&mut self, number: i32, amount: u64) {
        if let Some(cell) = self.cell_mut(number) {
            cell.taken += amount;
            cell.open += amount;
            return;
        }
        self.days.push(DayCell { number, taken: amount, open: amount });
        if self.days.len() > DAYS_KEPT {
            if let Some(oldest) =
                self.days.iter().enumerate().min_by_key(|(_, cell)| cell.number).map(|(i, _)| i)
            {
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
    /// `day_reserve` requests of the day must be left over afterwards: retries leave them to first
    /// attempts.
    ///
    /// # Errors
    ///
    /// [`Denied`], with every dimension that says no and when it would not.
    pub fn take(
        &mut self,
        now: Moment,
        amounts: Amounts,
        day_reserve: u64,
    ) -> Result<Receipt, Denied> {
        if self.fits(now, amounts, day_reserve) {
            return Ok(self.force(now, amounts, now.steady_ms));
        }
        Err(self.denied(now, amounts, day_reserve))
    }

    /// Whether [`take`](Self::take) would take.
    #[must_use]
    pub fn fits(&mut self, now: Moment, amounts: Amounts, day_reserve: u64) -> bool {
        self.advance(now);
        let minutes_fit = (0..3).all(|d| match self.limits.0[d] {
            // A dimension that a call asks nothing of cannot refuse it, however full it is.
            Some(limit) => amounts.0[d] == 0 || self.sums[d].saturating_add(amounts.0[d]) <= limit,
            None => true,
        });
        let day_fits = match self.limits.0[3] {
            Some(limit) => {
                amounts.0[3] == 0
                    || self.day_taken().saturating_add(amounts.0[3]).saturating_add(day_reserve)
                        <= limit
            }
            None => true,
        };
        let rests = self.rest.is_some_and(|(until, _)| now.steady_ms < until)
            || self.closed_day == Some(self.day.number());
        minutes_fit && day_fits && !rests
    }

    /// Counts these amounts whether they fit or not (shadow mode, and ledgers that know already).
    /// The entry is dated `at_ms`, which may be a little ahead of now and is never before it.
    pub fn force(&mut self, now: Moment, amounts: Amounts, at_ms: u64) -> Receipt {
        self.advance(now);
        let ahead = at_ms.min(now.steady_ms.saturating_add(AHEAD_MS)) / SLOT_MS;
        let slot = ahead.max(self.now_slot);
        self.top = self.top.max(slot);
        let entry = &mut self.slots[(slot & self.mask) as usize];
        for d in 0..3 {
            entry.taken[d] += amounts.0[d];
            entry.open[d] += amounts.0[d];
            self.sums[d] += amounts.0[d];
            self.open[d] += amounts.0[d];
        }
        let number = self.day.number();
        // Sent now, counted by Google a moment later: near midnight that may be in the next day.
        let last_ms = i64::try_from(
            self.margin_ms + slot.saturating_mul(SLOT_MS).saturating_sub(now.steady_ms),
        )
        .unwrap_or(0);
        let both_days = self.day.end_ms().saturating_sub(now.wall_ms) <= last_ms;
        self.add_day(number, amounts.0[3]);
        if both_days {
            self.add_day(number + 1, amounts.0[3]);
        }
        for d in 0..4 {
            self.totals.taken.0[d] += amounts.0[d];
            self.totals.outstanding.0[d] += amounts.0[d];
        }
        Receipt { slot, day: number, both_days, amounts }
    }

    /// When these amounts would fit, in steady milliseconds, if nothing else came; `None` if never.
    #[must_use]
    pub fn earliest(&mut self, now: Moment, amounts: Amounts, day_reserve: u64) -> Option<u64> {
        self.advance(now);
        self.denied(now, amounts, day_reserve).at_ms
    }

    /// Why [`take`](Self::take) would say no, and until when, as of the last look at the clock.
    /// Nothing changes.
    #[must_use]
    pub fn denied(&self, now: Moment, amounts: Amounts, day_reserve: u64) -> Denied {
        let mut at_ms = Some(now.steady_ms);
        let mut later = |at: Option<u64>| {
            at_ms = match (at_ms, at) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        };
        let mut violations = Vec::new();
        let mut rest = None;
        for dimension in Dimension::ALL {
            let d = dimension.index();
            let Some(limit) = self.limits.0[d] else { continue };
            let (used, asked) =
                (if d == 3 { self.day_taken() } else { self.sums[d] }, amounts.0[d]);
            let needed = used.saturating_add(asked);
            let kept = if d == 3 { day_reserve } else { 0 };
            if needed.saturating_add(kept) <= limit || asked == 0 {
                continue;
            }
            let at = if asked > limit {
                None
            } else if d == 3 {
                Some(self.midnight_steady(now))
            } else {
                Some(self.freed_at(d, needed - limit))
            };
            later(at);
            if needed <= limit {
                rest = Some(RestReason::KeptForFirstAttempts);
            }
            violations.push(Violation { dimension, limit, used, asked, at_ms: at });
        }
        if let Some((until, reason)) = self.rest {
            if now.steady_ms < until {
                later(Some(until));
                rest = Some(reason);
            }
        }
        if self.closed_day == Some(self.day.number()) {
            later(Some(self.midnight_steady(now)));
            rest = Some(RestReason::DayExhausted);
        }
        Denied { at_ms, violations, rest }
    }

    /// When enough of one minute's dimension has left the window.
    fn freed_at(&self, d: usize, mut needed: u64) -> u64 {
        for slot in self.oldest..=self.top {
            let taken = self.slots[(slot & self.mask) as usize].taken[d];
            if taken >= needed {
                return self.leaves_at(slot);
            }
            needed -= taken;
        }
        self.leaves_at(self.top)
    }

    /// The call ended and was counted, or may have been. `tokens` are those that the answer says it
    /// read, where it does: they replace the estimate for as long as the entry is in the window.
    pub fn settle(&mut self, receipt: Receipt, tokens: Option<u64>) {
        let reserved = receipt.amounts.0[1];
        let actual = tokens.unwrap_or(reserved);
        let mut change = (0, 0);
        if let Some(entry) = self.slot_mut(receipt.slot) {
            for d in 0..3 {
                entry.open[d] = entry.open[d].saturating_sub(receipt.amounts.0[d]);
            }
            change = (reserved.min(entry.taken[1]), actual);
            entry.taken[1] = entry.taken[1] - change.0 + change.1;
            for d in 0..3 {
                self.open[d] = self.open[d].saturating_sub(receipt.amounts.0[d]);
            }
        }
        self.sums[1] = self.sums[1] - change.0 + change.1;
        self.close_day(receipt, false);
        self.close_totals(receipt, false);
    }

    /// The call was surely not counted: all of it may be used by another.
    pub fn give_back(&mut self, receipt: Receipt) {
        let mut gone = Amounts::default();
        if let Some(entry) = self.slot_mut(receipt.slot) {
            for d in 0..3 {
                gone.0[d] = receipt.amounts.0[d].min(entry.taken[d]);
                entry.taken[d] -= gone.0[d];
                entry.open[d] = entry.open[d].saturating_sub(receipt.amounts.0[d]);
            }
            for d in 0..3 {
                self.open[d] = self.open[d].saturating_sub(receipt.amounts.0[d]);
                self.sums[d] = self.sums[d].saturating_sub(gone.0[d]);
            }
        }
        self.close_day(receipt, true);
        self.close_totals(receipt, true);
    }

    /// Adds tokens that a settled call turned out to have used beyond its estimate.
    pub fn add_tokens(&mut self, receipt: Receipt, tokens: u64) {
        let mut added = 0;
        if let Some(entry) = self.slot_mut(receipt.slot) {
            entry.taken[1] += tokens;
            added = tokens;
        }
        self.sums[1] += added;
    }

    fn close_day(&mut self, receipt: Receipt, give_back: bool) {
        let amount = receipt.amounts.0[3];
        let days = [Some(receipt.day), receipt.both_days.then_some(receipt.day + 1)];
        for number in days.into_iter().flatten() {
            if let Some(cell) = self.cell_mut(number) {
                cell.open = cell.open.saturating_sub(amount);
                if give_back {
                    cell.taken = cell.taken.saturating_sub(amount);
                }
            }
        }
    }

    fn close_totals(&mut self, receipt: Receipt, give_back: bool) {
        for d in 0..4 {
            let amount = receipt.amounts.0[d];
            self.totals.outstanding.0[d] = self.totals.outstanding.0[d].saturating_sub(amount);
            let side =
                if give_back { &mut self.totals.given_back } else { &mut self.totals.settled };
            side.0[d] += amount;
        }
    }

    /// Lets nothing through before `until_ms`. A longer rest wins over a shorter one.
    pub fn rest_until(&mut self, until_ms: u64, reason: RestReason) {
        if self.rest.is_none_or(|(until, _)| until < until_ms) {
            self.rest = Some((until_ms, reason));
        }
    }

    /// Google says that the present day is used up: nothing until midnight Pacific.
    pub fn close_this_day(&mut self, now: Moment) {
        self.advance(now);
        self.closed_day = Some(self.day.number());
    }

    /// At least this much of that day was counted, by a ledger that knows.
    pub fn day_is_at_least(&mut self, number: i32, taken: u64) {
        match self.cell_mut(number) {
            Some(cell) => cell.taken = cell.taken.max(taken),
            None => {
                self.add_day(number, taken);
                if let Some(cell) = self.cell_mut(number) {
                    cell.open = 0;
                }
            }
        }
    }

    /// How every dimension stands.
    #[must_use]
    pub fn standing(&mut self, now: Moment) -> [Standing; 4] {
        self.advance(now);
        let day_open: u64 = self
            .days
            .iter()
            .filter(|cell| cell.number >= self.day.number())
            .map(|cell| cell.open)
            .sum();
        Dimension::ALL.map(|dimension| {
            let d = dimension.index();
            let (taken, open) =
                if d == 3 { (self.day_taken(), day_open) } else { (self.sums[d], self.open[d]) };
            let resets_at_ms = match d {
                3 => self.midnight_steady(now),
                _ if taken == 0 => now.steady_ms,
                _ => self.freed_at(d, taken),
            };
            Standing {
                dimension,
                limit: self.limits.0[d],
                used: taken.saturating_sub(open),
                reserved: open,
                resets_at_ms,
            }
        })
    }

    /// What counts in each dimension now.
    #[must_use]
    pub fn taken(&mut self, now: Moment) -> Amounts {
        self.advance(now);
        Amounts([self.sums[0], self.sums[1], self.sums[2], self.day_taken()])
    }

    /// Whether nothing counts any more, now or until this day ends: one that is made anew would say
    /// the same.
    #[must_use]
    pub fn is_at_rest(&mut self, now: Moment) -> bool {
        let nothing = Amounts([0; 4]);
        self.taken(now) == nothing
            && self.totals.outstanding == nothing
            && self.rest.is_none_or(|(until, _)| until <= now.steady_ms)
            && self.closed_day != Some(self.day.number())
    }

    /// The present day.
    #[must_use]
    pub fn day(&self) -> PacificDay {
        self.day
    }

    /// What must outlive the process: each minute's slot that is not empty, oldest first, and each
    /// day.
    #[must_use]
    #[cfg(any(test, feature = "redb"))]
    pub(crate) fn image(&self) -> Image {
        let slots = (self.oldest..=self.top)
            .filter_map(|slot| {
                let taken = self.slots[(slot & self.mask) as usize].taken;
                (taken != [0; 3]).then_some((slot, taken))
            })
            .collect();
        let days = self.days.iter().map(|cell| (cell.number, cell.taken)).collect();
        Image { slots, days, closed_day: self.closed_day }
    }

    /// Takes up where an [`image`](Self::image) left off. `shift` slots are added to each of its
    /// slots.
    #[cfg(any(test, feature = "redb"))]
    pub(crate) fn restore(&mut self, image: &Image, shift: u64) {
        for (slot, taken) in &image.slots {
            let slot = slot.saturating_add(shift);
            // Only what fits the ring; what is older has left the window, whatever clock it was
            // written by.
            if slot < self.oldest || slot >= self.oldest.saturating_add(self.slots.len() as u64) {
                continue;
            }
            self.top = self.top.max(slot);
            for (d, amount) in taken.iter().enumerate() {
                self.slots[(slot & self.mask) as usize].taken[d] += amount;
                self.sums[d] += amount;
            }
        }
        for &(number, taken) in &image.days {
            self.day_is_at_least(number, taken);
        }
        self.closed_day = image.closed_day;
    }

    /// Begins at this moment instead of at zero, before anything was taken.
    #[cfg(any(test, feature = "redb"))]
    pub(crate) fn begin_at(&mut self, now: Moment) {
        self.now_slot = now.steady_ms / SLOT_MS;
        self.oldest = self.now_slot.saturating_sub(self.stay);
        self.top = self.oldest;
        self.day = PacificDay::holding(now.wall_ms);
    }
}

/// The part of an [`Admission`] that outlives a process.
#[cfg(any(test, feature = "redb"))]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) slots: Vec<(u64, [u64; 3])>,
    pub(crate) days: Vec<(i32, u64)>,
    pub(crate) closed_day: Option<i32>,
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
