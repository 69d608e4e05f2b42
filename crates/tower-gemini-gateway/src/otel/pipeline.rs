//! The way of spans and metrics to the collector, which all calls share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::metrics::{Histogram, MeterProvider as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{
    MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::sync::oneshot;

use super::export::{Collector, EXCHANGE};
use crate::config::{self, BaseUrl, ConfigError};

/// How long the end of the program waits for what is left to be exported. Ours: a collector responds
/// within milliseconds.
pub(super) const FLUSHING: Duration = Duration::from_secs(5);

/// Events of one span; more are counted and dropped, so that a full queue has a bounded size. Ours:
/// a call with all its attempts takes some ten decisions.
const MAX_EVENTS: u32 = 32;

/// The boundaries of both histograms, from the semantic conventions of GenAI.
const SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const TOKENS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0,
    16777216.0, 67108864.0,
];

/// The name of what makes the spans.
const SCOPE: &str = env!("CARGO_PKG_NAME");

/// Samples spans, holds them in a bounded queue (2,048, of which 512 are sent at once and all every
/// 5 s, as OpenTelemetry specifies), and exports metrics once a minute.
#[derive(Debug)]
pub(super) struct Pipeline {
    tracers: SdkTracerProvider,
    meters: SdkMeterProvider,
    pub(super) tracer: SdkTracer,
    pub(super) duration: Histogram<f64>,
    pub(super) tokens: Histogram<u64>,
    has_ended: AtomicBool,
}

impl Pipeline {
    /// Opens the way to `endpoint`. `env` looks a variable up.
    pub(super) fn new(
        endpoint: &BaseUrl,
        config: &config::Otel,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let refused =
            |error: String| ConfigError::at("otel.endpoint", format!("[otel]: {error}"), "");
        let base = endpoint.0.to_string();
        let url = |path: &str| format!("{}{path}", base.trim_end_matches('/'));
        let client = Arc::new(Collector::new(endpoint, config, env)?);
        // As both exporters are built.
        macro_rules! exporter {
            ($kind:ident, $path:literal) => {
                $kind::builder()
                    .with_http()
                    .with_protocol(Protocol::HttpBinary)
                    .with_endpoint(url($path))
                    .with_timeout(EXCHANGE)
                    .with_shared_http_client(client.clone())
                    .build()
                    .map_err(|error| refused(error.to_string()))?
            };
        }
        let (spans, metrics) =
            (exporter!(SpanExporter, "/v1/traces"), exporter!(MetricExporter, "/v1/metrics"));
        let resource = Resource::builder().with_service_name(config.service_name.clone()).build();
        let own = Sampler::TraceIdRatioBased(config.sample_ratio);
        let tracers = SdkTracerProvider::builder()
            .with_batch_exporter(spans)
            .with_sampler(Sampler::ParentBased(Box::new(own)))
            .with_max_events_per_span(MAX_EVENTS)
            .with_resource(resource.clone())
            .build();
        let meters = SdkMeterProvider::builder()
            .with_periodic_exporter(metrics)
            .with_resource(resource)
            .build();
        let meter = meters.meter(SCOPE);
        let duration = meter
            .f64_histogram("gen_ai.client.operation.duration")
            .with_unit("s")
            .with_description("How long calls take, all attempts and waits together")
            .with_boundaries(SECONDS.to_vec());
        let tokens = meter
            .u64_histogram("gen_ai.client.token.usage")
            .with_unit("{token}")
            .with_description("Billable tokens of calls, as responses count them")
            .with_boundaries(TOKENS.to_vec());
        Ok(Self {
            tracer: tracers.tracer(SCOPE),
            duration: duration.build(),
            tokens: tokens.build(),
            tracers,
            meters,
            has_ended: AtomicBool::new(false),
        })
    }

    /// Ends it, once. It blocks its thread until all is exported, by tasks of the runtime: so the
    /// thread is none of the runtime's.
    pub(super) fn end(&self) -> Option<oneshot::Receiver<()>> {
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return None;
        }
        let (tracers, meters) = (self.tracers.clone(), self.meters.clone());
        let (done, ended) = oneshot::channel();
        let end = move || {
            // The collector says in the log what it did not take.
            let _ = tracers.shutdown_with_timeout(FLUSHING);
            let _ = meters.shutdown();
            drop((tracers, meters));
            let _ = done.send(());
        };
        // Without a thread what is left is lost, which the receiver reports.
        let _ = std::thread::Builder::new().name("otel-end".to_owned()).spawn(end);
        Some(ended)
    }
}

impl Drop for Pipeline {
    /// The providers would block whoever drops them.
    fn drop(&mut self) {
        drop(self.end());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry::trace::{Span as _, Tracer as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    /// As many as the queue and two batches hold, with room to spare.
    const MOST: usize = 2048 + 3 * 512;
    const SPANS: usize = 10_000;

    // The queue is the SDK's: this holds it to what the file promises.
    #[tokio::test]
    async fn a_collector_that_does_not_respond_costs_spans_and_neither_time_nor_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (asked, mut asks) = mpsc::unbounded_channel();
        let responds = Arc::new(Semaphore::new(0));
        let (taken, responding) = (Arc::new(Mutex::new(Vec::new())), responds.clone());
        let received = taken.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (asked, responding, received) =
                    (asked.clone(), responding.clone(), received.clone());
                tokio::spawn(async move {
                    let mut chunk = vec![0; 64 * 1024];
                    loop {
                        let mut request = Vec::new();
                        while !is_whole(&request) {
                            match stream.read(&mut chunk).await {
                                Ok(read @ 1..) => request.extend_from_slice(&chunk[..read]),
                                _ => return,
                            }
                        }
                        received.lock().unwrap().extend(request);
                        let _ = asked.send(());
                        responding.acquire().await.unwrap().forget();
                        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        stream.write_all(ok).await.unwrap();
                    }
                });
            }
        });
        let endpoint = BaseUrl::parse(&endpoint).unwrap();
        let pipeline = Pipeline::new(&endpoint, &config::Otel::default(), |_| None).unwrap();
        for _ in 0..SPANS {
            pipeline.tracer.start("the-name-of-a-span").end();
        }
        asks.recv().await.unwrap();
        responds.add_permits(SPANS);
        pipeline.end().unwrap().await.unwrap();
        let taken = taken.lock().unwrap();
        let exported = memchr::memmem::find_iter(&taken, "the-name-of-a-span").count();
        assert!((512..=MOST).contains(&exported), "{exported}");
    }

    /// Whether all that a request announces has come.
    fn is_whole(request: &[u8]) -> bool {
        let Some(end) = memchr::memmem::find(request, b"\r\n\r\n") else { return false };
        let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap_or("0");
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        request.len() >= end + 4 + length
    }
}
