//! What a configuration makes: the layers with their state, the stacks over them, and who may use
//! them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_gemini::body::WireBody;
use tower_gemini::call::ImageSize;
use tower_gemini::model_fallback::Chain;
use tower_gemini::quota_guard::OnExhausted;
use tower_gemini::spending::Caps;
use tower_gemini::target::MustKeep;
use tower_gemini::thought_signatures::Missing;
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer,
    KeepPaidLayer, ModelFallbackLayer, ObserveLayer, PeakHourRouterLayer, QuotaGuardLayer,
    ResolutionFallbackLayer, SpendingLayer, ThoughtSignaturesLayer,
};

use crate::auth::Auth;
use crate::config::Config;
use crate::limits::Places;
use crate::services::{Layers, Services};

/// Everything that answers requests, made of one configuration and replaced whole by the next.
#[derive(Debug)]
pub(crate) struct Gateway {
    config: Config,
    auth: Auth,
    layers: Layers,
    services: Services,
    places: Places,
    must_keep: MustKeep,
    answers: AnswerSettings,
}

/// How answers are given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnswerSettings {
    pub(crate) strip_drafts: bool,
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) report_headers: bool,
    pub(crate) deadline: Option<Duration>,
}

impl Gateway {
    /// Makes one. State that calls share (the quota's count, the health of targets, what was spent,
    /// what is kept, what was seen) moves on from `before` wherever its settings are the same.
    pub(crate) fn build(config: &Config, before: Option<&Self>) -> Result<Self, String> {
        let auth = Auth::build(&config.auth, |name| std::env::var(name).ok())?;
        let layers = layers(config, before)?;
        let client = client(config.upstream.connect_timeout.0)
            .map_err(|error| format!("the client for the upstream cannot be made: {error}"))?;
        let answers = &config.answers;
        let services = layers.services(client, answers.strip_drafts, answers.hold.0);
        for base in [&config.upstream.base_url.0, &config.upstream.vertex_base_url.0] {
            if in_the_clear(base) {
                tracing::warn!(upstream = %base, "keys and pictures go to another machine unencrypted: its address begins with http://");
            }
        }
        let mut must_keep = MustKeep::nothing();
        if config.fallback.keep_size {
            must_keep = must_keep.size();
        }
        if config.fallback.keep_aspect {
            must_keep = must_keep.aspect();
        }
        Ok(Self {
            config: config.clone(),
            auth,
            layers,
            services,
            places: before.map_or_else(
                || Places::new(config.server.max_in_flight),
                |before| before.places.clone(),
            ),
            must_keep,
            answers: AnswerSettings {
                strip_drafts: answers.strip_drafts,
                heartbeat: answers.heartbeat.map(|span| span.0),
                report_headers: answers.report_headers,
                deadline: answers.deadline.map(|span| span.0),
            },
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.auth
    }

    pub(crate) fn layers(&self) -> &Layers {
        &self.layers
    }

    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    pub(crate) fn must_keep(&self) -> MustKeep {
        self.must_keep
    }

    pub(crate) fn maybe_charged_resends(&self) -> u32 {
        self.config.retry.maybe_charged_resends
    }

    pub(crate) fn answers(&self) -> AnswerSettings {
        self.answers
    }

    pub(crate) fn upstream(&self) -> &Uri {
        &self.config.upstream.base_url.0
    }

    pub(crate) fn vertex(&self) -> &Uri {
        &self.config.upstream.vertex_base_url.0
    }
}

/// Whether what is sent there leaves this machine without TLS.
fn in_the_clear(base: &Uri) -> bool {
    let host = base.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    base.scheme_str() == Some("http") && !is_here
}

/// The layers of a configuration. Of `before` those stay whose settings are the same; and always
/// those whose state is worth more than another setting of them: what is kept for callers, what was
/// spent, and what was used of the quota (`reload::needs_restart`).
fn layers(config: &Config, before: Option<&Gateway>) -> Result<Layers, String> {
    let same_chain = before.filter(|before| before.config.fallback == config.fallback);
    Ok(Layers {
        observe: before.map_or_else(ObserveLayer::new, |before| before.layers.observe.clone()),
        // A form's images are a third longer in the JSON that it becomes: what is taken is
        // protected.
        collect: CollectRequestLayer::new()
            .max_held_bytes((config.server.max_body.0 / 3 + 1).saturating_mul(4) + 1024 * 1024),
        keep: before.map_or_else(|| keep(config), |before| before.layers.keep.clone()),
        signatures: match before.filter(|before| before.config.signatures == config.signatures) {
            Some(before) => before.layers.signatures.clone(),
            None => config
                .signatures
                .restore
                .then(|| ThoughtSignaturesLayer::new().missing(Missing::Send)),
        },
        peak: match before.filter(|before| before.config.peak == config.peak) {
            Some(before) => before.layers.peak.clone(),
            None => config.schedule()?.map(|schedule| {
                config
                    .peak
                    .lead
                    .iter()
                    .fold(PeakHourRouterLayer::new(schedule), |peak, (asked, lead)| {
                        peak.in_peak(asked, lead)
                    })
            }),
        },
        fallback: match same_chain {
            Some(before) => before.layers.fallback.clone(),
            None if config.fallback.models.is_empty() => ModelFallbackLayer::off(),
            None => ModelFallbackLayer::new(Chain::new(
                config.fallback.models.iter().map(String::as_str),
            )),
        },
        resolution: if config.fallback.sizes {
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
        classify: ClassifyGeminiErrorLayer::new(),
    })
}

fn keep(config: &Config) -> Option<KeepPaidLayer> {
    let keep = &config.keep;
    keep.enabled.then(|| {
        KeepPaidLayer::new()
            .max_detached(keep.max_detached)
            .max_stored_bytes(keep.max_bytes.0)
            .max_detached_time(keep.max_time.0)
            .retention(keep.retention.0)
    })
}

fn spending(config: &Config) -> Option<SpendingLayer> {
    let caps = |usd: f64| Caps::none().at_most_usd(usd);
    let set: Vec<(&str, f64)> =
        config.spending.all().into_iter().filter(|(_, usd)| *usd > 0.0).collect();
    (!set.is_empty()).then(|| {
        set.into_iter().fold(SpendingLayer::new(), |layer, (name, usd)| match name {
            "per_call" => layer.per_call(caps(usd)),
            "per_hour" => layer.per_hour(caps(usd)),
            "per_day" => layer.per_day(caps(usd)),
            _ => layer.per_month(caps(usd)),
        })
    })
}

fn quota(config: &Config) -> QuotaGuardLayer {
    let quota = &config.quota;
    let layer = QuotaGuardLayer::new(quota.limits())
        // One pool for the keys of one project would need to know which these are; a key alone is a
        // project of its own.
        .project_by_credential_here()
        .on_exhausted(OnExhausted::Wait { at_most: quota.longest_wait.0 })
        .alert_at([quota.alert_at]);
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

/// A gateway that is replaced while it answers.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    gateway: tokio::sync::watch::Sender<Arc<Gateway>>,
    /// Where it listens: that does not change, whatever the file says.
    addr: SocketAddr,
}

impl Current {
    pub(crate) fn new(gateway: Gateway, addr: SocketAddr) -> Self {
        Self { gateway: tokio::sync::watch::Sender::new(Arc::new(gateway)), addr }
    }

    pub(crate) fn get(&self) -> Arc<Gateway> {
        self.gateway.borrow().clone()
    }

    /// Replaces it by what `config` makes. Requests under way end with the one they began with.
    pub(crate) fn reload(&self, config: &Config) -> Result<(), String> {
        config.check_listen(self.addr)?;
        let next = Gateway::build(config, Some(&self.get()))?;
        self.gateway.send_replace(Arc::new(next));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_to_another_machine_is_in_the_clear() {
        for (base, clear) in [
            ("https://generativelanguage.googleapis.com", false),
            ("http://127.0.0.1:1", false),
            ("http://localhost:1", false),
            ("http://[::1]:1/x", false),
            ("http://egress.internal:3128", true),
            ("http://192.0.2.1", true),
        ] {
            assert_eq!(in_the_clear(&Uri::from_static(base)), clear, "{base}");
        }
    }
}
