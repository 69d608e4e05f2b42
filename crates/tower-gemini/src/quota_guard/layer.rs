use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Request;
use http::header::AUTHORIZATION;
use tokio::sync::watch;
use tower_gemini_core::target::UpstreamId;

use super::alerts::QuotaAlert;
use super::handle::QuotaHandle;
use super::limits::{Limits, ProjectId, QuotaKey};
use super::settings::{OnExhausted, Rules, Settings, StoreFailure};
use super::state::QuotaState;
use super::usage::{GuardCounts, QuotaUsage, QuotaWait};
use crate::clock::{Clock, SystemClock};
use crate::store::QuotaStore;

/// Tells which project a request belongs to.
#[derive(Clone)]
pub(crate) enum ProjectSource {
    Fixed(ProjectId),
    Credential { secret: [u8; 16], known: Vec<(ProjectId, ProjectId)> },
}

impl ProjectSource {
    pub(crate) fn project_of<B>(&self, request: &Request<B>) -> ProjectId {
        match self {
            Self::Fixed(project) => project.clone(),
            Self::Credential { secret, known } => {
                let found =
                    ProjectId::from_credential(secret, credential(request).unwrap_or_default());
                match known.iter().find(|(credential, _)| *credential == found) {
                    Some((_, project)) => project.clone(),
                    None => found,
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

/// Makes [`QuotaGuard`](super::QuotaGuard) services that share one count, whatever they are made
/// over and however often they are cloned.
///
/// The settings are fixed once the count exists: a layer that is changed after that begins a count
/// of its own. [`project`](Self::project) and [`upstream`](Self::upstream) are no such settings:
/// they say what the services of this layer count for.
#[derive(Clone)]
pub struct QuotaGuardLayer {
    settings: Settings,
    pub(crate) project: Arc<ProjectSource>,
    pub(crate) upstream: Option<Arc<UpstreamId>>,
    shared: Arc<OnceLock<Arc<QuotaState>>>,
}

impl QuotaGuardLayer {
    /// Applies these limits to every model. [`limits_for`](Self::limits_for) sets those of one model
    /// or project. Without limits it still refuses what goes to a model whose day Google closed.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let settings = Settings {
            is_off: false,
            rules: Rules { default: limits, rules: Vec::new() },
            on_exhausted: OnExhausted::Wait { at_most: Duration::from_secs(120) },
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
        Self { settings, project, upstream: None, shared: Arc::default() }
    }

    /// Passes every call on unchanged, at no cost: nothing is limited or remembered.
    #[must_use]
    pub fn off() -> Self {
        Self::new(Limits::unlimited()).set(|settings| settings.is_off = true)
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.shared = Arc::default();
        self
    }

    /// Sets the limits of this model, for every project.
    #[must_use]
    pub fn limits_for(self, model: &str, limits: Limits) -> Self {
        self.set(|settings| {
            settings.is_off = false;
            settings.rules.rules.push((None, Some(model.to_owned()), limits));
        })
    }

    /// Sets the limits of this project: of one model, or of each model that has no rule of its own.
    #[must_use]
    pub fn limits_for_project(
        self,
        project: ProjectId,
        model: Option<&str>,
        limits: Limits,
    ) -> Self {
        self.set(|settings| {
            settings.is_off = false;
            settings.rules.rules.push((Some(project), model.map(str::to_owned), limits));
        })
    }

    /// Counts all requests for this project. Several API keys of the project share the count.
    #[must_use]
    pub fn project(mut self, project: ProjectId) -> Self {
        self.project = Arc::new(ProjectSource::Fixed(project));
        self
    }

    /// Counts each request for the project of its credential, which is identified by a keyed
    /// fingerprint: credentials are never stored. `same_project` names the projects of credentials,
    /// and credentials of one project share its count; any other credential counts alone.
    ///
    /// The same `secret` gives the same fingerprints in every process that shares a store.
    #[must_use]
    pub fn project_by_credential<'a>(
        mut self,
        secret: [u8; 16],
        same_project: impl IntoIterator<Item = (&'a str, ProjectId)>,
    ) -> Self {
        let known = same_project
            .into_iter()
            .map(|(credential, project)| (ProjectId::from_credential(&secret, credential), project))
            .collect();
        self.project = Arc::new(ProjectSource::Credential { secret, known });
        self
    }

    /// Counts like [`project_by_credential`](Self::project_by_credential), with a random secret: for
    /// counts that no other process shares.
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

    /// Sets what happens when the quota is exhausted. Default: wait up to 120 s.
    #[must_use]
    pub fn on_exhausted(self, on_exhausted: OnExhausted) -> Self {
        self.set(|settings| settings.on_exhausted = on_exhausted)
    }

    /// Adds a margin to each window. Default 500 ms, at most 3 s.
    #[must_use]
    pub fn margin(self, margin: Duration) -> Self {
        self.set(|settings| settings.margin = margin.min(Duration::from_secs(3)))
    }

    /// Keeps this part of the day's limit, in percent, for first attempts: retries are refused when
    /// no more is left. Default 10.
    #[must_use]
    pub fn keep_for_first_attempts(self, percent: u8) -> Self {
        self.set(|settings| settings.first_attempt_percent = percent.min(100))
    }

    /// Sends an alert when usage crosses these shares of a limit, in percent. Empty for no alerts.
    /// Default 70.
    #[must_use]
    pub fn alert_at(self, percent: impl IntoIterator<Item = u8>) -> Self {
        let thresholds = percent.into_iter().collect();
        self.set(|settings| settings.thresholds = thresholds)
    }

    /// Calls `callback` once a crossing, on the task that crossed it: it must not block.
    #[must_use]
    pub fn on_alert(self, callback: impl Fn(&QuotaAlert) + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.on_alert = Some(Arc::new(callback)))
    }

    /// Calls `callback` before a call waits, with the expected time. It must not block.
    #[must_use]
    pub fn on_wait(self, callback: impl Fn(&QuotaWait) + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.on_wait = Some(Arc::new(callback)))
    }

    /// Reads midnight from this clock. Default: the system's.
    #[must_use]
    pub fn clock(self, clock: impl Clock + 'static) -> Self {
        self.set(|settings| settings.clock = Arc::new(clock))
    }

    /// Names the upstream that requests are addressed to. Its identity is part of every key, so
    /// that two upstreams with the same models are counted apart, also by clones of one layer.
    /// Default: what the request's URI says. Requests that a fallback sends elsewhere are counted
    /// there in any case.
    #[must_use]
    pub fn upstream(mut self, upstream: UpstreamId) -> Self {
        self.upstream = Some(Arc::new(upstream));
        self
    }

    /// Shares the count with every layer and process that uses the same store.
    #[must_use]
    pub fn store(self, store: Arc<dyn QuotaStore>) -> Self {
        self.set(|settings| settings.store = Some(store))
    }

    /// Limits the time that the store may take before it counts as failing. Default 500 ms.
    #[must_use]
    pub fn store_timeout(self, limit: Duration) -> Self {
        self.set(|settings| settings.store_timeout = limit)
    }

    /// Sets what happens while the store fails. Default: nothing is let through.
    #[must_use]
    pub fn on_store_failure(self, policy: StoreFailure) -> Self {
        self.set(|settings| settings.store_failure = policy)
    }

    /// Sets how long a grant of the store may be used, from 50 ms to 2 s. Default 1 s. Longer leases
    /// ask less often and leave that much of each window unused. A store that takes four fifths of
    /// it to answer counts as failing.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        self.set(|settings| {
            settings.lease = lease.clamp(Duration::from_millis(50), Duration::from_secs(2))
        })
    }

    /// Ignores what refusals say: limits stay, and nothing rests.
    #[must_use]
    pub fn learn_nothing(self) -> Self {
        self.set(|settings| settings.learns = false)
    }

    pub(crate) fn state(&self) -> &Arc<QuotaState> {
        self.shared.get_or_init(|| Arc::new(QuotaState::new(self.settings.clone())))
    }

    /// Returns the usage of every (upstream, project, model) that was asked for so far.
    #[must_use]
    pub fn usages(&self) -> Vec<QuotaUsage> {
        self.handles().iter().map(QuotaHandle::usage).collect()
    }

    /// Returns the usage of one key; `None` where nothing limits it.
    #[must_use]
    pub fn usage(&self, key: &QuotaKey) -> Option<QuotaUsage> {
        self.handle(key).map(|handle| handle.usage())
    }

    /// Returns the latest alert, and a way to await the next.
    #[must_use]
    pub fn alerts(&self) -> watch::Receiver<Option<QuotaAlert>> {
        self.state().alerts.subscribe()
    }

    /// Returns what the guard did so far.
    #[must_use]
    pub fn counts(&self) -> GuardCounts {
        self.state().counts()
    }

    /// Forgets what refusals taught: closed days, rests and lowered limits. For an operator who
    /// knows better, as after a change of tier. Returns how many keys had a closed day or a rest.
    ///
    /// A shared store hears of it with the next exchange; other processes that saw the refusal
    /// themselves keep to it.
    pub fn reopen(&self) -> usize {
        let handles = self.handles();
        handles.into_iter().filter(QuotaHandle::reopen).count()
    }

    /// Refunds to the store what is left of every lease. For the end of a process; an idle one does
    /// it by itself.
    pub async fn flush(&self) {
        for handle in self.handles() {
            handle.flush().await;
        }
    }

    fn handles(&self) -> Vec<QuotaHandle> {
        let state = self.state();
        let handle = |key| QuotaHandle { state: state.clone(), key };
        state.all_keys().into_iter().map(handle).collect()
    }

    /// Reserves from the same count for callers without a service: `None` where nothing limits
    /// this key.
    #[must_use]
    pub fn handle(&self, key: &QuotaKey) -> Option<QuotaHandle> {
        let state = self.state().clone();
        let key = state.key_state(key)?;
        Some(QuotaHandle { state, key })
    }
}

impl fmt::Debug for QuotaGuardLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret of the fingerprints stays out of it.
        f.debug_struct("QuotaGuardLayer")
            .field("rules", &self.settings.rules)
            .field("on_exhausted", &self.settings.on_exhausted)
            .field("store", &self.settings.store)
            .finish_non_exhaustive()
    }
}
