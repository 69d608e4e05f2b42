//! Stores that share what is spent between layers, processes and machines.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::calendar::Zone;
use crate::spending::account::{Account, CapReached, Period, SpendReservation, Spent, StoredPage};
use crate::spending::{Caps, SpendAmounts};

/// The future that a [`SpendingStore`] returns.
pub type SpendingFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Keeps what is spent for several processes, or over a restart.
///
/// Both changes are atomic over all periods, and on their way as soon as the method returns,
/// whether or not somebody polls the future. An implementation must not block: the layer applies
/// its own time limit, and refuses calls while the store fails.
pub trait SpendingStore: fmt::Debug + Send + Sync {
    /// Reserves for one attempt, in every period or in none.
    fn reserve(&self, ask: SpendAsk) -> SpendingFuture<SpendReply>;

    /// Replaces a reservation by what its attempt came to. A reservation that is not known (it was
    /// settled before, or never made) changes nothing.
    fn settle(&self, settlement: SpendSettlement) -> SpendingFuture<()>;
}

/// The account that a layer draws on: its caps by period.
///
/// What is spent is kept by ledger and period; caps may change from one start to the next.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpendingBooks {
    /// Which account of the store. All who name the same one count together, and should have the
    /// same caps.
    pub ledger: String,
    /// The zone whose calendar days and months start periods.
    pub zone: Zone,
    /// The caps of each period.
    pub periods: Vec<(Period, Caps)>,
    /// What was spent before the store knew of it: it counts towards the total where the store has
    /// none yet.
    pub starting_balance: SpendAmounts,
}

impl SpendingBooks {
    /// An account of this name. For implementations and their tests.
    #[must_use]
    pub fn new(
        ledger: &str,
        zone: Zone,
        periods: impl IntoIterator<Item = (Period, Caps)>,
    ) -> Self {
        let periods = periods.into_iter().collect();
        Self { ledger: ledger.to_owned(), zone, periods, starting_balance: SpendAmounts::NONE }
    }

    /// An account in which nothing is spent, but for the starting balance.
    #[must_use]
    pub fn account(&self) -> Account {
        Account::new(self.zone.clone(), self.periods.iter().cloned())
            .starting_balance(self.starting_balance)
    }

    /// An account with these pages: what each period came to, as a store has kept it.
    #[must_use]
    pub fn account_with(&self, pages: &[StoredPage]) -> Account {
        let mut account = self.account();
        account.restore(pages);
        account
    }
}

/// Asks for a reservation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpendAsk {
    /// The account.
    pub books: Arc<SpendingBooks>,
    /// Names the reservation: unique, so that asking twice reserves once.
    pub id: u128,
    /// What to reserve. [`SpendAmounts::NONE`] reserves nothing: the reply says what is spent.
    pub amounts: SpendAmounts,
}

impl SpendAsk {
    /// Asks for these amounts.
    #[must_use]
    pub fn new(books: Arc<SpendingBooks>, id: u128, amounts: SpendAmounts) -> Self {
        Self { books, id, amounts }
    }
}

/// What came of asking.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpendReply {
    /// What was reserved (of time, what is left of a cap may be less than was asked for), or the
    /// cap that might be exceeded.
    pub outcome: Result<SpendAmounts, CapReached>,
    /// What each period comes to now, of all who share the account.
    pub spent: Vec<Spent>,
}

impl SpendReply {
    /// Makes a reply. For implementations of [`SpendingStore`].
    #[must_use]
    pub fn new(outcome: Result<SpendAmounts, CapReached>, spent: Vec<Spent>) -> Self {
        Self { outcome, spent }
    }
}

/// Says what an attempt came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpendSettlement {
    /// The account.
    pub books: Arc<SpendingBooks>,
    /// The reservation; `None` for an attempt that was sent while the store could not be asked.
    pub id: Option<u128>,
    /// What it came to.
    pub came_to: SpendAmounts,
    /// Images delivered.
    pub images: u64,
}

impl SpendSettlement {
    /// Settles a reservation, or counts what was sent without one.
    #[must_use]
    pub fn new(
        books: Arc<SpendingBooks>,
        id: Option<u128>,
        came_to: SpendAmounts,
        images: u64,
    ) -> Self {
        Self { books, id, came_to, images }
    }
}

