//! An account in a store that others share, or that survives a restart.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::account::{BlockedBy, CapReached, Period, SpendReservation, Spent};
use super::gate::{Asked, SpendGate};
use super::{Caps, SpendAmounts};
use crate::store::{
    SpendAsk, SpendReply, SpendSettlement, SpendingBooks, SpendingStore, StoreError, StoredPage,
};

/// How often the first in the queue asks again while reservations are in the way: those of other
/// processes end without a word to this one. Our choice.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long a store that failed is left alone, so that not every call waits for its time limit.
const DOWN: Duration = Duration::from_secs(1);
/// Pauses between two tries to settle: the first, and the longest.
const SETTLE_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Settlements that are tried again. Beyond, an attempt stays counted as its worst case.
const MOST_UNSETTLED: usize = 10_000;

/// Why nothing was reserved.
#[derive(Debug)]
pub(super) enum NotReserved {
    Cap(CapReached),
    Store(StoreError),
}

/// What the services of a layer share of the store's account.
pub(super) struct SharedAccount {
    store: Arc<dyn SpendingStore>,
    books: Mutex<Arc<SpendingBooks>>,
    limit: Duration,
    /// The account of this process alone, where the layer goes on while the store fails.
    local: Option<SpendGate>,
    /// Held by the first of those who wait for reservations to end.
    turn: Arc<AsyncMutex<()>>,
    freed: Notify,
    heard: Mutex<Heard>,
    unsettled: AtomicUsize,
    settled: Notify,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Heard {
    spent: Vec<Spent>,
    /// Attempts of this process that were refused, by period.
    refused: HashMap<String, u64>,
    down_until: Option<Instant>,
}

/// A reservation of one attempt: in the store, or in this process alone. Dropped, it is given back.
pub(super) struct Claim {
    account: Arc<SharedAccount>,
    amounts: SpendAmounts,
    held: Option<ClaimIn>,
}

enum ClaimIn {
    Store(u128),
    Here(SpendReservation),
}

impl SharedAccount {
    pub(super) fn new(
        store: Arc<dyn SpendingStore>,
        books: SpendingBooks,
        limit: Duration,
        local: Option<SpendGate>,
    ) -> Self {
        Self {
            store,
            books: Mutex::new(Arc::new(books)),
            limit,
            local,
            turn: Arc::default(),
            freed: Notify::new(),
            heard: Mutex::default(),
            unsettled: AtomicUsize::new(0),
            settled: Notify::new(),
            next_id: AtomicU64::new(0),
        }
    }

