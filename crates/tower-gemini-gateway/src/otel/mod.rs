//! Exports a span of each call, with a span of each attempt below it, and two metrics, over OTLP.
//!
//! [`span`] makes them of what a [`CallObserver`](tower_gemini::observe::CallObserver) sees,
//! [`context`] reads and writes W3C trace context, and [`pipeline`] batches
//! what [`export`] sends by the gateway's own HTTP client. No call waits for any of it: spans go to a bounded queue, which a thread of the SDK
//! empties, and are dropped where it is full. `off.rs` is all of this in a build without the
//! feature `otel`.

mod context;
mod export;
mod pipeline;
mod span;

use std::sync::Arc;

use http::{Extensions, Request};
use tower_gemini::CallOptions;
use tower_gemini::call::Call;
use tower_gemini::catalog::Catalog;

use self::pipeline::{FLUSHING, Pipeline};
use self::span::{Asked, CallSpan};
use crate::config::{self, ConfigError};
use crate::upstream::Upstream;

/// Where spans go; nowhere by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Otel(Option<Arc<Pipeline>>);

impl Otel {
    /// Opens the way to `otel.endpoint`, where there is one. `env` looks a variable up.
    pub(crate) fn build(
        config: &config::Otel,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let Some(endpoint) = &config.endpoint else { return Ok(Self::default()) };
        Ok(Self(Some(Arc::new(Pipeline::new(endpoint, config, env)?))))
    }

    /// Marks a request that generates something: each call that is made of it has a span.
    pub(crate) fn mark(
        &self,
        call: &Call,
        (catalog, upstreams): (&Catalog, &[Upstream]),
        extensions: &mut Extensions,
    ) {
        if self.0.is_some() {
            extensions.insert(Asked::new(call, catalog, upstreams));
        }
    }

    /// Begins the span of a call, where its request is marked.
    pub(crate) fn begin<B>(&self, request: &mut Request<B>, options: CallOptions) -> CallOptions {
        let Some((pipeline, asked)) = self.0.as_ref().zip(request.extensions().get::<Asked>())
        else {
            return options;
        };
        let parent = context::parent(request.headers());
        let span = Arc::new(CallSpan::start(pipeline.clone(), asked.clone(), parent));
        request.extensions_mut().insert(span.clone());
        options.observer(span)
    }

    /// Exports what is left. Spans that end later are dropped.
    pub(crate) async fn finish(&self) {
        let Some(ended) = self.0.as_ref().and_then(|pipeline| pipeline.end()) else { return };
        if tokio::time::timeout(FLUSHING, ended).await.is_err() {
            tracing::warn!("otel.endpoint did not take the last spans and metrics: they are lost");
        }
    }
}

/// Makes the attempt that a request belongs to the parent of what the upstream does.
pub(crate) fn propagate<B>(mut request: Request<B>) -> Request<B> {
    let span: Option<Arc<CallSpan>> = request.extensions().get().cloned();
    if let Some(context) = span.and_then(|span| span.attempt()) {
        context::inject(request.headers_mut(), &context);
    }
    request
}
