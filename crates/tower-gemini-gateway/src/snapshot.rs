//! Builds what one configuration describes: layers with their state, stacks over them, admission.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Extensions;
use tower::util::MapRequest;
use tower_gemini::call::{Call, ImageSize, ModelId};
use tower_gemini::catalog::Catalog;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::cost::Cost;
use tower_gemini::model_fallback::{FallbackOrder, FallbackPolicy, Pool};
use tower_gemini::quota_guard::{OnExhausted, ProjectId, QuotaKey, QuotaUsage};
use tower_gemini::spending::Caps;
use tower_gemini::stage::WireClient;
use tower_gemini::target::{MustKeep, UpstreamId};
use tower_gemini::thought_signatures::Missing;
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer,
    KeepPaidLayer, ModelFallbackLayer, ObserveLayer, PacingLayer, QuotaGuardLayer,
    ResolutionFallbackLayer, ResumeInteractionsLayer, SpendingLayer, ThoughtSignaturesLayer,
};

use crate::alerts::Alerts;
use crate::auth::Auth;
use crate::budgets::{Budgets, BudgetsLayer};
use crate::config::{self, AuthMode, Config, ConfigError};
use crate::door::Door;
use crate::mask::{self, Secrets};
use crate::memory;
use crate::observations::ObservationFile;
use crate::otel::{self, Otel};
use crate::outbound;
use crate::queue::Queue;
use crate::stacks::{Layers, RouteLayers, Stacks};
use crate::state::State;
use crate::stats::{HealthTargets, Stats};
use crate::upstream::{Upstream, upstreams};

/// Everything that serves requests, built from one configuration and replaced whole by the next.
#[derive(Debug)]
pub(crate) struct Snapshot {
    config: Config,
    auth: Auth,
    layers: Layers,
    upstreams: Vec<Upstream>,
    /// For the paths of Vertex AI and for all others, where there is an upstream for them.
    routes: Vec<Route>,
    quota: QuotaGuardLayer,
    queue: Queue,
    state: State,
    catalog: Arc<Catalog>,
    stopping: Arc<AtomicBool>,
    door: Arc<Door>,
    alerts: Alerts,
    otel: Otel,
}

/// The upstream that calls are addressed to, and the stacks over it and its pool.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) upstream: Upstream,
    pub(crate) stacks: Arc<Stacks>,
}

impl Snapshot {
    /// Builds one. State that calls share (quota usage, the health of targets, spending, stored
    /// responses, signatures) is taken over from `before` wherever its settings are the same.
    pub(crate) fn build(config: &Config, before: Option<&Self>) -> Result<Self, ConfigError> {
        let state = before.map(|before| before.state.clone()).unwrap_or_default();
        Self::with_state(config, before, state)
    }

    /// The first one of a gateway, over what it has opened.
    pub(crate) fn first(config: &Config, state: State) -> Result<Self, ConfigError> {
        Self::with_state(config, None, state)
    }

    fn with_state(
        config: &Config,
        before: Option<&Self>,
        state: State,
    ) -> Result<Self, ConfigError> {
        let connect = config.timeouts.connect.0;
        let client = |upstream: &config::Upstream| outbound::client(upstream, connect);
        Self::assemble(client, SystemClock, config, before, state)
    }

