//! Accounts what is spent and what is reserved, by period. Pure.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{CapDimension, Caps, SpendAmounts};
use crate::calendar::{Zone, timestamp};

/// How long a cap counts before it starts anew.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Period {
    /// The hour of the clock.
    Hour,
    /// The day of the calendar.
    Day,
    /// The month of the calendar.
    Month,
    /// Intervals of this length, counted from 1970-01-01T00:00Z. At least a second.
    Every(Duration),
    /// All time: it never starts anew.
    Total,
}

impl Period {
    /// Returns where the period that holds a moment begins and ends, in seconds since 1970.
    #[must_use]
    pub fn holding(&self, at: SystemTime, zone: &Zone) -> (i64, i64) {
        let unix = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let unix = i64::try_from(unix).unwrap_or(i64::MAX);
        let fixed = |length: i64| {
            let start = unix - unix.rem_euclid(length);
            (start, start.saturating_add(length))
        };
        let unit = match self {
            Self::Hour => jiff::Unit::Hour,
            Self::Day => jiff::Unit::Day,
            Self::Month => jiff::Unit::Month,
            Self::Total => return (0, i64::MAX),
            Self::Every(length) => {
                return fixed(i64::try_from(length.as_secs()).unwrap_or(i64::MAX).max(1));
            }
        };
        let bounds = timestamp(at).and_then(|at| zone.span_of(unit, at));
        // Only beyond the year 9999.
        bounds.map_or_else(|| fixed(86_400), |(start, end)| (start.as_second(), end.as_second()))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hour => f.write_str("hour"),
            Self::Day => f.write_str("day"),
            Self::Month => f.write_str("month"),
            Self::Every(length) => write!(f, "{} s", length.as_secs()),
            Self::Total => f.write_str("total"),
        }
    }
}

/// Sums of amounts. Wider than the amounts: an attempt that nothing bounds is `u64::MAX`, and two
/// of them must come off again one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Sums([u128; 5]);

impl Sums {
    fn add(&mut self, amounts: SpendAmounts) {
        for (sum, amount) in self.0.iter_mut().zip(amounts.to_array()) {
            *sum = sum.saturating_add(amount.into());
        }
    }

    fn remove(&mut self, amounts: SpendAmounts) {
        for (sum, amount) in self.0.iter_mut().zip(amounts.to_array()) {
            *sum = sum.saturating_sub(amount.into());
        }
    }

    fn amounts(&self) -> SpendAmounts {
        SpendAmounts::from_array(self.0.map(|sum| u64::try_from(sum).unwrap_or(u64::MAX)))
    }
}

/// The account of one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Page {
    start: i64,
    end: i64,
    settled: Sums,
    reserved: Sums,
    images: u64,
    refused: u64,
}

/// What one period, and the one before it, came to: the part of an [`Account`] that a store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPage {
    period: String,
    page: Page,
    last: Page,
}

impl StoredPage {
    /// What one period came to, for stores that keep sums by themselves: the period's name, its
    /// bounds in seconds since 1970, what is settled and what is reserved, and images delivered.
    #[must_use]
    pub fn new(
        period: &str,
        (start, end): (i64, i64),
        settled: SpendAmounts,
        reserved: SpendAmounts,
        images: u64,
    ) -> Self {
        let sums = |amounts| {
            let mut sums = Sums::default();
            sums.add(amounts);
            sums
        };
        let (settled, reserved) = (sums(settled), sums(reserved));
        let page = Page { start, end, settled, reserved, images, refused: 0 };
        Self { period: period.to_owned(), page, last: Page::default() }
    }
}

#[derive(Debug, Clone)]
struct Book {
    period: Period,
    caps: Caps,
    page: Page,
    /// The period before: what was reserved in it is settled in it.
    last: Page,
    /// The clock was set back into the period before: what was counted in both counts now.
    both_count: bool,
}

/// What was reserved for one attempt, to be settled once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpendReservation {
    amounts: SpendAmounts,
    /// The start of each book's period when it was made.
    starts: Vec<i64>,
}

impl SpendReservation {
    /// Returns what was reserved. Time may be less than was asked for: what is left of a cap.
    #[must_use]
    pub fn amounts(&self) -> SpendAmounts {
        self.amounts
    }
}

