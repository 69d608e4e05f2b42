//! What all clones of a layer share.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::clock::Clock;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_gemini_core::redact::redact;
use tower_gemini_core::verdict::Verdict;

use super::admission::{Admission, Denied, Moment, RestReason, SLOT_MS, Standing};
use super::alerts::{Alerts, QuotaAlert};
use super::gate::{Ask, Beside, Draw, Gate, Taken, Try, Turn};
use super::learn::{Learned, Lesson, lessons};
use super::limits::{Amounts, Dimension, Limits, ProjectId, QuotaKey};
use super::store::{Charged, Exchanging, Pool, QuotaStore, Reply, StoreError};

/// What a call does when its allowance is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Saturation {
    /// Wait in line, first come, first served, up to the call's deadline and at most this long;
    /// refuse at once where the turn would come later than that.
    Wait {
        /// The longest wait.
        at_most: Duration,
    },
    /// Refuse at once.
    Refuse,
    /// Let everything through, and only count what would have been refused.
    Shadow,
}

/// What happens while a shared store does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreFailure {
    /// Nothing is let through until it answers.
    Closed,
    /// A process goes on at the pace it had in the last minute, which all processes together were
    /// granted; one that never had a lease lets nothing through.
    OpenOnLastLease,
}

/// A call is about to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaWait {
    /// Whose quota.
    pub key: QuotaKey,
    /// How long it is expected to wait.
    pub expected: Duration,
    /// How many are before it.
    pub ahead: usize,
}

/// Counts of what the guard did, since the layer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GuardCounts {
    /// Calls that waited.
    pub waited: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls that shadow mode let through and would have been refused.
    pub shadow_refused: u64,
    /// Exchanges with the shared store.
    pub store_exchanges: u64,
    /// Of them, those that failed or took too long.
    pub store_failures: u64,
}

#[derive(Debug, Default)]
struct Counters {
    waited: AtomicU64,
    refused: AtomicU64,
    shadow_refused: AtomicU64,
    store_exchanges: AtomicU64,
    store_failures: AtomicU64,
}

/// How one (project, model) stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaLedger {
    /// Whose quota.
    pub key: QuotaKey,
    /// All four dimensions.
    pub entries: [LedgerEntry; 4],
    /// How many calls wait in line.
    pub waiting: usize,
}

/// How one dimension stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LedgerEntry {
    /// Which dimension.
    pub dimension: Dimension,
    /// The limit as it is known now; `None` where nothing limits it.
    pub limit: Option<u64>,
    /// Counted, by calls that have ended.
    pub used: u64,
    /// Held by calls that are still running.
    pub reserved: u64,
    /// What may still be taken; `None` where nothing limits it.
    pub remaining: Option<u64>,
    /// When the whole allowance is back if nothing more is taken.
    pub resets_in: Duration,
}

pub(crate) type Callback<T> = Arc<dyn Fn(&T) + Send + Sync>;

/// Which limits hold for which project and model; the most specific rule wins, project before
/// model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) default: Limits,
    pub(crate) rules: Vec<(Option<ProjectId>, Option<String>, Limits)>,
}

impl Rules {
    pub(crate) fn of(&self, key: &QuotaKey) -> Limits {
        let fits = |(project, model, _): &&(Option<ProjectId>, Option<String>, Limits)| {
            project.as_ref().is_none_or(|project| *project == key.project)
                && model.as_ref().is_none_or(|model| *model == key.model.as_str())
        };
        // `max_by_key` keeps the last of equals: a later rule replaces an earlier one.
        let rule = self.rules.iter().filter(fits).max_by_key(|(project, model, _)| {
            u8::from(project.is_some()) * 2 + u8::from(model.is_some())
        });
        rule.map_or(self.default, |(.., limits)| *limits)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.default.is_unlimited() && self.rules.is_empty()
    }
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) rules: Rules,
    pub(crate) saturation: Saturation,
    pub(crate) margin: Duration,
    pub(crate) first_attempt_percent: u8,
    pub(crate) thresholds: Vec<u8>,
    pub(crate) on_alert: Option<Callback<QuotaAlert>>,
    pub(crate) on_wait: Option<Callback<QuotaWait>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Option<Arc<dyn QuotaStore>>,
    pub(crate) store_timeout: Duration,
    pub(crate) store_failure: StoreFailure,
    pub(crate) lease: Duration,
    pub(crate) learns: bool,
}

