use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::Clock;
use http::Request;
use http::header::AUTHORIZATION;
use tokio::sync::watch;
use tokio::time::Instant;
use tower_layer::Layer;

use super::QuotaGuard;
use super::admission::Denied;
use super::alerts::QuotaAlert;
use super::gate::Try;
use super::limits::{Limits, ProjectId, QuotaKey};
use super::state::{
    Cell, GuardCounts, QuotaLedger, QuotaWait, Reservation, Rules, Saturation, Settings, State,
    StoreFailure,
};
use super::store::QuotaStore;
use crate::clock::SystemClock;
use crate::stage::AttemptService;

/// Which project a request belongs to.
#[derive(Clone)]
pub(crate) enum ProjectSource {
    Fixed(ProjectId),
    Credential { secret: [u8; 16], known: Vec<(ProjectId, ProjectId)> },
}

impl ProjectSource {
    pub(crate) fn of<B>(&self, request: &Request<B>) -> ProjectId {
        match self {
            Self::Fixed(project) => project.clone(),
            Self::Credential { secret, known } => {
                let told =
                    ProjectId::of_credential(secret, credential(request).unwrap_or_default());
                match known.iter().find(|(credential, _)| *credential == told) {
                    Some((_, project)) => project.clone(),
                    None => told,
                }
            }
        }
    }
}

/// The credential of a request: the API's own header, a bearer token, or the `key` parameter.
fn credential<B>(request: &Request<B>) -> Option<&str> {
    let headers = request.headers();
    let header = headers
        .get("x-goog-api-key")
        .or_else(|| headers.get(AUTHORIZATION))
        .and_then(|value| value.to_str().ok());
    header
        .map(|text| text.strip_prefix("Bearer ").unwrap_or(text))
        .or_else(|| request.uri().query()?.split('&').find_map(|pair| pair.strip_prefix("key=")))
}

/// Makes [`QuotaGuard`] services that share one count, whatever they are made over and however
/// often they are cloned.
///
/// The settings are fixed once the count exists: a layer that is changed after that begins a count
/// of its own.
#[derive(Clone)]
pub struct QuotaGuardLayer {
    settings: Settings,
    pub(crate) project: Arc<ProjectSource>,
    shared: Arc<OnceLock<Arc<State>>>,
}