    /// Reserves; waits where only reservations are in the way, in the order of coming.
    pub(super) async fn reserve(
        self: &Arc<Self>,
        amounts: SpendAmounts,
        deadline: Instant,
    ) -> Result<Claim, NotReserved> {
        // Others came first.
        let mut turn = match self.turn.clone().try_lock_owned() {
            Ok(_nobody) => None,
            Err(_) => timeout_at(deadline, self.turn.clone().lock_owned()).await.ok(),
        };
        loop {
            let freed = self.freed.notified();
            let reached = match self.ask(amounts).await {
                Ok(claim) => return Ok(claim),
                Err(NotReserved::Cap(reached)) => reached,
                Err(NotReserved::Store(error)) => {
                    return self.reserve_here(amounts, deadline, error).await;
                }
            };
            let now = Instant::now();
            if reached.blocked_by != BlockedBy::Reservations || now >= deadline {
                self.count_refusal(&reached);
                return Err(NotReserved::Cap(reached));
            }
            if turn.is_none() {
                turn = timeout_at(deadline, self.turn.clone().lock_owned()).await.ok();
                continue;
            }
            let next_period = reached.wait.and_then(|wait| now.checked_add(wait));
            let until = next_period.map_or(deadline, |at| at.min(deadline)).min(now + ASK_AGAIN);
            tokio::select! {
                () = freed => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Asks once. On a task of its own: a reservation whose call went away meanwhile is given back.
    async fn ask(self: &Arc<Self>, amounts: SpendAmounts) -> Result<Claim, NotReserved> {
        if self.heard().down_until.is_some_and(|until| Instant::now() < until) {
            return Err(NotReserved::Store(StoreError::new("it failed a moment ago")));
        }
        let (reply, asked) = oneshot::channel();
        let account = self.clone();
        tokio::spawn(async move { drop(reply.send(account.ask_store(amounts).await)) });
        let cancelled = |_| Err(NotReserved::Store(StoreError::new("the runtime is ending")));
        asked.await.unwrap_or_else(cancelled)
    }

    async fn ask_store(self: Arc<Self>, amounts: SpendAmounts) -> Result<Claim, NotReserved> {
        let id = self.new_id();
        let ask = self.store.reserve(SpendAsk::new(self.books(), id, amounts));
        // Armed before anything is known: what may have been reserved is given back.
        let mut claim = Claim { account: self.clone(), amounts, held: Some(ClaimIn::Store(id)) };
        let reply = match timeout(self.limit, ask).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return Err(self.failed(error)),
            Err(_) => {
                let error = format!("no answer within {:?}", self.limit);
                return Err(self.failed(StoreError::new(error)));
            }
        };
        let SpendReply { outcome, spent } = reply;
        {
            let mut heard = self.heard();
            (heard.spent, heard.down_until) = (spent, None);
        }
        match outcome {
            Ok(granted) => {
                claim.amounts = granted;
                Ok(claim)
            }
            Err(reached) => {
                claim.held = None;
                Err(NotReserved::Cap(reached))
            }
        }
    }

    fn failed(&self, error: StoreError) -> NotReserved {
        let mut heard = self.heard();
        let is_new = heard.down_until.replace(Instant::now() + DOWN).is_none();
        if let Some(local) = self.local.as_ref().filter(|_| is_new) {
            // What others have reserved may be spent by now.
            let books = self.books();
            let pages: Vec<_> = heard.spent.iter().map(|spent| page(spent, &books)).collect();
            local.look(|account| account.restore(&pages));
        }
        drop(heard);
        if is_new {
            let policy = if self.local.is_some() { "goes on alone" } else { "refuses calls" };
            tracing::error!(%error, policy, "what is spent cannot be shared: the store failed");
        }
        NotReserved::Store(error)
    }

    async fn reserve_here(
        self: &Arc<Self>,
        amounts: SpendAmounts,
        deadline: Instant,
        error: StoreError,
    ) -> Result<Claim, NotReserved> {
        let Some(local) = &self.local else { return Err(NotReserved::Store(error)) };
        let reservation = match local.ask(amounts) {
            Asked::Granted(reservation) => Ok(reservation),
            Asked::Wait(queued) => queued.served(deadline).await,
            Asked::Refused(reached) => Err(reached),
        };
        let reservation = reservation.map_err(NotReserved::Cap)?;
        let amounts = reservation.amounts();
        Ok(Claim { account: self.clone(), amounts, held: Some(ClaimIn::Here(reservation)) })
    }

    /// Asks what is spent, and nothing else.
    pub(super) async fn refresh(self: &Arc<Self>) -> Result<(), StoreError> {
        match self.clone().ask_store(SpendAmounts::NONE).await {
            Ok(mut claim) => {
                claim.held = None;
                Ok(())
            }
            Err(NotReserved::Store(error)) => Err(error),
            Err(NotReserved::Cap(_)) => Ok(()),
        }
    }

    /// What each period comes to, as last heard. `None` before that.
    pub(super) fn spent(&self) -> Option<Vec<Spent>> {
        let heard = self.heard();
        let mut all = heard.spent.clone();
        for spent in &mut all {
            spent.refused = heard.refused.get(&spent.period).copied().unwrap_or(0);
        }
        (!all.is_empty()).then_some(all)
    }

    /// Completes when everything that has ended is settled in the store.
    pub(super) async fn all_settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.unsettled.load(Ordering::Acquire) == 0 {
                return;
            }
            settled.await;
        }
    }

