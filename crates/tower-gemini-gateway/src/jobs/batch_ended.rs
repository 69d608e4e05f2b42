//! `POST /jobs/batch-ended`: Google says that a batch has ended, so that nobody has to ask.
//!
//! What it says is not trusted beyond that: batches are looked after at once, as they are every
//! minute, and their results come from the Batch API. Google signs its webhooks by Standard
//! Webhooks (webhooks page of the Gemini API, 2026-07).

use axum::body::Body;
use http::request::Parts;
use http::{Request, Response, StatusCode};

use super::Jobs;
use crate::door::entry::{self, Visit};
use crate::handler::collect;
use crate::limits::BoundedBody;
use crate::responses::{self, ErrorFormat, Rejection};
use crate::snapshot::Snapshot;
use crate::wire::now_unix;

/// Where Google is told to send them.
pub(super) const PATH: &str = "/jobs/batch-ended";

/// A message has a few hundred bytes.
const LONGEST: usize = 64 * 1024;

/// Takes a webhook of Google's.
pub(super) async fn handle(
    gateway: &Snapshot,
    jobs: Option<&Jobs>,
    request: Request<Body>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let visit = Visit::new(gateway.door().clone(), &parts, PATH);
    let response = match take(gateway, jobs, &parts, body).await {
        Ok(()) => responses::no_content(),
        Err(rejection) => rejection.into_response(ErrorFormat::Gemini),
    };
    entry::leave_page(&visit, response)
}

async fn take(
    gateway: &Snapshot,
    jobs: Option<&Jobs>,
    parts: &Parts,
    body: Body,
) -> Result<(), Rejection> {
    let taken = jobs.and_then(|jobs| Some((jobs, jobs.batch_secret.as_ref()?)));
    let (jobs, secret) = taken.ok_or_else(|| {
        let message =
            "This gateway takes no webhooks of batches: set jobs.batch_webhook_secret_env.";
        Rejection::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
    })?;
    let idle = gateway.config().server.body_idle_timeout.0;
    let body = collect(Body::new(BoundedBody::new(body, LONGEST, idle, None))).await?;
    if !secret.has_signed(&parts.headers, &body, now_unix()) {
        entry::count_failure(gateway, parts).await;
        let message = "The message is not signed with jobs.batch_webhook_secret_env, or is old.";
        return Err(Rejection::new(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message));
    }
    jobs.look_after_batches().await.map_err(|error| {
        tracing::warn!(%error, "a webhook of a batch is taken later");
        let message = "The store of jobs failed. Send it again.";
        Rejection::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
    })
}