/// The lease, the alerts and the lessons of one (project, model).
pub(crate) struct Side {
    pool: Option<Pool>,
    alerts: Alerts,
    learned: Learned,
}

impl Beside for Side {
    type Tag = Option<Charged>;

    fn draw(&mut self, now: Moment, amounts: Amounts) -> Draw<Self::Tag> {
        match &mut self.pool {
            None => Draw::Covered(None),
            Some(pool) => pool.draw(now, amounts),
        }
    }

    fn review_at(&self) -> Option<u64> {
        self.pool.as_ref().and_then(Pool::review_at)
    }

    fn after_take(&mut self, admission: &mut Admission, now: Moment) -> bool {
        if self.learned.probe(now) && !self.pool.as_ref().is_some_and(|pool| pool.emergency) {
            admission.set_limits(self.learned.current());
        }
        self.alerts.check(admission, now)
    }

    fn put_back(&mut self, now: Moment, tag: Self::Tag, amounts: Amounts) {
        if let Some(pool) = &mut self.pool {
            pool.put_back(now, tag, amounts);
        }
    }

    fn settled(&mut self, tag: Self::Tag, amounts: Amounts, tokens: Option<u64>) {
        if let Some(pool) = &mut self.pool {
            pool.settled(tag, amounts, tokens);
        }
    }
}

/// One (project, model).
pub(crate) struct Cell {
    pub(crate) key: QuotaKey,
    pub(crate) gate: Gate<Side>,
    /// An exchange under way. It outlives the call that began it: a grant must not be lost because
    /// its asker went away.
    flight: Mutex<Option<Flight>>,
}

impl Cell {
    /// Whether nobody uses it, and one that is made anew would say the same.
    fn is_at_rest(self: &Arc<Self>, now: Moment) -> bool {
        // The lock on all cells is held: nobody gets hold of it meanwhile.
        Arc::strong_count(self) == 1
            && self.gate.waiting() == 0
            && self.flight.lock().unwrap_or_else(PoisonError::into_inner).is_none()
            && self.gate.look(|admission, side| {
                admission.is_at_rest(now) && !side.pool.as_ref().is_some_and(Pool::wants_flush)
            })
    }
}

struct Flight {
    future: Pin<Box<dyn Future<Output = Result<Reply, StoreError>> + Send>>,
    sent: Moment,
    need: Amounts,
    unreported: Amounts,
    asked: bool,
}

/// Cells kept. A gateway passes on whatever model and key a caller names. Where there is no room
/// for another, those at rest go; where none is, all that come share one more.
const CELLS_KEPT: usize = 4_096;
/// How often is looked for those at rest at most, in milliseconds.
const SWEEP_EVERY_MS: u64 = 60_000;

pub(crate) struct State {
    pub(crate) settings: Settings,
    epoch: Instant,
    /// The wall clock minus the steady one, and the slot in which it was read.
    wall_offset: AtomicI64,
    wall_slot: AtomicU64,
    cells: RwLock<HashMap<QuotaKey, Arc<Cell>>>,
    /// When it was last looked for cells at rest, in steady milliseconds.
    swept_ms: AtomicU64,
    alerts: watch::Sender<Option<QuotaAlert>>,
    counters: Counters,
    passes_all: bool,
}

/// The steady clock starts here, so that nothing is ever before its beginning.
const EPOCH_MS: u64 = 1_000_000;

impl State {
    pub(crate) fn new(settings: Settings) -> Self {
        let passes_all = settings.rules.is_empty();
        Self {
            settings,
            epoch: Instant::now(),
            wall_offset: AtomicI64::new(0),
            wall_slot: AtomicU64::new(0),
            cells: RwLock::default(),
            swept_ms: AtomicU64::new(0),
            alerts: watch::Sender::new(None),
            counters: Counters::default(),
            passes_all,
        }
    }

    pub(crate) fn passes_all(&self) -> bool {
        self.passes_all
    }

