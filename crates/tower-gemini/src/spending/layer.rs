use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tower_gemini_core::call::{Call, ImageSize, ModelId, Verb};
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::cost::{Cost, expected};

use super::account::{Account, Period, Spent};
use super::gate::SpendGate;
use super::plan::worst_case;
use super::shared::SharedAccount;
use super::{CapDimension, Caps, Plan, SpendAmounts};
use crate::calendar::Zone;
use crate::clock::{Clock, SystemClock};
use crate::store::{SpendingBooks, SpendingStore, StoreError};

/// What is reserved for an attempt before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReserveBy {
    /// The most that the attempt can cost. Caps are hard: no cap is exceeded, as long as no bill
    /// exceeds its worst case.
    WorstCase {
        /// How many drafts are assumed to be paid for beside each image. `None`: those that the
        /// catalogue knows of (10 for a model that thinks, else none). Documentation says that
        /// drafts are free; with a lower number a bill that counts more can exceed a cap.
        drafts: Option<u32>,
    },
    /// The list price of what is asked for. More calls run at once, and **a cap is no hard limit**:
    /// it can be exceeded by at most the attempts that are running when it is reached.
    Expected,
}

/// Makes [`Spending`](super::Spending) services that share one account.
#[derive(Clone)]
pub struct SpendingLayer {
    zone: Zone,
    periods: Vec<(Period, Caps)>,
    starting_balance: Cost,
    store: Option<Arc<dyn SpendingStore>>,
    ledger: String,
    store_timeout: Duration,
    goes_on: bool,
    pub(super) shared: Shared,
    pub(super) is_off: bool,
}

type MakePlan = Arc<dyn Fn(&Call) -> Plan + Send + Sync>;

#[derive(Clone)]
pub(super) struct Shared {
    pub(super) per_call: Caps,
    pub(super) reserve_by: ReserveBy,
    pub(super) falls_back: bool,
    /// The account at a service whose budget this is.
    pub(super) of_account: Option<Arc<str>>,
    pub(super) plan: Option<MakePlan>,
    pub(super) catalog: Option<Arc<Catalog>>,
    /// Made anew with every change of the layer; shared by every service made of it.
    pub(super) gate: SpendGate,
    /// The same in a store, which takes the gate's place.
    pub(super) account: Option<Arc<SharedAccount>>,
}

impl Shared {
    pub(super) fn catalog(&self) -> &Catalog {
        self.catalog.as_deref().unwrap_or_else(|| Catalog::builtin())
    }

    fn drafts(&self) -> Option<u32> {
        match self.reserve_by {
            ReserveBy::WorstCase { drafts } => drafts,
            ReserveBy::Expected => None,
        }
    }

    /// The most that an attempt at this call can cost, with the drafts that are assumed.
    pub(super) fn worst_case(&self, call: &Call) -> u64 {
        worst_case(self.catalog(), call, self.drafts())
    }

    /// What is reserved for an attempt at this call.
    pub(super) fn price(&self, call: &Call) -> u64 {
        match self.reserve_by {
            ReserveBy::WorstCase { .. } => self.worst_case(call),
            ReserveBy::Expected => {
                expected(self.catalog(), call).at_most_microusd.unwrap_or(u64::MAX)
            }
        }
    }
}

impl SpendingLayer {
    /// Caps nothing: it only keeps the account of the day.
    #[must_use]
    pub fn new() -> Self {
        let zone = Zone::pacific();
        let periods = vec![(Period::Day, Caps::none())];
        let account = Account::new(zone.clone(), periods.clone());
        let shared = Shared {
            per_call: Caps::none(),
            reserve_by: ReserveBy::WorstCase { drafts: None },
            falls_back: false,
            of_account: None,
            plan: None,
            catalog: None,
            gate: SpendGate::new(Arc::new(SystemClock), account),
            account: None,
        };
        Self {
            zone,
            periods,
            starting_balance: Cost::ZERO,
            store: None,
            ledger: "default".to_owned(),
            store_timeout: Duration::from_secs(2),
            goes_on: false,
            shared,
            is_off: false,
        }
    }