    fn books(&self) -> Arc<SpendingBooks> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the caps of a period, for what is asked from now on. `false` where no period is of
    /// this kind.
    pub(super) fn set_caps(&self, period: &Period, caps: Caps) -> bool {
        let name = period.to_string();
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = SpendingBooks::clone(&books);
        let mut of_kind = changed.periods.iter_mut().filter(|(known, _)| known.to_string() == name);
        let Some((_, known)) = of_kind.next() else { return false };
        if *known != caps {
            *known = caps;
            *books = Arc::new(changed);
            self.freed.notify_waiters();
        }
        true
    }

    fn count_refusal(&self, reached: &CapReached) {
        if let Some(period) = &reached.period {
            *self.heard().refused.entry(period.clone()).or_default() += 1;
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        // Every change is whole: none of them panics half-way.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unique over all processes: random, but for the count.
    fn new_id(&self) -> u128 {
        let count = self.next_id.fetch_add(1, Ordering::Relaxed);
        u128::from(random_u64()) << 64 | u128::from(count)
    }

    fn settle(self: &Arc<Self>, id: Option<u128>, came_to: SpendAmounts, images: u64) {
        let settlement = SpendSettlement::new(self.books(), id, came_to, images);
        // On its way now, whether or not there is a runtime to wait for it.
        let settling = self.store.settle(settlement.clone());
        let Ok(runtime) = Handle::try_current() else { return };
        let waiting = self.unsettled.fetch_add(1, Ordering::AcqRel);
        let account = self.clone();
        runtime.spawn(async move {
            let _done = Unsettled(&account);
            let mut ended = timeout(account.limit, settling).await;
            let (mut pause, longest) = SETTLE_AGAIN;
            while !matches!(ended, Ok(Ok(()))) {
                if waiting >= MOST_UNSETTLED {
                    tracing::error!("an attempt stays counted as its worst case: the store fails");
                    return;
                }
                sleep(pause).await;
                pause = (pause * 2).min(longest);
                ended = timeout(account.limit, account.store.settle(settlement.clone())).await;
            }
            account.freed.notify_waiters();
        });
    }
}

/// Counts a settlement until its task ends, or is dropped with its runtime.
struct Unsettled<'a>(&'a SharedAccount);

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.0.unsettled.fetch_sub(1, Ordering::AcqRel);
        self.0.settled.notify_waiters();
    }
}

/// The standard library's keys for its hash maps are random, from the operating system.
fn random_u64() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0_u8)
}

/// What was heard of a period, with everything that is reserved as spent.
fn page(spent: &Spent, books: &SpendingBooks) -> StoredPage {
    let period = books.periods.iter().find(|(period, _)| period.to_string() == spent.period);
    let began = u64::try_from(spent.began_unix).unwrap_or(0);
    let began = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(began);
    let bounds = period.map(|(period, _)| period.holding(began, &books.zone));
    let bounds = bounds.unwrap_or((spent.began_unix, i64::MAX));
    let taken = spent.settled.plus(spent.reserved);
    StoredPage::new(&spent.period, bounds, taken, SpendAmounts::NONE, spent.images)
}

impl Claim {
    /// What is reserved.
    pub(super) fn amounts(&self) -> SpendAmounts {
        self.amounts
    }

    /// Replaces it by what its attempt came to.
    pub(super) fn settle(mut self, came_to: SpendAmounts, images: u64) {
        self.end(came_to, images);
    }