    pub(crate) fn alerts(&self) -> watch::Receiver<Option<QuotaAlert>> {
        self.alerts.subscribe()
    }

    pub(crate) fn counts(&self) -> GuardCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GuardCounts {
            waited: read(&self.counters.waited),
            refused: read(&self.counters.refused),
            shadow_refused: read(&self.counters.shadow_refused),
            store_exchanges: read(&self.counters.store_exchanges),
            store_failures: read(&self.counters.store_failures),
        }
    }

    /// This moment. The wall clock is read once a slot: a day ends at most that much late, and
    /// never early.
    pub(crate) fn now(&self) -> Moment {
        let steady_ms = self.steady_of(Instant::now());
        let slot = steady_ms / SLOT_MS;
        let steady = i64::try_from(steady_ms).unwrap_or(i64::MAX);
        if self.wall_slot.load(Ordering::Acquire) != slot {
            let offset = super::store::wall_ms(&*self.settings.clock).saturating_sub(steady);
            self.wall_offset.store(offset, Ordering::Release);
            self.wall_slot.store(slot, Ordering::Release);
        }
        Moment {
            steady_ms,
            wall_ms: steady.saturating_add(self.wall_offset.load(Ordering::Acquire)),
        }
    }

    pub(crate) fn steady_of(&self, at: Instant) -> u64 {
        EPOCH_MS
            + u64::try_from(at.saturating_duration_since(self.epoch).as_millis())
                .unwrap_or(u64::MAX / 2)
    }

    fn instant_of(&self, steady_ms: u64) -> Instant {
        // A wait of centuries is no instant; a year is as good.
        let ms = steady_ms
            .saturating_sub(EPOCH_MS)
            .min(self.steady_of(Instant::now()).saturating_add(31_536_000_000));
        self.epoch + Duration::from_millis(ms)
    }

    /// The cell of this key, or `None` where nothing limits it.
    pub(crate) fn cell(&self, key: &QuotaKey) -> Option<Arc<Cell>> {
        if let Some(cell) = self.cells.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return Some(cell.clone());
        }
        let limits = self.settings.rules.of(key);
        if limits.is_unlimited() {
            return None;
        }
        let now = self.now();
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        let is_due = || {
            now.steady_ms >= self.swept_ms.load(Ordering::Relaxed).saturating_add(SWEEP_EVERY_MS)
        };
        if cells.len() >= CELLS_KEPT && !cells.contains_key(key) && is_due() {
            self.swept_ms.store(now.steady_ms, Ordering::Relaxed);
            cells.retain(|_, cell| !cell.is_at_rest(now));
        }
        let key = if cells.len() < CELLS_KEPT || cells.contains_key(key) {
            key.clone()
        } else {
            QuotaKey::new("*", "*")
        };
        let cell = cells.entry(key.clone()).or_insert_with(|| {
            let margin_ms = u64::try_from(self.settings.margin.as_millis()).unwrap_or(0);
            let pool = self.settings.store.as_ref().map(|_| {
                Pool::new(
                    self.settings.lease,
                    self.settings.store_failure == StoreFailure::OpenOnLastLease,
                )
            });
            let side = Side {
                pool,
                alerts: Alerts::new(self.settings.thresholds.clone()),
                learned: Learned::new(limits),
            };
            let gate = Gate::new(Admission::new(limits, margin_ms), side);
            Arc::new(Cell { key, gate, flight: Mutex::new(None) })
        });
        Some(cell.clone())
    }

    fn all_cells(&self) -> Vec<Arc<Cell>> {
        self.cells.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// What a call asks for. A retry leaves a share of the day to first attempts.
    pub(crate) fn ask(&self, cell: &Cell, tokens: u64, images: u64, is_retry: bool) -> Ask {
        let percent = u64::from(self.settings.first_attempt_percent.min(100));
        let day_reserve = if is_retry && percent > 0 {
            let limit =
                cell.gate.look(|admission, _| admission.limits().get(Dimension::RequestsPerDay));
            limit.map_or(0, |limit| limit / 100 * percent + limit % 100 * percent / 100)
        } else {
            0
        };
        Ask { amounts: Amounts::of_call(tokens, images), day_reserve }
    }

    /// Takes at once, or says that it must wait, or that it must not.
    pub(crate) fn try_take(self: &Arc<Self>, cell: &Arc<Cell>, ask: Ask) -> Try<Option<Charged>> {
        let taken = cell.gate.try_take(self.now(), ask);
        if let Try::Taken(taken) = &taken {
            self.tell(cell, taken.tell);
        }
        taken
    }

    /// Takes whatever the counts say.
    pub(crate) fn force(self: &Arc<Self>, cell: &Arc<Cell>, ask: Ask) -> Reservation {
        match cell.gate.try_take(self.now(), ask) {
            Try::Taken(taken) => {
                self.tell(cell, taken.tell);
                Reservation::new(self.clone(), cell.clone(), taken)
            }
            refused => {
                if matches!(refused, Try::Denied(_)) {
                    self.counters.shadow_refused.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(model = %redact(cell.key.model.as_str()), "shadow mode: this call would have been refused");
                }
                let taken = cell.gate.force(self.now(), ask);
                self.tell(cell, taken.tell);
                Reservation::new(self.clone(), cell.clone(), taken)
            }
        }
    }

    pub(crate) fn count_refusal(&self, cell: &Cell, denied: &Denied) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(
            model = %redact(cell.key.model.as_str()),
            dimension = denied.violations.first().map(|violation| violation.dimension.as_str()),
            rest = denied.rest.map(|rest| rest.as_str()),
            delay_ms = denied.at_ms.map(|at| at.saturating_sub(self.now().steady_ms)),
            outcome = super::refusal::outcome_of(denied).0.as_str(),
            charge = "none",
            "not sent, to stay within the quota"
        );
    }

    /// How long until the moment a refusal names.
    pub(crate) fn wait_of(&self, denied: &Denied) -> Option<Duration> {
        let now = self.now().steady_ms;
        denied.at_ms.map(|at| Duration::from_millis(at.saturating_sub(now).max(1)))
    }

    /// A place in line, to be awaited.
    pub(crate) fn join(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        ask: Ask,
        latest: Option<Instant>,
    ) -> Result<(Place, Duration), Denied> {
        let now = self.now();
        let latest_ms = latest.map(|at| self.steady_of(at));
        let ahead = cell.gate.waiting();
        let (ticket, at_ms) = cell.gate.join(now, ask, latest_ms)?;
        let place = Place {
            state: self.clone(),
            cell: cell.clone(),
            ticket,
            ask,
            latest_ms,
            served: false,
        };
        let expected = Duration::from_millis(at_ms.saturating_sub(now.steady_ms));
        if !expected.is_zero() || ahead > 0 {
            self.counters.waited.fetch_add(1, Ordering::Relaxed);
            if let Some(on_wait) = &self.settings.on_wait {
                on_wait(&QuotaWait { key: cell.key.clone(), expected, ahead });
            }
        }
        Ok((place, expected))
    }

    fn tell(&self, cell: &Cell, tell: bool) {
        if !tell {
            return;
        }
        for alert in cell.gate.look(|_, side| side.alerts.drain(&cell.key)) {
            tracing::warn!(
                model = %redact(alert.key.model.as_str()),
                dimension = alert.dimension.as_str(),
                threshold_percent = alert.threshold_percent,
                taken = alert.taken,
                limit = alert.limit,
                "quota runs low"
            );
            if let Some(on_alert) = &self.settings.on_alert {
                on_alert(&alert);
            }
            self.alerts.send_replace(Some(alert));
        }
    }

    /// What an answer teaches.
    pub(crate) fn learn(&self, cell: &Cell, verdict: &Verdict, status: Option<u16>) {
        if !self.settings.learns {
            return;
        }
        let now = self.now();
        let lessons = cell.gate.look(|admission, _| {
            lessons(verdict, status, admission.taken(now), admission.limits())
        });
        for lesson in lessons {
            tracing::info!(model = %redact(cell.key.model.as_str()), outcome = verdict.outcome().as_str(), ?lesson, "learned from a refusal");
            match lesson {
                Lesson::Rest { ms, reason, whole_project: true } => {
                    for other in self
                        .all_cells()
                        .iter()
                        .filter(|other| other.key.project == cell.key.project)
                    {
                        other.gate.change(|admission, _| {
                            admission.rest_until(now.steady_ms.saturating_add(ms), reason)
                        });
                    }
                }
                Lesson::Rest { ms, reason, .. } => {
                    cell.gate.change(|admission, _| {
                        admission.rest_until(now.steady_ms.saturating_add(ms), reason)
                    });
                }
                Lesson::CloseDay => cell.gate.change(|admission, side| {
                    admission.close_this_day(now);
                    if let Some(pool) = &mut side.pool {
                        pool.mark_day_closed();
                    }
                }),
                Lesson::Stated { dimension, limit } => cell.gate.change(|admission, side| {
                    side.learned.stated(now, dimension, limit);
                    admission.set_limits(side.learned.current());
                }),
                Lesson::Lower { dimension } => cell.gate.change(|admission, side| {
                    side.learned.lower(now, dimension);
                    admission.set_limits(side.learned.current());
                }),
            }
        }
    }

    pub(crate) fn ledger(&self, cell: &Cell) -> QuotaLedger {
        let now = self.now();
        let standing = cell.gate.look(|admission, _| admission.standing(now));
        let entry = |standing: Standing| LedgerEntry {
            dimension: standing.dimension,
            limit: standing.limit,
            used: standing.used,
            reserved: standing.reserved,
            remaining: standing.remaining(),
            resets_in: Duration::from_millis(standing.resets_at_ms.saturating_sub(now.steady_ms)),
        };
        QuotaLedger {
            key: cell.key.clone(),
            entries: standing.map(entry),
            waiting: cell.gate.waiting(),
        }
    }

    pub(crate) fn ledgers(&self) -> Vec<QuotaLedger> {
        let mut ledgers: Vec<_> = self.all_cells().iter().map(|cell| self.ledger(cell)).collect();
        ledgers.sort_by(|a, b| (&a.key.project, &a.key.model).cmp(&(&b.key.project, &b.key.model)));
        ledgers
    }

    /// Asks the store on behalf of whoever is first in line. One exchange at a time; one that was
    /// left behind is finished first.
    async fn exchange(self: &Arc<Self>, cell: &Arc<Cell>, ask: Option<Ask>) {
        let Some(store) = &self.settings.store else { return };
        let waiting = cell.flight.lock().unwrap_or_else(PoisonError::into_inner).take();
        let flight = match waiting {
            Some(flight) => flight,
            None => self.depart(cell, store, ask),
        };
        let mut held = Held { cell, flight: Some(flight) };
        let result = std::future::poll_fn(|cx| match &mut held.flight {
            Some(flight) => flight.future.as_mut().poll(cx),
            None => Poll::Pending,
        })
        .await;
        let Some(flight) = held.flight.take() else { return };
        self.arrive(cell, &flight, result);
    }

    fn depart(&self, cell: &Cell, store: &Arc<dyn QuotaStore>, ask: Option<Ask>) -> Flight {
        self.counters.store_exchanges.fetch_add(1, Ordering::Relaxed);
        let sent = self.now();
        let margin = self.settings.margin;
        let exchange = cell.gate.look(|_, side| {
            let limits = side.learned.current();
            let need = ask.map(|ask| (ask.amounts, ask.day_reserve));
            side.pool.as_mut().map(|pool| pool.begin(sent, &cell.key, limits, margin, need))
        });
        let need = ask.map(|ask| ask.amounts).unwrap_or_default();
        let unreported = exchange.as_ref().map(|exchange| exchange.unreported).unwrap_or_default();
        // An answer that comes after the lease it grants is over would grant nothing, again and
        // again.
        let limit = self.settings.store_timeout.min(self.settings.lease / 5 * 4);
        let exchanging: Exchanging = match exchange {
            Some(exchange) => store.exchange(exchange),
            None => Box::pin(std::future::ready(Ok(Reply::default()))),
        };
        let future = Box::pin(async move {
            match tokio::time::timeout(limit, exchanging).await {
                Ok(result) => result,
                Err(_) => Err(StoreError::timed_out(limit)),
            }
        });
        Flight { future, sent, need, unreported, asked: ask.is_some() }
    }

    fn arrive(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        flight: &Flight,
        result: Result<Reply, StoreError>,
    ) {
        let now = self.now();
        match result {
            Ok(reply) => {
                let recovered = cell.gate.change(|admission, side| {
                    let Some(pool) = &mut side.pool else { return false };
                    let recovered = pool.apply(flight.sent, now, flight.need, flight.asked, &reply);
                    if recovered {
                        admission.set_limits(side.learned.current());
                    }
                    recovered
                });
                if recovered {
                    tracing::warn!(model = %redact(cell.key.model.as_str()), "the quota store answers again");
                }
                if reply.granted > 0 {
                    self.flush_later(cell);
                }
            }
            Err(error) => {
                self.counters.store_failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    model = %redact(cell.key.model.as_str()),
                    error = %error,
                    policy = ?self.settings.store_failure,
                    "the quota store does not answer"
                );
                cell.gate.change(|admission, side| {
                    let Some(pool) = &mut side.pool else { return };
                    if let Some(limits) = pool.fail(now, flight.unreported, admission) {
                        admission.set_limits(limits);
                    }
                });
            }
        }
    }

    /// Gives back what a process that went quiet had left of its lease. One short task a cell,
    /// which ends by itself.
    fn flush_later(self: &Arc<Self>, cell: &Arc<Cell>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let begun = cell.gate.look(|_, side| {
            side.pool.as_mut().is_some_and(|pool| !std::mem::replace(&mut pool.flushing, true))
        });
        if !begun {
            return;
        }
        let (state, cell) = (Arc::downgrade(self), Arc::downgrade(cell));
        runtime.spawn(async move {
            loop {
                let (Some(shared), Some(here)) = (state.upgrade(), cell.upgrade()) else { return };
                let expires_ms =
                    here.gate.look(|_, side| side.pool.as_ref().and_then(Pool::expires_ms));
                let now = shared.now().steady_ms;
                match expires_ms {
                    Some(at_ms) if at_ms > now => {
                        let at = shared.instant_of(at_ms.saturating_add(SLOT_MS));
                        drop((shared, here));
                        sleep_until(at).await;
                    }
                    _ => {
                        here.gate.look(|_, side| {
                            if let Some(pool) = &mut side.pool {
                                pool.flushing = false;
                            }
                        });
                        // Somebody in line asks soon, and reports with it.
                        if here.gate.waiting() == 0 {
                            shared.flush(&here).await;
                        }
                        return;
                    }
                }
            }
        });
    }

    async fn flush(self: &Arc<Self>, cell: &Arc<Cell>) {
        let wants = cell.gate.look(|_, side| side.pool.as_ref().is_some_and(Pool::wants_flush));
        if wants {
            self.exchange(cell, None).await;
        }
    }

    pub(crate) async fn flush_all(self: &Arc<Self>) {
        for cell in self.all_cells() {
            self.flush(&cell).await;
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("rules", &self.settings.rules).finish_non_exhaustive()
    }
}

