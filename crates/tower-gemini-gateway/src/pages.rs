//! Serves the gateway's own pages: `/livez`, `/readyz`, `/healthz`, `/metrics`, `/status`.

use std::sync::OnceLock;
use std::time::Duration;

use axum::body::Body;
use http::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use http::{Response, StatusCode};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::Instant;
use tower_gemini::observe;
use tower_gemini::spending::Spent;

use crate::figures::Figures;
use crate::responses::{ErrorFormat, Rejection, json_response, page as text};
use crate::snapshot::Snapshot;
use crate::status::{self, Alerts, Budget, Circuit, Load, Quota, Spending, Status, Stored};

const GAUGES: [(&str, &str); 14] = [
    ("gateway_ready", "1 while /readyz answers 200, else 0"),
    ("gateway_spent_ratio", "Spent and reserved share of the nearest cap, by period"),
    (
        "gateway_upstream_spent_ratio",
        "Spent and reserved share of an upstream's budget, by upstream and period",
    ),
    ("gateway_requests_in_flight", "Requests whose response has not ended"),
    ("gateway_calls", "Calls of requests that have a place"),
    ("gateway_requests_limit", "server.max_in_flight"),
    ("gateway_requests_waiting", "Requests that wait, by what for: a place or memory"),
    ("gateway_responses_waiting", "Responses that wait for memory"),
    ("gateway_callers", "Callers that have a place or wait for one"),
    ("gateway_memory_bytes", "Bytes that requests in flight and their responses take"),
    (
        "gateway_memory_limit_bytes",
        "Bytes that they may take: server.memory without stored responses",
    ),
    ("gateway_detached_calls", "Calls completed although their clients disconnected"),
    ("gateway_stored_responses", "Stored responses that wait for their clients"),
    ("gateway_stored_bytes", "Bytes of stored responses"),
];

/// The recorder of the process: the metrics facade has one, and all gateways of a process share it.
pub(crate) fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            // Up to Google's own limit of 600 s.
            .set_buckets(&[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0])
            .unwrap_or_else(|_| PrometheusBuilder::new())
            .build_recorder();
        let handle = recorder.handle();
        // Where the program has another recorder, that one gets the figures and this page is empty.
        let _ = metrics::set_global_recorder(recorder);
        describe_metrics();
        handle
    })
}

/// Describes every metric of the page.
pub(crate) fn describe_metrics() {
    observe::describe_metrics();
    crate::door::describe_metrics();
    crate::alerts::describe_metrics();
    for (name, description) in GAUGES {
        metrics::describe_gauge!(name, description);
    }
}

/// Aggregates samples, which otherwise pile up until somebody reads `/metrics`.
pub(crate) async fn upkeep(run: impl Fn()) {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    loop {
        every.tick().await;
        run();
    }
}

/// Whether there is a page at this path, and whether it is one of the status pages, which show
/// spending.
pub(crate) fn is_page(path: &str) -> Option<bool> {
    match path {
        "/livez" | "/readyz" | "/healthz" => Some(false),
        "/metrics" | "/status" | "/status.json" => Some(true),
        _ => None,
    }
}

/// The page at this path, where there is one.
pub(crate) fn page(gateway: &Snapshot, path: &str, started: Instant) -> Option<Response<Body>> {
    if is_page(path) == Some(true)
        && let Err(closed) = check_open(gateway)
    {
        return Some(closed.into_response(ErrorFormat::Gemini));
    }
    match path {
        // While the process runs: restarting it helps nothing else.
        "/livez" | "/healthz" => Some(text("text/plain; charset=utf-8", "ok\n")),
        "/readyz" => Some(readiness(gateway)),
        "/metrics" => {
            refresh(gateway);
            recorder().run_upkeep();
            Some(text("text/plain; version=0.0.4; charset=utf-8", recorder().render()))
        }
        "/status" => {
            let mut response = text("text/html; charset=utf-8", status::page());
            let policy = HeaderValue::from_static(status::csp());
            response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
            Some(response)
        }
        "/status.json" => {
            let status = status(gateway, started.elapsed());
            Some(json_response(StatusCode::OK, status.to_json()))
        }
        _ => None,
    }
}

/// Whether there are status pages.
pub(crate) fn check_open(gateway: &Snapshot) -> Result<(), Rejection> {
    match gateway.config().server.status_page {
        true => Ok(()),
        false => {
            let message = "server.status_page is off";
            Err(Rejection::new(StatusCode::NOT_FOUND, "NOT_FOUND", message))
        }
    }
}