    fn end(&mut self, came_to: SpendAmounts, images: u64) {
        match self.held.take() {
            Some(ClaimIn::Store(id)) => self.account.settle(Some(id), came_to, images),
            Some(ClaimIn::Here(reservation)) => {
                if let Some(local) = &self.account.local {
                    local.settle(reservation, came_to, images);
                }
                // The others hear of it when the store works again.
                if came_to != SpendAmounts::NONE {
                    self.account.settle(None, came_to, images);
                }
            }
            None => {}
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.end(SpendAmounts::NONE, 0);
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("amounts", &self.amounts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::SystemTime;

    use futures::future::join_all;

    use super::*;
    use crate::calendar::Zone;
    use crate::clock::RuntimeClock;
    use crate::store::{MemoryStore, SpendingFuture};

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_773_000_000)
    }

    fn attempts(attempts: u64) -> SpendAmounts {
        SpendAmounts { attempts, ..SpendAmounts::NONE }
    }

    /// A store that can be made to fail, or to take its time.
    #[derive(Debug)]
    struct Moody {
        inner: MemoryStore,
        fails: AtomicBool,
        slow: AtomicBool,
    }

    impl Moody {
        fn new() -> Arc<Self> {
            let inner = MemoryStore::new().clock(RuntimeClock::starting_at(start()));
            Arc::new(Self { inner, fails: AtomicBool::new(false), slow: AtomicBool::new(false) })
        }

        fn answer<T: Send + 'static>(
            &self,
            answer: impl FnOnce(&MemoryStore) -> SpendingFuture<T>,
        ) -> SpendingFuture<T> {
            if self.fails.load(Ordering::Relaxed) {
                return Box::pin(std::future::ready(Err(StoreError::new("down"))));
            }
            let answer = answer(&self.inner);
            let pause = if self.slow.load(Ordering::Relaxed) { 3_600 } else { 0 };
            Box::pin(async move {
                sleep(Duration::from_secs(pause)).await;
                answer.await
            })
        }
    }

    impl SpendingStore for Moody {
        fn reserve(&self, ask: SpendAsk) -> SpendingFuture<SpendReply> {
            self.answer(|store| store.reserve(ask))
        }

        fn settle(&self, settlement: SpendSettlement) -> SpendingFuture<()> {
            self.answer(|store| store.settle(settlement))
        }
    }