/// One account with its open reservations, for stores that keep it in this process. Pure.
///
/// What outlives the process are the [pages](Self::pages) and one [row](OpenSpend::to_bytes) for
/// each open reservation. A row of a process that is gone is settled as its worst case.
///
/// ```
/// use std::sync::Arc;
/// use std::time::{Duration, SystemTime};
/// use tower_gemini::calendar::Zone;
/// use tower_gemini::spending::{Caps, Period, SpendAmounts};
/// use tower_gemini::store::{OpenSpend, SpendAsk, SpendingBooks, StoredSpending};
///
/// let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_773_000_000);
/// let caps = Caps::none().at_most_usd(3.0);
/// let books = Arc::new(SpendingBooks::new("default", Zone::utc(), [(Period::Month, caps)]));
/// let dollars = |usd: u64| {
///     let mut amounts = SpendAmounts::NONE;
///     (amounts.at_most_microusd, amounts.attempts) = (usd * 1_000_000, 1);
///     amounts
/// };
/// let mut spending = StoredSpending::new(books.clone());
/// let reply = spending.reserve(now, &SpendAsk::new(books.clone(), 1, dollars(2)));
/// assert!(reply.outcome.is_ok());
///
/// // A crash: the reservation was never settled, and counts as spent.
/// let row = spending.open(1).unwrap().to_bytes();
/// let mut after = StoredSpending::restore(books.clone(), &spending.pages()).unwrap();
/// after.settle_lost(&OpenSpend::from_bytes(&row).unwrap());
/// let reply = after.reserve(now, &SpendAsk::new(books, 2, dollars(2)));
/// assert!(reply.outcome.unwrap_err().to_string().contains("$2.0000 taken"));
/// ```
#[derive(Debug, Clone)]
pub struct StoredSpending {
    books: Arc<SpendingBooks>,
    account: Account,
    open: HashMap<u128, OpenSpend>,
}

/// A reservation that is not settled, by the starts of the periods in which it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSpend {
    amounts: SpendAmounts,
    starts: Vec<(String, i64)>,
}

impl OpenSpend {
    /// As JSON.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers and names: there is nothing in it that JSON cannot hold.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` for anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl StoredSpending {
    /// Starts with nothing spent, but for the starting balance.
    #[must_use]
    pub fn new(books: Arc<SpendingBooks>) -> Self {
        Self { account: books.account(), books, open: HashMap::new() }
    }

    /// Starts with what [`pages`](Self::pages) wrote; `None` for anything else. Periods that are not
    /// in it start empty.
    #[must_use]
    pub fn restore(books: Arc<SpendingBooks>, pages: &[u8]) -> Option<Self> {
        let pages: Vec<StoredPage> = serde_json::from_slice(pages).ok()?;
        Some(Self { account: books.account_with(&pages), books, open: HashMap::new() })
    }

    /// What each period came to, as JSON.
    #[must_use]
    pub fn pages(&self) -> Vec<u8> {
        serde_json::to_vec(&self.account.pages()).unwrap_or_default()
    }

    /// The open reservation of this name.
    #[must_use]
    pub fn open(&self, id: u128) -> Option<&OpenSpend> {
        self.open.get(&id)
    }

    /// Takes back an open reservation that [`pages`](Self::pages) counts.
    pub fn reopen(&mut self, id: u128, open: OpenSpend) {
        self.open.insert(id, open);
    }

    /// Settles a reservation of a process that is gone: it may have come to all of it.
    pub fn settle_lost(&mut self, open: &OpenSpend) {
        self.account.settle(self.account.reservation(open), open.amounts, 0);
    }

    /// Takes back a reservation that was [settled as lost](Self::settle_lost): its process was only
    /// cut off, and can settle it for what it came to.
    pub fn reopen_lost(&mut self, id: u128, open: OpenSpend) {
        self.account.unsettle(self.account.reservation(&open));
        self.open.insert(id, open);
    }

    /// Reserves in every period or in none.
    pub fn reserve(&mut self, now: SystemTime, ask: &SpendAsk) -> SpendReply {
        self.take_over(&ask.books);
        let known = self.open.get(&ask.id).map(|open| open.amounts);
        let outcome = match known {
            Some(amounts) => Ok(amounts),
            None if ask.amounts == SpendAmounts::NONE => Ok(SpendAmounts::NONE),
            None => self.account.reserve(now, ask.amounts).map(|reservation| {
                let open = OpenSpend {
                    amounts: reservation.amounts(),
                    starts: self.account.starts(&reservation),
                };
                self.open.insert(ask.id, open);
                reservation.amounts()
            }),
        };
        SpendReply { outcome, spent: self.account.spent(now) }
    }

