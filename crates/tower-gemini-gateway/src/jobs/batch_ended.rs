//! `POST /jobs/batch-ended`: Google says that a batch has ended, so that nobody has to ask.
//!
//! What it says is not trusted beyond that: batches are looked after at once, as they are every
//! minute, and their results come from the Batch API. Google signs its webhooks by Standard
//! Webhooks (webhooks page of the Gemini API, 2026-07).

use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};

use super::Jobs;
use crate::responses::{ErrorFormat, Rejection};
use crate::wire::now_unix;

/// Where Google is told to send them.
pub(super) const PATH: &str = "/jobs/batch-ended";

/// A message has a few hundred bytes.
const LONGEST: usize = 64 * 1024;

/// Takes a webhook of Google's.
pub(super) async fn handle(jobs: Option<&Jobs>, request: Request<Body>) -> Response<Body> {
    let refuse = |status, word: &'static str, message: &str| {
        Rejection::new(status, word, message).into_response(ErrorFormat::Gemini)
    };
    let Some((jobs, secret)) = jobs.and_then(|jobs| Some((jobs, jobs.batch_secret.as_ref()?)))
    else {
        let message =
            "This gateway takes no webhooks of batches: set jobs.batch_webhook_secret_env.";
        return refuse(StatusCode::NOT_FOUND, "NOT_FOUND", message);
    };
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, LONGEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            let message = "The message is too large, or broke off.";
            return refuse(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message);
        }
    };
    if !secret.has_signed(&parts.headers, &body, now_unix()) {
        let message = "The message is not signed with jobs.batch_webhook_secret_env, or is old.";
        return refuse(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message);
    }
    if let Err(error) = jobs.look_after_batches().await {
        tracing::warn!(%error, "a webhook of a batch is taken later");
        let message = "The store of jobs failed. Send it again.";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