    /// Switches the layer off: every call passes, and nothing is counted.
    #[must_use]
    pub fn off() -> Self {
        Self { is_off: true, ..Self::new() }
    }

    fn restart(mut self) -> Self {
        let mut books = SpendingBooks::new(&self.ledger, self.zone.clone(), self.periods.clone());
        books.starting_balance = SpendAmounts::from_cost(self.starting_balance);
        self.shared.gate = SpendGate::new(self.shared.gate.clock, books.account());
        self.shared.account = self.store.clone().map(|store| {
            let local = self.goes_on.then(|| self.shared.gate.clone());
            Arc::new(SharedAccount::new(store, books, self.store_timeout, local))
        });
        self
    }

    /// Caps each call, all its attempts together.
    #[must_use]
    pub fn per_call(mut self, caps: Caps) -> Self {
        self.shared.per_call = caps;
        self
    }

    /// Caps each hour.
    #[must_use]
    pub fn per_hour(self, caps: Caps) -> Self {
        self.per(Period::Hour, caps)
    }

    /// Caps each day.
    #[must_use]
    pub fn per_day(self, caps: Caps) -> Self {
        self.per(Period::Day, caps)
    }

    /// Caps each month.
    #[must_use]
    pub fn per_month(self, caps: Caps) -> Self {
        self.per(Period::Month, caps)
    }

    /// Caps what is spent in total, with no period after which it starts anew.
    /// [`starting_balance`](Self::starting_balance) carries it over a restart.
    #[must_use]
    pub fn total(self, caps: Caps) -> Self {
        self.per(Period::Total, caps)
    }

    /// Caps each period of this kind. Caps of the same kind that were set before are replaced.
    #[must_use]
    pub fn per(mut self, period: Period, caps: Caps) -> Self {
        let name = period.to_string();
        self.periods.retain(|(known, _)| known.to_string() != name);
        self.periods.push((period, caps));
        self.restart()
    }

    /// Replaces the caps of a period while calls run: what is spent stays spent, and calls that wait
    /// are looked at again. `false` where the layer counts no such period: add it with
    /// [`per`](Self::per) before.
    ///
    /// ```
    /// use tower_gemini::SpendingLayer;
    /// use tower_gemini::spending::{Caps, Period};
    ///
    /// let spending = SpendingLayer::new().per_day(Caps::none().at_most_usd(2.0));
    /// assert!(spending.set_caps(&Period::Day, Caps::none().at_most_usd(5.0)));
    /// assert!(!spending.set_caps(&Period::Month, Caps::none()));
    /// ```
    pub fn set_caps(&self, period: &Period, caps: Caps) -> bool {
        let account = self.shared.account.as_ref();
        account.is_none_or(|account| account.set_caps(period, caps))
            && self.shared.gate.set_caps(period, caps)
    }

    /// Starts the total with what was spent before this process began.
    #[must_use]
    pub fn starting_balance(mut self, spent: Cost) -> Self {
        self.starting_balance = spent;
        self.restart()
    }

    /// Sets the zone whose calendar days and months start periods. Default: Pacific.
    #[must_use]
    pub fn zone(mut self, zone: Zone) -> Self {
        self.zone = zone;
        self.restart()
    }

    /// Keeps the account in this store: caps hold over restarts, and for all who share it. Default:
    /// in this process alone. The store's clock starts periods.
    ///
    /// What a crash left unsettled counts as its worst case. While the store fails, calls are
    /// refused, unless [`go_on_when_store_fails`](Self::go_on_when_store_fails) says otherwise.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tower_gemini::SpendingLayer;
    /// use tower_gemini::spending::Caps;
    /// use tower_gemini::store::MemoryStore;
    ///
    /// let store = Arc::new(MemoryStore::new());
    /// let layer = || SpendingLayer::new().per_month(Caps::none().at_most_usd(3.0)).store(store.clone());
    /// // Three dollars a month for both together.
    /// let (thumbnails, posters) = (layer(), layer());
    /// # let _ = (thumbnails, posters);
    /// ```
    #[must_use]
    pub fn store(mut self, store: Arc<dyn SpendingStore>) -> Self {
        self.store = Some(store);
        self.restart()
    }