impl QuotaGuardLayer {
    /// These limits for every model of one project. [`limits_for`](Self::limits_for) tells models
    /// and projects apart.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let settings = Settings {
            rules: Rules { default: limits, rules: Vec::new() },
            saturation: Saturation::Wait { at_most: Duration::from_secs(120) },
            margin: Duration::from_millis(500),
            first_attempt_percent: 10,
            thresholds: vec![70],
            on_alert: None,
            on_wait: None,
            clock: Arc::new(SystemClock),
            store: None,
            store_timeout: Duration::from_millis(500),
            store_failure: StoreFailure::Closed,
            lease: Duration::from_secs(1),
            learns: true,
        };
        let project = Arc::new(ProjectSource::Fixed(ProjectId::new("default")));
        Self { settings, project, shared: Arc::default() }
    }

    /// No limits: every call passes, and costs nothing.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(Limits::unlimited())
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.shared = Arc::default();
        self
    }

    /// Limits for this model, for every project.
    #[must_use]
    pub fn limits_for(self, model: &str, limits: Limits) -> Self {
        self.set(|settings| settings.rules.rules.push((None, Some(model.to_owned()), limits)))
    }

    /// Limits for this project: for this model of it, or for each of its models that has no rule of
    /// its own.
    #[must_use]
    pub fn limits_for_project(
        self,
        project: ProjectId,
        model: Option<&str>,
        limits: Limits,
    ) -> Self {
        self.set(|settings| {
            settings.rules.rules.push((Some(project), model.map(str::to_owned), limits))
        })
    }

    /// All requests belong to this project.
    #[must_use]
    pub fn project(mut self, project: ProjectId) -> Self {
        self.project = Arc::new(ProjectSource::Fixed(project));
        self
    }

    /// Requests belong to the project of their credential, told by a keyed fingerprint: keys are
    /// never kept. Keys of one project are brought together by `same_project`; a key that is not
    /// listed counts alone.
    ///
    /// The same `secret` gives the same names in every process that shares a store.
    #[must_use]
    pub fn project_by_credential<'a>(
        mut self,
        secret: [u8; 16],
        same_project: impl IntoIterator<Item = (&'a str, ProjectId)>,
    ) -> Self {
        let known = same_project
            .into_iter()
            .map(|(credential, project)| (ProjectId::of_credential(&secret, credential), project))
            .collect();
        self.project = Arc::new(ProjectSource::Credential { secret, known });
        self
    }

    /// Like [`project_by_credential`](Self::project_by_credential), with a secret of this process
    /// alone, for counts that are not shared.
    #[must_use]
    pub fn project_by_credential_here(self) -> Self {
        // The standard library's keys for its hash maps are random, per process, and never leave
        // it.
        let random = RandomState::new();
        let (a, b) = (random.hash_one(0u8), random.hash_one(1u8));
        let mut secret = [0; 16];
        for (byte, from) in
            secret.iter_mut().zip(a.to_le_bytes().into_iter().chain(b.to_le_bytes()))
        {
            *byte = from;
        }
        self.project_by_credential(secret, [])
    }

    /// What happens when the allowance is used up.
    #[must_use]
    pub fn saturation(self, saturation: Saturation) -> Self {
        self.set(|settings| settings.saturation = saturation)
    }

    /// Added to each window; at most 3 s.
    #[must_use]
    pub fn margin(self, margin: Duration) -> Self {
        self.set(|settings| settings.margin = margin.min(Duration::from_secs(3)))
    }

    /// How much of the day's allowance is kept for first attempts, in percent: retries are refused
    /// when no more is left.
    #[must_use]
    pub fn keep_for_first_attempts(self, percent: u8) -> Self {
        self.set(|settings| settings.first_attempt_percent = percent.min(100))
    }

    /// From which shares of a limit on an alert is told, in percent. None for no alerts.
    #[must_use]
    pub fn alert_at(self, percent: impl IntoIterator<Item = u8>) -> Self {
        let thresholds = percent.into_iter().collect();
        self.set(|settings| settings.thresholds = thresholds)
    }

    /// Called once a crossing, on the task that crossed it: it must not block.
    #[must_use]
    pub fn on_alert(self, tell: impl Fn(&QuotaAlert) + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.on_alert = Some(Arc::new(tell)))
    }

    /// Called before a call waits, with the time that it is expected to wait. It must not block.
    #[must_use]
    pub fn on_wait(self, tell: impl Fn(&QuotaWait) + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.on_wait = Some(Arc::new(tell)))
    }

    /// The clock that midnight is read from.
    #[must_use]
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        self.set(|settings| settings.clock = clock)
    }

    /// A count that several layers or processes share.
    #[must_use]
    pub fn store(self, store: Arc<dyn QuotaStore>) -> Self {
        self.set(|settings| settings.store = Some(store))
    }

    /// How long the store may take to answer before it counts as failing.
    #[must_use]
    pub fn store_timeout(self, limit: Duration) -> Self {
        self.set(|settings| settings.store_timeout = limit)
    }

    /// What happens while the store fails.
    #[must_use]
    pub fn on_store_failure(self, policy: StoreFailure) -> Self {
        self.set(|settings| settings.store_failure = policy)
    }

    /// How long what the store granted at once may be used for, from 50 ms to 2 s. Longer leases
    /// ask more rarely and leave that much of each window unused. A store that takes four fifths of
    /// it to answer counts as failing.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        self.set(|settings| {
            settings.lease = lease.clamp(Duration::from_millis(50), Duration::from_secs(2))
        })
    }

    /// Does not change limits by what refusals say, and rests nothing.
    #[must_use]
    pub fn learn_nothing(self) -> Self {
        self.set(|settings| settings.learns = false)
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        self.shared.get_or_init(|| Arc::new(State::new(self.settings.clone())))
    }

    pub(crate) fn saturation_policy(&self) -> Saturation {
        self.settings.saturation
    }

    /// How every (project, model) stands that was asked for so far.
    #[must_use]
    pub fn ledgers(&self) -> Vec<QuotaLedger> {
        self.state().ledgers()
    }

    /// How this (project, model) stands; `None` where nothing limits it.
    #[must_use]
    pub fn ledger(&self, key: &QuotaKey) -> Option<QuotaLedger> {
        let state = self.state();
        state.cell(key).map(|cell| state.ledger(&cell))
    }

    /// The latest alert, and a way to await the next.
    #[must_use]
    pub fn alerts(&self) -> watch::Receiver<Option<QuotaAlert>> {
        self.state().alerts()
    }

    /// What the guard did so far.
    #[must_use]
    pub fn counts(&self) -> GuardCounts {
        self.state().counts()
    }

    /// Gives back to the store what is left of every lease. For the end of a process; an idle one
    /// does it by itself.
    pub async fn flush(&self) {
        self.state().flush_all().await;
    }

    /// The same count for callers without a service: `None` where nothing limits this key.
    #[must_use]
    pub fn handle(&self, key: &QuotaKey) -> Option<QuotaHandle> {
        let state = self.state().clone();
        let cell = state.cell(key)?;
        Some(QuotaHandle { state, cell })
    }
}

