//! What was spent, what is set aside, and whether more may be: pure.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::{Amounts, Caps, Dimension};
use crate::calendar::{Zone, timestamp};

/// How long a cap counts before it begins anew.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Period {
    /// The hour of the clock.
    Hour,
    /// The day of the calendar.
    Day,
    /// The month of the calendar.
    Month,
    /// Stretches of this length, counted from 1970-01-01T00:00Z. At least a second.
    Every(Duration),
}

impl Period {
    /// Where the period that holds a moment begins and ends, in seconds since 1970.
    pub(super) fn holding(&self, at: SystemTime, zone: &Zone) -> (i64, i64) {
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
            Self::Every(length) => {
                return fixed(i64::try_from(length.as_secs()).unwrap_or(i64::MAX).max(1));
            }
        };
        let bounds =
            timestamp(at).and_then(|at| Some((zone.start_of(unit, at)?, zone.end_of(unit, at)?)));
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
        }
    }
}

/// A sum of amounts. Wider than they are: an attempt that nothing bounds is `u64::MAX`, and two of
/// them must come off again one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sums([u128; 5]);

impl Sums {
    fn add(&mut self, amounts: Amounts) {
        for (sum, dimension) in self.0.iter_mut().zip(Dimension::ALL) {
            *sum = sum.saturating_add(amounts.of(dimension).into());
        }
    }

    fn take(&mut self, amounts: Amounts) {
        for (sum, dimension) in self.0.iter_mut().zip(Dimension::ALL) {
            *sum = sum.saturating_sub(amounts.of(dimension).into());
        }
    }

    fn of(&self, dimension: Dimension) -> u64 {
        let sum = Dimension::ALL
            .iter()
            .position(|&known| known == dimension)
            .and_then(|at| self.0.get(at));
        sum.map_or(0, |&sum| u64::try_from(sum).unwrap_or(u64::MAX))
    }

    fn amounts(&self) -> Amounts {
        Amounts::from_fn(|dimension| self.of(dimension))
    }
}

/// One period's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Page {
    start: i64,
    end: i64,
    settled: Sums,
    reserved: Sums,
    images: u64,
    refused: u64,
}

#[derive(Debug, Clone)]
struct Book {
    period: Period,
    caps: Caps,
    page: Page,
    /// The period before: what was reserved in it is settled in it.
    last: Page,
}

impl Book {
    fn taken(&self) -> Amounts {
        self.page.settled.amounts().plus(self.page.reserved.amounts())
    }
}

/// What was set aside for one attempt, to be settled once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    amounts: Amounts,
    /// The start of each book's period when it was made.
    starts: Vec<i64>,
}

/// Which cap an attempt might have passed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CapReached {
    /// The period of the cap, as text; `None` for a cap of each call.
    pub period: Option<String>,
    /// What is capped.
    pub dimension: Dimension,
    /// The cap.
    pub cap: u64,
    /// What is spent and set aside already.
    pub taken: u64,
    /// What the attempt might have added.
    pub asked: u64,
    /// Until the period ends; `None` where no waiting helps.
    pub wait: Option<Duration>,
}

impl Reservation {
    /// What was set aside. Time may be less than was asked for: what is left of a cap.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        self.amounts
    }
}

impl fmt::Display for CapReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |amount: u64| {
            if amount == u64::MAX {
                "an unknown amount".to_owned()
            } else {
                self.dimension.show(amount)
            }
        };
        write!(f, "the cap of {} ", show(self.cap))?;
        f.write_str(match self.dimension {
            Dimension::MoneyCertain => "for certain ",
            Dimension::MoneyAtMost => "at most ",
            _ => "",
        })?;
        match &self.period {
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

/// What one period came to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Spent {
    /// Which period, as text.
    pub period: String,
    /// When it began, in seconds since 1970.
    pub began_unix: i64,
    /// Its caps.
    pub caps: Caps,
    /// What is spent: of each attempt that has ended, what it came to.
    pub settled: Amounts,
    /// What is set aside for attempts under way.
    pub reserved: Amounts,
    /// Images delivered.
    pub images: u64,
    /// Attempts that were not sent because of this period's caps.
    pub refused: u64,
}