    /// Names the account in the store. Default `default`. Layers with one name count together.
    #[must_use]
    pub fn ledger(mut self, name: &str) -> Self {
        name.clone_into(&mut self.ledger);
        self.restart()
    }

    /// Limits the time that the store may take before it counts as failing. Default 2 s.
    #[must_use]
    pub fn store_timeout(mut self, limit: Duration) -> Self {
        self.store_timeout = limit;
        self.restart()
    }

    /// Goes on while the store fails, with an account of this process alone that starts with what
    /// the store last said. Each process then may spend what was left of a cap. Default: calls are
    /// refused, since a cap is a promise.
    #[must_use]
    pub fn go_on_when_store_fails(mut self) -> Self {
        self.goes_on = true;
        self.restart()
    }

    /// Sets what is reserved for an attempt. Default: the worst case, with the drafts that the
    /// catalogue knows of.
    #[must_use]
    pub fn reserve_by(mut self, reserve_by: ReserveBy) -> Self {
        self.shared.reserve_by = reserve_by;
        self
    }

    /// Lets a fallback ask a cheaper model when a cap on money refuses this one. Default: a cap
    /// never moves a call to another model.
    #[must_use]
    pub fn fall_back_when_capped(mut self) -> Self {
        self.shared.falls_back = true;
        self
    }

    /// Makes this the budget of an account at a service, which refusals name so: a call that it
    /// refuses goes on to the targets of other accounts, and to no other model of this one. Only
    /// where there is no such target does a call wait for what running attempts have reserved.
    /// Default: the caps hold wherever a call goes.
    ///
    /// Attempts for other accounts are not to pass this layer.
    #[must_use]
    pub fn of_account(mut self, name: &str) -> Self {
        self.shared.of_account = Some(name.into());
        self
    }

    /// Plans each call, so that one whose worst case exceeds its caps is refused before its first
    /// byte, and not at its third attempt.
    #[must_use]
    pub fn plan(mut self, plan: impl Fn(&Call) -> Plan + Send + Sync + 'static) -> Self {
        self.shared.plan = Some(Arc::new(plan));
        self
    }

    /// Prices by this catalogue. Default: the builtin one.
    #[must_use]
    pub fn catalog(mut self, catalog: impl Into<Arc<Catalog>>) -> Self {
        self.shared.catalog = Some(catalog.into());
        self
    }

