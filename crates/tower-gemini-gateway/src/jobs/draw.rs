//! Draws items through the gateway of this process.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tower_gemini::target::Served;
use tower_gemini::verdict::Verdict;
use tower_gemini_jobs::{Draw, Drawn, JobStore, OfJob};

use crate::door::entry::Internal;
use crate::handler;
use crate::snapshot::Snapshot;
use crate::wire::API_KEY;

/// A gateway as what draws: its limits, budgets, journal and audit see these calls like any others.
#[derive(Debug, Clone)]
pub(crate) struct InGateway {
    gateway: watch::Receiver<Arc<Snapshot>>,
    jobs: JobStore,
    /// Where upstreams have no keys of their own.
    key: Option<HeaderValue>,
}

impl InGateway {
    pub(crate) fn new(
        gateway: watch::Receiver<Arc<Snapshot>>,
        jobs: JobStore,
        key: Option<HeaderValue>,
    ) -> Self {
        Self { gateway, jobs, key }
    }
}

impl Draw for InGateway {
    async fn draw(&self, request: Request<Bytes>) -> Drawn {
        let mut request = request.map(Body::from);
        let job = request.extensions_mut().remove::<OfJob>().map(|job| job.0).unwrap_or_default();
        let owner = match self.jobs.job(&job).await {
            Ok(found) => found.map(|job| job.owner).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, job, "nothing was sent");
                return Drawn::new(Bytes::new(), Some(Verdict::not_sent()), None);
            }
        };
        request.extensions_mut().insert(Internal { owner });
        if let Some(key) = &self.key {
            request.headers_mut().insert(API_KEY, key.clone());
        }
        let response = {
            let snapshot = self.gateway.borrow().clone();
            handler::handle(snapshot, Instant::now(), request).await
        };
        let (parts, body) = response.into_parts();
        let served: Option<Served> = parts.extensions.get().cloned();
        let verdict: Option<Verdict> = parts.extensions.get().cloned();
        // What was refused at the door, and had no call, was not sent.
        let was_called = parts.extensions.get::<tower_gemini::Trail>().is_some();
        let at_door = (!was_called).then(|| at_door(parts.status));
        match body.collect().await {
            Ok(body) => Drawn::new(body.to_bytes(), verdict.or(at_door), served)
                .with_head(parts.status, parts.headers),
            Err(error) => {
                tracing::debug!(%error, "a response broke off");
                Drawn::new(Bytes::new(), Some(Verdict::interrupted_delivery()), served)
            }
        }
    }
}

/// What a refusal of the gateway's own means to a job.
fn at_door(status: http::StatusCode) -> Verdict {
    match status.as_u16() {
        // A request that is wrong, and one whose owner may not send it: the same again is too.
        400..=428 | 431..=499 => Verdict::not_sent().not_retried(),
        _ => Verdict::not_sent(),
    }
}