    /// Settles a reservation once, or counts what was sent without one.
    pub fn settle(&mut self, now: SystemTime, settlement: &SpendSettlement) {
        self.take_over(&settlement.books);
        let reservation = match settlement.id {
            Some(id) => match self.open.remove(&id) {
                Some(open) => self.account.reservation(&open),
                None => return,
            },
            None => self.account.nothing_reserved(now),
        };
        self.account.settle(reservation, settlement.came_to, settlement.images);
    }

    /// Caps that changed hold from now on.
    fn take_over(&mut self, books: &Arc<SpendingBooks>) {
        if !Arc::ptr_eq(&self.books, books) {
            self.account = books.account_with(&self.account.pages());
            self.books = books.clone();
        }
    }
}

impl Account {
    /// An open reservation by this account's order of periods.
    fn reservation(&self, open: &OpenSpend) -> SpendReservation {
        self.reservation_of(open.amounts, |period| {
            open.starts.iter().find(|(name, _)| name == period).map(|(_, start)| *start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spending::CapDimension;
    use proptest::prelude::*;
    use std::time::Duration;

    const NOW: u64 = 1_767_659_400;

    fn at(unix: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix)
    }

    fn money(microusd: u64) -> SpendAmounts {
        SpendAmounts {
            certain_microusd: microusd,
            at_most_microusd: microusd,
            attempts: 1,
            ..SpendAmounts::NONE
        }
    }

    fn books(hour: u64, total: u64) -> Arc<SpendingBooks> {
        let cap = |cap| Caps::none().at_most_microusd(cap);
        let periods = [(Period::Hour, cap(hour)), (Period::Total, cap(total))];
        Arc::new(SpendingBooks::new("test", Zone::utc(), periods))
    }

    #[derive(Debug, Clone)]
    enum Move {
        Reserve(u64),
        /// The oldest open reservation, and how many hundredths of it were used.
        Settle(u64),
        Wait(u64),
        /// The process is killed, and another one starts over the same file.
        Crash,
        /// The disk failed: the same process reads the file anew.
        Reload,
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            5 => (0_u64..3_000).prop_map(Move::Reserve),
            3 => (0_u64..=100).prop_map(Move::Settle),
            1 => (0_u64..4_000).prop_map(Move::Wait),
            1 => Just(Move::Crash),
            1 => Just(Move::Reload),
        ];
        proptest::collection::vec(one, 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Against a plain list of what was ever sent: one that a crash cut off counts as its worst
        /// case, and no cap is passed.
        #[test]
        fn no_order_of_crashes_passes_a_cap_or_forgets_what_was_reserved(
            hour in 0_u64..8_000, total in 0_u64..20_000, moves in moves(),
        ) {
            let books = books(hour, total);
            let mut stored = StoredSpending::new(books.clone());
            let (mut now, mut id) = (NOW, 0);
            let mut open: Vec<(u64, u128, u64)> = Vec::new();
            let mut spent: Vec<(u64, u64)> = Vec::new();
            for step in moves {
                match step {
                    Move::Reserve(amount) => {
                        id += 1;
                        let ask = SpendAsk::new(books.clone(), id, money(amount));
                        if stored.reserve(at(now), &ask).outcome.is_ok() {
                            open.push((now, id, amount));
                            // The answer was lost: asked again, it is reserved once.
                            prop_assert!(stored.reserve(at(now), &ask).outcome.is_ok());
                        }
                    }
                    Move::Settle(used) if !open.is_empty() => {
                        let (when, id, amount) = open.remove(0);
                        let settlement =
                            SpendSettlement::new(books.clone(), Some(id), money(amount * used / 100), 1);
                        stored.settle(at(now), &settlement);
                        // Tried again: it counts once.
                        stored.settle(at(now), &settlement);
                        spent.push((when, amount * used / 100));
                    }
                    Move::Settle(_) => {}
                    Move::Wait(seconds) => now += seconds,
                    Move::Crash | Move::Reload => {
                        let rows: Vec<_> =
                            open.iter().map(|(_, id, _)| (*id, stored.open(*id).unwrap().to_bytes())).collect();
                        stored = StoredSpending::restore(books.clone(), &stored.pages()).unwrap();
                        for (id, row) in rows {
                            let row = OpenSpend::from_bytes(&row).unwrap();
                            if matches!(step, Move::Reload) {
                                stored.reopen(id, row);
                            } else {
                                stored.settle_lost(&row);
                            }
                        }
                        if matches!(step, Move::Crash) {
                            spent.extend(open.drain(..).map(|(when, _, amount)| (when, amount)));
                        }
                    }
                }
                let look = SpendAsk::new(books.clone(), 0, SpendAmounts::NONE);
                let pages = stored.reserve(at(now), &look).spent;
                for (page, (length, cap)) in pages.iter().zip([(3_600, hour), (u64::MAX, total)]) {
                    let here = |when: u64| when / length == now / length;
                    let settled: u64 = spent.iter().filter(|(when, _)| here(*when)).map(|(_, of)| of).sum();
                    let reserved: u64 = open.iter().filter(|(when, ..)| here(*when)).map(|(.., of)| of).sum();
                    prop_assert_eq!(page.settled.get(CapDimension::MoneyAtMost), settled);
                    prop_assert_eq!(page.reserved.get(CapDimension::MoneyAtMost), reserved);
                    prop_assert!(settled + reserved <= cap);
                }
            }
        }
    }

    // Three restarts passed a monthly cap of $3.
    #[test]
    fn restarts_do_not_start_a_period_anew() {
        let caps = Caps::none().at_most_usd(3.0);
        let books = Arc::new(SpendingBooks::new("test", Zone::pacific(), [(Period::Month, caps)]));
        let mut pages: Option<Vec<u8>> = None;
        let mut sent = 0;
        for start in 0..4 {
            let mut stored = match &pages {
                Some(pages) => StoredSpending::restore(books.clone(), pages).unwrap(),
                None => StoredSpending::new(books.clone()),
            };
            for attempt in 0..4 {
                let id = start * 10 + attempt;
                let ask = SpendAsk::new(books.clone(), id, money(1_000_000));
                if stored.reserve(at(NOW), &ask).outcome.is_ok() {
                    let paid = SpendSettlement::new(books.clone(), Some(id), money(1_000_000), 1);
                    stored.settle(at(NOW), &paid);
                    sent += 1;
                }
            }
            pages = Some(stored.pages());
        }
        assert_eq!(sent, 3);
    }

    #[test]
    fn a_lost_reservation_that_is_taken_back_settles_for_what_it_came_to() {
        let mut stored = StoredSpending::new(books(5_000, 5_000));
        let held = SpendAsk::new(books(5_000, 5_000), 1, money(900));
        assert!(stored.reserve(at(NOW), &held).outcome.is_ok());
        let row = stored.open(1).unwrap().clone();
        let mut other = StoredSpending::restore(books(5_000, 5_000), &stored.pages()).unwrap();
        other.settle_lost(&row);
        other.reopen_lost(1, row);
        assert_eq!(other.pages(), stored.pages(), "as if nothing had been lost");
        let books = books(5_000, 5_000);
        other.settle(at(NOW), &SpendSettlement::new(books.clone(), Some(1), money(300), 1));
        let look = SpendAsk::new(books, 2, SpendAmounts::NONE);
        for page in other.reserve(at(NOW), &look).spent {
            let of = |amounts: SpendAmounts| amounts.get(CapDimension::MoneyAtMost);
            assert_eq!((of(page.settled), of(page.reserved), page.images), (300, 0, 1));
        }
    }

    #[test]
    fn caps_may_change_from_one_start_to_the_next_and_what_is_spent_stays() {
        let mut stored = StoredSpending::new(books(1_000, 1_000));
        let held = SpendAsk::new(books(1_000, 1_000), 1, money(900));
        assert!(stored.reserve(at(NOW), &held).outcome.is_ok());
        let raised = books(5_000, 5_000);
        let ask = SpendAsk::new(raised.clone(), 2, money(3_000));
        assert!(stored.reserve(at(NOW), &ask).outcome.is_ok(), "the cap was raised");
        stored.settle(at(NOW), &SpendSettlement::new(raised.clone(), Some(1), money(900), 1));
        let ask = SpendAsk::new(raised, 3, money(2_000));
        let reached = stored.reserve(at(NOW), &ask).outcome.unwrap_err();
        assert_eq!((reached.taken, reached.cap), (3_900, 5_000));
        assert!(StoredSpending::restore(books(1, 1), b"no pages").is_none());
    }
}