/// What keeps an attempt from fitting, from what passes by itself to what never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum BlockedBy {
    /// Reservations of running attempts: waiting for them may help.
    Reservations,
    /// What is spent: only the next period helps, if there is one.
    Spent,
    /// The price of the attempt itself, which is above the cap.
    Price,
}

/// Says which cap an attempt might have exceeded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CapReached {
    /// The period of the cap, as text; `None` for a cap of each call.
    pub period: Option<String>,
    /// What is capped.
    pub dimension: CapDimension,
    /// The cap.
    pub cap: u64,
    /// What is spent and reserved already.
    pub taken: u64,
    /// What the attempt might have added.
    pub asked: u64,
    /// What keeps it from fitting.
    pub blocked_by: BlockedBy,
    /// Until the period ends; `None` where no waiting helps.
    pub wait: Option<Duration>,
}

impl fmt::Display for CapReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |amount: u64| match amount {
            u64::MAX => "an unknown amount".to_owned(),
            _ => self.dimension.show(amount),
        };
        write!(f, "the cap of {}{} ", show(self.cap), self.dimension.qualifier())?;
        match self.period.as_deref() {
            Some("total") => f.write_str("in total")?,
            Some(period) => write!(f, "a {period}")?,
            None => f.write_str("a call")?,
        }
        write!(
            f,
            " might be passed: {} taken, and this attempt may add {}",
            show(self.taken),
            show(self.asked)
        )
    }
}

/// Shows what one period came to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Spent {
    /// Which period, as text.
    pub period: String,
    /// When it began, in seconds since 1970.
    pub began_unix: i64,
    /// Its caps.
    pub caps: Caps,
    /// What is spent: for each attempt that has ended, what it came to.
    pub settled: SpendAmounts,
    /// What is reserved for running attempts.
    pub reserved: SpendAmounts,
    /// Images delivered.
    pub images: u64,
    /// Attempts that were not sent because of this period's caps.
    pub refused: u64,
}

impl Spent {
    /// Returns what each delivered image cost, failed attempts included; `None` where there is none.
    #[must_use]
    pub fn cost_per_image(&self) -> Option<tower_gemini_core::cost::Cost> {
        self.settled.cost().per_image(self.images)
    }
}

/// Keeps the accounts of all periods.
#[derive(Debug, Clone)]
pub struct Account {
    zone: Zone,
    books: Vec<Book>,
}

impl Book {
    fn taken(&self) -> SpendAmounts {
        self.settled().plus(self.reserved())
    }

    fn settled(&self) -> SpendAmounts {
        self.of_both(|page| page.settled.amounts())
    }

    fn reserved(&self) -> SpendAmounts {
        self.of_both(|page| page.reserved.amounts())
    }

    fn of_both(&self, of: impl Fn(&Page) -> SpendAmounts) -> SpendAmounts {
        if self.both_count { of(&self.page).plus(of(&self.last)) } else { of(&self.page) }
    }

    /// The cap that these amounts would exceed, the most lasting one first.
    fn blocked(&self, now: SystemTime, amounts: SpendAmounts) -> Option<CapReached> {
        let blocked = CapDimension::ALL.into_iter().filter_map(|dimension| {
            let (cap, asked) = (self.caps.get(dimension)?, amounts.get(dimension));
            let taken = self.taken().get(dimension);
            if taken.saturating_add(asked) <= cap {
                return None;
            }
            let settled = self.settled().get(dimension);
            // Time can be granted in part: what is left of it is enough.
            let least = if dimension == CapDimension::WallTime { asked.min(1) } else { asked };
            let blocked_by = if least > cap {
                BlockedBy::Price
            } else if settled.saturating_add(least) > cap {
                BlockedBy::Spent
            } else {
                BlockedBy::Reservations
            };
            let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let end = Duration::from_secs(u64::try_from(self.page.end).unwrap_or(0));
            let may_fit = blocked_by != BlockedBy::Price && self.page.end < i64::MAX;
            let wait = may_fit.then(|| end.saturating_sub(unix));
            let period = Some(self.period.to_string());
            Some(CapReached { period, dimension, cap, taken, asked, blocked_by, wait })
        });
        first_of_the_worst(blocked)
    }
}

