//! What a token may use up: requests, money, requests in flight.
//!
//! The counts are those of the stack's own layers, one set a token: [`QuotaGuardLayer`] counts the
//! calls, [`SpendingLayer`] reserves money for each attempt before it is sent. They outlive changes
//! of the list of tokens.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, Either};
use http::{Request, Response};
use tower::Layer;
use tower_gemini::body::{AttemptBody, JudgedBody};
use tower_gemini::clock::Clock;
use tower_gemini::error::Error;
use tower_gemini::quota_guard::{self, QuotaGuardLayer, QuotaKey};
use tower_gemini::spending::{Caps, Period, ReserveBy};
use tower_gemini::stage::AttemptService;
use tower_gemini::store::SpendingStore;
use tower_gemini::{Spending, SpendingLayer};
use tower_service::Service;

use super::tokens::{Limits, Token};

/// The counts of one token.
pub(crate) struct Allowance {
    in_flight: Arc<AtomicUsize>,
    spending: SpendingLayer,
    counts: Mutex<Counts>,
}

struct Counts {
    limits: Limits,
    calls: QuotaGuardLayer,
}

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
}

impl Allowance {
    fn new(
        name: &str,
        clock: Arc<dyn Clock>,
        reserve_by: ReserveBy,
        store: Option<Arc<dyn SpendingStore>>,
    ) -> Self {
        let clock = SharedClock(clock);
        let spending = SpendingLayer::new()
            .reserve_by(reserve_by)
            .per_month(Caps::none())
            .clock(clock.clone());
        let spending = match store {
            Some(store) => spending.ledger(&format!("token {name}")).store(store),
            None => spending,
        };
        let calls = QuotaGuardLayer::new(quota_guard::Limits::unlimited()).clock(clock);
        let counts = Mutex::new(Counts { limits: Limits::default(), calls });
        Self { in_flight: Arc::default(), spending, counts }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over other limits. What is spent stays spent; other limits of calls begin to count
    /// anew.
    fn set(&self, limits: Limits, clock: &Arc<dyn Clock>) {
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
            let calls = QuotaGuardLayer::new(all).alert_at([]);
            counts.calls = calls.clock(SharedClock(clock.clone()));
        }
        let caps = |usd: Option<f64>| usd.map_or(Caps::none(), |usd| Caps::none().at_most_usd(usd));
        self.spending.set_caps(&Period::Day, caps(limits.usd_per_day));
        self.spending.set_caps(&Period::Month, caps(limits.usd_per_month));
        counts.limits = limits;
    }

    /// Takes a place for a request, and where the call `is_charged` counts it.
    pub(crate) fn enter(&self, is_charged: bool) -> Result<Place, UsedUp> {
        let (limits, calls) = {
            let counts = self.counts();
            (counts.limits, counts.calls.clone())
        };
        let place = Place(self.in_flight.clone());
        // The place exists from here on, so that it is given back whatever happens.
        let before = self.in_flight.fetch_add(1, Ordering::AcqRel);
        if let Some(most) = limits.concurrency.filter(|most| before >= *most) {
            return Err(UsedUp::InFlight(most));
        }
        if let Some(handle) = calls.handle(&QuotaKey::new("token", "*")).filter(|_| is_charged) {
            match handle.try_reserve(0, 0) {
                Ok(reservation) => reservation.settle(None),
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

    #[cfg(test)]
    pub(crate) fn spent(&self) -> Vec<tower_gemini::spending::Spent> {
        self.spending.spent()
    }

    fn caps_money(&self) -> bool {
        let limits = self.counts().limits;
        limits.usd_per_day.is_some() || limits.usd_per_month.is_some()
    }
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
    /// Where budgets outlive the process.
    store: Option<Arc<dyn SpendingStore>>,
}

impl Allowances {
    /// What is reserved for an attempt is the same for budgets and for the caps of `[spending]`.
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        reserve_by: ReserveBy,
        store: Option<Arc<dyn SpendingStore>>,
    ) -> Self {
        Self { by_name: Mutex::default(), clock, reserve_by, store }
    }

    /// Completes when what has ended is settled in the store.
    pub(crate) async fn all_settled(&self) {
        let all: Vec<_> = {
            let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
            by_name.values().map(|allowance| allowance.spending.clone()).collect()
        };
        for spending in all {
            spending.all_settled().await;
        }
    }

    /// That of a token, with its limits as they are now.
    pub(crate) fn of(&self, token: &Token) -> Arc<Allowance> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let allowance = match by_name.get(&token.name) {
            Some(known) => known.clone(),
            None => {
                let (clock, store) = (self.clock.clone(), self.store.clone());
                let new = Arc::new(Allowance::new(&token.name, clock, self.reserve_by, store));
                by_name.entry(token.name.clone()).or_insert(new).clone()
            }
        };
        drop(by_name);
        allowance.set(token.grants.limits, &self.clock);
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
            allowance.enter(false).unwrap();
        }
        allowance.enter(true).unwrap();
        allowance.enter(true).unwrap();
        let UsedUp::Calls { limit: 2, per: "minute", wait: Some(wait) } =
            allowance.enter(true).unwrap_err()
        else {
            panic!("refused for another reason")
        };
        assert!(allowance.enter(false).is_ok());
        tokio::time::advance(wait).await;
        allowance.enter(true).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_has_no_more_requests_in_flight_than_it_may_and_refusals_take_no_place() {
        let (allowances, token) = (allowances(), token("concurrency = 1\nrpm = 1"));
        let allowance = allowances.of(&token);
        let first = allowance.enter(true).unwrap();
        assert_eq!(allowances.of(&token).enter(false).unwrap_err(), UsedUp::InFlight(1));
        drop(first);
        assert!(matches!(allowance.enter(true), Err(UsedUp::Calls { .. })));
        assert!(allowance.enter(false).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_token_used_up_outlives_a_change_of_its_other_limits() {
        let allowances = allowances();
        allowances.of(&token("rpd = 1")).enter(true).unwrap();
        let other = allowances.of(&token("rpd = 1\nusd_per_day = 5.0"));
        assert!(matches!(other.enter(true), Err(UsedUp::Calls { per: "day", .. })));
        assert!(other.caps_money());
    }
}
