//! What a token may use up: requests, money, requests in flight.
//!
//! The counts are those of the stack's own layers, one set a token: [`QuotaGuardLayer`] counts the
//! calls, [`SpendingLayer`] reserves money for each attempt before it is sent. They outlive changes
//! of the list of tokens, and where there is a store the process.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, Either};
use http::{Request, Response};
use tokio::time::Instant;
use tower::Layer;
use tower_gemini::body::{AttemptBody, JudgedBody};
use tower_gemini::clock::Clock;
use tower_gemini::error::Error;
use tower_gemini::quota_guard::{self, QuotaGuardLayer, QuotaKey, QuotaUsage, RestReason};
use tower_gemini::spending::{Caps, Period, ReserveBy, Spent};
use tower_gemini::stage::AttemptService;
use tower_gemini::{Spending, SpendingLayer};
use tower_service::Service;

use super::tokens::{Limits, Token};
use crate::state::Store;

/// The counts of one token.
pub(crate) struct Allowance {
    key: QuotaKey,
    in_flight: Arc<AtomicUsize>,
    spending: SpendingLayer,
    counts: Mutex<Counts>,
}

struct Counts {
    limits: Limits,
    calls: QuotaGuardLayer,
    is_stored: bool,
}

/// How long a request waits for a place in its token's count where that is in a store. One that the
/// token has no room for so soon is refused at once.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