impl Spent {
    /// What each delivered image cost, failed attempts included; `None` where there is none.
    #[must_use]
    pub fn cost_per_image(&self) -> Option<tower_gemini_core::cost::Cost> {
        self.settled.cost().per_image(self.images)
    }
}

/// The accounts of all periods.
#[derive(Debug, Clone)]
pub struct Account {
    zone: Zone,
    books: Vec<Book>,
}

impl Account {
    /// Nothing spent yet. The zone is the one whose calendar days and months begin with.
    #[must_use]
    pub fn new(zone: Zone, periods: impl IntoIterator<Item = (Period, Caps)>) -> Self {
        let book =
            |(period, caps)| Book { period, caps, page: Page::default(), last: Page::default() };
        Self { zone, books: periods.into_iter().map(book).collect() }
    }

    /// Begins new pages where periods have ended. A clock that was set back begins none: what was
    /// counted stays counted.
    fn turn(&mut self, now: SystemTime) {
        for book in &mut self.books {
            let (start, end) = book.period.holding(now, &self.zone);
            if start > book.page.start || book.page.end == 0 {
                book.last = book.page;
                book.page = Page { start, end, ..Page::default() };
            }
        }
    }

    /// Sets aside the most that an attempt can come to, in every period at once or in none. Of
    /// time, which the caller can hold to what was granted, what is left of a cap is set aside
    /// where it is less.
    ///
    /// # Errors
    ///
    /// The first cap that might be passed.
    pub fn reserve(
        &mut self,
        now: SystemTime,
        mut amounts: Amounts,
    ) -> Result<Reservation, CapReached> {
        self.turn(now);
        let left = |book: &Book| {
            Some(book.caps.of(Dimension::WallTime)?.saturating_sub(book.taken().wall_ms))
        };
        if let Some(left) = self.books.iter().filter_map(left).min().filter(|&left| left > 0) {
            amounts.wall_ms = amounts.wall_ms.min(left);
        }
        let mut refused = None;
        for book in &mut self.books {
            let taken = book.taken();
            let Some((dimension, cap)) = book.caps.passed_by(taken.plus(amounts)) else { continue };
            book.page.refused += 1;
            let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let end = Duration::from_secs(u64::try_from(book.page.end).unwrap_or(0));
            let asked = amounts.of(dimension);
            // In an empty period it would not fit either: then no waiting helps.
            let fits = asked <= cap || (dimension == Dimension::WallTime && cap > 0);
            let wait = fits.then(|| end.saturating_sub(unix));
            let period = Some(book.period.to_string());
            refused.get_or_insert(CapReached {
                period,
                dimension,
                cap,
                taken: taken.of(dimension),
                asked,
                wait,
            });
        }
        if let Some(refused) = refused {
            return Err(refused);
        }
        for book in &mut self.books {
            book.page.reserved.add(amounts);
        }
        Ok(Reservation { amounts, starts: self.books.iter().map(|book| book.page.start).collect() })
    }

    /// Puts what an attempt came to in the place of what was set aside for it, in the periods in
    /// which it was sent.
    pub fn settle(&mut self, reservation: Reservation, came_to: Amounts, images: u64) {
        for (book, start) in self.books.iter_mut().zip(reservation.starts) {
            // Two periods back nobody asks any more.
            let page = match start {
                start if start == book.page.start => &mut book.page,
                start if start == book.last.start => &mut book.last,
                _ => continue,
            };
            page.reserved.take(reservation.amounts);
            page.settled.add(came_to);
            page.images += images;
        }
    }