impl fmt::Debug for QuotaGuardLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret of the fingerprints stays out of it.
        f.debug_struct("QuotaGuardLayer")
            .field("rules", &self.settings.rules)
            .field("saturation", &self.settings.saturation)
            .field("store", &self.settings.store)
            .finish_non_exhaustive()
    }
}

impl<S: AttemptService> Layer<S> for QuotaGuardLayer {
    type Service = QuotaGuard<S>;

    fn layer(&self, inner: S) -> Self::Service {
        QuotaGuard::new(inner, self.state().clone(), self.project.clone(), self.saturation_policy())
    }
}

/// One (project, model) of a layer's count, for callers that do not send through its services.
///
/// ```
/// use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, QuotaKey};
///
/// let layer = QuotaGuardLayer::new(Limits::unlimited().rpm(1));
/// let handle = layer.handle(&QuotaKey::new("default", "gemini-3-pro-image")).unwrap();
/// let reservation = handle.try_reserve(120, 1).unwrap();
/// assert!(handle.try_reserve(120, 1).is_err());
/// // It was not sent after all.
/// reservation.give_back();
/// assert!(handle.try_reserve(120, 1).is_ok());
/// ```
#[derive(Clone)]
pub struct QuotaHandle {
    state: Arc<State>,
    cell: Arc<Cell>,
}

impl QuotaHandle {
    /// Takes one request with so many tokens and images, or says why not. With a shared store this
    /// works only while a lease lasts; [`reserve`](Self::reserve) asks for the next.
    ///
    /// # Errors
    ///
    /// [`Denied`], with when it would fit.
    pub fn try_reserve(&self, tokens: u64, images: u64) -> Result<Reservation, Denied> {
        let ask = self.state.ask(&self.cell, tokens, images, false);
        match self.state.try_take(&self.cell, ask) {
            Try::Taken(taken) => Ok(Reservation::new(self.state.clone(), self.cell.clone(), taken)),
            Try::Denied(denied) => Err(denied),
            Try::Line => Err(self.cell.gate.refusal(self.state.now(), ask)),
        }
    }

    /// Takes one request, after its turn in line, at the latest at `deadline`.
    ///
    /// # Errors
    ///
    /// [`Denied`] at once where its turn would come too late, or at the deadline.
    pub async fn reserve(
        &self,
        tokens: u64,
        images: u64,
        deadline: Option<Instant>,
    ) -> Result<Reservation, Denied> {
        let ask = self.state.ask(&self.cell, tokens, images, false);
        if let Try::Taken(taken) = self.state.try_take(&self.cell, ask) {
            return Ok(Reservation::new(self.state.clone(), self.cell.clone(), taken));
        }
        let (place, _) = self.state.join(&self.cell, ask, deadline)?;
        place.served().await
    }

    /// How it stands.
    #[must_use]
    pub fn ledger(&self) -> QuotaLedger {
        self.state.ledger(&self.cell)
    }

    /// How long from now until what was denied would fit; `None` if never.
    #[must_use]
    pub fn wait(&self, denied: &Denied) -> Option<Duration> {
        self.state.wait_of(denied)
    }

    /// Everything that ever happened.
    #[must_use]
    pub fn totals(&self) -> super::Totals {
        self.cell.gate.look(|admission, _| admission.totals())
    }
}

impl fmt::Debug for QuotaHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaHandle").field("key", &self.cell.key).finish_non_exhaustive()
    }
}
