//! The page `/jobs` for people, its data, and the images on it: by the rule of the status pages.

use std::sync::LazyLock;

use axum::body::Body;
use http::header::{ACCEPT, CONTENT_SECURITY_POLICY, HeaderValue};
use http::{Method, Request, Response};
use serde_json::{Value, json};
use tower_gemini::redact::redact;
use tower_gemini_jobs::{Counts, ItemState, Job, JobState};

use super::Jobs;
use super::answers::{failed, image, is_id, item_json, json_page, no_place, no_such_job};
use super::submission::Query;
use crate::door::entry;
use crate::responses::{ErrorFormat, Rejection, page as text};
use crate::snapshot::Snapshot;
use crate::{status, wire};

const STYLE: &str = concat!(include_str!("../status/page.css"), include_str!("page.css"));
const SCRIPT: &str = concat!(include_str!("../status/live.js"), include_str!("page.js"));

/// Jobs on the page, the newest. Ours: what fits on a screen or two.
const SHOWN: usize = 50;
/// Items with images on one page of a job: each is loaded when it comes into view.
const IMAGES: u32 = 24;
/// Items of each other state on the page of a job.
const ITEMS: u32 = 20;

fn html() -> &'static str {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        include_str!("page.html").replace("/*style*/", STYLE).replace("/*script*/", SCRIPT)
    });
    &PAGE
}

fn csp() -> &'static str {
    static POLICY: LazyLock<String> =
        LazyLock::new(|| status::policy(SCRIPT, STYLE, "'self' data:"));
    &POLICY
}

/// Whether a path is the page's data. The page itself is at the path of the API.
pub(super) fn is_path(path: &str) -> bool {
    matches!(path, "/jobs.json" | "/jobs.image")
}

/// Whether a request is for the page or its data: at `/jobs`, what asks for HTML, as browsers do.
pub(super) fn is_for(request: &Request<Body>, path: &str) -> bool {
    let accepts = request.headers().get_all(ACCEPT);
    let accepts_html =
        accepts.iter().any(|value| value.to_str().is_ok_and(|value| value.contains("text/html")));
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    reads && (is_path(path) || (path == "/jobs" && accepts_html))
}

/// Answers a request for the page or its data.
pub(super) async fn handle(
    gateway: &Snapshot,
    jobs: Option<&Jobs>,
    path: &str,
    request: Request<Body>,
) -> Response<Body> {
    let (mut parts, _) = request.into_parts();
    let visit = match entry::enter_page(gateway, path, &mut parts).await {
        Ok(visit) => visit,
        Err(response) => return response,
    };
    let answer = async {
        let query = Query::parse(parts.uri.query())?;
        match path {
            "/jobs" => {
                let mut response = text("text/html; charset=utf-8", html());
                let policy = HeaderValue::from_static(csp());
                response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
                Ok(response)
            }
            "/jobs.json" => Ok(json_page(&data(jobs.ok_or_else(no_place)?, query).await?)),
            _ => picture(jobs.ok_or_else(no_place)?, query).await,
        }
    };
    let answer: Result<_, Rejection> = answer.await;
    let response = answer.unwrap_or_else(|no| no.into_response(ErrorFormat::Gemini));
    entry::leave_page(&visit, response)
}

async fn picture(jobs: &Jobs, mut query: Query) -> Result<Response<Body>, Rejection> {
    let job = query.take("job").filter(|job| is_id(job)).ok_or_else(no_such_job)?;
    let number = query.number("item")?.unwrap_or(0);
    let which = query.number("image")?.unwrap_or(1);
    query.finish()?;
    image(jobs, &job, number, which).await
}

/// All jobs, or one with its items.
async fn data(jobs: &Jobs, mut query: Query) -> Result<Value, Rejection> {
    let (id, after) = (query.take("job"), query.number("after")?.unwrap_or(0));
    query.finish()?;
    let mut all = json!({ "schema_version": 1, "at_unix_seconds": wire::now_unix() });
    let Some(id) = id else {
        let found = jobs.store.jobs(None).await.map_err(failed)?;
        let mut shown = Vec::new();
        for job in found.iter().take(SHOWN) {
            shown.push(one(jobs, job).await?);
        }
        all["jobs"] = shown.into();
        all["more_jobs"] = found.len().saturating_sub(SHOWN).into();
        return Ok(all);
    };
    let found = if is_id(&id) { jobs.store.job(&id).await.map_err(failed)? } else { None };
    let job = found.ok_or_else(no_such_job)?;
    all["job"] = one(jobs, &job).await?;
    let done = jobs.store.items(&id, Some(ItemState::Done), after, IMAGES).await.map_err(failed)?;
    let next = done.last().filter(|_| done.len() == IMAGES as usize).map(|last| last.number);
    let mut items: Vec<_> = done.iter().map(item_json).collect();
    let others = ItemState::ALL.iter().filter(|state| **state != ItemState::Done);
    for state in others {
        let found = jobs.store.items(&id, Some(*state), 0, ITEMS).await.map_err(failed)?;
        items.extend(found.iter().map(item_json));
    }
    all["items"] = items.into();
    all["next_after"] = next.into();
    Ok(all)
}

/// A job as the page shows it.
async fn one(jobs: &Jobs, job: &Job) -> Result<Value, Rejection> {
    let counts = jobs.store.counts(&job.id).await.map_err(failed)?;
    let to_come = jobs.store.to_come(&job.id).await.map_err(failed)?;
    Ok(json!({
        "id": job.id, "name": job.options.name, "owner": redact(&job.owner), "state": job.state,
        "stopped": job.stopped, "created_ms": job.created_ms, "finished_ms": job.finished_ms,
        "items": job.items, "counts": counts, "spent": job.spent, "requests": job.requests,
        "reserved_microusd": job.reserved_microusd, "to_come_at_most_microusd": to_come,
        "max_usd": job.options.max_usd, "waits": waits(jobs, job, &counts).await?,
    }))
}

/// Why nothing of a job is in flight, where that is so.
async fn waits(jobs: &Jobs, job: &Job, counts: &Counts) -> Result<Option<Value>, Rejection> {
    if job.state != JobState::Active || counts.running > 0 {
        return Ok(None);
    }
    let next = jobs.store.next_wait(&job.id).await.map_err(failed)?;
    Ok(next.map(|next| {
        json!({ "reason": next.reason.as_deref().map(redact), "until_ms": next.not_before_ms })
    }))
}
