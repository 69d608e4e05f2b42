//! Sends batches to the collector, by the client that reaches everything else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry_http::HttpError;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::config::{self, BaseUrl, ConfigError};
use crate::outbound::{self, HttpClient, innermost};
use crate::{log, upstream};

/// For a connection. Ours: a collector is near.
const CONNECT: Duration = Duration::from_secs(5);
/// For one export: OTLP's own default.
pub(super) const EXCHANGE: Duration = Duration::from_secs(10);
/// The longest response that is read: it says what was not taken. Ours.
const LONGEST: usize = 64 * 1024;

/// The client of `otel.endpoint`.
#[derive(Debug)]
pub(super) struct Collector {
    client: HttpClient<Full<Bytes>>,
    headers: HeaderMap,
    /// Exports are asked for by threads that are none of its own.
    runtime: Handle,
    has_failed: AtomicBool,
}

impl Collector {
    pub(super) fn new(
        endpoint: &BaseUrl,
        config: &config::Otel,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let url = &endpoint.0;
        if upstream::is_unencrypted(url) {
            let host = url.host().unwrap_or_default();
            tracing::warn!(host, "spans go to another machine unencrypted: use https://");
        }
        let target = config::Upstream::other("otel.endpoint", url.clone(), config.proxy.clone());
        let runtime = Handle::try_current().map_err(|error| {
            ConfigError::at("otel.endpoint", format!("spans need a runtime: {error}"), "")
        })?;
        let headers = config.headers(env)?;
        for value in headers.values().filter_map(|value| value.to_str().ok()) {
            log::hide(value);
            // Of `Bearer …` what follows.
            value.split_whitespace().for_each(log::hide);
        }
        Ok(Self {
            client: outbound::client(&target, CONNECT)?,
            headers,
            runtime,
            has_failed: AtomicBool::new(false),
        })
    }

    /// Logged once, until an export succeeds: each of them fails while a collector is down.
    fn report(&self, failure: Option<&str>) {
        match (failure, self.has_failed.swap(failure.is_some(), Ordering::Relaxed)) {
            (Some(error), false) => tracing::warn!(
                error,
                "spans and metrics cannot be exported to otel.endpoint: what is not taken is lost"
            ),
            (None, true) => tracing::info!("spans and metrics are exported again"),
            _ => {}
        }
    }
}

async fn exchange(
    client: HttpClient<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    let exchange = async {
        let response = client.request(request).await.map_err(|error| innermost(&error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LONGEST).collect().await;
        let body = body.map_err(|error| innermost(&*error))?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    timeout(EXCHANGE, exchange).await.map_err(|_| "no answer within 10 s".to_owned())?
}

#[async_trait]
impl opentelemetry_http::HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut parts, body) = request.into_parts();
        // The exporter adds what the environment says: the file says where headers come from.
        let mut headers = self.headers.clone();
        for name in [CONTENT_TYPE, CONTENT_ENCODING, USER_AGENT] {
            if let Some(value) = parts.headers.remove(&name) {
                headers.insert(name, value);
            }
        }
        parts.headers = headers;
        let request = Request::from_parts(parts, Full::new(body));
        let exchange = self.runtime.spawn(exchange(self.client.clone(), request)).await;
        // A runtime that ends cancels it.
        let response = exchange.unwrap_or_else(|error| Err(error.to_string()));
        let failure = match &response {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status())),
            Err(error) => Some(error.clone()),
        };
        self.report(failure.as_deref());
        Ok(response?)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_http::HttpClient as _;

    use super::*;
    use crate::log::tests::Lines;

    #[tokio::test]
    async fn exports_that_fail_are_one_line_of_the_log_until_one_succeeds() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoint = BaseUrl::parse(&format!("http://{free}")).unwrap();
        let collector = Collector::new(&endpoint, &config::Otel::default(), |_| None).unwrap();
        let lines = Lines::default();
        let to = lines.clone();
        let log =
            tracing_subscriber::fmt().with_writer(move || to.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(log);
        for _ in 0..3 {
            let request = Request::post(format!("http://{free}/v1/traces")).body(Bytes::new());
            collector.send_bytes(request.unwrap()).await.unwrap_err();
        }
        let text = || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text().matches("cannot be exported to otel.endpoint").count(), 1, "{}", text());
        collector.report(None);
        collector.report(None);
        assert_eq!(text().matches("are exported again").count(), 1, "{}", text());
        collector.report(Some("it answered 503"));
        assert_eq!(text().matches("cannot be exported to otel.endpoint").count(), 2, "{}", text());
    }
}
