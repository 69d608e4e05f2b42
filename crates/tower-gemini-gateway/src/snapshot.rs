//! Builds what one configuration asks for: layers with their state, stacks over them, admission.

use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_gemini::body::WireBody;
use tower_gemini::call::ImageSize;
use tower_gemini::model_fallback::{Chain, FallbackOrder};
use tower_gemini::quota_guard::Saturation;
use tower_gemini::resolution_fallback::Ladder;
use tower_gemini::spending::Caps;
use tower_gemini::stage::WireClient;
use tower_gemini::target::MustKeep;
use tower_gemini::thought_signatures::Missing;
use tower_gemini::{
    AttemptTimeoutLayer, CollectRequestLayer, JitteredRetryLayer, KeepPaidLayer,
    ModelFallbackLayer, ObserveLayer, PeakHourRouterLayer, QuotaGuardLayer,
    ResolutionFallbackLayer, SpendingLayer, ThoughtSignaturesLayer,
};

use crate::auth::Auth;
use crate::config::{self, Config, ConfigProblem};
use crate::limits::RequestSlots;
use crate::stacks::{Layers, Stacks};
use crate::stats::Stats;
use crate::upstream::Upstreams;

/// Everything that answers requests, built from one configuration and replaced whole by the next.
#[derive(Debug)]
pub(crate) struct Snapshot {
    config: Config,
    auth: Auth,
    upstreams: Upstreams,
    layers: Layers,
    stacks: Stacks,
    slots: RequestSlots,
}

impl Snapshot {
    /// Builds one. State that calls share (quota usage, the health of targets, spending, stored
    /// responses, signatures) is taken over from `before` wherever its settings are the same.
    pub(crate) fn build(config: &Config, before: Option<&Self>) -> Result<Self, ConfigProblem> {
        let client = client(config.timeouts.connect.0).map_err(|error| {
            ConfigProblem::at("upstream", format!("the TLS client cannot be built: {error}"), "")
        })?;
        Self::over(client, config, before)
    }

    /// As [`build`](Self::build), over any client.
    pub(crate) fn over<C: WireClient<Future: 'static> + Sync>(
        client: C,
        config: &Config,
        before: Option<&Self>,
    ) -> Result<Self, ConfigProblem> {
        let env = |name: &str| std::env::var(name).ok();
        let auth = Auth::build(&config.auth, env)?;
        let upstreams = Upstreams::build(config, env)?;
        for upstream in upstreams.iter().filter(|upstream| upstream.is_unencrypted()) {
            tracing::warn!(
                upstream = upstream.name(),
                base_url = %upstream.base(),
                "keys and pictures go to another machine unencrypted: base_url begins with http://"
            );
        }
        let layers = layers(config, before)?;
        let responses = &config.responses;
        let stacks = layers.stacks(client, responses.strip_drafts, responses.buffer_up_to.0);
        let slots = match before {
            Some(before) => before.slots.clone(),
            None => RequestSlots::new(config.server.max_in_flight),
        };
        Ok(Self { config: config.clone(), auth, upstreams, layers, stacks, slots })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.auth
    }

    pub(crate) fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    pub(crate) fn layers(&self) -> &Layers {
        &self.layers
    }

    pub(crate) fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    pub(crate) fn slots(&self) -> &RequestSlots {
        &self.slots
    }

    /// What no fallback may give up.
    pub(crate) fn must_keep(&self) -> MustKeep {
        let fallback = &self.config.fallback;
        let nothing = MustKeep::nothing();
        let size = if fallback.keep_size { nothing.size() } else { nothing };
        if fallback.keep_aspect { size.aspect() } else { size }
    }
}

