//! What the gateway says of itself: `/healthz`, `/metrics`, `/status`.

use std::sync::OnceLock;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Response, StatusCode};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::Instant;
use tower_gemini::catalog::Catalog;
use tower_gemini::observe;

use crate::answers::{self, Form, Refused};
use crate::gateway::Gateway;
use crate::status::{self, KeptView, QuotaView, SpendingView, StatusView, TargetView};

/// One recorder for the process: the metrics facade has one, and gateways of one process (tests)
/// share it.
pub(crate) fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            // Up to Google's own limit of ten minutes.
            .set_buckets(&[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0])
            .unwrap_or_else(|_| PrometheusBuilder::new())
            .build_recorder();
        let handle = recorder.handle();
        // Where somebody has set another recorder before, that one gets the figures, and this page
        // stays empty.
        let _ = metrics::set_global_recorder(recorder);
        observe::describe_metrics();
        metrics::describe_gauge!(
            "gateway_requests_in_flight",
            "Requests whose answer's last byte is not out yet"
        );
        metrics::describe_gauge!(
            "gateway_calls_without_caller",
            "Calls that are finished although their callers left"
        );
        metrics::describe_gauge!("gateway_kept_answers", "Answers that wait for their callers");
        metrics::describe_gauge!("gateway_kept_bytes", metrics::Unit::Bytes, "What they take");
        handle
    })
}

/// Samples wait in buckets until somebody sums them up. Where nobody reads `/metrics`, that is
/// nobody else.
pub(crate) async fn upkeep(run: impl Fn()) {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    loop {
        every.tick().await;
        run();
    }
}

/// The page at this path, where there is one.
pub(crate) fn page(gateway: &Gateway, path: &str, started: Instant) -> Option<Response<Body>> {
    let open = gateway.config().server.status_page;
    match path {
        "/healthz" => Some(text("text/plain; charset=utf-8", "ok\n")),
        "/metrics" | "/status" | "/status.json" if !open => Some(answers::refused(
            Form::Gemini,
            &Refused::new(StatusCode::NOT_FOUND, "NOT_FOUND", "server.status_page is off"),
        )),
        "/metrics" => {
            refresh(gateway);
            recorder().run_upkeep();
            Some(text("text/plain; version=0.0.4; charset=utf-8", recorder().render()))
        }
        "/status" => {
            let mut response =
                text("text/html; charset=utf-8", status::page(&view(gateway, started.elapsed())));
            let policy = HeaderValue::from_static(status::csp());
            response
                .headers_mut()
                .insert(HeaderName::from_static("content-security-policy"), policy);
            Some(response)
        }
        "/status.json" => {
            let body = status::json(&view(gateway, started.elapsed()));
            Some(answers::json_answer(StatusCode::OK, Bytes::from(body)))
        }
        _ => None,
    }
}

fn text(kind: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn view(gateway: &Gateway, up: Duration) -> StatusView {
    let layers = gateway.layers();
    let mut view = StatusView::new(layers.observe.observatory().report());
    view.uptime_seconds = up.as_secs();
    view.upstream = gateway.upstream().host().unwrap_or_default().to_owned();
    view.quotas = layers.quota.usages().iter().map(QuotaView::from).collect();
    let now = Instant::now();
    view.targets = layers
        .fallback
        .circuits()
        .snapshot()
        .iter()
        .map(|circuit| TargetView::new(circuit, now))
        .collect();
    view.spending = layers
        .spending
        .iter()
        .flat_map(|spending| spending.spent())
        .map(|spent| SpendingView::from(&spent))
        .collect();
    view.kept = layers.keep.as_ref().map(|keep| {
        let counts = keep.counts();
        KeptView {
            detached: counts.detached as u64,
            kept: counts.stored as u64,
            kept_bytes: counts.stored_bytes as u64,
            redeemed: counts.replayed,
            free: counts.free,
            lost: counts.incomplete
                + counts.too_large
                + counts.too_many
                + counts.too_late
                + counts.expired,
        }
    });
    view
}

/// Gauges are read when somebody looks.
fn refresh(gateway: &Gateway) {
    let layers = gateway.layers();
    observe::record_quota(Catalog::builtin(), &layers.quota.usages());
    observe::record_circuits(&layers.fallback.circuits().snapshot());
    #[allow(clippy::cast_precision_loss, reason = "counts for people")]
    let set = |name: &'static str, value: usize| metrics::gauge!(name).set(value as f64);
    set("gateway_requests_in_flight", gateway.places().taken());
    if let Some(keep) = &layers.keep {
        let counts = keep.counts();
        set("gateway_calls_without_caller", counts.detached);
        set("gateway_kept_answers", counts.stored);
        set("gateway_kept_bytes", counts.stored_bytes);
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