    /// Reads periods from this clock. Default: the system's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.shared.gate.clock = Arc::new(clock);
        self
    }

    /// Checks at start that every cap on money lets at least one attempt with each of these models
    /// pass, at this size (`None`: 1K, which is drawn when a request names none).
    ///
    /// ```
    /// use tower_gemini::SpendingLayer;
    /// use tower_gemini::call::ModelId;
    /// use tower_gemini::spending::{Caps, ReserveBy};
    ///
    /// let models = || [(ModelId::new("gemini-3-pro-image"), None)];
    /// let spending = SpendingLayer::new().per_day(Caps::none().at_most_usd(1.0));
    /// let error = spending.check(models()).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "the cap of $1.0000 at most a day is below the $1.5772 that is reserved for one attempt with \
    ///      gemini-3-pro-image: no call would pass; raise the cap, assume fewer drafts, or reserve by the expected price"
    /// );
    /// assert!(spending.reserve_by(ReserveBy::Expected).check(models()).is_ok());
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first cap that no attempt can pass. Models without a price are left
    /// to the calls: what bounds nothing passes no cap on money.
    pub fn check(
        &self,
        models: impl IntoIterator<Item = (ModelId, Option<ImageSize>)>,
    ) -> Result<(), ConfigError> {
        let mut seen = HashSet::new();
        for (model, size) in models {
            let price = self.price(&model, size);
            if price == u64::MAX || !seen.insert((model.clone(), size)) {
                continue;
            }
            let price = SpendAmounts::from_cost(Cost::exactly(price));
            let per_call = self.shared.per_call.exceeded_by(price);
            let per_call = per_call.map(|(dimension, cap)| ("call".to_owned(), dimension, cap));
            let below =
                per_call.or_else(|| self.shared.gate.look(|account| account.caps_below(price)));
            if let Some((period, dimension, cap)) = below {
                let price_microusd = price.at_most_microusd;
                return Err(ConfigError::CapBelowOneAttempt {
                    period,
                    dimension,
                    cap,
                    model,
                    price_microusd,
                });
            }
        }
        Ok(())
    }

    /// What is reserved for an image of this model.
    fn price(&self, model: &ModelId, size: Option<ImageSize>) -> u64 {
        let mut call = Call::unrecognised();
        (call.model, call.size) = (Some(model.clone()), size);
        (call.verb, call.wants_image, call.images) = (Verb::Generate, true, 1);
        self.shared.price(&call)
    }

    /// Whether what is spent so far, as last heard, leaves room for a 1K image of this model in
    /// every period. What running attempts have reserved is not counted: it may come to less.
    ///
    /// ```
    /// use tower_gemini::SpendingLayer;
    /// use tower_gemini::call::ModelId;
    /// use tower_gemini::spending::Caps;
    ///
    /// // The worst case of an image is $1.58.
    /// let pro = ModelId::new("gemini-3-pro-image");
    /// for (usd, has_room) in [(1.0, false), (2.0, true)] {
    ///     let budget = SpendingLayer::new().per_day(Caps::none().at_most_usd(usd));
    ///     assert_eq!(budget.has_room_for(&pro), has_room);
    /// }
    /// ```
    #[must_use]
    pub fn has_room_for(&self, model: &ModelId) -> bool {
        let price = SpendAmounts::from_cost(Cost::exactly(self.price(model, None)));
        let has_room = |spent: &Spent| spent.caps.exceeded_by(spent.settled.plus(price)).is_none();
        self.spent().iter().all(has_room)
    }

    /// Returns what each period came to so far, of all services of this layer. With a store, of all
    /// who share it, as the store last said.
    #[must_use]
    pub fn spent(&self) -> Vec<Spent> {
        let gate = &self.shared.gate;
        let heard = self.shared.account.as_ref().and_then(|account| account.spent());
        heard.unwrap_or_else(|| gate.look(|account| account.spent(gate.clock.now())))
    }

    /// Asks the store what is spent, for [`spent`](Self::spent). Without a store nothing is to be
    /// asked.
    ///
    /// # Errors
    ///
    /// Where the store fails.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        match &self.shared.account {
            Some(account) => account.refresh().await,
            None => Ok(()),
        }
    }

    /// Completes when everything that has ended so far is settled in the store: before a process
    /// ends, so that it does not count as the worst case. It may never complete while the store
    /// fails.
    pub async fn all_settled(&self) {
        if let Some(account) = &self.shared.account {
            account.all_settled().await;
        }
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
            .field("reserve_by", &self.shared.reserve_by)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

/// Says what is wrong with a layer's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A cap on money is below what one attempt reserves.
    #[non_exhaustive]
    CapBelowOneAttempt {
        /// The period of the cap: `call`, `day` …
        period: String,
        /// What is capped.
        dimension: CapDimension,
        /// The cap in micro-dollars.
        cap: u64,
        /// The model.
        model: ModelId,
        /// What one attempt reserves, in micro-dollars.
        price_microusd: u64,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::CapBelowOneAttempt { period, dimension, cap, model, price_microusd } = self;
        let (cap, qualifier) = (dimension.show(*cap), dimension.qualifier());
        let period = if period == "total" { "in total".to_owned() } else { format!("a {period}") };
        write!(
            f,
            "the cap of {cap}{qualifier} {period} is below the {} that is reserved for one attempt \
             with {model}: no call would pass; raise the cap, assume fewer drafts, or reserve by \
             the expected price",
            dimension.show(*price_microusd),
        )
    }
}

impl std::error::Error for ConfigError {}