impl fmt::Debug for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        f.debug_struct("Allowance").field("in_flight", &in_flight).finish_non_exhaustive()
    }
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UsedUp {
    /// So many requests of this token are in flight.
    InFlight(usize),
    /// So many calls were made; another can be made then.
    Calls { limit: u64, per: &'static str, wait: Option<Duration> },
    /// The store grants no call: they are used up, or it does not answer.
    NotGranted { wait: Option<Duration> },
}

impl Allowance {
    fn new(
        name: &str,
        clock: Arc<dyn Clock>,
        reserve_by: ReserveBy,
        store: Option<&Store>,
    ) -> Self {
        let clock = SharedClock(clock);
        let spending = SpendingLayer::new()
            .reserve_by(reserve_by)
            .per_month(Caps::none())
            .clock(clock.clone());
        let spending = match store {
            Some(store) => spending.ledger(&project(name)).store(store.spending()),
            None => spending,
        };
        let calls = QuotaGuardLayer::new(quota_guard::Limits::unlimited()).clock(clock);
        let counts =
            Mutex::new(Counts { limits: Limits::default(), calls, is_stored: store.is_some() });
        Self {
            key: QuotaKey::new(&project(name), "*"),
            in_flight: Arc::default(),
            spending,
            counts,
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over other limits. What is spent stays spent; other limits of calls begin to count
    /// anew where there is no store.
    fn set(&self, limits: Limits, clock: &Arc<dyn Clock>, store: Option<&Store>) {
        let mut counts = self.counts();
        if counts.limits == limits {
            return;
        }
        if (counts.limits.rpm, counts.limits.rpd) != (limits.rpm, limits.rpd) {
            let set = |all: quota_guard::Limits, value: Option<u64>, of: fn(_, u64) -> _| {
                value.map_or(all, |value| of(all, value))
            };
            let all = quota_guard::Limits::unlimited();
            let all = set(all, limits.rpm, quota_guard::Limits::rpm);
            let all = set(all, limits.rpd, quota_guard::Limits::rpd);
            // A caller who reaches a limit is told, and is no alarm for the operator.
            let calls = QuotaGuardLayer::new(all).alert_at([]).clock(SharedClock(clock.clone()));
            counts.calls = match store {
                // A disk that is busy for a moment is no store that fails.
                Some(store) => {
                    calls.store(store.quota()).lease(STORE_PATIENCE).store_timeout(STORE_PATIENCE)
                }
                None => calls,
            };
        }
        let caps = |usd: Option<f64>| usd.map_or(Caps::none(), |usd| Caps::none().at_most_usd(usd));
        self.spending.set_caps(&Period::Day, caps(limits.usd_per_day));
        self.spending.set_caps(&Period::Month, caps(limits.usd_per_month));
        counts.limits = limits;
    }

    /// Takes a place for a request, and where the call `is_charged` counts it.
    pub(crate) async fn enter(&self, is_charged: bool) -> Result<Place, UsedUp> {
        let (limits, calls, is_stored) = {
            let counts = self.counts();
            (counts.limits, counts.calls.clone(), counts.is_stored)
        };
        let place = Place(self.in_flight.clone());
        // The place exists from here on, so that it is given back whatever happens.
        let before = self.in_flight.fetch_add(1, Ordering::AcqRel);
        if let Some(most) = limits.concurrency.filter(|most| before >= *most) {
            return Err(UsedUp::InFlight(most));
        }
        if let Some(handle) = calls.handle(&self.key).filter(|_| is_charged) {
            let reserved = match is_stored {
                true => handle.reserve(0, 0, Some(Instant::now() + STORE_PATIENCE)).await,
                false => handle.try_reserve(0, 0),
            };
            match reserved {
                Ok(reservation) => reservation.settle(None),
                Err(denied) if denied.rest == Some(RestReason::Store) => {
                    return Err(UsedUp::NotGranted { wait: handle.wait(&denied) });
                }
                Err(denied) => {
                    let by_day = denied
                        .violations
                        .iter()
                        .any(|one| one.dimension == quota_guard::QuotaDimension::RequestsPerDay);
                    let (limit, per) = match by_day {
                        true => (limits.rpd, "day"),
                        false => (limits.rpm, "minute"),
                    };
                    let wait = handle.wait(&denied);
                    return Err(UsedUp::Calls { limit: limit.unwrap_or_default(), per, wait });
                }
            }
        }
        Ok(place)
    }

    /// Asks the store what is spent. A store that fails is noticed by whoever calls.
    pub(crate) async fn refresh(&self) {
        let _ = self.spending.refresh().await;
    }

    /// What is spent, by period.
    pub(crate) fn spent(&self) -> Vec<Spent> {
        self.spending.spent()
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// How many calls were made of those that are allowed; `None` where all are.
    pub(crate) fn calls(&self) -> Option<QuotaUsage> {
        let calls = self.counts().calls.clone();
        calls.usage(&self.key)
    }

    fn caps_money(&self) -> bool {
        let limits = self.counts().limits;
        limits.usd_per_day.is_some() || limits.usd_per_month.is_some()
    }
}

/// What a token's counts are stored under.
fn project(name: &str) -> String {
    format!("token {name}")
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The allowances of all tokens, by name.
#[derive(Debug)]
pub(crate) struct Allowances {
    /// Grows with the operator's names only.
    by_name: Mutex<HashMap<String, Arc<Allowance>>>,
    clock: Arc<dyn Clock>,
    reserve_by: ReserveBy,
    /// Where counts outlive the process.
    store: Option<Store>,
}

impl Allowances {
    /// What is reserved for an attempt is the same for budgets and for the caps of `[spending]`.
    pub(crate) fn new(clock: Arc<dyn Clock>, reserve_by: ReserveBy, store: Option<Store>) -> Self {
        Self { by_name: Mutex::default(), clock, reserve_by, store }
    }

    /// Those of every token that has called, by name.
    pub(crate) fn all(&self) -> Vec<(String, Arc<Allowance>)> {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            by_name.iter().map(|(name, allowance)| (name.clone(), allowance.clone())).collect();
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Completes when what has ended is settled in the store.
    pub(crate) async fn all_settled(&self) {
        for (_, allowance) in self.all() {
            allowance.spending.all_settled().await;
            let calls = allowance.counts().calls.clone();
            calls.flush().await;
        }
    }

    /// That of a token, with its limits as they are now.
    pub(crate) fn of(&self, token: &Token) -> Arc<Allowance> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let allowance = match by_name.get(&token.name) {
            Some(known) => known.clone(),
            None => {
                let (clock, store) = (self.clock.clone(), self.store.as_ref());
                let new = Arc::new(Allowance::new(&token.name, clock, self.reserve_by, store));
                by_name.entry(token.name.clone()).or_insert(new).clone()
            }
        };
        drop(by_name);
        allowance.set(token.grants.limits, &self.clock, self.store.as_ref());
        allowance
    }
}

/// A clock that layers can own.
#[derive(Debug, Clone)]
struct SharedClock(Arc<dyn Clock>);

impl Clock for SharedClock {
    fn now(&self) -> std::time::SystemTime {
        self.0.now()
    }
}

/// Keeps what each token spends within its caps. The token's [`Allowance`] is in the extensions of
/// a request; without one, nothing is capped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenSpendingLayer;

/// See [`TokenSpendingLayer`].
#[derive(Debug, Clone)]
pub(crate) struct TokenSpending<S>(S);

impl<S: AttemptService> Layer<S> for TokenSpendingLayer {
    type Service = TokenSpending<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TokenSpending(inner)
    }
}

type Answer<S> = Result<Response<JudgedBody<<S as AttemptService>::Upstream>>, Error>;

impl<S: AttemptService> Service<Request<AttemptBody>> for TokenSpending<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = Either<S::Future, BoxFuture<'static, Answer<S>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<AttemptBody>) -> Self::Future {
        let allowance = request.extensions().get::<Arc<Allowance>>().cloned();
        let Some(allowance) = allowance.filter(|allowance| allowance.caps_money()) else {
            return Either::Left(self.0.call(request));
        };
        // The instance that was made ready goes with the request.
        let clone = self.0.clone();
        let ready = std::mem::replace(&mut self.0, clone);
        let mut spending: Spending<S> = allowance.spending.layer(ready);
        Either::Right(Box::pin(spending.call(request)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_gemini::clock::{RuntimeClock, SystemClock};

    fn allowances() -> Allowances {
        let clock = Arc::new(RuntimeClock::starting_at(SystemClock.now()));
        Allowances::new(clock, ReserveBy::Expected, None)
    }

    fn token(more: &str) -> Arc<Token> {
        let hash = super::super::tokens::hashed("token-of-ann-0123456");
        let text = format!("[[token]]\nname = \"ann\"\nhash = \"{hash}\"\n{more}\n");
        let list = super::super::tokens::TokenList::parse(&text).unwrap();
        list.iter().next().unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_makes_no_more_calls_than_its_minute_allows_and_free_ones_do_not_count() {
        let (allowances, token) = (allowances(), token("rpm = 2"));
        let allowance = allowances.of(&token);
        for _ in 0..10 {
            allowance.enter(false).await.unwrap();
        }
        allowance.enter(true).await.unwrap();
        allowance.enter(true).await.unwrap();
        let UsedUp::Calls { limit: 2, per: "minute", wait: Some(wait) } =
            allowance.enter(true).await.unwrap_err()
        else {
            panic!("refused for another reason")
        };
        assert!(allowance.enter(false).await.is_ok());
        tokio::time::advance(wait).await;
        allowance.enter(true).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_has_no_more_requests_in_flight_than_it_may_and_refusals_take_no_place() {
        let (allowances, token) = (allowances(), token("concurrency = 1\nrpm = 1"));
        let allowance = allowances.of(&token);
        let first = allowance.enter(true).await.unwrap();
        assert_eq!(allowances.of(&token).enter(false).await.unwrap_err(), UsedUp::InFlight(1));
        drop(first);
        assert!(matches!(allowance.enter(true).await, Err(UsedUp::Calls { .. })));
        assert!(allowance.enter(false).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_token_used_up_outlives_a_change_of_its_other_limits() {
        let allowances = allowances();
        allowances.of(&token("rpd = 1")).enter(true).await.unwrap();
        let other = allowances.of(&token("rpd = 1\nusd_per_day = 5.0"));
        assert!(matches!(other.enter(true).await, Err(UsedUp::Calls { per: "day", .. })));
        assert!(other.caps_money());
    }
}