/// An exchange that is being awaited; dropped before its end it goes back to where the next in line
/// finds it.
struct Held<'a> {
    cell: &'a Cell,
    flight: Option<Flight>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take() {
            *self.cell.flight.lock().unwrap_or_else(PoisonError::into_inner) = Some(flight);
        }
    }
}

/// A place in line. Dropped, it is given up.
pub(crate) struct Place {
    state: Arc<State>,
    cell: Arc<Cell>,
    ticket: u64,
    ask: Ask,
    latest_ms: Option<u64>,
    served: bool,
}

enum Next {
    Taken(Taken<Option<Charged>>),
    TooLate(Denied),
    Fetch,
}

impl Place {
    /// Waits for its turn.
    pub(crate) async fn served(mut self) -> Result<Reservation, Denied> {
        let far = self.state.instant_of(u64::MAX);
        let mut timer = pin!(sleep_until(far));
        loop {
            let next = std::future::poll_fn(|cx| self.poll_next(timer.as_mut(), cx)).await;
            match next {
                Next::Taken(taken) => {
                    self.served = true;
                    self.state.tell(&self.cell, taken.tell);
                    return Ok(Reservation::new(self.state.clone(), self.cell.clone(), taken));
                }
                Next::TooLate(denied) => return Err(denied),
                Next::Fetch => {
                    let latest = self.latest_ms.map_or(far, |latest| self.state.instant_of(latest));
                    let exchange = self.state.exchange(&self.cell, Some(self.ask));
                    if tokio::time::timeout_at(latest, exchange).await.is_err() {
                        return Err(self.store_refusal());
                    }
                }
            }
        }
    }