    /// As [`build`](Self::build), over any client. `clock` dates the days of quotas.
    #[cfg(test)]
    pub(crate) fn over<C: WireClient<Future: 'static> + Sync>(
        client: C,
        clock: impl Clock + Clone + 'static,
        config: &Config,
        before: Option<&Self>,
    ) -> Result<Self, ConfigError> {
        let state = before.map(|before| before.state.clone()).unwrap_or_default();
        Self::assemble(|_| Ok(client.clone()), clock, config, before, state)
    }

    /// Builds one over the client of each upstream.
    pub(crate) fn assemble<C: WireClient<Future: 'static> + Sync>(
        client: impl Fn(&config::Upstream) -> Result<C, ConfigError>,
        clock: impl Clock + Clone + 'static,
        config: &Config,
        before: Option<&Self>,
        state: State,
    ) -> Result<Self, ConfigError> {
        let env = |name: &str| std::env::var(name).ok();
        // The list of tokens is read apart from the configuration: what is wrong with it keeps no
        // other change from taking effect.
        let auth = match before.filter(|before| before.config.auth == config.auth) {
            Some(before) => before.auth.clone(),
            None => Auth::build(&config.auth, env)?,
        };
        let upstreams = upstreams(config, env)?;
        let alerts = Alerts::build(&config.alerts, before.map(|before| &before.alerts), env)?;
        let otel = match before {
            Some(before) => before.otel.clone(),
            None => Otel::build(&config.otel, env)?,
        };
        let catalog = config.read_catalog()?;
        for upstream in upstreams.iter().filter(|upstream| upstream.is_unencrypted()) {
            tracing::warn!(
                upstream = upstream.name(),
                base_url = %upstream.base(),
                "keys and images go to another machine unencrypted: base_url begins with http://"
            );
        }
        let layers = layers(config, &catalog, &upstreams, before, &state, &clock)?;
        let quota = match before {
            Some(before) => before.quota.clone(),
            None => quota(config, &upstreams, &state, clock.clone()),
        };
        let keys = upstreams.iter().filter_map(|upstream| upstream.key()?.to_str().ok());
        let secrets = Secrets::new(keys);
        let clients = config.upstream.iter().zip(&upstreams).filter_map(|(settings, upstream)| {
            let address = upstream.base().authority()?.clone();
            let (id, images_api) = (upstream.id().clone(), upstream.images_api());
            Some(client(settings).map(|client| {
                let client = mask::cleaned(client, secrets.clone());
                outbound::Route { id, address, images_api, client }
            }))
        });
        let clients = clients.collect::<Result<Vec<_>, ConfigError>>()?;
        let classify = upstreams
            .iter()
            .fold(ClassifyGeminiErrorLayer::new(), |layer, upstream| upstream.judge(layer))
            .catalog(catalog.clone());
        let route = |leader: &config::Upstream| {
            let (upstream, own) = upstreams
                .iter()
                .zip(clients.iter())
                .find(|(upstream, _)| upstream.name() == leader.name)?;
            let route = RouteLayers {
                fallback: pooled(config, leader, &upstreams, &layers, &quota),
                budgets: BudgetsLayer {
                    budgets: layers.budgets.clone(),
                    own: upstream.id().clone(),
                },
                quota: quota_of(&quota, config, upstream, &upstreams),
                classify: classify.clone(),
                responses: &config.responses,
            };
            let client = outbound::ByAddress::new(own, &clients);
            let client = MapRequest::new(client, otel::propagate);
            let stacks = Arc::new(layers.stacks(route, &state, client));
            Some(Route { upstream: upstream.clone(), stacks })
        };
        let leaders = [true, false].into_iter().filter_map(|vertex| config.leader(vertex));
        let routes = leaders.filter_map(route).collect();
        let stopping = before.map(|before| before.stopping.clone()).unwrap_or_default();
        let queue = match before {
            Some(before) => before.queue.clone(),
            None => queue(config),
        };
        let door = match before {
            Some(before) => before.door.clone(),
            None => Arc::new(Door::new(config, Arc::new(clock), state.store())?),
        };
        let config = config.clone();
        Ok(Self {
            config,
            auth,
            layers,
            upstreams,
            routes,
            quota,
            queue,
            state,
            catalog,
            stopping,
            door,
            alerts,
            otel,
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.auth
    }

    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.upstreams.iter()
    }

    /// Whether upstreams get the gateway's own keys.
    pub(crate) fn has_keys(&self) -> bool {
        self.upstreams().any(|upstream| upstream.key().is_some())
    }

    pub(crate) fn quota(&self) -> &QuotaGuardLayer {
        &self.quota
    }

    /// The usage of every quota.
    pub(crate) fn quota_usages(&self) -> Vec<QuotaUsage> {
        self.quota.usages()
    }

    pub(crate) fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The route for the paths of Vertex AI, or for all others.
    pub(crate) fn route(&self, vertex: bool) -> Option<&Route> {
        self.routes.iter().find(|route| route.upstream.is_vertex() == vertex)
    }

    /// What is known of models.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Why this gateway takes no paid work at present: it lets nobody in, or could not record it.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("this gateway is shutting down".to_owned());
        }
        self.state.problem().or_else(|| self.auth.problem())
    }

    /// Whether paid calls are recorded outside of memory.
    pub(crate) fn has_journal(&self) -> bool {
        self.state.store().is_some()
    }

    pub(crate) fn stop_being_ready(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.door
    }

    pub(crate) fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    pub(crate) fn otel(&self) -> &Otel {
        &self.otel
    }

    /// Marks a request that generates something, to be traced.
    pub(crate) fn trace(&self, call: &Call, extensions: &mut Extensions) {
        self.otel.mark(call, (&self.catalog, &self.upstreams), extensions);
    }

    /// What no fallback may give up.
    pub(crate) fn must_keep(&self) -> MustKeep {
        self.config.fallback.must_keep()
    }
}