/// `max_by_key` keeps the last of equals; the first cap is the one to name.
fn first_of_the_worst(blocked: impl Iterator<Item = CapReached>) -> Option<CapReached> {
    blocked.reduce(|a, b| if b.blocked_by > a.blocked_by { b } else { a })
}

impl Account {
    /// Starts with nothing spent. The zone is the one whose calendar days and months start periods.
    #[must_use]
    pub fn new(zone: Zone, periods: impl IntoIterator<Item = (Period, Caps)>) -> Self {
        let book = |(period, caps)| Book {
            period,
            caps,
            page: Page::default(),
            last: Page::default(),
            both_count: false,
        };
        Self { zone, books: periods.into_iter().map(book).collect() }
    }

    /// Replaces the caps of each period of this kind. What is counted stays counted, and what is
    /// reserved stays reserved. `false` where no period is of this kind.
    pub fn set_caps(&mut self, period: &Period, caps: Caps) -> bool {
        let name = period.to_string();
        let mut is_known = false;
        for book in self.books.iter_mut().filter(|book| book.period.to_string() == name) {
            book.caps = caps;
            is_known = true;
        }
        is_known
    }

    /// Counts what was spent before: it counts against caps in total, and against no others.
    #[must_use]
    pub fn starting_balance(mut self, spent: SpendAmounts) -> Self {
        self.turn(SystemTime::UNIX_EPOCH);
        for book in self.books.iter_mut().filter(|book| matches!(book.period, Period::Total)) {
            book.page.settled.add(spent);
        }
        self
    }

    /// Starts new pages where periods have ended. A clock that was set back starts none: what was
    /// counted stays counted, beside what the period that it shows now came to, until that has
    /// ended. Were it to stay until the clock is there again, a clock that was years ahead for a
    /// moment would lock a cap.
    fn turn(&mut self, now: SystemTime) {
        for book in &mut self.books {
            let (start, end) = book.period.holding(now, &self.zone);
            let Page { start: began, end: ends, .. } = book.page;
            if start > began || ends == 0 || (start < began && start >= ends) {
                book.last = book.page;
                book.page = Page { start, end, ..Page::default() };
            } else {
                book.page.end = end;
            }
            book.both_count = start < book.page.start && start == book.last.start;
        }
    }

    /// Reserves for an attempt, in every period at once or in none. Of time, which the caller can
    /// limit to what was granted, what is left of a cap is reserved where it is less.
    ///
    /// # Errors
    ///
    /// The cap that might be exceeded: the one that blocks longest, the first of equals.
    pub fn reserve(
        &mut self,
        now: SystemTime,
        mut amounts: SpendAmounts,
    ) -> Result<SpendReservation, CapReached> {
        self.turn(now);
        let left = |book: &Book| {
            Some(book.caps.get(CapDimension::WallTime)?.saturating_sub(book.taken().wall_ms))
        };
        if let Some(left) = self.books.iter().filter_map(left).min().filter(|&left| left > 0) {
            amounts.wall_ms = amounts.wall_ms.min(left);
        }
        let blocked = self.books.iter().filter_map(|book| book.blocked(now, amounts));
        if let Some(reached) = first_of_the_worst(blocked) {
            return Err(reached);
        }
        for book in &mut self.books {
            book.page.reserved.add(amounts);
        }
        let starts = self.books.iter().map(|book| book.page.start).collect();
        Ok(SpendReservation { amounts, starts })
    }

    /// What each period came to, for a store.
    pub(crate) fn pages(&self) -> Vec<StoredPage> {
        let page = |book: &Book| StoredPage {
            period: book.period.to_string(),
            page: book.page,
            last: book.last,
        };
        self.books.iter().map(page).collect()
    }

    /// Takes over what a store has kept of these periods.
    pub(crate) fn restore(&mut self, pages: &[StoredPage]) {
        for book in &mut self.books {
            let name = book.period.to_string();
            if let Some(kept) = pages.iter().find(|kept| kept.period == name) {
                (book.page, book.last) = (kept.page, kept.last);
            }
        }
    }

    /// The periods in which a reservation was made, by name.
    pub(crate) fn starts(&self, reservation: &SpendReservation) -> Vec<(String, i64)> {
        let periods = self.books.iter().map(|book| book.period.to_string());
        periods.zip(reservation.starts.iter().copied()).collect()
    }