    fn poll_next(&self, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            let now = self.state.now();
            let too_late = self.latest_ms.is_some_and(|latest| now.steady_ms >= latest);
            let until = match self.cell.gate.turn(now, self.ticket, cx.waker()) {
                Turn::Taken(taken) => return Poll::Ready(Next::Taken(taken)),
                Turn::Fetch if !too_late => return Poll::Ready(Next::Fetch),
                Turn::Later(denied) => {
                    let out_of_reach = match (denied.at_ms, self.latest_ms) {
                        (None, _) => true,
                        (Some(at), Some(latest)) => at > latest,
                        _ => false,
                    };
                    if too_late || out_of_reach {
                        return Poll::Ready(Next::TooLate(denied));
                    }
                    denied.at_ms
                }
                Turn::Fetch if too_late => return Poll::Ready(Next::TooLate(self.store_refusal())),
                Turn::InLine if too_late => {
                    return Poll::Ready(Next::TooLate(self.cell.gate.refusal(now, self.ask)));
                }
                Turn::InLine | Turn::Fetch => self.latest_ms,
            };
            let until = self.state.instant_of(until.unwrap_or(u64::MAX));
            if timer.deadline() != until {
                timer.as_mut().reset(until);
            }
            match timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => timer.as_mut().reset(self.state.instant_of(u64::MAX)),
            }
        }
    }
}