    fn process(store: &Arc<Moody>, cap: u64, goes_on: bool) -> Arc<SharedAccount> {
        let periods = [(Period::Total, Caps::none().attempts(cap))];
        let books = SpendingBooks::new("test", Zone::utc(), periods);
        let clock = Arc::new(RuntimeClock::starting_at(start()));
        let local = goes_on.then(|| SpendGate::new(clock, books.account()));
        let limit = Duration::from_secs(2);
        Arc::new(SharedAccount::new(store.clone(), books, limit, local))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn taken(account: &SharedAccount) -> (u64, u64) {
        let spent = account.spent().unwrap();
        (spent[0].settled.attempts, spent[0].reserved.attempts)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_reservations_of_another_process() {
        let store = Moody::new();
        let (ours, theirs) = (process(&store, 2, false), process(&store, 2, false));
        let held = theirs.reserve(attempts(2), soon()).await.unwrap();
        let waiting = tokio::spawn({
            let ours = ours.clone();
            async move { ours.reserve(attempts(1), soon()).await.map(|claim| claim.amounts()) }
        });
        sleep(Duration::from_secs(5)).await;
        assert!(!waiting.is_finished());
        let freed = Instant::now();
        held.settle(attempts(1), 1);
        assert_eq!(waiting.await.unwrap().unwrap(), attempts(1));
        assert!(freed.elapsed() <= ASK_AGAIN * 2, "{:?}", freed.elapsed());
        // What is spent is no reason to wait.
        let denied = ours.reserve(attempts(2), soon()).await.unwrap_err();
        let NotReserved::Cap(reached) = denied else { panic!("{denied:?}") };
        assert_eq!(reached.blocked_by, BlockedBy::Spent);
        assert_eq!(ours.spent().unwrap()[0].refused, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_wait_are_served_in_the_order_of_coming_and_no_cap_is_passed() {
        let store = Moody::new();
        let account = process(&store, 3, false);
        let order = Arc::new(Mutex::new(Vec::new()));
        let calls = (0..12).map(|n| {
            let (account, order) = (account.clone(), order.clone());
            async move {
                sleep(Duration::from_millis(n)).await;
                let claim = account.reserve(attempts(1), Instant::now() + Duration::from_secs(600));
                let claim = claim.await.unwrap();
                order.lock().unwrap().push(n);
                assert!(taken(&account).1 <= 3);
                sleep(Duration::from_secs(10)).await;
                claim.settle(SpendAmounts::NONE, 0);
            }
        });
        join_all(calls).await;
        assert_eq!(*order.lock().unwrap(), (0..12).collect::<Vec<_>>());
        account.all_settled().await;
        account.refresh().await.unwrap();
        assert_eq!(taken(&account), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_goes_away_leaves_nothing_reserved() {
        let store = Moody::new();
        let account = process(&store, 1, false);
        store.slow.store(true, Ordering::Relaxed);
        // Gone while the store is asked, and given up by the time limit.
        let _ = timeout(Duration::from_millis(1), account.reserve(attempts(1), soon())).await;
        sleep(Duration::from_secs(3)).await;
        store.slow.store(false, Ordering::Relaxed);
        account.all_settled().await;
        let claim = account.reserve(attempts(1), soon()).await.unwrap();
        drop(claim);
        account.all_settled().await;
        account.refresh().await.unwrap();
        assert_eq!(taken(&account), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_refuses_and_what_ended_meanwhile_is_settled_later() {
        let store = Moody::new();
        let account = process(&store, 5, false);
        let held = account.reserve(attempts(2), soon()).await.unwrap();
        store.fails.store(true, Ordering::Relaxed);
        let denied = account.reserve(attempts(1), soon()).await.unwrap_err();
        assert!(matches!(denied, NotReserved::Store(_)), "{denied:?}");
        held.settle(attempts(1), 1);
        sleep(Duration::from_secs(120)).await;
        store.fails.store(false, Ordering::Relaxed);
        account.all_settled().await;
        account.refresh().await.unwrap();
        assert_eq!(taken(&account), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn caps_that_change_hold_for_the_next_call_and_what_is_spent_stays() {
        let account = process(&Moody::new(), 2, false);
        account.reserve(attempts(2), soon()).await.unwrap().settle(attempts(2), 1);
        assert!(account.reserve(attempts(1), soon()).await.is_err());
        assert!(account.set_caps(&Period::Total, Caps::none().attempts(3)));
        account.reserve(attempts(1), soon()).await.unwrap().settle(attempts(1), 1);
        assert!(account.reserve(attempts(1), soon()).await.is_err());
        assert!(!account.set_caps(&Period::Day, Caps::none()));
    }

    #[tokio::test(start_paused = true)]
    async fn going_on_alone_keeps_the_cap_with_what_the_store_last_said() {
        let store = Moody::new();
        let (account, other) = (process(&store, 5, true), process(&store, 5, true));
        other.reserve(attempts(2), soon()).await.unwrap().settle(attempts(2), 1);
        other.all_settled().await;
        let held = account.reserve(attempts(1), soon()).await.unwrap();
        store.fails.store(true, Ordering::Relaxed);
        // Two are spent and one is reserved: two are left.
        let alone = account.reserve(attempts(2), soon()).await.unwrap();
        assert!(account.reserve(attempts(1), Instant::now()).await.is_err());
        alone.settle(attempts(2), 1);
        held.settle(attempts(1), 1);
        store.fails.store(false, Ordering::Relaxed);
        account.all_settled().await;
        other.refresh().await.unwrap();
        assert_eq!(taken(&other), (5, 0), "the others hear of it");
    }
}