/// The layers of a configuration. Layers of `before` stay whose settings are the same, and always
/// those whose state is worth more than new settings: stored responses, spending, quota usage
/// (`reload::needs_restart`).
fn layers(config: &Config, before: Option<&Snapshot>) -> Result<Layers, ConfigProblem> {
    let same_chain = before.filter(|before| before.config.fallback == config.fallback);
    let stats = before.map_or_else(Stats::new, |before| before.layers.stats.clone());
    Ok(Layers {
        observe: ObserveLayer::new().observer(stats.observer()),
        stats,
        // A form's images are a third longer in the JSON that it becomes: every body that is
        // accepted can also be replayed.
        collect: CollectRequestLayer::new()
            .max_held_bytes((config.server.max_body.0 / 3 + 1).saturating_mul(4) + 1024 * 1024),
        keep: before.map_or_else(|| keep(config), |before| before.layers.keep.clone()),
        signatures: match before.filter(|before| before.config.signatures == config.signatures) {
            Some(before) => before.layers.signatures.clone(),
            None if config.signatures.restore => {
                ThoughtSignaturesLayer::new().missing(Missing::Send)
            }
            None => ThoughtSignaturesLayer::off(),
        },
        peak: match before.filter(|before| before.config.peak == config.peak) {
            Some(before) => before.layers.peak.clone(),
            None => match config.schedule()? {
                Some(schedule) => config
                    .peak
                    .prefer
                    .iter()
                    .fold(PeakHourRouterLayer::new(schedule), |peak, (asked, preferred)| {
                        peak.in_peak(asked, preferred)
                    }),
                None => PeakHourRouterLayer::off(),
            },
        },
        fallback: match same_chain {
            Some(before) => before.layers.fallback.clone(),
            None => fallback(&config.fallback),
        },
        // With other models, sizes are part of the same walk.
        resolution: if config.fallback.sizes && config.fallback.models.is_empty() {
            ResolutionFallbackLayer::new()
        } else {
            ResolutionFallbackLayer::off()
        },
        retry: match before.filter(|before| before.config.retry == config.retry) {
            Some(before) => before.layers.retry.clone(),
            None => JitteredRetryLayer::new(config.policy()?),
        },
        spending: before.map_or_else(|| spending(config), |before| before.layers.spending.clone()),
        quota: before.map_or_else(|| quota(config), |before| before.layers.quota.clone()),
        timeout: AttemptTimeoutLayer::new()
            .limit(config.timeouts.up_to_2k.0)
            .limit_for(ImageSize::K4, config.timeouts.at_4k.0)
            .idle_limit(config.timeouts.idle.0),
    })
}

fn fallback(config: &config::Fallback) -> ModelFallbackLayer {
    if config.models.is_empty() {
        return ModelFallbackLayer::off();
    }
    let layer = ModelFallbackLayer::new(Chain::new(config.models.iter().map(String::as_str)));
    if !config.sizes {
        return layer;
    }
    layer.ladder(Ladder::recommended()).order(match config.order {
        config::FallbackOrder::SizeFirst => FallbackOrder::SizeFirst,
        config::FallbackOrder::ModelFirst => FallbackOrder::ModelFirst,
    })
}

fn keep(config: &Config) -> Option<KeepPaidLayer> {
    let keep = &config.keep;
    keep.enabled.then(|| {
        KeepPaidLayer::new()
            .max_detached(keep.max_detached)
            .max_kept_bytes(keep.max_bytes.0)
            .max_detached_time(keep.max_detached_time.0)
            .retention(keep.retention.0)
    })
}

fn spending(config: &Config) -> SpendingLayer {
    let caps = |usd: f64| Caps::none().at_most_usd(usd);
    let set: Vec<(&str, f64)> =
        config.spending.caps().into_iter().filter(|(_, usd)| *usd > 0.0).collect();
    if set.is_empty() {
        return SpendingLayer::off();
    }
    set.into_iter().fold(SpendingLayer::new(), |layer, (name, usd)| match name {
        "per_call" => layer.per_call(caps(usd)),
        "per_hour" => layer.per_hour(caps(usd)),
        "per_day" => layer.per_day(caps(usd)),
        _ => layer.per_month(caps(usd)),
    })
}

fn quota(config: &Config) -> QuotaGuardLayer {
    let quota = &config.quota;
    let layer = QuotaGuardLayer::new(quota.limits())
        // Which keys belong to one project is not known: each key counts as a project of its own.
        .project_by_credential_here()
        .saturation(Saturation::Wait { at_most: quota.longest_wait.0 })
        .alert_at([quota.warn_at_percent]);
    quota
        .model
        .iter()
        .fold(layer, |layer, (model, limits)| layer.limits_for(model, limits.limits()))
}

/// HTTP/1.1 only: over HTTP/2 long calls share one connection, and stall together when it does.
fn client(
    connect_timeout: Duration,
) -> Result<Client<HttpsConnector<HttpConnector>, WireBody>, rustls::Error> {
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(connect_timeout));
    http.set_nodelay(true);
    http.enforce_http(false);
    let https = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(https))
}