impl Place {
    /// The deadline came while only the store's answer was missing.
    fn store_refusal(&self) -> Denied {
        let mut denied = self.cell.gate.refusal(self.state.now(), self.ask);
        denied.rest = Some(RestReason::Store);
        denied
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.served {
            self.cell.gate.leave(self.ticket);
        }
    }
}

/// Allowance that was taken for one call.
///
/// Dropped before [`sent`](Self::sent) it gives everything back; dropped after, it counts as used:
/// the server may have counted it.
#[must_use = "dropping a reservation gives it back"]
pub struct Reservation {
    state: Arc<State>,
    cell: Arc<Cell>,
    taken: Taken<Option<Charged>>,
    sent: bool,
    over: bool,
}

impl Reservation {
    pub(crate) fn new(state: Arc<State>, cell: Arc<Cell>, taken: Taken<Option<Charged>>) -> Self {
        Self { state, cell, taken, sent: false, over: false }
    }

    /// The request goes out now.
    pub fn sent(&mut self) {
        self.sent = true;
    }

    /// It was counted, with as many input tokens as the answer says, where it does.
    pub fn settle(mut self, tokens: Option<u64>) {
        self.settle_in_place(tokens);
    }

    /// It was surely not counted.
    pub fn give_back(mut self) {
        self.give_back_in_place();
    }

    pub(crate) fn settle_in_place(&mut self, tokens: Option<u64>) {
        if !std::mem::replace(&mut self.over, true) {
            self.cell.gate.settle(&self.taken, tokens);
        }
    }

    pub(crate) fn give_back_in_place(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            // Only a lease asks for the time, and reading two clocks costs as much as giving back.
            let now = match self.state.settings.store {
                Some(_) => self.state.now(),
                None => Moment { steady_ms: 0, wall_ms: 0 },
            };
            self.cell.gate.give_back(now, &self.taken);
        }
    }

    pub(crate) fn learn(&self, verdict: &Verdict, status: Option<u16>) {
        self.state.learn(&self.cell, verdict, status);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.sent {
            self.settle_in_place(None);
        } else {
            self.give_back_in_place();
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("key", &self.cell.key)
            .field("amounts", &self.taken.receipt.amounts())
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}