/// Whether requests should come here.
fn readiness(gateway: &Snapshot) -> Response<Body> {
    let plain = "text/plain; charset=utf-8";
    match gateway.not_ready() {
        None => text(plain, "ok\n"),
        Some(why) => {
            let mut response = text(plain, format!("{why}\n"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

/// What is counted over time, for the state directory; `None` where there is none.
pub(crate) fn figures(gateway: &Snapshot) -> Option<Figures> {
    let earlier = gateway.state().figures()?.earlier();
    let kept = gateway.layers().stats.kept();
    Some(Figures::new(&mut status(gateway, Duration::ZERO), kept, earlier))
}

fn status(gateway: &Snapshot, up: Duration) -> Status {
    let layers = gateway.layers();
    let mut status = Status::new(layers.stats.report());
    status.uptime_seconds = up.as_secs();
    let upstream = gateway.upstreams().next();
    status.upstream = upstream.and_then(|one| one.base().host()).unwrap_or_default().to_owned();
    status.load = load(gateway);
    status.quotas = gateway.quota_usages().iter().map(Quota::from).collect();
    let now = Instant::now();
    let circuits = layers.fallback.circuits().snapshot();
    status.circuits = circuits.iter().map(|circuit| Circuit::new(circuit, now)).collect();
    status.spending = layers.spending.spent().iter().map(Spending::from).collect();
    let budget = |(upstream, spent): (&str, Vec<Spent>)| Budget {
        upstream: upstream.to_owned(),
        spending: spent.iter().map(Spending::from).collect(),
    };
    status.budgets = layers.budgets.spent().map(budget).collect();
    status.callers = gateway.door().callers();
    status.alerts = gateway.alerts().delivery().map(|delivery| Alerts {
        sent: delivery.sent(),
        failed: delivery.failed(),
        problem: delivery.problem(),
    });
    status.stored = layers.keep.as_ref().map(|keep| {
        let counts = keep.counts();
        Stored {
            in_progress: counts.detached as u64,
            stored: counts.stored as u64,
            stored_bytes: counts.stored_bytes as u64,
            replayed: counts.replayed,
            free: counts.free,
            lost: counts.incomplete
                + counts.too_large
                + counts.too_many
                + counts.too_late
                + counts.expired,
        }
    });
    if let Some(figures) = gateway.state().figures() {
        figures.earlier().add_to(&mut status);
    }
    status
}

/// What requests in flight take, and who waits.
fn load(gateway: &Snapshot) -> Load {
    let (usage, limits) = (gateway.queue().usage(), gateway.queue().limits());
    Load {
        requests: usage.places,
        requests_limit: limits.places,
        calls: usage.calls,
        callers: usage.callers,
        memory_bytes: usage.bytes,
        memory_limit_bytes: limits.bytes + limits.reserve,
        waiting_for_place: usage.for_place,
        waiting_for_memory: usage.for_memory,
        waiting_limit: limits.queue,
        responses_waiting_for_memory: usage.responses,
    }
}

/// Calls for an image since counting began, and those that got one.
pub(crate) fn delivered(gateway: &Snapshot) -> (u64, u64) {
    let total = gateway.layers().stats.report().total;
    (total.calls, total.successes)
}

/// Sets the gauges, which are read on demand only.
fn refresh(gateway: &Snapshot) {
    let layers = gateway.layers();
    observe::record_quota(gateway.catalog(), &gateway.quota_usages());
    observe::record_circuits(&layers.fallback.circuits().snapshot());
    #[allow(clippy::cast_precision_loss, reason = "counts for people")]
    let set = |name: &'static str, value: usize| metrics::gauge!(name).set(value as f64);
    set("gateway_ready", usize::from(gateway.not_ready().is_none()));
    for (period, share) in layers.spending.spent().iter().filter_map(status::nearest_cap) {
        metrics::gauge!("gateway_spent_ratio", "period" => period).set(share);
    }
    for (upstream, spent) in layers.budgets.spent() {
        for (period, share) in spent.iter().filter_map(status::nearest_cap) {
            let labels = [("upstream", upstream.to_owned()), ("period", period)];
            metrics::gauge!("gateway_upstream_spent_ratio", &labels).set(share);
        }
    }
    let load = load(gateway);
    set("gateway_requests_in_flight", load.requests);
    set("gateway_requests_limit", load.requests_limit);
    set("gateway_calls", load.calls);
    set("gateway_callers", load.callers);
    set("gateway_memory_bytes", load.memory_bytes);
    set("gateway_memory_limit_bytes", load.memory_limit_bytes);
    set("gateway_responses_waiting", load.responses_waiting_for_memory);
    #[allow(clippy::cast_precision_loss, reason = "counts for people")]
    let waiting = |why: &'static str, requests: usize| {
        metrics::gauge!("gateway_requests_waiting", "for" => why).set(requests as f64);
    };
    waiting("place", load.waiting_for_place);
    waiting("memory", load.waiting_for_memory);
    if let Some(keep) = &layers.keep {
        let counts = keep.counts();
        set("gateway_detached_calls", counts.detached);
        set("gateway_stored_responses", counts.stored);
        set("gateway_stored_bytes", counts.stored_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    // 2 million samples took 31 MiB where nobody scraped.
    #[tokio::test(start_paused = true)]
    async fn figures_are_summed_up_whether_or_not_anybody_reads_them() {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let upkeep = upkeep(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let _ = tokio::time::timeout(Duration::from_secs(60), upkeep).await;
        assert!(runs.load(Ordering::Relaxed) >= 12);
    }
}