/// The layers of a configuration. Layers of `before` stay whose settings are the same, and always
/// those whose state is worth more than new settings: stored responses, spending, quota usage
/// (`reload::needs_restart`).
fn layers(
    config: &Config,
    catalog: &Arc<Catalog>,
    upstreams: &[Upstream],
    before: Option<&Snapshot>,
    state: &State,
    clock: &(impl Clock + Clone + 'static),
) -> Result<Layers, ConfigError> {
    let kept = before.map(|before| &before.layers);
    let unchanged = |is_same: fn(&Config, &Config) -> bool| {
        before.filter(|before| is_same(&before.config, config)).map(|before| &before.layers)
    };
    let stats = match kept {
        Some(kept) => kept.stats.clone(),
        None => Stats::new().clock(clock.clone()),
    };
    let targets = HealthTargets::recommended();
    let stats = stats.targets(match config.peak.schedule()? {
        Some(hours) => targets.peak_hours(hours),
        None => targets,
    });
    let earlier = state.figures().and_then(|figures| figures.earlier().stats.as_ref());
    if let Some(earlier) = earlier.filter(|_| kept.is_none()) {
        stats.restore(earlier);
    }
    Ok(Layers {
        observe: match kept {
            Some(kept) => kept.observe.clone(),
            None => observe(config, &stats)?,
        }
        .catalog(catalog.clone()),
        stats,
        // A form's images are a third longer in the JSON that it becomes: every body that is
        // accepted can also be replayed.
        collect: CollectRequestLayer::new()
            .max_held_bytes((config.server.max_body.0 / 3 + 1).saturating_mul(4) + 1024 * 1024),
        keep: kept.map_or_else(|| keep(config, state, clock.clone()), |kept| kept.keep.clone()),
        signatures: match unchanged(|a, b| a.signatures.restore == b.signatures.restore) {
            Some(kept) => kept.signatures.clone(),
            None => signatures(&config.signatures)?,
        },
        peak: match unchanged(|a, b| a.peak == b.peak) {
            Some(kept) => kept.peak.clone(),
            None => config.peak.layer()?.clock(clock.clone()),
        },
        fallback: fallback(config, upstreams, kept.map(|kept| &kept.fallback), state)?
            .clock(clock.clone())
            .catalog(catalog.clone()),
        // With other models, sizes are part of the same walk.
        resolution: match config.fallback.ladder()? {
            Some(ladder) if !walks(config) => {
                ResolutionFallbackLayer::by(ladder).catalog(catalog.clone())
            }
            _ => ResolutionFallbackLayer::off(),
        },
        retry: match unchanged(|a, b| a.retry == b.retry) {
            Some(kept) => kept.retry.clone(),
            None => JitteredRetryLayer::new(config.policy()?)
                .continue_resends(config.retry.continue_resends.0),
        },
        pacing: match kept {
            Some(kept) => kept.pacing.clone(),
            None => PacingLayer::new(config.quota.min_interval.0),
        },
        spending: match kept {
            Some(kept) => kept.spending.clone(),
            None => spending(config, catalog, state)?.clock(clock.clone()),
        }
        .catalog(catalog.clone()),
        budgets: match kept {
            Some(kept) => kept.budgets.clone(),
            None => budgets(config, catalog, upstreams, state, clock)?,
        },
        timeout: AttemptTimeoutLayer::new()
            .limit(config.timeouts.up_to_2k.0)
            .limit_for(ImageSize::K4, config.timeouts.at_4k.0)
            .longest(config.timeouts.longest.0)
            .idle_limit(config.timeouts.idle.0),
        resume: match config.interactions.resume {
            true => ResumeInteractionsLayer::new(),
            false => ResumeInteractionsLayer::off(),
        },
    })
}

fn observe(config: &Config, stats: &Stats) -> Result<ObserveLayer, ConfigError> {
    let layer = ObserveLayer::new().observer(stats.observer());
    let Some(path) = &config.log.observations else { return Ok(layer) };
    let file = ObservationFile::open(path).map_err(|error| {
        let what = format!("log.observations {} cannot be written: {error}", path.display());
        ConfigError::at("log.observations", what, "make it writable, or name another file")
    })?;
    Ok(layer.observer(Arc::new(file)))
}

fn signatures(config: &config::Signatures) -> Result<ThoughtSignaturesLayer, ConfigError> {
    if !config.restore {
        return Ok(ThoughtSignaturesLayer::off());
    }
    let layer = ThoughtSignaturesLayer::new().missing(Missing::Send);
    let Some(file) = &config.file else { return Ok(layer) };
    layer.load_from(file).map_err(|error| {
        let what = format!("signatures.file {} cannot be read: {error}", file.display());
        ConfigError::at("signatures.file", what, "make it readable, delete it, or name another")
    })
}

/// Whether calls may go to other models or upstreams.
fn walks(config: &Config) -> bool {
    let pools = [true, false].into_iter().filter_map(|vertex| config.leader(vertex));
    config.fallback.has_models() || pools.into_iter().any(|one| config.pool(one).next().is_some())
}

/// The layer without a pool. What is known of the health of targets stays.
fn fallback(
    config: &Config,
    upstreams: &[Upstream],
    before: Option<&ModelFallbackLayer>,
    state: &State,
) -> Result<ModelFallbackLayer, ConfigError> {
    let settings = &config.fallback;
    let layer = if walks(config) {
        let named = |name: &str| upstreams.iter().find(|one| one.name() == name);
        let chain = settings.chain(|name| named(name).map(Upstream::target))?;
        // The other half is for models that are well.
        let most_waiting = config.server.max_in_flight.div_ceil(2);
        let policy = FallbackPolicy::recommended().most_waiting(most_waiting);
        let policy = if settings.wait { policy } else { policy.refuse_when_all_open() };
        let layer = ModelFallbackLayer::new(chain).policy(policy).order(match settings.order {
            config::FallbackOrder::SizeFirst => FallbackOrder::SizeFirst,
            config::FallbackOrder::ModelFirst => FallbackOrder::ModelFirst,
        });
        settings.ladder()?.into_iter().fold(layer, ModelFallbackLayer::ladder)
    } else if settings.successors {
        ModelFallbackLayer::successors()
    } else {
        ModelFallbackLayer::off()
    };
    if let Some(before) = before {
        return Ok(layer.circuits_of(before));
    }
    if let Some(store) = state.store() {
        layer.circuits().share(store.records(), SystemClock);
    }
    Ok(layer)
}

/// The layer of one route: over the pool of its leader, where there is one.
fn pooled(
    config: &Config,
    leader: &config::Upstream,
    upstreams: &[Upstream],
    layers: &Layers,
    quota: &QuotaGuardLayer,
) -> ModelFallbackLayer {
    let (fallback, budgets) = (&layers.fallback, layers.budgets.clone());
    let find = |settings: &config::Upstream| {
        let upstream = upstreams.iter().find(|one| one.name() == settings.name)?;
        Some((upstream, settings.weight()))
    };
    let members: Vec<_> = config.pool(leader).filter_map(find).collect();
    let Some((own, weight)) = find(leader).filter(|_| !members.is_empty()) else {
        return fallback.clone();
    };
    let pool = members.iter().fold(Pool::new(weight), |pool, (upstream, weight)| {
        pool.member(upstream.target(), *weight)
    });
    let accounts: Vec<UpstreamId> = [own]
        .into_iter()
        .chain(members.iter().map(|(one, _)| *one))
        .map(|one| one.id().clone())
        .collect();
    let quota = quota.clone();
    fallback.clone().pool(pool.headroom(move |at, model| {
        let Some(account) = accounts.get(at) else { return 1.0 };
        if !budgets.has_room(account, model) {
            return 0.0;
        }
        let key = QuotaKey::new(&account.name, model.as_str()).at(account.clone());
        quota.usage(&key).map_or(1.0, |usage| usage.share_left())
    }))
}

/// As many calls is one request at most: `n` of OpenAI's API.
const MOST_IMAGES: usize = 10;

/// What requests wait for. Settings that cannot be kept are raised or said.
fn queue(config: &Config) -> Queue {
    let (limits, most_calls) = (memory::limits(config), config.most_calls());
    if let Some(written) = config.keep.max_detached.filter(|written| *written < most_calls) {
        tracing::warn!(
            written,
            raised_to = most_calls,
            "keep.max_detached is raised to server.max_in_flight: a call whose client disconnects \
             would be lost, although it is paid for"
        );
    }
    let longest = memory::longest_body(&limits);
    if longest < config.server.max_body.0 {
        tracing::warn!(
            longest_body = longest,
            max_body = config.server.max_body.0,
            "server.memory has no room for a body of server.max_body: longer ones get a 413"
        );
    }
    Queue::new(limits)
}

fn keep(config: &Config, state: &State, clock: impl Clock + 'static) -> Option<KeepPaidLayer> {
    let keep = &config.keep;
    keep.enabled.then(|| {
        let layer = KeepPaidLayer::new()
            .clock(clock)
            // The gateway's queue counts them, by request; one for several images is as many calls.
            .max_detached(config.most_calls().saturating_mul(MOST_IMAGES))
            .max_stored_bytes(config.kept_bytes())
            .max_detached_time(keep.max_detached_time.0)
            .retention(keep.retention.0)
            .loss_window(keep.loss_window.0);
        match state.store() {
            Some(store) => layer.journal(store.journal()),
            None => layer,
        }
    })
}

/// The spending layer.
fn spending(
    config: &Config,
    catalog: &Arc<Catalog>,
    state: &State,
) -> Result<SpendingLayer, ConfigError> {
    let spending = &config.spending;
    if spending.caps().iter().all(|(_, usd)| *usd <= 0.0) {
        return Ok(SpendingLayer::off());
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: a sum of money"
    )]
    let balance = (spending.starting_balance * 1e6).round() as u64;
    let layer = SpendingLayer::new()
        .starting_balance(Cost::exactly(balance))
        .reserve_by(spending.reserve_by())
        .catalog(catalog.clone());
    let layer = if spending.fall_back_when_capped { layer.fall_back_when_capped() } else { layer };
    capped(layer, "spending", "[spending]", &spending.caps(), config, catalog, state)
}