    /// The reservation that was made in the periods that begin there.
    pub(crate) fn reservation_of(
        &self,
        amounts: SpendAmounts,
        start: impl Fn(&str) -> Option<i64>,
    ) -> SpendReservation {
        // A period that had no cap then is none that this was reserved in.
        let start = |book: &Book| start(&book.period.to_string()).unwrap_or(i64::MIN);
        SpendReservation { amounts, starts: self.books.iter().map(start).collect() }
    }

    /// Stands for an attempt of the present periods that was sent without a reservation.
    pub(crate) fn nothing_reserved(&mut self, now: SystemTime) -> SpendReservation {
        self.turn(now);
        let starts = self.books.iter().map(|book| book.page.start).collect();
        SpendReservation { amounts: SpendAmounts::NONE, starts }
    }

    /// Counts an attempt that was not sent because of this cap.
    pub fn count_refusal(&mut self, reached: &CapReached) {
        for book in &mut self.books {
            if reached.period.as_deref() == Some(&*book.period.to_string()) {
                book.page.refused += 1;
            }
        }
    }

    /// Replaces what was reserved by what the attempt came to, in the periods in which it was sent.
    pub fn settle(&mut self, reservation: SpendReservation, came_to: SpendAmounts, images: u64) {
        for page in self.pages_of(&reservation) {
            page.reserved.remove(reservation.amounts);
            page.settled.add(came_to);
            page.images += images;
        }
    }

    /// Makes a reservation out of what it was settled as: all of it.
    pub(crate) fn unsettle(&mut self, reservation: SpendReservation) {
        for page in self.pages_of(&reservation) {
            page.settled.remove(reservation.amounts);
            page.reserved.add(reservation.amounts);
        }
    }

    /// The pages that count a reservation. Periods before the last one are no longer reported.
    fn pages_of(&mut self, reservation: &SpendReservation) -> impl Iterator<Item = &mut Page> {
        self.books.iter_mut().zip(&reservation.starts).filter_map(|(book, start)| match *start {
            start if start == book.page.start => Some(&mut book.page),
            start if start == book.last.start => Some(&mut book.last),
            _ => None,
        })
    }

    /// The lowest cap on money of any period that is below this price, with its period.
    pub(super) fn caps_below(&self, price: SpendAmounts) -> Option<(String, CapDimension, u64)> {
        self.books.iter().find_map(|book| {
            let (dimension, cap) = book.caps.exceeded_by(price)?;
            Some((book.period.to_string(), dimension, cap))
        })
    }

    /// Returns what each period came to so far.
    #[must_use]
    pub fn spent(&mut self, now: SystemTime) -> Vec<Spent> {
        self.turn(now);
        let spent = |book: &Book| Spent {
            period: book.period.to_string(),
            began_unix: book.page.start,
            caps: book.caps,
            settled: book.settled(),
            reserved: book.reserved(),
            images: book.page.images + if book.both_count { book.last.images } else { 0 },
            refused: book.page.refused,
        };
        self.books.iter().map(spent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(unix: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix)
    }

    fn dollars(usd: u64) -> SpendAmounts {
        SpendAmounts {
            certain_microusd: usd * 1_000_000,
            at_most_microusd: usd * 1_000_000,
            attempts: 1,
            quota_units: 1,
            wall_ms: 1,
        }
    }

    /// 2026-01-06T00:30:00Z.
    const NOW: u64 = 1_767_659_400;

    fn daily(caps: Caps) -> Account {
        Account::new(Zone::utc(), [(Period::Day, caps)])
    }

    #[derive(Debug, Clone)]
    enum Move {
        Reserve(SpendAmounts),
        /// Of the reservation that is open longest or shortest, and how many hundredths of it were
        /// used.
        Settle(bool, u64),
        Wait(u64),
    }

    fn amounts() -> impl Strategy<Value = SpendAmounts> {
        let money = prop_oneof![8 => 0_u64..3_000, 1 => Just(u64::MAX)];
        (money, 0_u64..3, 0_u64..3, 0_u64..500).prop_map(
            |(money, attempts, quota_units, wall_ms)| SpendAmounts {
                certain_microusd: money,
                at_most_microusd: money,
                attempts,
                quota_units,
                wall_ms,
            },
        )
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            4 => amounts().prop_map(Move::Reserve),
            3 => (any::<bool>(), 0_u64..=100).prop_map(|(first, used)| Move::Settle(first, used)),
            1 => (0_u64..4_000).prop_map(Move::Wait),
        ];
        proptest::collection::vec(one, 0..60)
    }

