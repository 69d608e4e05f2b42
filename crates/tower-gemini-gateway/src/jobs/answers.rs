//! What the API and the page of jobs answer alike.

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tower_gemini::redact::redact;
use tower_gemini_jobs::{Counts, Job, Record, StoreError, StoredItem};

use super::{Jobs, view};
use crate::responses::{Rejection, json_response};

/// Files are read in pieces of this size.
const PIECE: usize = 64 * 1024;

/// Job names as the store makes them. Nothing else reaches a path or a query.
pub(super) fn is_id(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A job for callers: of its webhook only the host.
pub(super) fn job_json(job: &Job, counts: &Counts) -> Value {
    let mut shown = view::json(job, counts);
    if let Some(webhook) = &job.options.webhook {
        let host = webhook.split('/').take(3).collect::<Vec<_>>().join("/");
        shown["options"]["webhook"] = format!("{host}/…").into();
    }
    shown
}

/// An item for callers, with its images.
pub(super) fn item_json(item: &StoredItem) -> Value {
    let mut shown = json!(item);
    if let Some(reason) = &item.reason {
        shown["reason"] = redact(reason).into();
    }
    let images = record(item).map(|record| record.images).unwrap_or_default();
    shown["images"] = json!(images);
    shown
}

fn record(item: &StoredItem) -> Option<Record> {
    serde_json::from_str(item.result.as_deref()?).ok()
}

/// An image of an item: `which` counts from 1.
pub(super) async fn image(
    jobs: &Jobs,
    job: &str,
    number: i64,
    which: usize,
) -> Result<Response<Body>, Rejection> {
    let item = jobs.store.item(job, number).await.map_err(failed)?;
    let record = item.as_ref().and_then(record).ok_or_else(no_such_image)?;
    let at = which.checked_sub(1).ok_or_else(no_such_image)?;
    let image = record.images.get(at).ok_or_else(no_such_image)?;
    let path = jobs.places.dir.join(job).join(&image.file);
    let file = tokio::fs::File::open(&path).await.map_err(|error| {
        tracing::warn!(%error, job, number, "an image of a job cannot be read");
        internal("the image is recorded and cannot be read")
    })?;
    let pieces = stream::try_unfold(file, |mut file| async {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut file).take(PIECE as u64).read_to_end(&mut piece).await?;
        Ok::<_, std::io::Error>((read > 0).then(|| (Bytes::from(piece), file)))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    let kind = match image.file.rsplit_once('.').map(|(_, extension)| extension) {
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("webp") => "image/webp",
        _ => "application/octet-stream",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // What is drawn stays as it is; other callers have other tokens.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(image.bytes));
    if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", image.sha256)) {
        headers.insert(ETAG, tag);
    }
    Ok(response)
}

pub(super) fn json_page(value: &Value) -> Response<Body> {
    json_response(StatusCode::OK, value.to_string())
}

/// Why the store did not do it.
pub(super) fn failed(error: StoreError) -> Rejection {
    if !error.is_failure() {
        return invalid(error.to_string());
    }
    tracing::error!(%error, "jobs");
    let message = "The store of jobs failed; the log of the gateway says why. Nothing was sent.";
    Rejection::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
}

pub(super) fn invalid(message: impl Into<String>) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message)
}

pub(super) fn internal(message: &str) -> Rejection {
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", message)
}

pub(super) fn no_such_image() -> Rejection {
    Rejection::new(StatusCode::NOT_FOUND, "NOT_FOUND", "There is no such image.")
}

pub(super) fn no_such_job() -> Rejection {
    Rejection::new(StatusCode::NOT_FOUND, "NOT_FOUND", "There is no such job.")
}

pub(super) fn no_place() -> Rejection {
    let message = "There is no place for jobs: set server.state_dir or jobs.store.";
    Rejection::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
}