/// The budget of each upstream that has one, with the prices and drafts of `[spending]`.
fn budgets(
    config: &Config,
    catalog: &Arc<Catalog>,
    upstreams: &[Upstream],
    state: &State,
    clock: &(impl Clock + Clone + 'static),
) -> Result<Budgets, ConfigError> {
    let mut budgets: Vec<(UpstreamId, SpendingLayer)> = Vec::new();
    for (settings, upstream) in config.upstream.iter().zip(upstreams) {
        let caps = settings.budget.as_ref().map(config::Budget::caps);
        let Some(caps) = caps.filter(|caps| caps.iter().any(|(_, usd)| *usd > 0.0)) else {
            continue;
        };
        let id = upstream.id();
        if budgets.iter().any(|(known, _)| known == id) {
            continue;
        }
        let layer = SpendingLayer::new()
            .reserve_by(config.spending.reserve_by())
            .catalog(catalog.clone())
            .clock(clock.clone())
            .of_account(&id.name)
            .ledger(&format!("upstream {}", id.name));
        let what = format!("the budget of upstream \"{}\"", settings.name);
        let layer = capped(layer, "upstream", &what, &caps, config, catalog, state)?;
        budgets.push((id.clone(), layer));
    }
    Ok(Budgets::new(budgets))
}

/// A layer with these caps, in the store where there is one. A cap that no attempt of a model can
/// pass is an error where the file names the model, and a warning where it is one of the catalogue's.
fn capped(
    layer: SpendingLayer,
    key: &str,
    what: &str,
    caps: &[(&str, f64)],
    config: &Config,
    catalog: &Arc<Catalog>,
    state: &State,
) -> Result<SpendingLayer, ConfigError> {
    let layer = match state.store() {
        Some(store) => layer.store(store.spending()),
        None => layer,
    };
    let caps = caps.iter().filter(|(_, usd)| *usd > 0.0);
    let layer = caps.fold(layer, |layer, (name, usd)| {
        let caps = Caps::none().at_most_usd(*usd);
        match *name {
            "per_call" => layer.per_call(caps),
            "per_hour" => layer.per_hour(caps),
            "per_day" => layer.per_day(caps),
            "per_month" => layer.per_month(caps),
            _ => layer.total(caps),
        }
    });
    let named = config.models().map(|model| (ModelId::new(model), None));
    layer.check(named).map_err(|error| ConfigError::at(key, format!("{what}: {error}"), ""))?;
    let known = catalog.models().map(|model| (ModelId::new(&model.id), None));
    if let Err(error) = layer.check(known) {
        tracing::warn!(%error, "{what} refuses every call of a model");
    }
    Ok(layer)
}

/// The guard of every upstream, each of which counts apart.
fn quota(
    config: &Config,
    upstreams: &[Upstream],
    state: &State,
    clock: impl Clock + 'static,
) -> QuotaGuardLayer {
    let quota = &config.quota;
    let layer = QuotaGuardLayer::new(quota.limits())
        .clock(clock)
        .on_exhausted(OnExhausted::Wait { at_most: quota.longest_wait.0 })
        .alert_at([quota.warn_at_percent]);
    // Which keys belong to one project is not known: each key counts as a project of its own.
    let layer = match state.secret() {
        Some(secret) => layer.project_by_credential(secret, []),
        None => layer.project_by_credential_here(),
    };
    // The longest that there are: a disk that is busy for a moment is no store that fails.
    let patience = Duration::from_secs(2);
    let layer = match state.store() {
        Some(store) => layer.store(store.quota()).lease(patience).store_timeout(patience),
        None => layer,
    };
    let by_model = quota.by_model().into_iter();
    let layer = by_model.fold(layer, |layer, (model, limits)| layer.limits_for(model, limits));
    let own = config.upstream.iter().zip(upstreams);
    let own = own.filter_map(|(settings, upstream)| Some((settings.quota.as_ref()?, upstream)));
    own.fold(layer, |layer, (quota, upstream)| {
        layer.limits_for_project(project(upstream), None, quota.limits())
    })
}

/// The project that the quota of an upstream is counted for.
fn project(upstream: &Upstream) -> ProjectId {
    ProjectId::new(upstream.id().name.as_str())
}

/// The guard for calls that are addressed to one upstream.
fn quota_of(
    quota: &QuotaGuardLayer,
    config: &Config,
    upstream: &Upstream,
    upstreams: &[Upstream],
) -> QuotaGuardLayer {
    let layer = quota.clone().upstream(upstream.id().clone());
    let keys = upstreams.iter().filter_map(|one| Some((one.key()?.to_str().ok()?, project(one))));
    match config.auth.mode {
        // Every key is one of ours, and which of them belong together is known.
        AuthMode::Tokens => layer.project_by_credential([0; 16], keys),
        AuthMode::Passthrough if upstream.id().project.is_some() => {
            layer.project(project(upstream))
        }
        AuthMode::Passthrough => layer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(toml: &str) -> Result<Snapshot, ConfigError> {
        Snapshot::build(&Config::parse(toml, "gateway.toml").unwrap(), None)
    }

    // A cap below the price of one attempt refused every call, and nobody said why.
    #[test]
    fn a_cap_that_no_attempt_can_pass_is_reported_at_start() {
        let pro = "[fallback]\nmodels = [\"gemini-3-pro-image\"]\n[spending]\n";
        for cap in ["per_call", "per_hour", "per_day", "per_month", "total"] {
            let error = build(&format!("{pro}{cap} = 1.0\n")).unwrap_err().to_string();
            assert!(error.contains("no call would pass"), "{cap}: {error}");
        }
        for passes in ["per_day = 1.0\nmode = \"expected\"", "per_day = 1.0\nassume_drafts = 2", ""]
        {
            build(&format!("{pro}{passes}\n")).unwrap();
        }
        build("[spending]\nper_day = 1.0\n").unwrap();
    }

    #[tokio::test]
    async fn an_upstream_keeps_the_identity_that_its_quota_is_counted_by_over_a_reload() {
        let before = build("[quota]\nrpm = 10\n").unwrap();
        let names = |snapshot: &Snapshot| {
            snapshot.upstreams().map(|one| one.id().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&before).len(), 2);
        let config = Config::parse(
            "[[upstream]]\nname = \"google\"\nkind = \"gemini\"\n[quota]\nrpm = 20\n",
            "gateway.toml",
        );
        let after = Snapshot::build(&config.unwrap(), Some(&before)).unwrap();
        assert_eq!(names(&after), names(&before)[..1]);
    }
}