    fn caps() -> impl Strategy<Value = Caps> {
        let cap = |most: u64| proptest::option::of(0..most);
        (cap(8_000), cap(8_000), cap(12), cap(12), cap(2_000)).prop_map(
            |(certain, at_most, attempts, units, wall)| {
                let caps = [certain, at_most, attempts, units, wall];
                CapDimension::ALL
                    .into_iter()
                    .zip(caps)
                    .fold(Caps::none(), |all, (dimension, cap)| all.with(dimension, cap))
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Against a plain list of everything that was ever set aside and spent, by period.
        #[test]
        fn no_order_of_reserving_settling_and_dropping_passes_a_cap(hourly in caps(), daily in caps(), moves in moves()) {
            let mut account = Account::new(Zone::utc(), [(Period::Hour, hourly), (Period::Day, daily)]);
            let mut now = NOW;
            let mut open: Vec<(u64, SpendReservation)> = Vec::new();
            let mut spent: Vec<(u64, SpendAmounts)> = Vec::new();
            for step in moves {
                match step {
                    Move::Reserve(amounts) => match account.reserve(at(now), amounts) {
                        Ok(reservation) => {
                            prop_assert!(reservation.amounts().wall_ms <= amounts.wall_ms);
                            open.push((now, reservation));
                        }
                        Err(refused) => {
                            let caps = if refused.period.as_deref() == Some("hour") { &hourly } else { &daily };
                            prop_assert_eq!(caps.get(refused.dimension), Some(refused.cap));
                            prop_assert!(u128::from(refused.taken) + u128::from(refused.asked) > u128::from(refused.cap));
                        }
                    },
                    Move::Settle(first, used) if !open.is_empty() => {
                        let (when, reservation) = open.remove(if first { 0 } else { open.len() - 1 });
                        let of = reservation.amounts();
                        let part = SpendAmounts::from_array(of.to_array().map(|amount| (u128::from(amount) * u128::from(used) / 100) as u64));
                        account.settle(reservation, part, 0);
                        spent.push((when, part));
                    }
                    Move::Settle(..) => {}
                    Move::Wait(seconds) => now += seconds,
                }
                for (length, caps, page) in
                    account.spent(at(now)).iter().zip([(3_600, hourly), (86_400, daily)]).map(|(page, (length, caps))| (length, caps, page))
                {
                    let here = |when: u64| when / length == now / length;
                    for dimension in CapDimension::ALL {
                        let sum = |list: &mut dyn Iterator<Item = SpendAmounts>| list.map(|of| u128::from(of.get(dimension))).sum::<u128>();
                        let settled = sum(&mut spent.iter().filter(|(when, _)| here(*when)).map(|(_, of)| *of));
                        let reserved = sum(&mut open.iter().filter(|(when, _)| here(*when)).map(|(_, of)| of.amounts()));
                        let shown = |sum: u128| u64::try_from(sum).unwrap_or(u64::MAX);
                        prop_assert_eq!(page.settled.get(dimension), shown(settled));
                        prop_assert_eq!(page.reserved.get(dimension), shown(reserved));
                        if let Some(cap) = caps.get(dimension) {
                            prop_assert!(settled + reserved <= u128::from(cap), "{dimension} of {length} s");
                        }
                    }
                }
            }
            // Nothing leaks: with everything settled nothing is set aside.
            for (_, reservation) in open {
                account.settle(reservation, SpendAmounts::NONE, 0);
            }
            for page in account.spent(at(now)) {
                prop_assert_eq!(page.reserved, SpendAmounts::NONE);
            }
        }
    }

    #[test]
    fn a_period_of_a_fixed_length_holds_its_moment_and_begins_at_a_multiple_of_it() {
        for seconds in [1, 50, 3_600] {
            let period = Period::Every(Duration::from_secs(seconds));
            let (start, end) = period.holding(at(NOW), &Zone::utc());
            let (now, length) = (i64::try_from(NOW).unwrap(), i64::try_from(seconds).unwrap());
            assert_eq!((start % length, end - start), (0, length));
            assert!((start..end).contains(&now), "{start}..{end} holds {now}");
        }
    }

    #[test]
    fn a_refusal_of_what_nothing_bounds_says_so() {
        let mut account = daily(Caps::none().at_most_usd(5.0));
        let unbounded = SpendAmounts { at_most_microusd: u64::MAX, ..SpendAmounts::NONE };
        let refusal = account.reserve(at(NOW), unbounded).unwrap_err().to_string();
        assert!(refusal.ends_with("this attempt may add an unknown amount"), "{refusal}");
    }

    #[test]
    fn a_refusal_names_the_cap_and_how_long_it_holds() {
        let mut account = daily(Caps::none().at_most_usd(5.0));
        let first = account.reserve(at(NOW), dollars(3)).unwrap();
        let refused = account.reserve(at(NOW), dollars(3)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the cap of $5.0000 at most a day might be passed: $3.0000 taken, and this attempt may add $3.0000"
        );
        assert_eq!(refused.wait, Some(Duration::from_secs(86_400 - 1_800)));
        account.settle(first, SpendAmounts::NONE, 0);
        assert!(account.reserve(at(NOW), dollars(3)).is_ok());
        assert_eq!(
            account.reserve(at(NOW), dollars(6)).unwrap_err().wait,
            None,
            "it will not fit tomorrow either"
        );
    }

    #[test]
    fn a_period_begins_anew_and_what_runs_over_counts_where_it_began() {
        let mut account = daily(Caps::none().at_most_usd(5.0));
        let yesterday = account.reserve(at(NOW), dollars(4)).unwrap();
        let tomorrow = NOW + 86_400;
        let today = account.reserve(at(tomorrow), dollars(4)).unwrap();
        account.settle(yesterday, dollars(4), 1);
        let spent = &account.spent(at(tomorrow))[0];
        assert_eq!(
            (spent.settled, spent.reserved, spent.images),
            (SpendAmounts::NONE, dollars(4), 0)
        );
        account.settle(today, dollars(2), 1);
        let spent = &account.spent(at(tomorrow))[0];
        assert_eq!(spent.cost_per_image().unwrap().to_string(), "$2.0000");
        // The clock is set back by a day: nothing is forgotten.
        assert_eq!(account.spent(at(NOW))[0].settled, dollars(4).plus(dollars(2)));
    }

    #[test]
    fn the_time_that_is_left_is_granted() {
        let mut account = daily(Caps::none().wall_time(Duration::from_secs(10)));
        let minute = SpendAmounts { wall_ms: 60_000, ..SpendAmounts::NONE };
        let reservation = account.reserve(at(NOW), minute).unwrap();
        assert_eq!(reservation.amounts().wall_ms, 10_000);
        let refused = account.reserve(at(NOW), minute).unwrap_err();
        assert_eq!((refused.dimension, refused.cap), (CapDimension::WallTime, 10_000));
        account.settle(reservation, SpendAmounts { wall_ms: 4_000, ..SpendAmounts::NONE }, 0);
        assert_eq!(account.reserve(at(NOW), minute).unwrap().amounts().wall_ms, 6_000);
    }

    #[test]
    fn reservations_block_for_a_while_what_is_spent_to_the_end_of_the_period_and_a_price_for_ever()
    {
        let blocked = |account: &mut Account, usd| {
            let reached = account.reserve(at(NOW), dollars(usd)).unwrap_err();
            (reached.blocked_by, reached.wait.is_some())
        };
        let mut account = daily(Caps::none().at_most_usd(5.0));
        let first = account.reserve(at(NOW), dollars(3)).unwrap();
        assert_eq!(blocked(&mut account, 3), (BlockedBy::Reservations, true));
        assert_eq!(blocked(&mut account, 6), (BlockedBy::Price, false));
        account.settle(first, dollars(3), 1);
        assert_eq!(blocked(&mut account, 3), (BlockedBy::Spent, true));
        assert!(account.reserve(at(NOW), dollars(2)).is_ok());
    }

    #[test]
    fn the_cap_that_blocks_longest_is_named_whatever_its_period() {
        let caps = Caps::none().at_most_usd(5.0);
        let mut account = Account::new(Zone::utc(), [(Period::Hour, caps), (Period::Total, caps)])
            .starting_balance(dollars(4));
        let held = account.reserve(at(NOW), dollars(1)).unwrap();
        let reached = account.reserve(at(NOW), dollars(2)).unwrap_err();
        assert_eq!(
            (reached.period.as_deref(), reached.blocked_by, reached.wait),
            (Some("total"), BlockedBy::Spent, None)
        );
        assert_eq!(
            reached.to_string(),
            "the cap of $5.0000 at most in total might be passed: $5.0000 taken, and this attempt may add $2.0000"
        );
        account.count_refusal(&reached);
        account.settle(held, SpendAmounts::NONE, 0);
        let spent = account.spent(at(NOW));
        assert_eq!(spent[0].settled, SpendAmounts::NONE, "the hour is new");
        assert_eq!((spent[1].settled, spent[0].refused, spent[1].refused), (dollars(4), 0, 1));
    }

    // A machine that starts with a wrong clock once counted the month of 2030 until 2030.
    #[test]
    fn a_clock_that_was_ahead_locks_no_cap_and_forgets_nothing() {
        let mut account = daily(Caps::none().at_most_usd(5.0));
        let years_ahead = NOW + 5 * 31_556_952;
        let early = account.reserve(at(years_ahead), dollars(4)).unwrap();
        let refused = account.reserve(at(NOW), dollars(2)).unwrap_err();
        assert_eq!(refused.wait, Some(Duration::from_secs(86_400 - 1_800)), "until tonight");
        account.settle(early, dollars(4), 1);
        assert!(account.reserve(at(NOW), dollars(2)).is_err(), "it was spent");
        let tomorrow = NOW + 86_400;
        let held = account.reserve(at(tomorrow), dollars(5)).unwrap();
        account.settle(held, dollars(1), 1);
        assert_eq!(account.spent(at(tomorrow))[0].settled, dollars(1));
    }

    // A clock that was a year ahead for a minute forgot what the day had spent before.
    #[test]
    fn a_clock_that_jumps_ahead_and_back_neither_locks_a_cap_nor_forgets_what_was_spent() {
        let mut account = daily(Caps::none().at_most_usd(5.0));
        let (far, tomorrow) = (NOW + 365 * 86_400, NOW + 86_400);
        let before = account.reserve(at(NOW), dollars(1)).unwrap();
        let ahead = account.reserve(at(far), dollars(4)).unwrap();
        account.settle(before, dollars(1), 1);
        // Back: both count today, whatever the clock said.
        let refused = account.reserve(at(NOW), dollars(1)).unwrap_err();
        assert!(refused.wait.is_some_and(|wait| wait < Duration::from_secs(86_400)), "{refused:?}");
        account.settle(ahead, dollars(3), 1);
        let spent = &account.spent(at(NOW))[0];
        assert_eq!(
            (spent.settled, spent.reserved, spent.images),
            (dollars(1).plus(dollars(3)), SpendAmounts::NONE, 2)
        );
        assert!(account.reserve(at(NOW), dollars(1)).is_ok());
        assert!(account.reserve(at(tomorrow), dollars(5)).is_ok(), "the next day is new");
    }

    #[test]
    fn a_clock_that_jumps_back_and_is_corrected_grants_a_period_once() {
        let mut account = daily(Caps::none().at_most_usd(5.0));
        let yesterday = NOW - 86_400;
        let today = account.reserve(at(NOW), dollars(4)).unwrap();
        account.settle(today, dollars(4), 1);
        assert!(account.reserve(at(yesterday), dollars(2)).is_err());
        let held = account.reserve(at(yesterday), dollars(1)).unwrap();
        assert!(account.reserve(at(NOW), dollars(2)).is_err());
        account.settle(held, SpendAmounts::NONE, 0);
        assert!(account.reserve(at(NOW), dollars(1)).is_ok());
    }

    #[test]
    fn a_total_never_starts_anew() {
        let caps = Caps::none().at_most_usd(5.0);
        let mut account = Account::new(Zone::utc(), [(Period::Total, caps)]);
        let first = account.reserve(at(NOW), dollars(4)).unwrap();
        account.settle(first, dollars(4), 1);
        for years in [1, 20, 200] {
            assert!(account.reserve(at(NOW + years * 31_556_952), dollars(2)).is_err());
        }
    }
}