    /// What each period came to so far.
    #[must_use]
    pub fn spent(&mut self, now: SystemTime) -> Vec<Spent> {
        self.turn(now);
        self.books
            .iter()
            .map(|book| Spent {
                period: book.period.to_string(),
                began_unix: book.page.start,
                caps: book.caps,
                settled: book.page.settled.amounts(),
                reserved: book.page.reserved.amounts(),
                images: book.page.images,
                refused: book.page.refused,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(unix: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix)
    }

    fn dollars(usd: u64) -> Amounts {
        Amounts {
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
        Reserve(Amounts),
        /// Of the reservation that is open longest or shortest, and how many hundredths of it were
        /// used.
        Settle(bool, u64),
        Wait(u64),
    }

    fn amounts() -> impl Strategy<Value = Amounts> {
        let money = prop_oneof![8 => 0_u64..3_000, 1 => Just(u64::MAX)];
        (money, 0_u64..3, 0_u64..3, 0_u64..500).prop_map(
            |(money, attempts, quota_units, wall_ms)| Amounts {
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
            |(certain, at_most, attempts, units, wall)| Caps {
                certain_microusd: certain,
                at_most_microusd: at_most,
                attempts,
                quota_units: units,
                wall_ms: wall,
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
            let mut open: Vec<(u64, Reservation)> = Vec::new();
            let mut spent: Vec<(u64, Amounts)> = Vec::new();
            for step in moves {
                match step {
                    Move::Reserve(amounts) => match account.reserve(at(now), amounts) {
                        Ok(reservation) => {
                            prop_assert!(reservation.amounts().wall_ms <= amounts.wall_ms);
                            open.push((now, reservation));
                        }
                        Err(refused) => {
                            let caps = if refused.period.as_deref() == Some("hour") { &hourly } else { &daily };
                            prop_assert_eq!(caps.of(refused.dimension), Some(refused.cap));
                            prop_assert!(u128::from(refused.taken) + u128::from(refused.asked) > u128::from(refused.cap));
                        }
                    },
                    Move::Settle(first, used) if !open.is_empty() => {
                        let (when, reservation) = open.remove(if first { 0 } else { open.len() - 1 });
                        let of = reservation.amounts();
                        let part = Amounts::from_fn(|dimension| (u128::from(of.of(dimension)) * u128::from(used) / 100) as u64);
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
                    for dimension in Dimension::ALL {
                        let sum = |list: &mut dyn Iterator<Item = Amounts>| list.map(|of| u128::from(of.of(dimension))).sum::<u128>();
                        let settled = sum(&mut spent.iter().filter(|(when, _)| here(*when)).map(|(_, of)| *of));
                        let reserved = sum(&mut open.iter().filter(|(when, _)| here(*when)).map(|(_, of)| of.amounts()));
                        let shown = |sum: u128| u64::try_from(sum).unwrap_or(u64::MAX);
                        prop_assert_eq!(page.settled.of(dimension), shown(settled));
                        prop_assert_eq!(page.reserved.of(dimension), shown(reserved));
                        if let Some(cap) = caps.of(dimension) {
                            prop_assert!(settled + reserved <= u128::from(cap), "{dimension} of {length} s");
                        }
                    }
                }
            }
            // Nothing leaks: with everything settled nothing is set aside.
            for (_, reservation) in open {
                account.settle(reservation, Amounts::NONE, 0);
            }
            for page in account.spent(at(now)) {
                prop_assert_eq!(page.reserved, Amounts::NONE);
            }
        }
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
        account.settle(first, Amounts::NONE, 0);
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
        assert_eq!((spent.settled, spent.reserved, spent.images), (Amounts::NONE, dollars(4), 0));
        account.settle(today, dollars(2), 1);
        let spent = &account.spent(at(tomorrow))[0];
        assert_eq!(spent.cost_per_image().unwrap().to_string(), "$2.0000");
        // The clock is set back by a day: nothing is forgotten.
        assert_eq!(account.spent(at(NOW))[0].settled, dollars(2));
    }

    #[test]
    fn what_is_left_of_the_time_is_granted() {
        let mut account = daily(Caps::none().wall_time(Duration::from_secs(10)));
        let minute = Amounts { wall_ms: 60_000, ..Amounts::NONE };
        let reservation = account.reserve(at(NOW), minute).unwrap();
        assert_eq!(reservation.amounts().wall_ms, 10_000);
        let refused = account.reserve(at(NOW), minute).unwrap_err();
        assert_eq!((refused.dimension, refused.cap), (Dimension::WallTime, 10_000));
        account.settle(reservation, Amounts { wall_ms: 4_000, ..Amounts::NONE }, 0);
        assert_eq!(account.reserve(at(NOW), minute).unwrap().amounts().wall_ms, 6_000);
    }
}
