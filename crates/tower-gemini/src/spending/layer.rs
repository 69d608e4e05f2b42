use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tower_gemini_core::call::Call;
use tower_gemini_core::catalog::Catalog;
use tower_layer::Layer;

use super::{Account, Caps, Period, Plan, Spending, Spent};
use crate::clock::{Clock, SystemClock};
use crate::peak_hour_router::Zone;
use crate::stage::AttemptService;

/// Makes [`Spending`] services that share one account.
#[derive(Clone)]
pub struct SpendingLayer {
    zone: Zone,
    periods: Vec<(Period, Caps)>,
    shared: Shared,
    is_off: bool,
}

type MakePlan = Arc<dyn Fn(&Call) -> Plan + Send + Sync>;

#[derive(Clone)]
pub(super) struct Shared {
    pub(super) per_call: Caps,
    pub(super) plan: Option<MakePlan>,
    pub(super) catalog: Option<Arc<Catalog>>,
    pub(super) clock: Arc<dyn Clock>,
    /// Made anew with every change of the layer; shared by every service made of it.
    pub(super) account: Arc<Mutex<Account>>,
}

impl Shared {
    pub(super) fn catalog(&self) -> &Catalog {
        self.catalog.as_deref().unwrap_or_else(|| Catalog::builtin())
    }

    pub(super) fn with_account<T>(&self, change: impl FnOnce(&mut Account) -> T) -> T {
        // Every change is whole: no call of it panics half-way.
        change(&mut self.account.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SpendingLayer {
    /// No caps: it only keeps the account of the day.
    #[must_use]
    pub fn new() -> Self {
        let zone = Zone::pacific();
        let periods = vec![(Period::Day, Caps::none())];
        let account = Arc::new(Mutex::new(Account::new(zone.clone(), periods.clone())));
        let shared = Shared {
            per_call: Caps::none(),
            plan: None,
            catalog: None,
            clock: Arc::new(SystemClock),
            account,
        };
        Self { zone, periods, shared, is_off: false }
    }

    /// Switched off: every call passes, and nothing is counted.
    #[must_use]
    pub fn off() -> Self {
        Self { is_off: true, ..Self::new() }
    }

    fn anew(mut self) -> Self {
        self.shared.account =
            Arc::new(Mutex::new(Account::new(self.zone.clone(), self.periods.clone())));
        self
    }

    /// The caps of each call, all its attempts together.
    #[must_use]
    pub fn per_call(mut self, caps: Caps) -> Self {
        self.shared.per_call = caps;
        self
    }

    /// The caps of each hour.
    #[must_use]
    pub fn per_hour(self, caps: Caps) -> Self {
        self.per(Period::Hour, caps)
    }

    /// The caps of each day.
    #[must_use]
    pub fn per_day(self, caps: Caps) -> Self {
        self.per(Period::Day, caps)
    }

    /// The caps of each month.
    #[must_use]
    pub fn per_month(self, caps: Caps) -> Self {
        self.per(Period::Month, caps)
    }

    /// The caps of each period of this kind. Caps of the same kind that were set before are
    /// replaced.
    #[must_use]
    pub fn per(mut self, period: Period, caps: Caps) -> Self {
        let name = period.to_string();
        self.periods.retain(|(known, _)| known.to_string() != name);
        self.periods.push((period, caps));
        self.anew()
    }

    /// The zone whose calendar days and months begin with.
    #[must_use]
    pub fn zone(mut self, zone: Zone) -> Self {
        self.zone = zone;
        self.anew()
    }

    /// What may be done for a call, so that one whose worst case passes its caps is refused before
    /// its first byte, and not when it has come that far.
    #[must_use]
    pub fn plan(mut self, plan: impl Fn(&Call) -> Plan + Send + Sync + 'static) -> Self {
        self.shared.plan = Some(Arc::new(plan));
        self
    }

    /// Prices by this catalogue.
    #[must_use]
    pub fn catalog(mut self, catalog: Arc<Catalog>) -> Self {
        self.shared.catalog = Some(catalog);
        self
    }

    /// Goes by this clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.shared.clock = Arc::new(clock);
        self
    }

    /// What each period came to so far, of all services of this layer.
    #[must_use]
    pub fn spent(&self) -> Vec<Spent> {
        let now = self.shared.clock.now();
        self.shared.with_account(|account| account.spent(now))
    }
}

impl Default for SpendingLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SpendingLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpendingLayer")
            .field("per_call", &self.shared.per_call)
            .field("periods", &self.periods)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

impl<S: AttemptService> Layer<S> for SpendingLayer {
    type Service = Spending<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Spending::new(inner, (!self.is_off).then(|| self.shared.clone()))
    }
}
